"""The image that all cases of a data set are aligned to: a named case, the most typical one, or the mean of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_synthtumour.case_pool import CasePool
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_files import read_or_refuse
from nnunet_synthtumour.registration.affine_alignment import (
    affine_transform,
    grid_centre,
    moments,
    similarity_after,
)
from nnunet_synthtumour.resampling import background_value, resampled

AUTO, TEMPLATE = "auto", "template"
CANDIDATES, JUDGES, MEANT = 16, 8, 30
"""How many cases are tried as the reference, how many each is compared to, and how many a template is the mean of."""
PREVIEW_VOXELS = 15_000
ROUNDS = 2


def reference_image(
    choice: str, images: Mapping[str, Path], cross: bool, seed: int, processes: int
) -> tuple[str, sitk.Image]:
    """What it is called and the image itself, from the first channel of every case."""
    if choice in images:
        return choice, read_or_refuse(images[choice])
    if Path(choice).is_file():
        return choice, read_or_refuse(Path(choice))
    if choice not in (AUTO, TEMPLATE):
        known = ", ".join(list(images)[:5]) + (", ..." if len(images) > 5 else "")
        raise UserError(
            f"--reference {choice} is not a case of the data set ({known}), nor a file, 'auto' or 'template'."
        )
    typical = _most_typical(images, cross, processes)
    if choice == AUTO:
        return typical, read_or_refuse(images[typical])
    return TEMPLATE, _template(images, typical, seed, processes)


def on_spacing(image: sitk.Image, spacing: float | None) -> sitk.Image:
    """The same field of view with voxels of `spacing` mm; as it is without."""
    if spacing is None:
        return image
    size = [max(1, math.ceil(n * s / spacing - 1e-3)) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    # voxels are areas: the first centre moves by half of the difference of the two voxels
    first = [(spacing / s - 1) / 2 for s in image.GetSpacing()]
    origin = image.TransformContinuousIndexToPhysicalPoint(first)
    identity = sitk.Transform(image.GetDimension(), sitk.sitkIdentity)
    grid = sitk.Image(size, sitk.sitkUInt8)
    grid.SetOrigin(origin)
    grid.SetSpacing([spacing] * image.GetDimension())
    grid.SetDirection(image.GetDirection())
    return resampled(image, grid, identity)


def spread_out(names: Sequence[str], n: int) -> list[str]:
    """At most `n` names, evenly over the sorted list."""
    names = sorted(names)
    return [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(n, len(names))).round().astype(int))]


def _most_typical(images: Mapping[str, Path], cross: bool, processes: int) -> str:
    """The case that looks most like a few others once their places and sizes agree: a medoid without registrations."""
    candidates = spread_out(list(images), CANDIDATES)
    judges = spread_out(candidates, JUDGES)
    score = partial(_mean_similarity, others=tuple(images[name] for name in judges), cross=cross)
    with CasePool(processes) as pool:
        scores = pool.map(score, [images[name] for name in candidates], "choosing the reference")
    return candidates[int(np.argmax(scores))]


def _mean_similarity(file: Path, others: Sequence[Path], cross: bool) -> float:
    fixed, found = _preview(file), []
    for other in others:
        if other == file:
            continue
        moving = _preview(other)
        try:
            found.append(max(similarity_after(fixed, moving, _matched(fixed, moving), cross), -1.0))
        except ValueError:  # one of the two is constant
            found.append(-1.0)
    return float(np.mean(found)) if found else 0.0


@lru_cache(maxsize=CANDIDATES)
def _preview(file: Path) -> sitk.Image:
    image = read_or_refuse(file)
    extent = math.prod(n * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True))
    side = (extent / PREVIEW_VOXELS) ** (1 / image.GetDimension())
    factors = [max(1, min(round(side / s), n // 6)) for s, n in zip(image.GetSpacing(), image.GetSize(), strict=True)]
    return sitk.BinShrink(sitk.Cast(image, sitk.sitkFloat32), factors)


def _matched(fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
    """Centre of mass upon centre of mass, scaled along the axes of the world by the ratio of the fields of view."""
    (mass_f, _), (mass_m, _) = moments(fixed), moments(moving)
    scale = sitk.ScaleTransform(fixed.GetDimension(), (_widths(moving) / _widths(fixed)).tolist())
    scale.SetCenter(mass_f.tolist())
    shift = sitk.TranslationTransform(fixed.GetDimension(), (mass_m - mass_f).tolist())
    return sitk.CompositeTransform([shift, scale])


def _widths(image: sitk.Image) -> np.ndarray:
    corners = np.array(list(np.ndindex(*[2] * image.GetDimension()))) * (np.array(image.GetSize()) - 1)
    points = np.array([image.TransformIndexToPhysicalPoint(corner.tolist()) for corner in corners])
    return np.maximum(points.max(0) - points.min(0), 1e-6)


def _template(images: Mapping[str, Path], first: str, seed: int, processes: int) -> sitk.Image:
    """The mean of affinely aligned images with like intensities, twice: the second round aligns to the first mean."""
    template = _comparable(read_or_refuse(images[first]))
    files = [images[name] for name in spread_out(list(images), MEANT)]
    with CasePool(processes) as pool:
        for number in range(ROUNDS):
            work = partial(_aligned_to, template=template, seed=seed)
            found = pool.map(work, files, f"template, round {number + 1}")
            arrays = [array for array in found if array is not None]
            if not arrays:
                raise UserError("No case could be aligned to make a template; name a case with --reference.")
            counts = np.maximum(np.sum([np.isfinite(array) for array in arrays], axis=0), 1)
            mean = sitk.GetImageFromArray((np.nansum(arrays, axis=0) / counts).astype(np.float32))
            mean.CopyInformation(template)
            template = mean
    return template


def _aligned_to(file: Path, template: sitk.Image, seed: int) -> np.ndarray | None:
    image = _comparable(read_or_refuse(file))
    try:
        transform = affine_transform(template, image, "affine", False, seed)
    except ValueError:
        return None
    return sitk.GetArrayFromImage(sitk.Resample(image, template, transform, sitk.sitkLinear, math.nan))


def _comparable(image: sitk.Image) -> sitk.Image:
    """Background at 0, the 99th percentile of what is not background at 1."""
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    zero = background_value(image)
    inside = array[array != zero]
    scale = float(np.quantile(inside, 0.99)) - zero if inside.size else 1.0
    out = sitk.GetImageFromArray(np.clip((array - zero) / (scale or 1.0), -2, 2))
    out.CopyInformation(image)
    return out


__all__ = ["AUTO", "TEMPLATE", "grid_centre", "on_spacing", "reference_image"]
