"""Does an alignment look right? A picture for the eye, and the cases that a number finds odd."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_synthtumour.registration.affine_alignment import UPRIGHT, background_of, turn_of

DEVIATIONS = 3.5
LEAST_DEVIATION = 0.02
"""Similarities that all but agree have hardly any spread; differences below this mean nothing."""
STAYED = (1e-3, 0.5)
"""By how much a linear part and a shift (mm) may differ from none: points of a head move by a millimetre at most."""
PLANES = ("sagittal", "coronal", "axial")


def warnings_of(records: Sequence[dict[str, Any]], reference_case: str | None) -> dict[str, str]:
    """Why a case looks misaligned, for those that do: an outlier towards low similarity, no better than before, or turned.

    A case that came aligned cannot get better. Nor was it resampled, which takes noise away and makes the others more alike:
    it is told of only where its similarity is less than half of theirs, as of a case that nothing could be done with.
    """
    others = [record for record in records if record["case"] != reference_case]
    values = np.array([r["similarity"] for r in others if r["similarity"] is not None and r["problem"] is None])
    found = {}
    limit, median = -np.inf, np.nan
    if len(values):
        median = float(np.median(values))
        deviation = 1.4826 * float(np.median(np.abs(values - median)))
        limit = median - DEVIATIONS * max(deviation, LEAST_DEVIATION)
    for record in others:
        before, after = record["similarity_before"], record["similarity"]
        turn = turn_of(np.array(record["matrix"])[:-1, :-1])
        stayed = before is not None and after is not None and after >= before and _is_still(np.array(record["matrix"]))
        if record["problem"] is not None:
            found[record["case"]] = record["problem"]
        elif after is None:
            found[record["case"]] = "it hardly overlaps with the reference"
        elif turn > UPRIGHT:
            found[record["case"]] = f"it is turned by {turn:.0f} degrees against its header"
        elif after < (median - abs(median) / 2 if stayed else limit):
            found[record["case"]] = f"its similarity is {after:.3f}, that of the others {median:.3f} (median)"
        elif not stayed and before is not None and after <= before and after < median:
            found[record["case"]] = f"its similarity is {after:.3f} and was {before:.3f} before"
    return found


def _is_still(matrix: np.ndarray) -> bool:
    """Whether a map (homogeneous, mm) leaves points where they are."""
    away = np.abs(matrix - np.eye(len(matrix)))
    return bool(away[:-1, :-1].max() <= STAYED[0] and away[:-1, -1].max() <= STAYED[1])


def draw_check(reference: sitk.Image, image: sitk.Image, file: Path, title: str) -> None:
    """Three planes of the aligned image with the contours of the reference, both on one grid, as a PNG."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown: np.ndarray = sitk.GetArrayFromImage(image).astype(np.float32)
    regions = _regions(reference)
    planes = list(range(shown.ndim)) if shown.ndim == 3 else [None]
    figure, axes = plt.subplots(1, len(planes), figsize=(3.2 * len(planes), 3.5), squeeze=False, layout="constrained")
    low, high = np.percentile(shown, [1, 99.8])
    at = _centre(regions)
    spacing = image.GetSpacing()[::-1]
    for axis, plane in zip(axes[0], planes, strict=True):
        picture, parts, steps = shown, regions, spacing
        if plane is not None:
            picture, parts = shown.take(at[plane], plane), regions.take(at[plane], plane)
            steps = tuple(s for i, s in enumerate(spacing) if i != plane)
        axis.imshow(
            picture, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower", aspect=steps[0] / steps[1]
        )
        for level, colour in ((0.5, "tab:orange"), (1.5, "tab:cyan")):
            if min(parts.shape) > 1 and (parts > level).any() and (parts < level).any():
                axis.contour(parts, [level], colors=colour, linewidths=0.8)
        axis.set_axis_off()
    figure.suptitle(f"{title} (lines: reference)", fontsize=9)
    figure.savefig(file, dpi=80, format="png")
    plt.close(figure)


def _regions(image: sitk.Image) -> np.ndarray:
    """0, 1 and 2: dark, middling, bright, by Otsu's thresholds of the smoothed image; without its background if any."""
    background = background_of(image)
    smooth = _smoothed(sitk.Cast(image, sitk.sitkFloat32), 0.7)
    if background is None:
        return sitk.GetArrayFromImage(sitk.OtsuMultipleThresholds(smooth, 2))
    inside = sitk.Cast(image != background, sitk.sitkUInt8)
    values = sitk.GetArrayFromImage(smooth)
    mask = sitk.GetArrayFromImage(inside) > 0
    column = sitk.GetImageFromArray(values[mask][None])
    bright = sitk.GetArrayFromImage(sitk.OtsuMultipleThresholds(column, 1))[0]
    regions = mask.astype(np.uint8)
    regions[mask] += bright > 0
    return regions


def _smoothed(image: sitk.Image, voxels: float) -> sitk.Image:
    """By a Gaussian of so many voxels; the recursive one needs four of them along each axis."""
    sigma = [voxels * mm for mm in image.GetSpacing()]
    if min(image.GetSize()) < 4:
        return sitk.DiscreteGaussian(image, [s * s for s in sigma])
    return sitk.SmoothingRecursiveGaussian(image, sigma)


def _centre(regions: np.ndarray) -> tuple[int, ...]:
    """The middle of what has contours, so that each plane shows some."""
    found = np.argwhere(regions > 0)
    return tuple(int(v) for v in (found.mean(0) if len(found) else np.array(regions.shape) / 2))
