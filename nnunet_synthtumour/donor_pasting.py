"""Pasting one drawn donor into a patch: deterministic, and nothing outside of the donor's box is touched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nnunet_synthtumour.donor_bank import Crop, Donor, ring_limits, robust_mean_and_spread
from nnunet_synthtumour.donor_placement import Paste
from nnunet_synthtumour.lattice import Lattice, steps_for
from nnunet_synthtumour.local_shape import tight_blocks
from nnunet_synthtumour.noise import coherent_noise

BEND_MM = 24.0  # wavelength of the elastic deformation
FEWEST_RING_VOXELS = 20
LARGEST_GAIN = 1.6

Pasted = tuple[tuple[slice, ...], torch.Tensor | None]
"""A box of the patch, and where in it (bool) the donor's own label is in doubt."""


def paste_untouched(
    image: torch.Tensor, seg: torch.Tensor, crop: Crop, anchor: Sequence[int], paste: Paste, ignore_label: int
) -> Pasted:
    """The reference's rule, X = M X_i + (1 - M) X_j inside of the host: voxel on voxel, a hard mask."""
    corner = [round(c) - a for c, a in zip(paste.centre, anchor, strict=True)]
    box = tuple(
        slice(max(0, c), max(0, min(n, c + m))) for c, n, m in zip(corner, seg.shape, crop.labels.shape, strict=True)
    )
    within = tuple(slice(s.start - c, s.stop - c) for s, c in zip(box, corner, strict=True))
    labels = torch.from_numpy(crop.labels[within].astype(np.int16))
    mask = torch.from_numpy(crop.level[within] > 0) & (seg[box] == ignore_label)
    for channel, values in zip(image, crop.image, strict=True):
        part = channel[box]
        part.copy_(torch.where(mask, torch.from_numpy(values[within].astype(np.float32)), part))
    part = seg[box]
    part.copy_(torch.where(mask, labels.to(seg.dtype), part))
    return box, mask & (labels == ignore_label)


def paste_donor(
    image: torch.Tensor,
    seg: torch.Tensor,
    donor: Donor,
    crop: Crop,
    anchor: Sequence[int],
    paste: Paste,
    ignore_label: int,
    spacing: Sequence[float],
    margin_mm: float,
) -> Pasted:
    """x <- x + a (g (d - m_d) + m_h - x) in the host: d the donor moved there, m and g from the two rings, a = 1 in the
    tumour and falling to 0 over the seam outside of it."""
    wide_box = _box_in_patch(crop.level.shape, anchor, paste, spacing, seg.shape)
    wide = Lattice.over([s.stop - s.start for s in wide_box], steps_for(donor.radius_mm, spacing))
    affine = _voxel_matrix(paste, spacing)
    positions = [wide.positions(a) + (s.start - c) for a, (s, c) in enumerate(zip(wide_box, paste.centre, strict=True))]
    bend = _bend(wide, wide_box, paste, spacing)
    on_blocks = _mapped(affine, positions, anchor)
    if bend is not None:
        on_blocks = [at + b for at, b in zip(on_blocks, bend, strict=True)]
    level_blocks = _nearest(crop.level, on_blocks).float().mul_(crop.level_mm)
    gains = _matched(image, seg, wide_box, wide, level_blocks, donor, paste, ignore_label, margin_mm, spacing)

    slack = max(spacing)
    blocks = tight_blocks(level_blocks, -paste.seam_mm - slack - max(wide.spacing(spacing)))
    lattice, voxels = wide.cut(blocks)
    box = tuple(slice(w.start + v.start, w.start + v.stop) for w, v in zip(wide_box, voxels, strict=True))
    near = lattice.to_voxels(level_blocks[blocks]) > -paste.seam_mm - slack
    index = torch.from_numpy(np.flatnonzero((near & (seg[box] == ignore_label)).numpy()))
    if not len(index):
        return box, None
    positions = [torch.arange(s.start, s.stop) - c for s, c in zip(box, paste.centre, strict=True)]
    points = [at.reshape(-1).index_select(0, index) for at in _mapped(affine, positions, anchor)]
    if bend is not None:
        points = [
            p.add_(lattice.to_voxels(b[blocks]).reshape(-1).index_select(0, index))
            for p, b in zip(points, bend, strict=True)
        ]

    sampled = _linear(crop, points)
    level = sampled[0].mul_(crop.level_mm)
    opacity = _opacity(level, paste.seam_mm)
    for channel, values, (gain, offset) in zip(image, sampled[1:], gains, strict=True):
        x = channel[box].reshape(-1).index_select(0, index)
        x += values.mul_(gain).add_(offset).sub_(x).mul_(opacity)
        _put(channel[box], index, x)
    inside = torch.from_numpy(np.flatnonzero((level > 0).numpy()))
    index = index.index_select(0, inside)
    if len(donor.labels) == 1:
        _put(seg[box], index, torch.full((len(index),), donor.labels[0], dtype=seg.dtype))
        return box, None
    theirs = _nearest(crop.labels, [p.index_select(0, inside) for p in points]).to(seg.dtype)
    _put(seg[box], index, theirs)
    return box, _where(theirs == ignore_label, index, seg[box].shape) if ignore_label in donor.labels else None


def _put(part: torch.Tensor, index: torch.Tensor, values: torch.Tensor) -> None:
    """Write `values` at flat `index` of a part of a larger tensor."""
    flat = part.reshape(-1)
    flat.index_copy_(0, index, values)
    part.copy_(flat.reshape(part.shape))


