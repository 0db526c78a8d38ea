"""How much smaller a U-Net's coarsest features are than its input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim


def total_stride(encoder: Any) -> tuple[int, ...]:
    """The product of an nnU-Net encoder's strides along each axis; sizes that it divides need no padding."""
    dims = convert_conv_op_to_dim(encoder.conv_op)
    strides = [_per_axis(stride, dims) for stride in encoder.strides]
    return tuple(math.prod(along) for along in zip(*strides, strict=True))


def _per_axis(stride: int | Sequence[int], dims: int) -> list[int]:
    return [stride] * dims if isinstance(stride, int) else list(stride)
