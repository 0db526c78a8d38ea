"""Cases for the visibility report, from raw data sets: targets, and labels of their own or brought over from a source."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from nnunet_synthtumour.dataset_folders import RAW, nnunet_folder, raw_files, read_dataset_json
from nnunet_synthtumour.dataset_labels import structures, unmatched
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_checks import difference
from nnunet_synthtumour.image_files import read_or_refuse
from nnunet_synthtumour.registration.fields import warp
from nnunet_synthtumour.registration.instance import InstanceSettings, normalised, optimise
from nnunet_synthtumour.settings import LABELLED, PSEUDO, Settings, settings_of
from nnunet_synthtumour.visibility import VisibilityCase

ITERATIONS = 30
LEAST_INSIDE = 0.5  # of the volume of the source's structures; the rest has no voxel of the target to be judged by
FINE_MM = 2.0  # fields need no finer grid: what is left of a border is corrected by what the target shows


@dataclass(frozen=True)
class Given:
    """What is compared: the target data set and where labels come from (a folder, or a source data set)."""

    target: str
    labels: Path | None = None
    source: str | None = None
    cases: int = 8
    register: bool = True


def read_cases(given: Given) -> tuple[list[VisibilityCase], dict[str, int], str]:
    """Cases, label names, and a sentence on where the labels are from."""
    dataset_json, file = read_dataset_json(given.target)
    folder = file.parent
    settings = settings_of(dataset_json)
    names = structures(dataset_json["labels"])
    if not names:
        raise UserError(f"{file} declares no plain label; visibility is measured per label, not per region.")
    everyone = _names(folder, dataset_json)
    if given.labels is not None:
        ending = dataset_json["file_ending"]
        files = {case: given.labels / f"{case}{ending}" for case in everyone}
        files = {case: label for case, label in files.items() if label.is_file()}
        if not files:
            raise UserError(
                f"{given.labels} has no label map named like a case of {folder}, such as {everyone[0]}{ending}."
            )
        return (
            [_own(folder, dataset_json, c, f) for c, f in _some(files, given.cases)],
            names,
            f"labels: {given.labels}",
        )
    own = _labelled(folder, dataset_json, LABELLED)
    if own:
        return [_own(folder, dataset_json, c, f) for c, f in _some(own, given.cases)], names, "labels: the target's own"
    source = given.source or (settings.source.dataset if settings.source else None)
    if source is None:
        raise UserError(
            f"{folder.name} has no labelled case; give --labels FOLDER, or --source DATASET of the labelled modality."
        )
    return _carried(given, folder, dataset_json, names, source, _are_paired(settings, source))


def _are_paired(settings: Settings, source: str) -> bool:
    """Whether cases of one name are one patient: only those of the source that the settings name."""
    if settings.source is None or settings.source.pairing != "paired":
        return False
    return source == settings.source.dataset or (
        read_dataset_json(source)[1] == read_dataset_json(settings.source.dataset)[1]
    )


def _carried(
    given: Given, folder: Path, dataset_json: dict[str, Any], names: dict[str, int], source: str, paired: bool
) -> tuple[list[VisibilityCase], dict[str, int], str]:
    nnunet_folder(RAW)
    source_json, file = read_dataset_json(source)
    theirs = {int(v): names[k] for k, v in source_json["labels"].items() if k in names and isinstance(v, int)}
    if not theirs:
        raise UserError(
            f"{file.parent} has none of the labels {', '.join(names)}; use the same names in both data sets."
        )
    if warning := unmatched(folder.name, dataset_json["labels"], file.parent.name, source_json["labels"]):
        print(f"warning: {warning}", file=sys.stderr)
    labels, targets = _labelled(file.parent, source_json, LABELLED, PSEUDO), _names(folder, dataset_json)
    sources = sorted(labels)
    if not sources:
        raise UserError(f"{file.parent} has no labelled case; name another data set as the source.")
    pairs = {c: c if paired else sources[i % len(sources)] for i, c in enumerate(targets) if not paired or c in labels}
    if not pairs:
        raise UserError(
            f"source.pairing is 'paired', but no case of {folder.name} is called like a labelled one of {file.parent.name}; "
            "give a patient's images one name, or set source.pairing=unpaired."
        )
    chosen = _some(pairs, given.cases)
    given_and_inside = [
        _volumes(labels[name], raw_files(folder, dataset_json, target)[0][0], list(theirs)) for target, name in chosen
    ]
    total, inside = np.sum(given_and_inside, axis=0)
    if inside < LEAST_INSIDE * total:
        raise UserError(
            f"Only {inside / total:.0%} of the labels of {file.parent.name} lie within the images of {folder.name}; put both "
            "on one grid with 'synthtumour align' first, and ask about the aligned data sets."
        )
    cases = []
    for target, name in chosen:
        fixed = _channels(folder, dataset_json, target)
        moving = raw_files(file.parent, source_json, name)[0][0]
        brought = _brought(target, fixed, moving, labels[name], theirs, given.register)
        cases.append(replace(brought, of_another=not paired))
    how = "registered" if given.register else "as they lie"
    which = "of the same patients" if paired else "of other patients"
    return cases, names, f"labels: {file.parent.name}, {which}, {how}"


def _volumes(label_file: Path, fixed_file: Path, values: list[int]) -> tuple[float, float]:
    """Of the structures in a label map, and of what of them lies within the fixed image (mm^3)."""
    label = _read(label_file)
    inside = sitk.Resample(
        label, _read(fixed_file), sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor, 0.0
    )
    there, here = (
        float(np.isin(np.rint(_array(image)), values).sum() * np.prod(image.GetSpacing())) for image in (label, inside)
    )
    return there, here


def _brought(
    name: str, fixed: list[sitk.Image], moving_file: Path, label_file: Path, values: dict[int, int], register: bool
) -> VisibilityCase:
    moving, label = (
        sitk.Resample(_read(file), fixed[0], sitk.Transform(3, sitk.sitkIdentity), interpolator, 0.0)
        for file, interpolator in ((moving_file, sitk.sitkLinear), (label_file, sitk.sitkNearestNeighbor))
    )
    there, given = _array(moving), _array(label)
    seg = np.zeros(given.shape, np.int16)
    for value, to in values.items():
        seg[np.rint(given) == value] = to
    spacing = fixed[0].GetSpacing()[::-1]
    target = np.stack([_array(image) for image in fixed])
    if register:
        one, other = (normalised(torch.from_numpy(a)[None, None]) for a in (there, target[0]))
        u = quick_field(one, other, spacing)
        there = warp(torch.from_numpy(there)[None, None], u)[0, 0].numpy()
        seg = warp(torch.from_numpy(seg)[None, None].float(), u, "nearest")[0, 0].numpy().astype(np.int16)
    return VisibilityCase(name, target, seg, spacing, there[None], _frame(fixed[0]), carried=True)


def quick_field(moving: torch.Tensor, fixed: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
    """The displacement of two normalised images (1, C, X, Y, Z), good enough to see what one shows of the other."""
    levels = (4, 2) if min(spacing) < FINE_MM else (4, 2, 1)
    wanted = InstanceSettings(similarity="nmi", iterations=ITERATIONS, levels=levels)
    with torch.enable_grad():
        return optimise(moving, fixed, wanted, spacing).displacement


def _own(folder: Path, dataset_json: dict[str, Any], case: str, label: Path) -> VisibilityCase:
    images, labels = _channels(folder, dataset_json, case), _read(label)
    _refuse_another_grid(images[0], labels, label)
    values = np.rint(_array(labels)).astype(np.int16)
    target, first = np.stack([_array(image) for image in images]), images[0]
    return VisibilityCase(case, target, values, first.GetSpacing()[::-1], frame=_frame(first))


def _channels(folder: Path, dataset_json: dict[str, Any], case: str) -> list[sitk.Image]:
    """The images of a case, which lie on one grid."""
    files, _ = raw_files(folder, dataset_json, case)
    images = [_read(file) for file in files]
    for file, image in zip(files[1:], images[1:], strict=True):
        _refuse_another_grid(images[0], image, file)
    return images


def _refuse_another_grid(first: sitk.Image, other: sitk.Image, file: Path) -> None:
    what = difference(first, other)
    if what:
        raise UserError(f"{file} has another {what} than the first image of the case; resample one to the other.")


def _frame(image: sitk.Image) -> tuple[float, ...]:
    return (*image.GetOrigin(), *image.GetDirection())


def _labelled(folder: Path, dataset_json: dict[str, Any], *roles: str) -> dict[str, Path]:
    """Label files of the cases of these roles; where no roles are recorded, of all cases that have one."""
    settings = settings_of(dataset_json)
    cases = settings.cases(*roles) if settings.roles else _names(folder, dataset_json)
    files = {case: raw_files(folder, dataset_json, case)[1] for case in cases}
    return {case: file for case, file in files.items() if settings.roles or file.is_file()}


def _names(folder: Path, dataset_json: dict[str, Any]) -> list[str]:
    if "dataset" in dataset_json:
        return sorted(dataset_json["dataset"])
    first = f"_0000{dataset_json['file_ending']}"
    found = sorted(f.name[: -len(first)] for f in (folder / "imagesTr").glob(f"*{first}") if f.name[0] != ".")
    if not found:
        raise UserError(f"There are no images *{first} in {folder / 'imagesTr'}; is this a raw nnU-Net data set?")
    return found


def _some(cases: dict[str, Any], n: int) -> list[tuple[str, Any]]:
    """At most `n`, spread over the sorted names."""
    order = sorted(cases)
    chosen = np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).round().astype(int))
    return [(order[i], cases[order[i]]) for i in chosen]


def _read(file: Path) -> sitk.Image:
    image = read_or_refuse(file)
    if image.GetDimension() != 3:
        raise UserError(f"{file} is {image.GetDimension()}D, but visibility is measured in volumes.")
    return sitk.Cast(image, sitk.sitkFloat32)


def _array(image: sitk.Image) -> np.ndarray:
    found: np.ndarray = sitk.GetArrayFromImage(image).astype(np.float32)
    return found
