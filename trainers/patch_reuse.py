"""Patches with a lesion that are used more than once, each time augmented anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Sample = dict[str, Any]

SMALL_BYTES = 16_000_000  # of an image whose lesion costs about as much as nnU-Net's transforms
OF_SMALL, OF_LARGE = (3, 12), (2, 4)  # how often a patch is used, and how many uses wait
KEPT_BYTES = 400_000_000  # by a worker, of patches that are used again


class PatchReuse:
    """Hands out each patch `times` times, mixed with others: `waiting` uses to choose from. Once: nothing is kept.

    Patches of a batch differ, so what waits grows with the batch: to at most `waiting`, and `times - 1` for each of its
    patches.
    """

    def __init__(self, times: int = 1, waiting: int = 12) -> None:
        self.times, self.least = times, waiting
        self.waiting: list[tuple[int, Sample]] = []
        self._made = 0
        self._in_batch: set[int] = set()

    @classmethod
    def of_patches(cls, size: Sequence[int], channels: int, times: int | None) -> PatchReuse:
        """For patches of `size` as they are before the spatial transforms; `times` None: what suits their size."""
        voxels = math.prod(size)
        suits, waiting = OF_SMALL if 4 * channels * voxels <= SMALL_BYTES else OF_LARGE
        room = KEPT_BYTES // ((4 * channels + 2) * voxels)  # an image and its labels
        return cls(times or (suits if room > waiting else 1), waiting)

    def begin_batch(self) -> None:
        """From here on patches differ from one another."""
        self._in_batch.clear()

    def draw(self, make: Callable[[], Sample]) -> Sample:
        """A patch that the caller may change; `make` makes another one where too few uses wait."""
        if self.times == 1:
            return make()
        if len(self.waiting) < self.least or not self._others():
            self.waiting += [(self._made, make())] * self.times
            self._made += 1
        others = self._others()
        number, drawn = self.waiting.pop(others[np.random.randint(len(others))])
        self._in_batch.add(number)
        return {key: value.clone() if hasattr(value, "clone") else value for key, value in drawn.items()}

    def _others(self) -> list[int]:
        """Where in what waits there are patches that the batch does not have."""
        return [i for i, (number, _) in enumerate(self.waiting) if number not in self._in_batch]
