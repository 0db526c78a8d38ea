"""What makes an image unusable, said before anything is written: one sentence per problem, all problems in one go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_files import UnusableImage, count_not_finite, read_image
from nnunet_synthtumour.image_folders import Case
from nnunet_synthtumour.settings import HEALTHY

TOLERANCE = 1e-3
SMALLEST_FEATURE_MAP, NO_LIMIT = 4, 999999  # voxels along an axis, and poolings: what nnU-Net's planners ask for


def check_case(case: Case, known_labels: frozenset[int] | None = None) -> Case:
    """`case` with a sentence in `problems` for everything that is wrong with its files."""
    first: sitk.Image | None = None
    for file in case.images:
        try:
            image = read_image(file)
        except UnusableImage as error:
            case.problems.append(str(error))
            continue
        problem = _not_finite(file, image) or _constant(image) or (_geometry(first, image) if first is not None else "")
        if problem:
            case.problems.append(f"{file.name} {problem}")
        first = image if first is None else first
    if first is not None:
        case.dimensions, case.voxels = first.GetDimension(), first.GetNumberOfPixels()
        case.size, case.spacing = first.GetSize(), first.GetSpacing()
    if case.mask is not None:
        _check_mask(case, case.mask, first, known_labels)
    return case


def _check_mask(case: Case, file: Path, first: sitk.Image | None, known_labels: frozenset[int] | None) -> None:
    kind = "host mask" if case.role == HEALTHY else "label file"
    try:
        image = read_image(file)
    except UnusableImage as error:
        case.problems.append(f"{kind} {error}")
        return
    values = np.unique(sitk.GetArrayViewFromImage(image))
    problem = _geometry(first, image) if first is not None else ""
    problem = problem or (_mask(values) if case.role == HEALTHY else _labels(values, known_labels))
    if problem:
        case.problems.append(f"{kind} {file.name} {problem}")
    else:
        case.label_values = tuple(map(int, values))


def check_truth(cases: Sequence[Case], declared: Collection[int]) -> None:
    """What a label file of test images holds must be declared, or the truth would be compared with something else."""
    for case in cases:
        unknown = sorted(set(case.label_values) - {0, *declared})
        if case.mask is not None and unknown:
            values = ", ".join(map(str, sorted({0, *declared})))
            case.problems.append(
                f"label file {case.mask.name} holds label {unknown[0]}, but the data set's labels are {values}; "
                "renumber it or name all labels with --label"
            )


def check_together(cases: Sequence[Case], trained_on: Sequence[Case] = ()) -> None:
    """What is only wrong beside the other cases: two of one name, 2D among 3D. Test images are not what is trained on."""
    names = Counter(case.name for case in cases)
    dimensions = Counter(case.dimensions for case in trained_on or cases if case.dimensions)
    most = dimensions.most_common(1)[0][0] if dimensions else 0
    for case in cases:
        if names[case.name] > 1:
            case.problems.append(f"there are {names[case.name]} cases of this name; rename all but one")
        if most and case.dimensions not in (0, most):
            case.problems.append(f"it is {case.dimensions}D among {most}D images; make two data sets")


def check_for_training(cases: Sequence[Case]) -> None:
    """What nnU-Net would only stumble over once these cases are preprocessed. A few small ones among others do no harm."""
    small = [case for case in cases if case.size and not _can_be_pooled(case)]
    for case in cases:
        if case.name.endswith("_seg"):
            case.problems.append(
                "its name ends in _seg, as those of nnU-Net's preprocessed segmentations do; rename it"
            )
    for case in small if 2 * len(small) > len(cases) else ():
        case.problems.append(
            f"it is {_x(case.size)} voxels, but nnU-Net's networks need 8 along two axes of similar spacing, or 12 along "
            "one; resample the images to a finer spacing or take larger ones"
        )


def _can_be_pooled(case: Case) -> bool:
    """Whether nnU-Net, if all images were like this one, would plan more than the one stage with which it cannot train."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, strides, *_ = get_pool_and_conv_props(case.spacing, case.size, SMALLEST_FEATURE_MAP, NO_LIMIT)
    return len(strides) > 1


def complain(cases: Sequence[Case]) -> None:
    """Raise `UserError` with every problem of every case, if there is any."""
    lines = [f"  {case.role} {case.name}: {problem}." for case in cases for problem in case.problems]
    if lines:
        bad = sum(bool(case.problems) for case in cases)
        head = f"{bad} of {len(cases)} cases cannot be used; nothing was written. Mend or remove:"
        raise UserError("\n".join([head, *lines]))


def _not_finite(file: Path, image: sitk.Image) -> str:
    n = count_not_finite(file, image)
    return f"has {n} voxels that are NaN or infinite; mend it or leave it out" if n else ""


def _constant(image: sitk.Image) -> str:
    values = sitk.GetArrayViewFromImage(image)
    if values.size == 0 or values.min() == values.max():
        return "is constant; there is nothing to see in it"
    return ""


def _geometry(first: sitk.Image, other: sitk.Image) -> str:
    if first.GetSize() != other.GetSize():
        return f"is {_x(other.GetSize())} voxels, but the case's first image {_x(first.GetSize())}; resample one"
    what = difference(first, other) or ("" if _close(first.GetOrigin(), other.GetOrigin(), 10) else "origin")
    return f"has another {what} than the case's first image; resample one to the other" if what else ""


def difference(first: sitk.Image, other: sitk.Image, looseness: float = 1) -> str:
    """What keeps two images from being compared voxel by voxel, `size`, `spacing` or `direction`; empty for nothing.

    Another origin does not: nnU-Net lays a label map on its image whatever its header says.
    """
    if first.GetSize() != other.GetSize():
        return "size"
    if not _close(first.GetSpacing(), other.GetSpacing(), looseness):
        return "spacing"
    return "" if _close(first.GetDirection(), other.GetDirection(), looseness) else "direction"


def _close(a: Sequence[float], b: Sequence[float], looseness: float = 1) -> bool:
    return bool(np.allclose(a, b, atol=looseness * TOLERANCE))


def _x(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def _mask(values: np.ndarray) -> str:
    return "" if (values != 0).any() else "is empty; no lesion could grow"


def _labels(values: np.ndarray, known: frozenset[int] | None) -> str:
    if not np.isfinite(values).all() or (values != np.round(values)).any() or values.min() < 0:
        return "holds values that are no labels (whole numbers from 0); mend it"
    unknown = sorted(set(map(int, values)) - known - {0}) if known is not None else []
    if unknown:
        return f"holds label {unknown[0]}, which no --label declares; declare it or mend the file"
    return ""


def same_direction(first: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    """Whether the axes of two images point the same way in space, as far as headers tell."""
    return first is None or other is None or (len(first) == len(other) and _close(first, other, 10))
