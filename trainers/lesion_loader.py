"""The training loader: real patches as they are, healthy patches with a lesion grown before anything else happens."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController

from nnunet_synthtumour.trainers.host_patches import HostPatchLoader, stack_targets
from nnunet_synthtumour.trainers.patch_reuse import PatchReuse

Sample = dict[str, Any]


class LesionLoader(HostPatchLoader):
    """Batches of augmented patches.

    `grow(case, sample)` puts a lesion into a healthy sample before nnU-Net's transforms, so that it is rotated, scaled,
    blurred and cropped as part of the image. `outside_counts` says whether a transform asks for nnU-Net's -1 (outside of
    the image); where none does it becomes background at once, as nnU-Net does later: rotating a patch costs an
    interpolation per label. `reuse` says how often a patch with a lesion is used.
    """

    def __init__(
        self,
        *args: Any,
        grow: Callable[[str, Sample], Sample],
        host_centred: float,
        outside_counts: bool = True,
        reuse: PatchReuse | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.grow = grow
        self.reuse = reuse or PatchReuse()
        self.host_centred = host_centred
        self.outside_counts = outside_counts

    def padding(self) -> int:
        return super().padding() if self.outside_counts else 0

    def generate_train_batch(self) -> dict[str, Any]:
        cases = self.get_indices()
        self.reuse.begin_batch()
        with torch.no_grad(), _libraries().limit(limits=1):
            samples = [self.sample(str(case), self.get_do_oversample(i)) for i, case in enumerate(cases)]
        return {
            "data": torch.stack([s["image"] for s in samples]),
            "target": stack_targets([s["segmentation"] for s in samples]),
            "keys": [s["case"] for s in samples],
        }

    def sample(self, case: str, oversample: bool) -> Sample:
        """One augmented patch of `case`; of a healthy case that came before, where grown patches come again."""
        if case in self.healthy:
            sample = self.reuse.draw(lambda: self.cut(case, oversample))
        else:
            sample = self.cut(case, oversample)
        case = sample.pop("case")
        augmented = self.transforms(**sample) if self.transforms is not None else sample
        return {**augmented, "case": case}

    def cut(self, case: str, oversample: bool) -> Sample:
        """A patch of `case` as nnU-Net's transforms take it, with a lesion if the case is healthy."""
        in_host = np.random.uniform() < self.host_centred
        sample: Sample = self.patch_at(case, in_host, oversample)
        inside = sample.get("inside", ())
        if case in self.healthy:
            sample = self.grow(case, sample)
        if not self.outside_counts:
            sample["segmentation"][(slice(None), *inside)].clamp_min_(0)
        return {**sample, "case": case}


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    """The process's libraries with threads; finding them takes milliseconds, more than a small patch has to spare."""
    return ThreadpoolController()


def sampling_probabilities(cases: list[str], healthy: set[str], labelled_share: float) -> list[float] | None:
    """Chance of each case such that labelled cases make up `labelled_share`; None (uniform) where there is one kind."""
    n_healthy = sum(case in healthy for case in cases)
    n_labelled = len(cases) - n_healthy
    if not n_healthy or not n_labelled:
        return None
    return [(1 - labelled_share) / n_healthy if case in healthy else labelled_share / n_labelled for case in cases]
