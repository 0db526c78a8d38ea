"""How much smaller a U-Net's coarsest features are than its input, and images padded to what it can take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import Tensor


def total_stride(encoder: Any) -> tuple[int, ...]:
    """The product of an nnU-Net encoder's strides along each axis; sizes that it divides need no padding."""
    dims = convert_conv_op_to_dim(encoder.conv_op)
    strides = [_per_axis(stride, dims) for stride in encoder.strides]
    return tuple(math.prod(along) for along in zip(*strides, strict=True))


def padded_to(image: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, C, X, Y[, Z]) with its border repeated at the far end of every axis."""
    missing = [size - n for size, n in zip(shape, image.shape[2:], strict=True)]
    if not any(missing):
        return image
    return F.pad(image, [amount for size in reversed(missing) for amount in (0, size)], mode="replicate")


def _per_axis(stride: int | Sequence[int], dims: int) -> list[int]:
    return [stride] * dims if isinstance(stride, int) else list(stride)
