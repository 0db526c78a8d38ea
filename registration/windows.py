"""Sums over box windows and Gaussian smoothing: the two filters that losses and velocities are built from."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def box_sum(image: Tensor, window: int) -> Tensor:
    """Sum over the window^D box around every voxel, zero outside: (B, C, X, Y[, Z]) -> the same shape.

    The window is odd. A running sum along each axis costs about log2(window) additions a voxel and, unlike a
    difference of two cumulative sums, adds no more than `window` numbers up: float32 is enough.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"A window has an odd number of voxels, not {window}.")
    return _BoxSum.apply(image, window)


def box_count(shape: tuple[int, ...] | torch.Size, window: int, like: Tensor) -> Tensor:
    """How many voxels of a grid lie in the window around each of them: (1, 1, *shape), fewer at the borders."""
    counts = like.new_ones(1, 1, *[1] * len(shape))
    for axis, size in enumerate(shape):
        index = torch.arange(size, device=like.device)
        first, last = (index - window // 2).clamp(min=0), (index + window // 2).clamp(max=size - 1)
        counts = counts * (last - first + 1).to(like.dtype).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return counts


def gaussian_smooth(image: Tensor, sigma: float) -> Tensor:
    """Convolution with a Gaussian of `sigma` voxels, cut at three sigma, the border value repeated outside.

    (B, C, X, Y[, Z]) -> the same shape, in float32 at least. sigma 0 changes nothing.
    """
    image = image if image.dtype == torch.float64 else image.float()
    if sigma <= 0:
        return image
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    dims = image.ndim - 2
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    smoothed = image.flatten(0, 1).unsqueeze(1)
    with torch.autocast(image.device.type, enabled=False):
        for axis in range(dims):
            padding = [0] * (2 * dims)
            padding[2 * (dims - 1 - axis)] = padding[2 * (dims - 1 - axis) + 1] = radius
            along = kernel.reshape(1, 1, *[-1 if i == axis else 1 for i in range(dims)])
            smoothed = convolve(F.pad(smoothed, padding, mode="replicate"), along)
    return smoothed.reshape(image.shape)


class _BoxSum(torch.autograd.Function):
    """An odd box with zeros outside is its own adjoint, so the backward pass is the same running sum."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, window: int) -> Tensor:
        ctx.window = window
        for axis in range(2, image.ndim):
            image = _running_sum(image, axis, window)
        return image

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _BoxSum.apply(gradient, ctx.window), None


def _running_sum(image: Tensor, axis: int, window: int) -> Tensor:
    """Sums of `window` neighbours from sums of 1, 2, 4, ... neighbours, picked by the binary digits of the window."""
    size = image.shape[axis]
    padding = [0] * (2 * (image.ndim - axis))
    padding[-1] = padding[-2] = window // 2
    doubled = F.pad(image, padding)
    total, start, length = None, 0, 1
    while True:
        if window & length:
            piece = doubled.narrow(axis, start, size)
            total = piece if total is None else total + piece
            start += length
        if 2 * length > window:
            return total  # type: ignore[return-value]
        kept = doubled.shape[axis] - length
        doubled = doubled.narrow(axis, 0, kept) + doubled.narrow(axis, length, kept)
        length *= 2
