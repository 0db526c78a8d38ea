"""The lesions of a data set's settings, ready to grow: in training patches, in the fixed set, in whole volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_synthtumour.dataset_folders import channels_of
from nnunet_synthtumour.drawing import uniform
from nnunet_synthtumour.intensities import normalisation
from nnunet_synthtumour.lesion_labels import lesion_labels
from nnunet_synthtumour.lesion_model import LesionModel, load_model
from nnunet_synthtumour.renormalising import Renormaliser
from nnunet_synthtumour.settings import Settings
from nnunet_synthtumour.synthesis import GrowLesion, grow_in_volume
from nnunet_synthtumour.trainers.fixed_patches import SHIFTED, FixedPatch
from nnunet_synthtumour.trainers.host_patches import whole_voxels
from nnunet_synthtumour.trainers.lesion_checks import (
    labels_in_words,
    other_preset,
    refuse_unwritten,
    small_hosts_in_words,
)

Sample = dict[str, Any]

IN_PATCHES, IN_VOLUMES = (
    0.5,
    1.0,
)  # least share of shifted lesions with each labelled part: dozens of patches, few volumes


class Lesions:
    """What grows, for one configuration of one data set."""

    def __init__(
        self, settings: Settings, dataset_json: dict[str, Any], plans: PlansManager, configuration_name: str
    ) -> None:
        self.settings = settings
        self.dataset_labels = dataset_json["labels"]
        self.labels = lesion_labels(self.dataset_labels, settings.lesion.parts)
        self.ignore_label = plans.get_label_manager(dataset_json).ignore_label
        self.channels = channels_of(dataset_json)
        self.spacing = tuple(plans.get_configuration(configuration_name).spacing)
        self.renormaliser = Renormaliser.of(plans.get_configuration(configuration_name))
        self.own = load_model(settings.lesion.preset, settings.lesion.overrides, self.channels)
        # As in the paper, the shift is one of appearance: shapes and contrasts stay those that are trained on.
        other = other_preset(settings)
        self.other = load_model(other, channels=self.channels) if other else self.own
        refuse_unwritten(self.dataset_labels, self.labels, settings, self.own, self.other)
        self._of_case = {
            case: normalisation(settings, plans.plans, configuration_name, case) for case in settings.roles
        }

    def describe(self, hosts_ml: Sequence[float] = ()) -> list[str]:
        """Lines for the log: which part gets which label, and whether hosts (of that many ml) are too small."""
        warning = small_hosts_in_words(hosts_ml, self.own)
        return [labels_in_words(self.dataset_labels, self.labels, self.own), *([warning] if warning else [])]

    def transform(
        self, model: LesionModel, probability: float, region: Sequence[int] | None, spacing: Sequence[float],
        shifted: bool = False,
    ) -> GrowLesion:  # fmt: skip
        return GrowLesion(model, self.labels, spacing, self.ignore_label, self.channels, probability, region, shifted)

    def for_training(self, patch_size: Sequence[int]) -> Callable[[str, Sample], Sample]:
        """Grows a lesion that survives the crop to `patch_size`, in all but a share of the patches."""
        return _InPatch(self.transform(self.own, 1 - self.settings.training.healthy_patches, patch_size, self.spacing),
                        self._of_case, self.renormaliser)  # fmt: skip

    def for_validation(self, patch_size: Sequence[int]) -> Callable[[FixedPatch, Sample], Sample]:
        """Grows the lesion of a patch of the fixed set: of the training's own kind, or of the shifted kind."""
        return _InFixedPatch(
            own=self.transform(self.own, 1.0, patch_size, self.spacing),
            shifted=self._shifted(patch_size, self.spacing, IN_PATCHES),
            none=self.transform(self.own, 0.0, patch_size, self.spacing),
            noise=self.settings.validation.noise if self.settings.validation.shift == "noise" else None,
            of_case=self._of_case,
            renormaliser=self.renormaliser,
        )

    def _shifted(self, patch_size: Sequence[int] | None, spacing: Sequence[float], least: float) -> GrowLesion:
        """`least`: how often, at least, a part with a label of its own is there. A class without reference scores 0 as
        soon as one voxel of it is predicted, and not at all otherwise."""
        labelled = [part for part, value in self.labels.items() if value != self.labels["whole"]]
        model = self.other.with_parts(labelled, least)
        return self.transform(model, 1.0, patch_size, spacing, self.settings.validation.shift == "paper")

    def in_volume(
        self, case: str, data: np.ndarray, seg: np.ndarray, spacing: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """A whole preprocessed case (C, X, Y, Z) and (1, X, Y, Z) with one lesion of the shifted kind."""
        image, labels, _ = grow_in_volume(self._shifted(None, spacing, IN_VOLUMES), data, seg, self._of_case.get(case))
        before = self.renormaliser.sums(torch.from_numpy(np.array(data, dtype=np.float32)))
        self.renormaliser.apply(torch.from_numpy(image), before, whole_voxels(seg))
        if self.settings.validation.shift == "noise":
            add_noise(torch.from_numpy(image), torch.from_numpy(labels), self.settings.validation.noise)
        return image, labels


class _InPatch:
    """A callable that workers can be handed, unlike a closure."""

    def __init__(self, transform: GrowLesion, of_case: dict[str, Any], renormaliser: Renormaliser) -> None:
        self.transform, self.of_case, self.renormaliser = transform, of_case, renormaliser

    def __call__(self, case: str, sample: Sample) -> Sample:
        return changed(self.transform, sample, self.renormaliser, self.of_case.get(case))


class _InFixedPatch:
    def __init__(
        self,
        own: GrowLesion,
        shifted: GrowLesion,
        none: GrowLesion,
        noise: tuple[float, float] | None,
        of_case: dict[str, Any],
        renormaliser: Renormaliser,
    ) -> None:
        self.own, self.shifted, self.none, self.noise, self.of_case = own, shifted, none, noise, of_case
        self.renormaliser = renormaliser

    def __call__(self, patch: FixedPatch, sample: Sample) -> Sample:
        kind = self.shifted if patch.kind == SHIFTED else self.own
        transform = kind if patch.affected else self.none
        sample = changed(transform, sample, self.renormaliser, self.of_case.get(patch.case))
        if self.noise is not None and patch.kind == SHIFTED:
            add_noise(sample["image"], sample["segmentation"], self.noise)
        return sample


def add_noise(image: torch.Tensor, seg: torch.Tensor, deviation: tuple[float, float]) -> None:
    """Noise of a deviation drawn from that range, in place, where nnU-Net has not marked padding or the outside of the
    image (-1): there nobody's image has any."""
    image += uniform(deviation) * torch.randn(image.shape) * (seg[:1] >= 0)


def changed(transform: BasicTransform, sample: Sample, renormaliser: Renormaliser, normalisation: Any = None) -> Sample:
    """Image and segmentation of a sample with what `transform` puts into it, normalised as nnU-Net would then."""
    inside = (slice(None), *sample.get("inside", ()))
    before = renormaliser.sums(sample["image"][inside])
    done = transform(**sample, normalisation=normalisation)
    if "whole_voxels" in sample:  # labelled cases are what they are
        renormaliser.apply(done["image"][inside], before, sample["whole_voxels"])
    return {"image": done["image"], "segmentation": done["segmentation"]}
