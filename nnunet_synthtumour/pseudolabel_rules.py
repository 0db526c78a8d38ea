"""Which voxels of a patient become tumour, background or unknown: thresholds and rules on a map of probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_synthtumour.settings import PseudoLabelSettings
from nnunet_synthtumour.volumes import millilitres, radius_of

CLOSING_RADII = 0.75  # of a component: small ones are not joined with what is beside them
KEPT, UNSURE, DROPPED = 1, 2, 3
"""Values of `Decision.state`; 0 is background."""


@dataclass(frozen=True)
class Component:
    """A connected region above the upper threshold; `dropped` says why it is not kept, if it is not."""

    ml: float
    confidence: float
    rim_share: float
    centre: tuple[int, ...]
    dropped: str | None


@dataclass(frozen=True)
class Decision:
    """`state` (Z, Y, X): kept, unsure, dropped or background; components from the largest to the smallest.

    `doubt` is what is unsure or dropped per what is kept, None where nothing is; `reason` says why the case is set aside,
    None where it is not.
    """

    state: np.ndarray
    components: tuple[Component, ...]
    doubt: float | None
    reason: str | None


def decide(
    tumour: np.ndarray,
    junior: np.ndarray,
    host: np.ndarray,
    image: np.ndarray,
    spacing: Sequence[float],
    rules: PseudoLabelSettings,
) -> Decision:
    """Apply the rules to the probability of any tumour (Z, Y, X).

    `junior` is the network's own probability, by which a component is trusted: what was corrected agrees with itself.
    `host` is the organ and `image` where the image is not empty (bool); `spacing` in mm. `rules.min_ml` must be given.
    """
    assert rules.min_ml is not None
    core = (tumour >= rules.upper) & (tumour > 0) & image
    state = np.zeros(tumour.shape, dtype=np.uint8)
    state[(tumour >= rules.lower) & (tumour > 0) & image] = UNSURE
    pieces, n = ndimage.label(core, np.ones((3,) * core.ndim, dtype=bool))
    if n == 0:
        return _judged(state, [], rules)
    rim = outer_rim(host, spacing, rules.rim_mm)
    host_voxels = max(int(host.sum()), 1)
    components = []
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        mine = pieces[box] == number
        size = int(mine.sum())
        found = junior[box][mine]
        found = found[found >= rules.upper]
        ml = millilitres(size, tumour.shape, spacing)
        confidence = float(found.mean(dtype=np.float64)) if len(found) else 0.0
        rim_share = float(rim[box][mine].mean())
        dropped = None
        if ml < rules.min_ml:
            dropped = "too small"
        elif confidence < rules.min_confidence:
            dropped = "too unsure"
        elif rim_share > rules.max_rim_share:
            dropped = "at the outer rim"
        elif size > rules.max_host_share * host_voxels:
            dropped = "too large"
        state[box][mine] = KEPT if dropped is None else DROPPED
        if dropped is None:
            _close(state, box, mine, host, spacing, min(rules.closing_mm, CLOSING_RADII * radius_of(ml)))
        middle = np.argwhere(mine).mean(0) + [side.start for side in box]
        components.append(Component(ml, confidence, rim_share, tuple(round(float(m)) for m in middle), dropped))
    return _judged(state, components, rules)


def _judged(state: np.ndarray, components: list[Component], rules: PseudoLabelSettings) -> Decision:
    kept = int((state == KEPT).sum())
    doubt = float((state > KEPT).sum() / kept) if kept else None
    reason = None
    if not components:
        reason = "nothing above the upper threshold" if (state == UNSURE).any() else "nothing found"
    elif doubt is None:
        reason = f"all components dropped ({', '.join(sorted({str(c.dropped) for c in components}))})"
    elif doubt > rules.max_doubt:
        reason = f"more doubt than tumour (unsure and dropped are {doubt:.1f} times what is kept)"
    return Decision(state, tuple(sorted(components, key=lambda c: -c.ml)), doubt, reason)


def _close(
    state: np.ndarray, box: tuple[slice, ...], mine: np.ndarray, host: np.ndarray, spacing: Sequence[float], mm: float
) -> None:
    """Add what a component encloses, also through gaps of up to twice `mm`: tumours have dark cores, but no holes."""
    if mm <= 0:
        return
    reach = [int(np.ceil(mm / side)) + 1 for side in spacing]
    around = np.pad(mine, [(r, r) for r in reach])
    near = ndimage.distance_transform_edt(~around, sampling=list(spacing)) <= mm
    closed = (ndimage.distance_transform_edt(near, sampling=list(spacing)) > mm) | around
    closed = _without_holes(closed[tuple(slice(r, -r) for r in reach)])
    state[box][closed & host[box] & (state[box] != DROPPED)] = KEPT


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """With what is enclosed; in a single slice, what is enclosed in its plane."""
    ways = ndimage.generate_binary_structure(mask.ndim, 1)
    for axis, n in enumerate(mask.shape):
        if n == 1:
            ways[tuple([0, 2] if i == axis else slice(None) for i in range(mask.ndim))] = False
    return np.asarray(ndimage.binary_fill_holes(mask, ways))


def outer_rim(host: np.ndarray, spacing: Sequence[float], rim_mm: float) -> np.ndarray:
    """What is not deeper than `rim_mm` in the host, and all outside of it.

    The edge of the image is no border of the host: a head that the field of view cuts has no rim there.
    """
    if rim_mm <= 0 or host.all():
        return ~host
    return np.asarray(ndimage.distance_transform_edt(host, sampling=list(spacing)) <= rim_mm)


def label_map(state: np.ndarray, inside: np.ndarray, ignore_label: int) -> np.ndarray:
    """Labels of `inside` where a voxel is kept, the ignore label where it is unsure or dropped, else background.

    What was closed or corrected into a tumour takes the label of the nearest voxel that has one.
    """
    kept = state == KEPT
    labels = np.where(kept, inside, 0)
    unnamed = kept & (inside == 0)
    if unnamed.any() and (inside > 0).any():
        nearest = ndimage.distance_transform_edt(inside == 0, return_distances=False, return_indices=True)
        labels[unnamed] = inside[tuple(at[unnamed] for at in nearest)]
    labels[(state == UNSURE) | (state == DROPPED)] = ignore_label
    return labels.astype(np.uint8 if ignore_label < 256 else np.uint16)
