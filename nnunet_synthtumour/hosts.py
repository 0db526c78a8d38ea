"""The host: where in a healthy image a lesion may grow."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

MASK, NONZERO, HEAD, FOREGROUND = "mask", "nonzero", "head", "foreground"
STRIPPED_SHARE = 0.15
RIM_SHARE = 0.12
SKULL_SHARE = 0.3
SKULL_DEPTH = 0.35  # of the way to the middle
RAYS, STEPS = 500, 100
AIR_HU = -1024.0


def find_host(images: list[np.ndarray], mask: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """The host (bool) of a case from its channels, each (Z, Y, X) or (Y, X), and how it was found.

    A mask that is given is the host. An image of an organ alone (skull-stripped) has as host what differs from its constant
    background; any other image has its foreground, which is a guess and is said to be one. So is what differs from the
    background where it has a bright rim over a dark layer, as a head with its skull.
    """
    if mask is not None:
        return mask != 0, MASK
    backgrounds = [_background(image) for image in images]
    if all(value is not None for value in backgrounds):
        pairs = [(image, value) for image, value in zip(images, backgrounds, strict=True) if value is not None]
        host = _one_piece(np.any([image != value for image, value in pairs], axis=0))
        if any(_has_tissue_at_its_rim(image, host, value) for image, value in pairs):
            return host, HEAD if any(_has_layers(image, host, value) for image, value in pairs) else NONZERO
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


def _has_layers(image: np.ndarray, host: np.ndarray, background: float) -> bool:
    """Whether a closed dark layer lies beneath a bright rim: bone between scalp and brain, or muscle beneath fat.

    On rays to the middle it is a dip to less than half of what is before and behind. Sulci are dips too, but most are too
    narrow to outlast a blur of 0.8 % of the head: stripped brains have them on up to 0.07 of the rays, heads of 1 to 4 mm
    on 0.37 to 0.99, and a third of the scalp that was left on 0.28. A slice does not tell: stripped, along the fissure, it
    has 0.38.
    """
    host, image = host.squeeze(), image.squeeze()  # a 2D image may be stored as one slice
    if host.ndim < 3:
        return False
    box = ndimage.find_objects(host.astype(np.uint8))[0]
    host, image = host[box], image[box]
    zero = max(min(background, float(np.percentile(image[host], 0.5))), AIR_HU)  # of z-scored images: the darkest
    bright = np.where(host, image - zero, 0).clip(0, np.median(image[host]) - zero).astype(np.float32)
    bright = ndimage.gaussian_filter(bright, [0.008 * n for n in host.shape])
    half = np.array(host.shape) / 2
    way = np.random.default_rng(0).normal(size=(RAYS, host.ndim))
    way *= half / np.linalg.norm(way, axis=1, keepdims=True)
    at = np.linspace(2, 0, 2 * STEPS)  # from outside
    on_rays = np.array(ndimage.center_of_mass(host))[:, None, None] + way.T[:, :, None] * at
    inside = ndimage.map_coordinates(host.astype(np.uint8), on_rays, order=0) > 0
    seen = np.maximum.accumulate(inside, axis=1)
    inside &= ~np.maximum.accumulate(seen & ~inside, axis=1)  # until a ray leaves the host
    profile = ndimage.map_coordinates(bright, on_rays, order=1) * inside
    before = np.maximum.accumulate(profile, axis=1)
    behind = np.maximum.accumulate(profile[:, ::-1], axis=1)[:, ::-1]
    outer = inside & (at > (1 - SKULL_DEPTH) * at[seen.argmax(axis=1), None])
    dips = (outer & (profile < 0.5 * np.minimum(before, behind))).any(axis=1)
    return bool(dips.mean() > SKULL_SHARE)


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
