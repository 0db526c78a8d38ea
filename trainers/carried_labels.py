"""Labels of several registered sources, fused on a target, with a confidence; kept beside a model as pseudo-labels."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nnunet_synthtumour.atomic_files import complete
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.registration.anatomy import one_hot
from nnunet_synthtumour.registration.fields import warp
from nnunet_synthtumour.registration.mind import mind_ssc
from nnunet_synthtumour.registration.windows import gaussian_smooth
from nnunet_synthtumour.trainers.whole_grids import OUTSIDE, Grid

SHARPNESS = 8.0  # how fast a source loses its say where it looks unlike the target, per typical difference
NEIGHBOURHOOD = 2.0  # voxels over which likeness is judged
REPORT = "carried_labels.json"
ABSTAINS = -2  # a source's vote where its annotator ignored what there is


class Carried(NamedTuple):
    """On the common grid: labels (X, Y, Z), the sources' agreement in 0 ... 1, and likeness (MIND difference)."""

    labels: Tensor
    agreement: Tensor
    difference: Tensor


def unlikeness(warped: Tensor, target: Tensor) -> Tensor:
    """Local difference of two images of any modalities, (B, C, X, Y, Z) -> (B, 1, X, Y, Z)."""
    different = [
        ((mind_ssc(a) - mind_ssc(b)) ** 2).mean(1, keepdim=True)
        for a, b in zip(warped.split(1, 1), target.split(1, 1), strict=True)
    ]
    return gaussian_smooth(torch.stack(different).mean(0), NEIGHBOURHOOD)


def vote(seg: Tensor, u: Tensor, classes: int) -> Tensor:
    """Labels (1, 1, X, Y, Z) as the displacement carries them, (X, Y, Z) on the CPU; those above all `classes` are the
    ignore label."""
    labels = warp(one_hot(seg.clamp(min=0), classes), u)[0].argmax(0)
    ignored = (seg >= classes).float()
    if ignored.any():
        labels = labels.masked_fill(warp(ignored, u)[0, 0] > 0.5, ABSTAINS)
    return labels.short().cpu()


def fuse(
    labels: Sequence[Tensor], differences: Sequence[Tensor], classes: int, ignore: int | None = None
) -> Carried:  # fmt: skip
    """Votes of the warped `labels` (X, Y, Z), each weighted by exp(-SHARPNESS difference / typical difference).

    Where most abstain, the label is `ignore`, if there is one.
    """
    typical = torch.stack([d.mean() for d in differences]).mean().clamp(min=1e-9)
    weights = torch.stack([torch.exp(-SHARPNESS * d / typical) for d in differences])
    weights = (weights + 1e-6) / (weights + 1e-6).sum(0)
    votes = torch.stack([sum(w * (one == c) for w, one in zip(weights, labels, strict=True)) for c in range(classes)])
    agreement, best = votes.max(0)
    if ignore is not None:
        best = best.masked_fill(votes.sum(0) < 0.5, ignore)
    return Carried(best.to(torch.int16), agreement.float(), (weights * torch.stack(list(differences))).sum(0))


