"""A pseudo-label at a glance: the slices with most of it, and what was kept, unsure and dropped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synthtumour.atomic_files import complete
from nnunet_synthtumour.pseudolabel_rules import DROPPED, KEPT, UNSURE

COLOURS = {KEPT: "#2fbf4f", UNSURE: "#ffb000", DROPPED: "#ff4060"}
NAMES = {KEPT: "kept", UNSURE: "unsure", DROPPED: "dropped"}


def save_case_picture(
    file: Path, images: np.ndarray, state: np.ndarray, tumour: np.ndarray, spacing: Sequence[float]
) -> None:
    """Images (C, Z, Y, X), state and probability (Z, Y, X). One row per direction of view (one, for 2D): the first
    channel as it is, outlined, and under the probability."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    views = [0] if state.shape[0] == 1 else [0, 1]
    centre = interesting_point(state, tumour)
    sizes = [[n * s for i, (n, s) in enumerate(zip(state.shape, spacing, strict=True)) if i != axis] for axis in views]
    figure, axes = plt.subplots(
        len(views), 3, squeeze=False, layout="constrained", figsize=(7.2, sum(2.4 * h / w for h, w in sizes) + 0.1),
        gridspec_kw={"height_ratios": [h / w for h, w in sizes]},
    )  # fmt: skip
    for row, axis in zip(axes, views, strict=True):
        sides = [side for i, side in enumerate(spacing) if i != axis]
        image, states, probability = (_cut(array, axis, centre[axis]) for array in (images[0], state, tumour))
        low, high = np.percentile(image, [1, 99.8])
        for panel in row:
            panel.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=sides[0] / sides[1],
                         origin="lower" if axis else "upper")  # fmt: skip
            panel.set_axis_off()
        for value, colour in COLOURS.items():
            _outline(row[1], states == value, colour)
        shown = np.ma.masked_less(probability, 0.02)
        row[2].imshow(shown, cmap="inferno", vmin=0, vmax=1, alpha=0.75, aspect=sides[0] / sides[1],
                      origin="lower" if axis else "upper", interpolation="nearest")  # fmt: skip
    with complete(file) as scratch:
        figure.savefig(scratch, dpi=80)
    plt.close(figure)


def interesting_point(state: np.ndarray, tumour: np.ndarray) -> tuple[int, ...]:
    """On each axis, the slice with most that is kept; else dropped, else unsure; else the highest probability."""
    for value in (KEPT, DROPPED, UNSURE):
        if (state == value).any():
            return tuple(
                int((state == value).sum(tuple(i for i in range(state.ndim) if i != axis)).argmax())
                for axis in range(state.ndim)
            )
    if tumour.any():
        return tuple(int(i) for i in np.unravel_index(int(tumour.argmax()), tumour.shape))
    return tuple(n // 2 for n in state.shape)


def _cut(array: np.ndarray, axis: int, at: int) -> np.ndarray:
    return array.take(at, axis)


def _outline(panel: Any, mask: np.ndarray, colour: str) -> None:
    """Closed also where the mask reaches the image's edge: the line runs just inside of it."""
    if mask.any():
        y, x = (np.clip(np.arange(-1, n + 1), -0.5, n - 0.5) for n in mask.shape)
        panel.contour(x, y, np.pad(mask, 1).astype(float), [0.5], colors=colour, linewidths=1.0)
