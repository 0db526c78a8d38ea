"""One case onto the common grid: images, label map, transform, check picture and a record of how well it went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_synthtumour.align_checks import draw_check
from nnunet_synthtumour.align_reference import grid_centre
from nnunet_synthtumour.atomic_files import complete, read_json, write_json
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_files import read_or_refuse, write_image, write_transform
from nnunet_synthtumour.registration.affine_alignment import affine_transform, similarity_after
from nnunet_synthtumour.resampling import resampled

RECORDS = "cases"
VERSION = 2  # what is made of the same files; 1 left a rim around stripped images
SUBFOLDERS = ("imagesTr", "labelsTr", "transforms", "checks", RECORDS)


@dataclass(frozen=True)
class RawCase:
    """The files of a case, and what its label map says outside of the field of view."""

    name: str
    images: tuple[Path, ...]
    label: Path | None
    outside: int

    def files(self) -> list[Path]:
        return [*self.images, *([self.label] if self.label else [])]


@dataclass(frozen=True)
class Task:
    """What is the same for all cases; files and numbers only, because it travels to other processes."""

    out: Path
    ending: str
    reference: Path
    grid: Path
    reference_case: str | None
    reference_stamp: list[Any]
    kind: str
    cross_modality: bool
    seed: int
    channels: tuple[str, ...]
    intensities: bool
    partners: dict[str, Path] | None = None  # case -> what it is aligned to, in place of one reference for all

    def results(self, case: RawCase) -> list[Path]:
        """The files that are made of a case."""
        images = [self.out / "imagesTr" / f"{case.name}_{c:04d}{self.ending}" for c in range(len(case.images))]
        labels = [self.out / "labelsTr" / f"{case.name}{self.ending}"] if case.label else []
        return [
            *images,
            *labels,
            self.out / "transforms" / f"{case.name}.tfm",
            self.out / "checks" / f"{case.name}.png",
        ]

    def stamp(self, case: RawCase) -> list[Any]:
        """Changes when a file of the case does, or what it is aligned to: a second run then does it anew."""
        partner = [] if self.partners is None else [self.partners[case.name]]
        return [VERSION, *stamp_of([*case.files(), *partner]), *self.reference_stamp]


def stamp_of(files: Sequence[Path]) -> list[Any]:
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def finished(case: RawCase, task: Task) -> dict[str, Any] | None:
    """The record of a case that an earlier run finished from the same files, if what it made is still there."""
    record: dict[str, Any] = read_json(task.out / RECORDS / f"{case.name}.json") or {}
    same = record.get("files") == task.stamp(case) and all(file.is_file() for file in task.results(case))
    return record if same else None


def of_an_earlier_version(case: RawCase, task: Task) -> bool:
    """Whether what was made of a case came from a version that made it otherwise."""
    record: dict[str, Any] = read_json(task.out / RECORDS / f"{case.name}.json") or {}
    return bool(record.get("files")) and record["files"][0] != VERSION


def align_case(case: RawCase, task: Task) -> dict[str, Any]:
    """Write the files of one case and return its record, which is written last: what has a record is whole."""
    done = finished(case, task)
    if done is not None:
        return done
    if task.partners is None:
        reference, grid = read_or_refuse(task.reference), read_or_refuse(task.grid)
    else:
        reference = grid = read_or_refuse(task.partners[case.name])
    images = [read_or_refuse(file) for file in case.images]
    for file, image in zip(case.images[1:], images[1:], strict=True):
        _lie_where_nnunet_sees_it(image, file, images[0], case.images[0])
    if images[0].GetDimension() != reference.GetDimension():
        raise UserError(
            f"{case.images[0]} is {images[0].GetDimension()}D, the reference {reference.GetDimension()}D; "
            "leave it out, or choose another --reference."
        )
    transform, problem = _transform(reference, images[0], case.name, task)
    identity = sitk.Transform(reference.GetDimension(), sitk.sitkIdentity)
    before, after = (_similarity(reference, images[0], t, task.cross_modality) for t in (identity, transform))
    warped = [resampled(image, grid, transform) for image in images]
    for channel, image in enumerate(warped):
        file = task.out / "imagesTr" / f"{case.name}_{channel:04d}{task.ending}"
        write_image(image, file)
    label = None
    if case.label is not None:
        label = read_or_refuse(case.label)
        _lie_where_nnunet_sees_it(label, case.label, images[0], case.images[0])
        label = sitk.Resample(label, grid, transform, sitk.sitkNearestNeighbor, case.outside)
        file = task.out / "labelsTr" / f"{case.name}{task.ending}"
        write_image(label, file)
    write_transform(_plain(transform), task.out / "transforms" / f"{case.name}.tfm")
    title = f"{case.name}: {'not aligned' if after is None else f'similarity {after:.3f}'}"
    with complete(task.out / "checks" / f"{case.name}.png") as scratch:
        draw_check(grid, warped[0], scratch, title)
    record = {
        "case": case.name,
        "similarity_before": before,
        "similarity": after,
        "matrix": np.round(_matrix(transform), 6).tolist(),
        "problem": problem,
        "intensities": _intensities(warped, label, task) if task.intensities else None,
        "files": task.stamp(case),
    }
    write_json(record, task.out / RECORDS / f"{case.name}.json")
    return record


def _lie_where_nnunet_sees_it(image: sitk.Image, file: Path, first: sitk.Image, first_file: Path) -> None:
    """nnU-Net lays a case's files on one another voxel by voxel, whatever origin and direction their headers give."""
    size_and_spacing = image.GetSize() == first.GetSize() and np.allclose(image.GetSpacing(), first.GetSpacing(), 1e-3)
    if not size_and_spacing:
        raise UserError(f"{file} has another size or spacing than {first_file}; resample one to the other.")
    image.CopyInformation(first)


