"""Which voxels of a patient become tumour, background or unknown: thresholds and rules on a map of probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunet_synthtumour.settings import PseudoLabelSettings

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
    """`state` (Z, Y, X): kept, unsure, dropped or background; components from the largest to the smallest."""

    state: np.ndarray
    components: tuple[Component, ...]

    @property
    def reason(self) -> str | None:
        """Why nothing is left, or None where something is."""
        if any(c.dropped is None for c in self.components):
            return None
        if not self.components:
            return "nothing found" if not (self.state == UNSURE).any() else "nothing above the upper threshold"
        causes = sorted({str(c.dropped) for c in self.components})
        return f"all components dropped ({', '.join(causes)})"


def decide(
    tumour: np.ndarray, host: np.ndarray, image: np.ndarray, spacing: Sequence[float], rules: PseudoLabelSettings
) -> Decision:
    """Apply the rules to the probability of any tumour (Z, Y, X).

    `host` is the organ and `image` where the image is not empty (bool); `spacing` in mm. `rules.min_ml` must be given.
    """
    assert rules.min_ml is not None
    core = (tumour >= rules.upper) & (tumour > 0) & image
    state = np.zeros(tumour.shape, dtype=np.uint8)
    state[(tumour >= rules.lower) & (tumour > 0) & image] = UNSURE
    pieces, n = ndimage.label(core, np.ones((3,) * core.ndim, dtype=bool))
    if n == 0:
        return Decision(state, ())
    rim = outer_rim(host, spacing, rules.rim_mm)
    host_voxels = max(int(host.sum()), 1)
    voxel_ml = float(np.prod(spacing)) / 1000
    components = []
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        mine = pieces[box] == number
        size = int(mine.sum())
        ml, confidence = size * voxel_ml, float(tumour[box][mine].mean(dtype=np.float64))
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
        middle = np.argwhere(mine).mean(0) + [side.start for side in box]
        components.append(Component(ml, confidence, rim_share, tuple(round(float(m)) for m in middle), dropped))
    return Decision(state, tuple(sorted(components, key=lambda c: -c.ml)))


def outer_rim(host: np.ndarray, spacing: Sequence[float], rim_mm: float) -> np.ndarray:
    """What is not deeper than `rim_mm` in the host, and all outside of it.

    The edge of the image is no border of the host: a head that the field of view cuts has no rim there.
    """
    if rim_mm <= 0 or host.all():
        return ~host
    return np.asarray(ndimage.distance_transform_edt(host, sampling=list(spacing)) <= rim_mm)


def label_map(state: np.ndarray, inside: np.ndarray, ignore_label: int) -> np.ndarray:
    """Labels of `inside` where a voxel is kept, the ignore label where it is unsure or dropped, else background."""
    labels = np.where(state == KEPT, inside, 0)
    labels[(state == UNSURE) | (state == DROPPED)] = ignore_label
    return labels.astype(np.uint8 if ignore_label < 256 else np.uint16)
