"""What makes an image unusable, said before anything is written: one sentence per problem, all problems in one go."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from nnunet_synthtumour.image_folders import Case
from nnunet_synthtumour.settings import HEALTHY

TOLERANCE = 1e-3


def check_case(case: Case, known_labels: frozenset[int] | None = None) -> Case:
    """`case` with a sentence in `problems` for everything that is wrong with its files."""
    first: sitk.Image | None = None
    for file in case.images:
        image, problem = _readable(file)
        if image is None:
            case.problems.append(problem)
            continue
        problem = _not_finite(file, image) or _constant(image) or (_geometry(first, image) if first is not None else "")
        if problem:
            case.problems.append(f"{file.name} {problem}")
        first = image if first is None else first
    if case.mask is not None:
        image, problem = _readable(case.mask)
        if image is None:
            case.problems.append(problem)
        else:
            kind = "host mask" if case.role == HEALTHY else "label file"
            problem = _geometry(first, image) if first is not None else ""
            problem = problem or (_mask(image) if case.role == HEALTHY else _labels(image, known_labels))
            if problem:
                case.problems.append(f"{kind} {case.mask.name} {problem}")
    return case


def _readable(file: Path) -> tuple[sitk.Image | None, str]:
    try:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        size = reader.GetSize()
        if len(size) > 3 and any(n > 1 for n in size[3:]):
            return None, f"{file.name} has {len(size)} dimensions; split it into 3D images"
        if reader.GetNumberOfComponents() > 1:
            return None, f"{file.name} has {reader.GetNumberOfComponents()} values per voxel; split it into channels"
        return sitk.ReadImage(str(file)), ""
    except RuntimeError:
        return None, f"{file.name} cannot be read; is it a complete image?"


def _not_finite(file: Path, image: sitk.Image) -> str:
    """ITK's NIfTI reader turns NaN into 0 without a word, so those files are looked at with another reader."""
    values = sitk.GetArrayViewFromImage(image)
    if file.name.lower().endswith((".nii", ".nii.gz")) and np.issubdtype(values.dtype, np.floating):
        values = np.asanyarray(nibabel.load(file).dataobj)  # type: ignore[attr-defined]
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        return f"has {int((~np.isfinite(values)).sum())} voxels that are NaN or infinite; mend it or leave it out"
    return ""


def _constant(image: sitk.Image) -> str:
    values = sitk.GetArrayViewFromImage(image)
    if values.size == 0 or values.min() == values.max():
        return "is constant; there is nothing to see in it"
    return ""


def _geometry(first: sitk.Image, other: sitk.Image) -> str:
    if first.GetSize() != other.GetSize():
        return f"is {_x(other.GetSize())} voxels, but the case's first image {_x(first.GetSize())}; resample one"
    for what, a, b in (
        ("spacing", first.GetSpacing(), other.GetSpacing()),
        ("origin", first.GetOrigin(), other.GetOrigin()),
        ("direction", first.GetDirection(), other.GetDirection()),
    ):
        if not np.allclose(a, b, atol=TOLERANCE * (10 if what == "origin" else 1)):
            return f"has another {what} than the case's first image; resample one to the other"
    return ""


def _x(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _mask(image: sitk.Image) -> str:
    return "" if (sitk.GetArrayViewFromImage(image) != 0).any() else "is empty; no lesion could grow"


def _labels(image: sitk.Image, known: frozenset[int] | None) -> str:
    values = np.unique(sitk.GetArrayViewFromImage(image))
    if not np.isfinite(values).all() or (values != np.round(values)).any() or values.min() < 0:
        return "holds values that are no labels (whole numbers from 0)"
    unknown = sorted(set(map(int, values)) - known - {0}) if known is not None else []
    if unknown:
        return f"holds label {unknown[0]}, which no --label declares"
    return ""
