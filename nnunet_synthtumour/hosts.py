"""The host: where in a healthy image a lesion may grow."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

MASK, NONZERO, FOREGROUND = "mask", "nonzero", "foreground"
STRIPPED_SHARE = 0.15
RIM_SHARE = 0.12
AIR_HU = -1024.0


def find_host(images: list[np.ndarray], mask: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """The host (bool) of a case from its channels, each (Z, Y, X) or (Y, X), and how it was found.

    A mask that is given is the host. An image of an organ alone (skull-stripped) has as host what differs from its constant
    background; any other image has its foreground, which is a guess and is said to be one.
    """
    if mask is not None:
        return mask != 0, MASK
    backgrounds = [_background(image) for image in images]
    if all(value is not None for value in backgrounds):
        pairs = [(image, value) for image, value in zip(images, backgrounds, strict=True) if value is not None]
        host = _one_piece(np.any([image != value for image, value in pairs], axis=0))
        if any(_has_tissue_at_its_rim(image, host, value) for image, value in pairs):
            return host, NONZERO
    return _one_piece(_foreground(images[0], backgrounds[0])), FOREGROUND


def _background(image: np.ndarray) -> float | None:
    """The value of a constant background: zero (or the minimum) where it fills a good part of the image, solidly.

    The noise of a background in whole numbers is full of zeros too, but they lie scattered: an opening takes them away.
    """
    for value in (0, image.min()):
        here = image == value
        if here.mean() >= STRIPPED_SHARE:
            core = ndimage.binary_erosion(here, border_value=1)
            if ndimage.binary_dilation(core).mean() >= STRIPPED_SHARE:
                return float(value)
    return None


def _has_tissue_at_its_rim(image: np.ndarray, host: np.ndarray, background: float) -> bool:
    """Whether what borders on the constant background is tissue. It is air where an image was padded after a rotation,
    or where a scanner's round field of view lies in a square.

    Brains of patients, stripped, have 0.23 or more of their bright tissue there; air has 0.02 to 0.11.
    """
    rim = host & ~ndimage.binary_erosion(host, border_value=1)
    if not rim.any():
        return False
    zero = max(background, AIR_HU)  # CT is padded with values that no matter has
    bright = np.percentile(np.abs(image[host] - zero), 90)
    return bool(np.median(np.abs(image[rim] - zero)) >= RIM_SHARE * bright)


def _foreground(image: np.ndarray, padding: float | None) -> np.ndarray:
    """What is brighter than a threshold between the two modes of the intensities, padding left out."""
    scanned = image[image != padding] if padding is not None else image
    if not scanned.size:  # an image of one value: there is nothing to tell apart
        return np.zeros(image.shape, dtype=bool)
    low, high = np.percentile(scanned, [0.5, 99.5])
    found = image > threshold_otsu(np.clip(scanned, low, high))
    opened = ndimage.binary_opening(found) if min(found.shape) > 4 else found
    return opened if opened.any() else found


def _one_piece(mask: np.ndarray) -> np.ndarray:
    """The largest component, its holes filled."""
    pieces, n = ndimage.label(mask)
    if n > 1:
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        mask = pieces == int(sizes.argmax())
    return np.asarray(ndimage.binary_fill_holes(mask))