def trusted(carried: Carried, least_agreement: float, doubtful: float, ignore: int) -> Tensor:
    """Labels with the ignore label where sources disagree or the images look least alike."""
    limit = torch.quantile(
        carried.difference.flatten()[:: max(1, carried.difference.numel() // 1_000_000)], 1 - doubtful
    )
    unsure = (carried.agreement < least_agreement) | ((carried.difference > limit) & (doubtful > 0))
    return torch.where(unsure, torch.full_like(carried.labels, ignore), carried.labels)


def to_case(labels: np.ndarray, seg: np.ndarray, properties: dict[str, Any], grid: Grid) -> np.ndarray:
    """Labels (X, Y, Z) of the common grid on the preprocessed grid of a case: the inverse of `whole_grids.on_grid`."""
    cropped = properties["shape_after_cropping_and_before_resampling"]
    begins = [bounds[0] for bounds in properties["bbox_used_for_cropping"]]
    at = [
        np.clip(np.rint(((np.arange(m) + 0.5) * crop / m + begin) * n / raw - 0.5), 0, n - 1).astype(int)
        for m, crop, begin, n, raw in zip(seg.shape[1:], cropped, begins, grid.shape, grid.raw_shape, strict=True)
    ]
    found = labels[np.ix_(*at)].astype(np.int16)[None]
    found[seg == OUTSIDE] = OUTSIDE
    return found


def write_case(folder: Path, case: str, seg: np.ndarray, locations: dict[Any, Any]) -> None:
    with complete(folder / f"{case}_seg.npy") as scratch, scratch.open("wb") as stream:
        np.save(stream, seg)
    with complete(folder / f"{case}.pkl") as scratch, scratch.open("wb") as stream:
        pickle.dump(locations, stream)


def read_locations(folder: Path, case: str) -> dict[Any, Any]:
    with (folder / f"{case}.pkl").open("rb") as stream:
        return dict(pickle.load(stream))


def dataset_with_carried_labels(base: type[Any], folder: Path) -> type[Any]:
    """A dataset class that loads targets with the labels that were carried to them."""

    class DatasetWithCarriedLabels(base):
        def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
            data, seg, seg_prev, properties = super().load_case(identifier)
            file = folder / f"{identifier}_seg.npy"
            if file.is_file():
                seg = np.load(file, mmap_mode="r")
                if seg.shape[1:] != data.shape[1:]:
                    raise UserError(
                        f"{file} has the shape {seg.shape[1:]}, but the preprocessed case {data.shape[1:]}: it belongs to "
                        f"another preprocessing; remove {folder} and train again."
                    )
                properties = {**properties, "class_locations": read_locations(folder, identifier)}
            return data, seg, seg_prev, properties

        def __reduce__(self) -> tuple[Any, ...]:
            return rebuilt, (dataset_with_carried_labels, base, folder, self.__dict__)

    return DatasetWithCarriedLabels


def rebuilt(make: Callable[[type[Any], Path], type[Any]], base: type[Any], folder: Path, state: dict[str, Any]) -> Any:
    """A dataset of a class that a function made: such classes cannot be pickled for a spawned worker themselves."""
    kind = make(base, folder)
    dataset: Any = object.__new__(kind)
    dataset.__dict__.update(state)
    return dataset


def is_complete(folder: Path, about: dict[str, Any] | None = None) -> bool:
    """Whether labels of an earlier run are there; with `about`, only those of a run about which the same was written."""
    file = folder / REPORT
    if about is None or not file.is_file():
        return file.is_file()
    written = json.loads(file.read_text(encoding="utf-8"))
    return {key: value for key, value in written.items() if key != "cases"} == json.loads(json.dumps(about))


def summary(case: str, sources: Sequence[str], kept: Tensor, carried: Carried, names: dict[int, str], ignore: int,
            spacing: Sequence[float]) -> dict[str, Any]:  # fmt: skip
    """What was kept of a target's labels; `kept` and `agreement` are None of a structure that was not carried."""
    ml = float(np.prod(spacing)) / 1000
    found = {}
    for value, name in names.items():
        before = carried.labels == value
        found[name] = {
            "ml": round(float((kept == value).sum()) * ml, 3),
            "kept": round(float((kept == value).sum() / before.sum()), 4) if before.any() else None,
            "agreement": round(float(carried.agreement[before].mean()), 4) if before.any() else None,
        }
    return {"case": case, "sources": list(sources), "ignored": round(float((kept == ignore).float().mean()), 5),
            "labels": found}  # fmt: skip


def write_report(folder: Path, about: dict[str, Any], cases: Sequence[dict[str, Any]]) -> None:
    with complete(folder / REPORT) as scratch:
        scratch.write_text(json.dumps({**about, "cases": list(cases)}, indent=1) + "\n", encoding="utf-8")
