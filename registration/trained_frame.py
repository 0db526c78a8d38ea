"""The frame that a network was trained in: which axis comes first, which way it runs, how large a voxel is.

A network has learnt anatomy in one pose and at one scale. Images that are stored otherwise are brought into its frame,
and what it says of them is brought back, so that for the same two images in space the answer is the same deformation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from nnunet_synthtumour.registration.model_files import Architecture
from nnunet_synthtumour.registration.physical import Geometry

TOLERANCE = 0.01
"""Voxel sides that differ by less are the same: resampling would blur and gain nothing."""


@dataclass(frozen=True)
class Frame:
    """Axis a of the network is tensor axis `axes[a]` of the images, backwards if `flipped[a]`, with `shape[a]` voxels."""

    axes: tuple[int, ...]
    flipped: tuple[bool, ...]
    shape: tuple[int, ...]

    def image(self, image: Tensor, mode: Literal["linear", "nearest"] = "linear") -> Tensor:
        """(B, C, X, Y[, Z]) as the network sees it: interpolated where voxels have another size, edges upon edges."""
        turned = image.permute(0, 1, *(2 + axis for axis in self.axes)).flip(self._backwards)
        if tuple(turned.shape[2:]) == self.shape:
            return turned.contiguous()
        linear = "trilinear" if len(self.shape) == 3 else "bilinear"
        return F.interpolate(turned, self.shape, mode=linear if mode == "linear" else "nearest-exact")

    def home(self, seen: Tensor, shape: Sequence[int]) -> Tensor:
        """What the network says of every voxel, (B, C, ...), on the images' grid of this `shape`."""
        ahead = tuple(shape[axis] for axis in self.axes)
        if tuple(seen.shape[2:]) != ahead:
            seen = F.interpolate(seen, ahead, mode="trilinear" if len(ahead) == 3 else "bilinear")
        return seen.flip(self._backwards).permute(0, 1, *(2 + axis for axis in self._home)).contiguous()

    def velocity(self, velocity: Tensor) -> Tensor:
        """The network's (B, D, ...) along the images' axes. It keeps its resolution: another grid of the same extent,
        in voxels of its own, from where `fields.resize` leads to the images'."""
        signs = velocity.new_tensor([-1.0 if back else 1.0 for back in self.flipped])
        ahead = velocity.flip(self._backwards) * signs.reshape(1, -1, *[1] * len(self.axes))
        return ahead[:, self._home].permute(0, 1, *(2 + axis for axis in self._home)).contiguous()

    @property
    def _home(self) -> list[int]:
        return [self.axes.index(axis) for axis in range(len(self.axes))]

    @property
    def _backwards(self) -> list[int]:
        return [2 + axis for axis, back in enumerate(self.flipped) if back]


def frame_of(architecture: Architecture, grid: Geometry) -> Frame:
    """How images on this grid have to be turned and resampled; what the file does not say stays as it is."""
    dims = len(grid.shape)
    lying, back = tuple(range(dims)), (False,) * dims
    if architecture.direction is not None:
        lying, back = orientation(grid.direction, architecture.direction)
    order = architecture.transpose_forward or tuple(range(dims))
    axes = tuple(lying[axis] for axis in order)
    shape, sides = tuple(grid.shape[axis] for axis in axes), [grid.spacing[::-1][axis] for axis in axes]
    trained = _known_spacing(architecture)
    if trained is not None:
        shape = tuple(_resampled(n, side, to) for n, side, to in zip(shape, sides, trained, strict=True))
    return Frame(axes, tuple(back[axis] for axis in order), shape)


def orientation(direction: Sequence[float], towards: Sequence[float]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """For every tensor axis of images that lie `towards` (ITK's direction cosines, row by row), the tensor axis of those
    that lie in `direction` that runs most alike, and whether it runs backwards. Oblique axes count as the nearest."""
    dims = round(len(direction) ** 0.5)
    cosines = np.reshape(towards, (dims, dims)).T @ np.reshape(direction, (dims, dims))
    cosines = cosines[::-1, ::-1]  # tensor axes are ITK's from the last to the first
    rows = np.arange(dims)
    # of equals the first: axes stay where they are
    axes = max(permutations(range(dims)), key=lambda order: round(float(np.abs(cosines[rows, order]).sum()), 6))
    return axes, tuple(bool(c < 0) for c in cosines[rows, axes])


def lie_alike(direction: Sequence[float], other: Sequence[float]) -> bool:
    """Whether no axis has to be exchanged or turned round between two directions."""
    if len(direction) != len(other):
        return False
    axes, flipped = orientation(direction, other)
    return axes == tuple(range(len(axes))) and not any(flipped)


def _known_spacing(architecture: Architecture) -> Sequence[float] | None:
    """None, too, where an older file does not say to which axis which side belongs."""
    spacing = architecture.spacing
    if spacing is None or (architecture.transpose_forward is None and max(spacing) > min(spacing) * (1 + TOLERANCE)):
        return None
    return spacing


def _resampled(n: int, side: float, to: float) -> int:
    return n if abs(side / to - 1) <= TOLERANCE else max(2, round(n * side / to))
