"""Mass effect: a lesion pushes the tissue around it outward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from nnunet_synthtumour.local_shape import LocalShape
from nnunet_synthtumour.shapes import Body

FALL_OFF = 0.4  # of the push, in radii from the surface
LEAST_VOXELS = 0.35  # a shorter push is not worth an interpolation
FARTHEST = 20.0
SLAB = 4  # planes at a time: little memory, and it stays in the cache


def push_away(image: torch.Tensor, seg: torch.Tensor, ignore_label: int, shape: LocalShape, body: Body, share: float,
              spacing: Sequence[float]) -> None:  # fmt: skip
    """Push the tissue of a patch (C, X, Y[, Z]) outward, in place, in the wide box of a shape and inside of its host.

    I'(x) = I(x - d(x)), d radial from the body's centre, |d| = share r exp(-(level / (0.4 r))^2), falling to 0 at the
    faces of the box. Only voxels that move are interpolated.
    """
    lattice, box = shape.wide_lattice, shape.wide_box
    amount = _amount(shape.wide_blocks, body.radius_mm, share)
    host = seg[box] == ignore_label
    crop, x = image[(slice(None), *box)], _relative_mm(box, body.centre, spacing)
    done = []
    for start in range(0, crop.shape[1], SLAB):
        slab = slice(start, min(start + SLAB, crop.shape[1]))
        push = lattice.to_voxels(amount, slab)
        moves = (push > LEAST_VOXELS * min(spacing)).logical_and_(host[slab])
        moving = torch.from_numpy(np.flatnonzero(moves.numpy()))  # torch's own nonzero is many times slower
        if not len(moving):
            continue
        here = [x[0][slab], *x[1:]]
        square = sum((v * v for v in here[1:]), start=here[0] * here[0])
        push = push.div_(square.clamp_min_(1e-6).sqrt_())
        from_where = [
            (v - push * v).view(-1)[moving].div_(mm).add_(c - s.start).mul_(2 / max(1, n - 1)).sub_(1)
            for v, mm, c, s, n in zip(here, spacing, body.centre, box, crop.shape[1:], strict=True)
        ]
        grid = torch.stack(from_where[::-1], -1).reshape(1, *([1] * (len(x) - 1)), -1, len(x))
        done.append((slab, moves, F.grid_sample(crop[None], grid, padding_mode="border", align_corners=True)[0]))
    for slab, moves, pushed in done:  # only now: the slabs look at each other's tissue
        for channel in range(crop.shape[0]):
            crop[channel, slab].masked_scatter_(moves, pushed[channel])


def _relative_mm(box: tuple[slice, ...], centre: Sequence[float], spacing: Sequence[float]) -> list[torch.Tensor]:
    """Position (mm) of the box's voxels relative to `centre`, one tensor per axis, shaped to broadcast."""
    return [
        ((torch.arange(s.start, s.stop) - c) * mm).float().reshape([-1 if d == i else 1 for d in range(len(box))])
        for i, (s, c, mm) in enumerate(zip(box, centre, spacing, strict=True))
    ]


def _amount(level: torch.Tensor, radius_mm: float, share: float) -> torch.Tensor:
    """Length of the push (mm) on blocks: it falls off faster inside, where the lesion replaces the tissue anyway."""
    fall_off = torch.where(level > 0, 0.5 * FALL_OFF, FALL_OFF).mul_(radius_mm)
    exponent = -((level / fall_off) ** 2).clamp_(max=FARTHEST)  # far away: nothing, but not so little that it is slow
    amount = torch.exp(exponent).mul_(share * radius_mm)
    for axis, n in enumerate(level.shape):
        at = torch.arange(n, dtype=torch.float32)
        taper = (torch.minimum(at, n - 1 - at) / max(1.0, 0.15 * n)).clamp_(0, 1)
        amount.mul_(taper.reshape([-1 if d == axis else 1 for d in range(level.ndim)]))
    return amount
