"""A body put into the host of a patch: the box it needs, its level field there, and the surface that gives its volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nnunet_synthtumour.infiltration import detour, effort
from nnunet_synthtumour.lattice import Lattice, steps_for
from nnunet_synthtumour.shapes import Body, box_of, enclose, level_field

SLACKS = (1.35, 1.9, 3.0, 4.5)
"""How far the box reaches, in half-axes: a body that the host cuts has to reach further elsewhere."""


@dataclass(frozen=True)
class LocalShape:
    """A body in its box. Levels are in mm, positive inside, 0 on the surface.

    `box` holds the lesion and `margin_mm` around it, `wide_box` what was looked at to find it. `complete` is False where
    the host has less room than the body's volume; the lesion then fills it.
    """

    box: tuple[slice, ...]
    lattice: Lattice
    blocks: torch.Tensor  # level on the lattice of `box`
    mask: torch.Tensor  # bool, voxels of `box`
    host: torch.Tensor  # bool, voxels of `box`
    complete: bool
    wide_box: tuple[slice, ...]
    wide_lattice: Lattice
    wide_blocks: torch.Tensor


def find_shape(
    body: Body,
    intensity: torch.Tensor,
    seg: torch.Tensor,
    ignore_label: int,
    spacing: Sequence[float],
    margin_mm: float,
) -> LocalShape | None:
    """The body clipped by the host, of the body's volume where the host has room for it; None where there is no host.

    `intensity` and `seg` are the whole patch (X, Y[, Z]). The search runs on blocks; the volume is set on voxels.
    """
    size = _search(body, intensity, seg, ignore_label, spacing)
    if size is None:
        return None
    wide_box, wide, blocks, surface = size
    tight = tight_blocks(blocks, surface - margin_mm - max(wide.spacing(spacing)))
    lattice, voxels = wide.cut(tight)
    box = tuple(slice(w.start + v.start, w.start + v.stop) for w, v in zip(wide_box, voxels, strict=True))
    host = seg[box] == ignore_label
    if not np.count_nonzero(host.numpy()):
        return None
    inner = blocks[tight]
    level = lattice.to_voxels(inner)
    exact, complete = enclose(level, host, body.size, float(np.prod(spacing)))
    mask = (level > exact).logical_and_(host)
    return LocalShape(box, lattice, inner - exact, mask, host, complete, wide_box, wide, blocks - exact)


def _search(
    body: Body, intensity: torch.Tensor, seg: torch.Tensor, ignore_label: int, spacing: Sequence[float]
) -> tuple[tuple[slice, ...], Lattice, torch.Tensor, float] | None:
    """Box, lattice, level on its blocks, and roughly where the surface lies; the box grows until it holds the body."""
    found = None
    for slack in SLACKS:
        box = box_of(body, seg.shape, spacing, slack)
        if any(s.stop <= s.start for s in box):
            return None
        labels = seg[box]
        shape = tuple(labels.shape)
        lattice = Lattice.over(shape, steps_for(body.radius_mm, spacing, coarser=2 if slack > 2.5 else 1))
        host = lattice.sample(labels) == ignore_label
        if not np.count_nonzero(host.numpy()):  # a host thinner than a block
            lattice = Lattice(shape, (1,) * len(shape))
            host = labels == ignore_label
        everything = all(s.start == 0 and s.stop == n for s, n in zip(box, seg.shape, strict=True))
        if not np.count_nonzero(host.numpy()):
            if everything:
                return None
            continue
        level = _level_on_blocks(body, box, lattice, intensity, host, spacing)
        surface, enough = enclose(level, host, body.size, float(np.prod(lattice.spacing(spacing))))
        found = box, lattice, level, surface
        if everything or (enough and not _reaches_a_face(level, host, surface, box, seg.shape)):
            break
    return found


def _level_on_blocks(
    body: Body,
    box: tuple[slice, ...],
    lattice: Lattice,
    intensity: torch.Tensor,
    host: torch.Tensor,
    spacing: Sequence[float],
) -> torch.Tensor:
    positions = [lattice.positions(axis) + s.start for axis, s in enumerate(box)]
    level = level_field(body, positions, spacing)
    if body.hug_tissue > 0:
        block_mm = lattice.spacing(spacing)
        per_mm = effort(lattice.sample(intensity[box]), host, block_mm)
        nodes = [(c - s.start + 0.5) / k - 0.5 for c, s, k in zip(body.centre, box, lattice.steps, strict=True)]
        level.sub_(detour(per_mm, nodes, block_mm), alpha=body.hug_tissue)
    return level


def _reaches_a_face(
    level: torch.Tensor, host: torch.Tensor, surface: float, box: tuple[slice, ...], shape: Sequence[int]
) -> bool:
    """Whether the box cuts the body at a face that is not one of the patch."""
    for axis, (s, n) in enumerate(zip(box, shape, strict=True)):
        for at, inner in ((0, s.start > 0), (-1, s.stop < n)):
            if inner and bool(((level.select(axis, at) > surface) & host.select(axis, at)).any()):
                return True
    return False


def tight_blocks(blocks: torch.Tensor, level: float) -> tuple[slice, ...]:
    """The range of blocks above `level`; all of them if there are none."""
    above = (blocks > level).numpy()
    ranges = []
    for axis in range(above.ndim):
        hit = np.flatnonzero(above.any(axis=tuple(i for i in range(above.ndim) if i != axis)))
        ranges.append(slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, above.shape[axis]))
    return tuple(ranges)