def _transform(reference: sitk.Image, image: sitk.Image, name: str, task: Task) -> tuple[sitk.Transform, str | None]:
    dims = reference.GetDimension()
    if name == task.reference_case:
        return sitk.Transform(dims, sitk.sitkIdentity), None
    try:
        return affine_transform(reference, image, task.kind, task.cross_modality, task.seed), None
    except ValueError:  # the data set stays whole: a constant image is put into the middle and reported
        shift = (grid_centre(image) - grid_centre(reference)).tolist()
        return sitk.TranslationTransform(dims, shift), "its first channel is constant"


def _similarity(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, cross: bool) -> float | None:
    """None where the images hardly overlap or one is constant."""
    try:
        value = similarity_after(fixed, moving, transform, cross)
    except ValueError:
        return None
    return round(value, 5) if math.isfinite(value) else None


def _plain(transform: sitk.Transform) -> sitk.Transform:
    """As an affine map, which every program that reads ITK's files knows."""
    dims = transform.GetDimension()
    matrix = _matrix(transform)
    affine = sitk.AffineTransform(dims)
    affine.SetMatrix(matrix[:dims, :dims].ravel().tolist())
    affine.SetTranslation(matrix[:dims, dims].tolist())
    return affine


def _matrix(transform: sitk.Transform) -> np.ndarray:
    dims = transform.GetDimension()
    matrix = np.eye(dims + 1)
    matrix[:dims, dims] = transform.TransformPoint([0.0] * dims)
    for axis in range(dims):
        matrix[:dims, axis] = transform.TransformPoint(np.eye(dims)[axis].tolist()) - matrix[:dims, dims]
    return matrix


def _intensities(images: list[sitk.Image], label: sitk.Image | None, task: Task) -> dict[str, Any]:
    """What nnU-Net's normalisation will use on the resampled images, as `synthtumour prepare` records it."""
    from nnunet_synthtumour.intensities import crop, recorded

    stack = np.stack([sitk.GetArrayFromImage(image).astype(np.float32) for image in images])
    seg = np.zeros(stack.shape[1:], np.int16) if label is None else sitk.GetArrayFromImage(label)
    if stack.ndim == 3:  # nnU-Net reads 2D images as one slice
        stack, seg = stack[:, None], seg[None]
    cropped, seg, relative_size = crop(stack, seg)
    return {"relative_size": relative_size, "maps": recorded(cropped, seg, task.channels)}
