"""A registration at a glance: fixed and warped image as a checkerboard, and the edges of one over the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SQUARES = 6
FIXED_COLOUR, WARPED_COLOUR = "tab:cyan", "tab:orange"


def save_picture(
    file: Path,
    fixed: np.ndarray,
    warped: np.ndarray,
    spacing: Sequence[float],
    warped_labels: np.ndarray | None = None,
    fixed_labels: np.ndarray | None = None,
) -> None:
    """One row per direction of view: fixed, warped, checkerboard, contours. Arrays (X, Y[, Z]) on one grid.

    Contours are those of the labels where there are any, else of both images' brightness (fixed cyan, warped orange).
    Slices go through the middle of the labels, or of the image.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    fixed, warped = _grey(fixed), _grey(warped)
    centre = _centre(fixed.shape, warped_labels if fixed_labels is None else fixed_labels)
    axes_of_view = range(fixed.ndim) if fixed.ndim == 3 else range(1)
    figure, axes = plt.subplots(
        len(axes_of_view), 4, figsize=(12, 3.1 * len(axes_of_view) + 0.4), squeeze=False, layout="constrained"
    )
    for row, axis in zip(axes, axes_of_view, strict=True):
        sides = [side for i, side in enumerate(spacing) if i != axis or fixed.ndim == 2]

        def cut(array: np.ndarray, axis: int = axis) -> np.ndarray:
            return array if array.ndim == 2 else array.take(centre[axis], axis)

        one, two = cut(fixed), cut(warped)
        pictures = (one, two, np.where(_squares(one.shape, sides), one, two), one)
        titles = ("fixed", "warped", "checkerboard", "contours: fixed cyan, warped orange")
        for panel, picture, title in zip(row, pictures, titles, strict=True):
            panel.imshow(picture, cmap="gray", vmin=0, vmax=1, origin="lower", aspect=sides[0] / sides[1])
            panel.set_axis_off()
            panel.set_title(title, fontsize=9)
        if warped_labels is None and fixed_labels is None:
            _contour(row[3], one, [0.35, 0.65], FIXED_COLOUR)
            _contour(row[3], two, [0.35, 0.65], WARPED_COLOUR)
        for labels, colour in ((fixed_labels, FIXED_COLOUR), (warped_labels, WARPED_COLOUR)):
            if labels is not None:
                for value in np.unique(labels[labels != 0]):
                    _contour(row[3], cut(labels) == value, [0.5], colour)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def _grey(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, (0.5, 99.5))
    return np.clip((image.astype(np.float32) - low) / max(high - low, 1e-8), 0, 1)


def _centre(shape: tuple[int, ...], labels: np.ndarray | None) -> list[int]:
    """On each axis the slice with the most labels."""
    if labels is None or not labels.any():
        return [size // 2 for size in shape]
    return [
        int((labels != 0).sum(axis=tuple(i for i in range(labels.ndim) if i != axis)).argmax())
        for axis in range(labels.ndim)
    ]


def _squares(shape: tuple[int, ...], sides: Sequence[float]) -> np.ndarray:
    """A checkerboard whose squares are square in mm."""
    edge = max(size * side for size, side in zip(shape, sides, strict=True)) / SQUARES
    rows, columns = (np.arange(size) * side // edge for size, side in zip(shape, sides, strict=True))
    return (rows[:, None] + columns[None]) % 2 == 0


def _contour(panel: Any, picture: np.ndarray, levels: Sequence[float], colour: str) -> None:
    # matplotlib warns about a level that does not occur
    inside = [level for level in levels if picture.min() < level < picture.max()]
    if inside and min(picture.shape) > 1:
        panel.contour(picture.astype(np.float32), levels=inside, colors=colour, linewidths=0.8)
