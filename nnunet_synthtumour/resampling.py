"""Images on other grids, with the background that they had: stripped and padded images keep their outline."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_synthtumour.align_reference import background_value
from nnunet_synthtumour.registration.affine_alignment import background_of


def resampled(image: sitk.Image, grid: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    """Linearly interpolated, in the image's own data type; outside of it is what lies around it.

    Where an image has a constant background, interpolation across its outline would leave a rim of faint voxels, which
    nnU-Net's nonzero mask counts as image, and which no image has that comes from elsewhere. So what lies next to
    background is background, and only what is not is averaged elsewhere: sum w m v / sum w m, m being 1 off the background.
    """
    outside = background_value(image)
    if background_of(image) is None:
        return sitk.Resample(image, grid, transform, sitk.sitkLinear, outside)
    array = sitk.GetArrayFromImage(image)
    inside = _like(image, (array != outside).astype(np.float32))
    above = _like(image, np.asarray(array, dtype=np.float64) - outside)
    share, total = (_array(sitk.Resample(one, grid, transform, sitk.sitkLinear, 0.0)) for one in (inside, above))
    kept = _array(sitk.Resample(inside, grid, transform, sitk.sitkNearestNeighbor, 0.0)) > 0
    found = np.where(kept, outside + total / np.maximum(share, 0.1), outside)  # of the nearest of eight, at least 1/8
    if np.issubdtype(array.dtype, np.integer):
        found = np.rint(found)
    result = sitk.GetImageFromArray(found.astype(array.dtype))
    result.CopyInformation(grid)
    return result


def _like(image: sitk.Image, array: np.ndarray) -> sitk.Image:
    new = sitk.GetImageFromArray(array)
    new.CopyInformation(image)
    return new


def _array(image: sitk.Image) -> Any:
    return sitk.GetArrayFromImage(image)
