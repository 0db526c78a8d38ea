"""Patches with a lesion that are used more than once, each time augmented anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Sample = dict[str, Any]

SMALL_BYTES = 16_000_000  # of an image whose lesion costs about as much as nnU-Net's transforms
OF_SMALL, OF_LARGE = (3, 12), (2, 4)  # how often a patch is used, and how many uses wait


class PatchReuse:
    """Hands out each patch `times` times, mixed with others: `waiting` uses to choose from. Once: nothing is kept.

    A worker keeps at most `waiting + times` patches, in general half as many.
    """

    def __init__(self, times: int = 1, waiting: int = 16) -> None:
        self.times, self.least = times, waiting
        self.waiting: list[Sample] = []
        self._in_batch: list[Sample] = []

    @classmethod
    def of_patches(cls, size: Sequence[int], channels: int, times: int | None) -> PatchReuse:
        """For patches of `size` as they are before the spatial transforms; `times` None: what suits their size."""
        suits, waiting = OF_SMALL if 4 * channels * math.prod(size) <= SMALL_BYTES else OF_LARGE
        return cls(times or suits, waiting)

    def begin_batch(self) -> None:
        """From here on patches differ from one another, as long as others wait."""
        self._in_batch.clear()

    def draw(self, make: Callable[[], Sample]) -> Sample:
        """A patch that the caller may change; `make` makes another one where too few uses wait."""
        if self.times == 1:
            return make()
        if len(self.waiting) < self.least:
            self.waiting += [make()] * self.times
        others = [i for i, one in enumerate(self.waiting) if not any(one is shown for shown in self._in_batch)]
        chosen = others[np.random.randint(len(others))] if others else np.random.randint(len(self.waiting))
        drawn = self.waiting.pop(chosen)
        self._in_batch.append(drawn)
        return {key: value.clone() if hasattr(value, "clone") else value for key, value in drawn.items()}
