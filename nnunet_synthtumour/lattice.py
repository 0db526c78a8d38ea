"""Blocks of voxels over a box: smooth things are computed once per block and interpolated to voxels once.

A lesion of 50 ml spans half a million voxels at 1 mm; its surface, texture and edges are smooth at that scale, and on
blocks of two voxels they cost an eighth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nnunet_synthtumour.smoothing import along_axis, block_interpolation

BLOCKS_PER_RADIUS = 7
LARGEST_STEP = 4


def steps_for(radius_mm: float, spacing: Sequence[float], coarser: int = 1) -> tuple[int, ...]:
    """Voxels per block along each axis, such that a radius spans about seven blocks (fewer where `coarser` than that)."""
    wanted = radius_mm * coarser / BLOCKS_PER_RADIUS
    return tuple(int(max(1, min(LARGEST_STEP * coarser, wanted // mm))) for mm in spacing)


@dataclass(frozen=True)
class Lattice:
    """Blocks of `steps` voxels over a box of `shape` voxels; the last block of an axis may be cut.

    Fields on blocks hold values at the middles of (uncut) blocks.
    """

    shape: tuple[int, ...]
    steps: tuple[int, ...]

    @staticmethod
    def over(shape: Sequence[int], steps: Sequence[int]) -> Lattice:
        """Steps limited to the sides of the box."""
        sides = tuple(int(n) for n in shape)
        return Lattice(sides, tuple(min(k, n) for k, n in zip(steps, sides, strict=True)))

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks along each axis."""
        return tuple(-(-n // k) for n, k in zip(self.shape, self.steps, strict=True))

    def spacing(self, voxel_mm: Sequence[float]) -> tuple[float, ...]:
        """Size of a block in mm."""
        return tuple(k * mm for k, mm in zip(self.steps, voxel_mm, strict=True))

    def positions(self, axis: int) -> torch.Tensor:
        """Middles of the blocks along an axis, in voxels of the box."""
        return (torch.arange(self.blocks[axis], dtype=torch.float32) + 0.5) * self.steps[axis] - 0.5

    def look(self, axis: int) -> slice:
        """The voxels next to the blocks' middles along an axis."""
        n, k = self.shape[axis], self.steps[axis]
        return slice(min(k // 2, (n - 1) % k), None, k)

    def sample(self, field: torch.Tensor) -> torch.Tensor:
        """One voxel per block, next to its middle: a look that costs next to nothing."""
        return field[tuple(self.look(axis) for axis in range(len(self.shape)))]

    def mean(self, field: torch.Tensor) -> torch.Tensor:
        """Mean per block of a float field; a cut block is averaged as it is."""
        if max(self.steps) == 1:
            return field
        pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[field.ndim]
        return pool(field[None, None], self.steps, self.steps, ceil_mode=True, count_include_pad=False)[0, 0]

    def to_voxels(self, field: torch.Tensor, first: slice = slice(None)) -> torch.Tensor:
        """Linear interpolation from blocks to voxels, to those in `first` along the first axis. May return `field`."""
        matrix = block_interpolation(self.shape[0], field.shape[0], self.steps[0])[first] if self.steps[0] > 1 else None
        field = along_axis(field, matrix, 0) if matrix is not None else field[first]
        for axis in range(1, field.ndim):
            if self.steps[axis] > 1:
                field = along_axis(
                    field, block_interpolation(self.shape[axis], field.shape[axis], self.steps[axis]), axis
                )
        return field

    def cut(self, blocks: tuple[slice, ...]) -> tuple[Lattice, tuple[slice, ...]]:
        """The lattice of a range of blocks, and the voxels of this box that they cover."""
        voxels = tuple(slice(b.start * k, min(n, b.stop * k)) for b, k, n in
                       zip(blocks, self.steps, self.shape, strict=True))  # fmt: skip
        return Lattice.over([v.stop - v.start for v in voxels], self.steps), voxels
