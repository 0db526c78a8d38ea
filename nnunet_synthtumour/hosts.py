"""The host: where in a healthy image a lesion may grow."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

MASK, NONZERO, FOREGROUND = "mask", "nonzero", "foreground"
STRIPPED_SHARE = 0.15


def find_host(images: list[np.ndarray], mask: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """The host (bool) of a case from its channels, each (Z, Y, X) or (Y, X), and how it was found.

    A mask that is given is the host. A skull-stripped image, one whose most frequent value fills a good part of it, has as
    host what is different from that value; any other image has its foreground, which is a guess and is said to be one.
    """
    if mask is not None:
        return mask != 0, MASK
    background = [_background(image) for image in images]
    if all(value is not None for value in background):
        tissue = np.any([image != value for image, value in zip(images, background, strict=True)], axis=0)
        return _one_piece(tissue), NONZERO
    return _one_piece(_foreground(images[0])), FOREGROUND


def _background(image: np.ndarray) -> float | None:
    """The value of a constant background: zero (or the minimum) where it fills a good part of the image."""
    for value in (0, image.min()):
        if float((image == value).mean()) >= STRIPPED_SHARE:
            return float(value)
    return None


def _foreground(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, [0.5, 99.5])
    values = np.clip(image, low, high)
    found = values > threshold_otsu(values)
    return ndimage.binary_opening(found, iterations=1) if min(found.shape) > 4 else found


def _one_piece(mask: np.ndarray) -> np.ndarray:
    """Largest component, holes filled (slice by slice too: a ventricle may open to the outside in 3D only)."""
    pieces, n = ndimage.label(mask)
    if n > 1:
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        mask = pieces == int(sizes.argmax())
    return np.asarray(ndimage.binary_fill_holes(mask))
