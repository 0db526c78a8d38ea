"""Labels of a few images on all others before any network has learnt something: fields fitted pair by pair, then fused.

A registration network needs hundreds of steps until it carries labels as well as fields that are optimised for each pair.
The same fields warp labelled images: carried labels are off by as much as their field, but belong to the image that a
segmenter will see; the labels of a warped image are right, but its intensities are always those of the few. A segmenter
learns from both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from nnunet_synthtumour.registration.fields import warp
from nnunet_synthtumour.registration.instance import (
    REGULARITY_WEIGHTS,
    InstanceSettings,
    Similarity,
    image_cost,
    normalised,
    optimise,
)
from nnunet_synthtumour.settings import RegistrationSettings
from nnunet_synthtumour.trainers.carried_labels import (
    Carried,
    dataset_with_carried_labels,
    fuse,
    read_locations,
    rebuilt,
    unlikeness,
    vote,
    write_case,
)

# hippocampi, three draws: labels that come to other images on four ways have Dice 0.792, 0.805, 0.805 with these, and
# 0.766, 0.793, 0.797 with smoothing 1, gradient 1.5 and a whole weight; only inverses may fold, which nobody asks for
FINE = InstanceSettings(smoothing=0.5, max_gradient=3.0)
STIFFNESS = 0.5  # of the regularity of a registration network
HASTE = 3  # times fewer iterations, in one direction, for fields whose errors a vote evens out
WARPED = "warped to "  # with a case's name: the labelled image that was warped to it


class Fitted(NamedTuple):
    """On the common grid: the labels that were carried to a case, and the likest labelled image warped to it, image
    (C, X, Y, Z) and labels (1, X, Y, Z)."""

    carried: Carried
    image: Tensor
    labels: Tensor


class LabelFitter:
    """`cases` gives a `Whole` by case, all on one grid of `spacing` mm; `ignore` is the ignore label, if there is one."""

    def __init__(
        self,
        cases: Any,
        settings: RegistrationSettings,
        iterations: int,
        classes: int,
        spacing: Sequence[float],
        device: torch.device,
        ignore: int | None = None,
    ) -> None:
        self.cases, self.classes, self.device, self.ignore = cases, classes, device, ignore
        self.spacing = tuple(float(mm) for mm in spacing)
        similarity = cast(Similarity, settings.similarity)
        self.wanted = replace(
            FINE,
            similarity=similarity,
            iterations=iterations,
            regularity=settings.regularity_kind,  # type: ignore[arg-type]
            regularity_weight=settings.regularity * REGULARITY_WEIGHTS[similarity] * STIFFNESS,
            symmetric=True,
        )

    def most_alike(self, target: str, labelled: Sequence[str], count: int) -> list[str]:
        """Up to `count` of the labelled cases, the likest first, as they lie before any deformation."""
        if len(labelled) < 2:
            return list(labelled)
        fixed = self._match(target)
        costs = {case: image_cost(self.wanted.similarity, self._match(case), fixed) for case in labelled}
        return sorted(labelled, key=lambda case: costs[case])[:count]

    def relays(self, labelled: Sequence[str], others: Sequence[str], count: int) -> list[str]:
        """Up to `count` of the `others`, in turn the likest to each of the first few labelled cases: it is they that labels
        reach best."""
        likest = [self.most_alike(case, others, count) for case in labelled[:count]]
        return list(dict.fromkeys(case for cases in zip(*likest, strict=True) for case in cases))[:count]

    def fit(self, target: str, sources: Sequence[str]) -> Fitted:
        """Labels of all `sources` on the grid of `target`, fused, and the first source as it is warped."""
        fixed = self._match(target)
        labels: list[Tensor] = []
        differences: list[Tensor] = []
        warped: list[Any] = []
        for source in sources:
            moving, whole = self._match(source), self.cases[source]
            with torch.enable_grad():
                u = optimise(moving, fixed, self.wanted, self.spacing).displacement
            seg = whole.seg[None].clamp(min=0).to(self.device)
            labels.append(vote(seg, u, self.classes))
            differences.append(unlikeness(warp(moving, u), fixed)[0, 0].cpu())
            if not warped:
                image = warp(whole.image[None].to(self.device), u)[0].cpu()
                warped = [image, warp(seg.float(), u, "nearest")[0].short().cpu()]
        return Fitted(fuse(labels, differences, self.classes, self.ignore), *warped)

    def by_way_of(self, relays: Mapping[str, Tensor], target: str, direct: Carried) -> Carried:
        """The `direct` labels of a target outvoted, where they are, by those of other images, (X, Y, Z), carried on to it.

        A label that comes to a target on many ways has made a different error on each of them.
        """
        fixed = self._match(target)
        labels = [direct.labels] * (1 + len(relays) % 2)  # no ties, which background would win
        hasty = replace(self.wanted, iterations=max(1, self.wanted.iterations // HASTE), symmetric=False)
        for relay, known in relays.items():
            with torch.enable_grad():
                u = optimise(self._match(relay), fixed, hasty, self.spacing).displacement
            labels.append(vote(known[None, None].to(self.device), u, self.classes))
        return fuse(labels, [direct.difference] * len(labels), self.classes, self.ignore)

    def _match(self, case: str) -> Tensor:
        """What is compared: the image and how steep it is, by which edges of small and faint structures count."""
        image = self.cases[case].match()[None].to(self.device)
        return (
            torch.cat((image, normalised(steepness(image, self.spacing))), 1)
            if self.wanted.similarity == "lncc"
            else image
        )


def steepness(image: Tensor, spacing: Sequence[float]) -> Tensor:
    """Length of each channel's gradient per mm, (B, C, X, Y[, Z])."""
    axes = {axis: mm for axis, mm in enumerate(spacing, 2) if image.shape[axis] > 1}
    slopes = torch.gradient(image, spacing=tuple(axes.values()), dim=tuple(axes))
    return torch.stack(slopes).square().sum(0).sqrt()


def write_warped(folder: Path, case: str, fitted: Fitted, locations: dict[Any, Any]) -> None:
    """The image in half precision, unless its values are beyond that: it is read as often as nnU-Net's own."""
    image = fitted.image.numpy()
    half = float(np.abs(image).max()) < np.finfo(np.float16).max
    np.save(folder / f"{WARPED}{case}_image.npy", image.astype(np.float16) if half else image)
    write_case(folder, f"{WARPED}{case}", fitted.labels.numpy(), locations)


def files_of(case: str) -> list[str]:
    """What is written of a case that labels are fitted to."""
    return [f"{case}_seg.npy", f"{case}.pkl", *[f"{WARPED}{case}{end}" for end in ("_image.npy", "_seg.npy", ".pkl")]]


def dataset_with_fitted(base: type[Any], folder: Path) -> type[Any]:
    """A dataset class that loads cases with the labels that were fitted to them, and images `WARPED` to them."""

    class DatasetWithFitted(dataset_with_carried_labels(base, folder)):  # type: ignore[misc]
        def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
            if not identifier.startswith(WARPED):
                return super().load_case(identifier)
            data = np.load(folder / f"{identifier}_image.npy", mmap_mode="r")
            seg = np.load(folder / f"{identifier}_seg.npy", mmap_mode="r")
            return data, seg, None, {"class_locations": read_locations(folder, identifier)}

        def __reduce__(self) -> tuple[Any, ...]:
            return rebuilt, (dataset_with_fitted, base, folder, self.__dict__)

    return DatasetWithFitted
