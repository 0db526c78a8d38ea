"""Images on other grids, with the background that they had: stripped and padded images keep their outline."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunet_synthtumour.registration.affine_alignment import background_of, faces_of

BORDER, SOLID = 0.5, 0.5


def background_value(image: sitk.Image) -> float:
    """What lies outside of the field of view: the constant around the image if it has one, else its darkest value."""
    found = background_of(image)
    return float(sitk.GetArrayViewFromImage(image).min()) if found is None else found


def surrounded(array: np.ndarray, background: float | None) -> np.ndarray | None:
    """Where an image is, if it is stripped or padded: True but for the `background` around it, which covers most of its
    border and is solid; None for any other. The same value inside, as of clipped air in lungs, is image, and so is noise.
    """
    if background is None:
        return None
    same = array == background
    if faces_of(same).mean() < BORDER:
        return None
    there = np.asarray(ndimage.binary_fill_holes(~same))
    solid = ndimage.binary_erosion(~there, border_value=1).sum()
    return there if solid >= SOLID * (~there).sum() else None


def resampled(image: sitk.Image, grid: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    """Linearly interpolated, in the image's own data type; outside of it is what lies around it.

    Where an image has a constant background, interpolation across its outline would leave a rim of faint voxels, which
    nnU-Net's nonzero mask counts as image, and which no image has that comes from elsewhere. So what lies next to
    background is background, and only what is not is averaged elsewhere: sum w m v / sum w m, m being 1 off the background.
    """
    outside = background_value(image)
    array = sitk.GetArrayFromImage(image)
    there = surrounded(array, background_of(image))
    if there is None:
        return sitk.Resample(image, grid, transform, sitk.sitkLinear, outside)
    mask = _like(image, there.astype(np.float64))
    values = _like(image, np.where(there, array, 0).astype(np.float64))
    share, total = (
        sitk.GetArrayFromImage(sitk.Resample(one, grid, transform, sitk.sitkLinear, 0.0)) for one in (mask, values)
    )
    kept = sitk.GetArrayFromImage(sitk.Resample(mask, grid, transform, sitk.sitkNearestNeighbor, 0.0)) > 0
    mean = total / np.maximum(share, 0.1)  # the nearest of the eight that are averaged has at least an eighth
    if np.issubdtype(array.dtype, np.integer):
        mean = np.rint(mean)
    result = _like(grid, np.where(kept, mean, 0).astype(array.dtype))
    return sitk.Mask(result, _like(grid, kept.astype(np.uint8)), outside)


def _like(image: sitk.Image, array: np.ndarray) -> sitk.Image:
    new = sitk.GetImageFromArray(array)
    new.CopyInformation(image)
    return new
