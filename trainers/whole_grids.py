"""Preprocessed cases on one common grid: what nnU-Net's crop took apart, put together again.

The images of an aligned data set share a grid, but nnU-Net crops each to its own box of nonzero voxels and resamples
that, so that voxel (i, j, k) of two preprocessed cases is not the same place. Here each case is put back where it was
in the raw image, at the configuration's resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.image_checks import same_direction
from nnunet_synthtumour.registration.instance import normalised

OUTSIDE = -1  # what nnU-Net writes into the segmentation where there is no image
SHIFT_TOLERANCE = 1e-3


class Grid(NamedTuple):
    """A common grid in the axes of the preprocessed cases: the raw images' shape, the shape at the plan's spacing, and
    where the raw images' axes point, if that is known."""

    raw_shape: tuple[int, ...]
    shape: tuple[int, ...]
    direction: Sequence[float] | None = None


class Whole(NamedTuple):
    """A case on the common grid: image (C, X, Y, Z) float32 and segmentation (1, X, Y, Z) int16, -1 outside of the image."""

    image: Tensor
    seg: Tensor

    def match(self) -> Tensor:
        """The image as registration compares it: 0 ... 1, and as dark as its darkest voxel outside of the image.

        Where nnU-Net normalises within a mask, it leaves the mean of the image around it: an organ without an outline.
        """
        darkest = self.image.amin(tuple(range(1, self.image.ndim)), keepdim=True)
        return normalised(torch.where(self.seg == OUTSIDE, darkest, self.image)[None])[0]


def common_grid(
    properties: dict[str, dict[str, Any]], spacing: Sequence[float], transpose_forward: Sequence[int]
) -> Grid:
    """The grid that all cases share; `properties` are nnU-Net's, by case. Raises `Refusal` where they share none."""
    cases = sorted(properties)
    first = _raw_grid(properties[cases[0]], transpose_forward)
    for case in cases[1:]:
        other = _raw_grid(properties[case], transpose_forward)
        if other[0] != first[0] or not np.allclose(other[1], first[1], rtol=1e-3):
            raise Refusal(
                f"{case} has {sides(other[0])} voxels of {sides(other[1])} mm and "
                f"{cases[0]} {sides(first[0])} of {sides(first[1])} mm, "
                "but registration needs all images on one grid; run 'synthtumour align' on the raw data set first."
            )
        if not same_direction(other[2], first[2]):
            raise Refusal(
                f"The axes of {case} point elsewhere than those of {cases[0]}, "
                "but registration needs all images on one grid; run 'synthtumour align' on the raw data set first."
            )
    raw_shape, raw_spacing, direction = first
    shape = tuple(round(n * mm / to) for n, mm, to in zip(raw_shape, raw_spacing, spacing, strict=True))
    return Grid(raw_shape, shape, direction)


def on_grid(image: np.ndarray, seg: np.ndarray, properties: dict[str, Any], grid: Grid) -> Whole:
    """A preprocessed case (C, X, Y, Z) and (1, X, Y, Z) on the common grid.

    Where no resampling took place, this is a copy; else voxel centres meet exactly, by linear interpolation (labels by
    the nearest voxel).
    """
    cropped = properties["shape_after_cropping_and_before_resampling"]
    begins = [bounds[0] for bounds in properties["bbox_used_for_cropping"]]
    # centre of voxel j of the common grid, in voxels of the preprocessed case
    at = [
        ((np.arange(n) + 0.5) * raw / n - begin) * size / crop - 0.5
        for n, raw, begin, size, crop in zip(grid.shape, grid.raw_shape, begins, image.shape[1:], cropped, strict=True)
    ]
    outside = seg[0] == OUTSIDE
    fill = [float(channel[outside].mean()) if outside.any() else float(channel.min()) for channel in image]
    shifts = [round(float(a[0])) for a in at]
    if all(np.abs(a - np.arange(len(a)) - s).max() < SHIFT_TOLERANCE for a, s in zip(at, shifts, strict=True)):
        return _shifted(image, seg, shifts, grid, fill)
    return _resampled(image, seg, at, fill)