def _where(mask: torch.Tensor, index: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """`mask` of the points with flat `index`, as a mask of a box of `shape`."""
    found = torch.zeros(tuple(shape), dtype=torch.bool)
    found.view(-1)[index] = mask
    return found


def _box_in_patch(
    shape: Sequence[int], anchor: Sequence[int], paste: Paste, spacing: Sequence[float], patch: Sequence[int]
) -> tuple[slice, ...]:
    """The part of the patch that the donor's crop comes to lie on."""
    back = np.linalg.inv(_voxel_matrix(paste, spacing))
    corners = np.stack(np.meshgrid(*[(-a, n - 1 - a) for a, n in zip(anchor, shape, strict=True)], indexing="ij"))
    reached = back @ corners.reshape(len(shape), -1) + np.array(paste.centre)[:, None]
    low = np.clip(np.floor(reached.min(1)).astype(int), 0, np.array(patch) - 1)
    high = np.clip(np.ceil(reached.max(1)).astype(int) + 1, low + 1, np.array(patch))
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def _voxel_matrix(paste: Paste, spacing: Sequence[float]) -> np.ndarray:
    mm = np.array(spacing)
    return np.array(paste.matrix) * mm[None, :] / mm[:, None]


def _mapped(affine: np.ndarray, positions: Sequence[torch.Tensor], anchor: Sequence[int]) -> list[torch.Tensor]:
    """Voxels of the donor's crop, one tensor per axis over the grid that `positions` (voxels from the centre) span."""
    dims = len(positions)
    mapped = []
    for row, start in zip(affine, anchor, strict=True):
        total: Any = float(start)
        for axis, at in enumerate(positions):
            total = total + (at * float(row[axis])).reshape([-1 if i == axis else 1 for i in range(dims)])
        mapped.append(total)
    return mapped


def _bend(
    lattice: Lattice, box: tuple[slice, ...], paste: Paste, spacing: Sequence[float]
) -> list[torch.Tensor] | None:
    """The elastic deformation in voxels, on blocks, one field per axis; 0 at the donor's anchor."""
    if paste.elastic_mm <= 0:
        return None
    generator = torch.Generator().manual_seed(paste.seed)
    middle = tuple(
        min(n - 1, max(0, int((c - s.start) // k)))
        for c, s, k, n in zip(paste.centre, box, lattice.steps, lattice.blocks, strict=True)
    )
    fields = []
    for mm in spacing:
        noise = coherent_noise(lattice.blocks, lattice.spacing(spacing), BEND_MM, 2, generator)
        fields.append(noise.sub_(float(noise[middle])).mul_(paste.elastic_mm / mm))
    return fields


def _matched(
    image: torch.Tensor,
    seg: torch.Tensor,
    box: tuple[slice, ...],
    lattice: Lattice,
    level: torch.Tensor,
    donor: Donor,
    paste: Paste,
    ignore_label: int,
    margin_mm: float,
    spacing: Sequence[float],
) -> list[tuple[float, float]]:
    """Gain and offset of each channel that take the donor's ring to the host's at the target; from one voxel per block."""
    if not paste.match:
        return [(1.0, 0.0)] * len(image)
    low, high = ring_limits(margin_mm, tuple(spacing))
    host = lattice.sample(seg[box]) == ignore_label
    ring = (host & (level > low) & (level < high)).numpy()
    if np.count_nonzero(ring) < FEWEST_RING_VOXELS:
        ring = host.numpy()
    found = []
    for channel, mean, spread in zip(image, donor.ring_mean, donor.ring_spread, strict=True):
        values = lattice.sample(channel[box]).numpy()[ring]
        if len(values) < FEWEST_RING_VOXELS:
            found.append((1.0, 0.0))
            continue
        to_mean, to_spread = robust_mean_and_spread(values)
        gain = float(np.clip(to_spread / max(spread, 1e-6), 1 / LARGEST_GAIN, LARGEST_GAIN))
        found.append((gain, to_mean - gain * mean))
    return found


def _opacity(level: torch.Tensor, seam_mm: float) -> torch.Tensor:
    """1 where level >= 0, falling smoothly to 0 at -seam."""
    if seam_mm <= 0:
        return (level > 0).float()
    t = (level / seam_mm + 1).clamp_(0, 1)
    return t * t * (3 - 2 * t)


def _nearest(values: np.ndarray, points: Sequence[torch.Tensor]) -> torch.Tensor:
    flat: Any = 0
    for at, n in zip(points, values.shape, strict=True):
        flat = flat * n + at.round().clamp_(0, n - 1).long()
    return torch.from_numpy(values.reshape(-1).take(flat.numpy()))


def _linear(crop: Crop, points: Sequence[torch.Tensor]) -> torch.Tensor:
    """Level and channels (1 + C, n) at `points`, linearly interpolated: gathers, a third of the time of `grid_sample`."""
    base: Any = 0
    fractions, steps = [], []
    for axis, (at, n) in enumerate(zip(points, crop.level.shape, strict=True)):
        at = at.clamp(0, n - 1)
        low = at.int().clamp_(max=max(0, n - 2))
        base = base * n + low
        fractions.append(at.sub_(low))
        steps.append(math.prod(crop.level.shape[axis + 1 :]) if n > 1 else 0)
    return torch.stack(
        [_interpolated(torch.from_numpy(np.array(v)).float().reshape(-1), base, fractions, steps)
         for v in (crop.level, *crop.image)]
    )  # fmt: skip


def _interpolated(
    values: torch.Tensor, base: torch.Tensor, fractions: Sequence[torch.Tensor], steps: Sequence[int]
) -> torch.Tensor:
    if not steps:
        return values.index_select(0, base)
    low = _interpolated(values, base, fractions[1:], steps[1:])
    return low.lerp_(_interpolated(values, base + steps[0], fractions[1:], steps[1:]), fractions[0])