def _shifted(
    image: np.ndarray, seg: np.ndarray, shifts: Sequence[int], grid: Grid, fill: Sequence[float]
) -> Whole:  # fmt: skip
    whole = np.empty((len(image), *grid.shape), np.float32)
    whole[:] = np.reshape(fill, (-1, *[1] * len(shifts)))
    labels = np.full((1, *grid.shape), OUTSIDE, np.int16)
    to, of = [], []
    for shift, n, size in zip(shifts, grid.shape, image.shape[1:], strict=True):
        to.append(slice(max(0, -shift), max(0, min(n, size - shift))))
        of.append(slice(to[-1].start + shift, to[-1].stop + shift))
    whole[(slice(None), *to)] = image[(slice(None), *of)]
    labels[(slice(None), *to)] = seg[(slice(None), *of)]
    return Whole(torch.from_numpy(whole), torch.from_numpy(labels))


def _resampled(image: np.ndarray, seg: np.ndarray, at: Sequence[np.ndarray], fill: Sequence[float]) -> Whole:
    points = torch.stack(
        torch.meshgrid(
            *[torch.from_numpy(2 * a / max(1, n - 1) - 1).float() for a, n in zip(at, image.shape[1:], strict=True)],
            indexing="ij",
        )[::-1],
        -1,
    )[None]
    inside = torch.ones(1, *image.shape[1:])
    volume = torch.cat([torch.from_numpy(np.array(image, dtype=np.float32)), inside])[None]
    linear = F.grid_sample(volume, points, mode="bilinear", padding_mode="border", align_corners=True)[0]
    known = F.grid_sample(inside[None], points, mode="nearest", padding_mode="zeros", align_corners=True)[0] > 0.5
    background = torch.tensor(fill).reshape(-1, *[1] * len(at))
    labels = F.grid_sample(
        torch.from_numpy(np.array(seg, dtype=np.float32))[None], points, mode="nearest", padding_mode="border",
        align_corners=True,
    )[0]  # fmt: skip
    return Whole(
        torch.where(known, linear[:-1], background), torch.where(known, labels, float(OUTSIDE)).to(torch.int16)
    )


class WholeCases:
    """Cases of a preprocessed folder on their common grid, the last ones kept in memory."""

    def __init__(
        self, dataset: Any, spacing: Sequence[float], transpose_forward: Sequence[int], keep_voxels: int = 400_000_000
    ) -> None:
        self.dataset = dataset
        self.cases = list(dataset.identifiers)
        self.spacing = tuple(float(mm) for mm in spacing)
        self.grid = common_grid({case: dataset.load_case(case)[3] for case in self.cases}, spacing, transpose_forward)
        channels = dataset.load_case(self.cases[0])[0].shape[0]
        self._keep = max(2, keep_voxels // (channels * int(np.prod(self.grid.shape))))
        self._load = lru_cache(maxsize=self._keep)(self._read)

    def __getitem__(self, case: str) -> Whole:
        return self._load(case)

    def _read(self, case: str) -> Whole:
        image, seg, _, properties = self.dataset.load_case(case)
        return on_grid(np.asarray(image[:]), np.asarray(seg[:]), properties, self.grid)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_load"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._load = lru_cache(maxsize=self._keep)(self._read)


def _raw_grid(
    properties: dict[str, Any], transpose_forward: Sequence[int]
) -> tuple[tuple[int, ...], tuple[float, ...], Sequence[float] | None]:  # fmt: skip
    """Shape, spacing and, where the reader tells it, the direction of the raw image's axes."""
    shape = tuple(int(n) for n in properties["shape_before_cropping"])
    direction = properties.get("sitk_stuff", {}).get("direction")
    return shape, tuple(float(properties["spacing"][i]) for i in transpose_forward), direction


def sides(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
