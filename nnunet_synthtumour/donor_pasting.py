"""Pasting one drawn donor into a patch: deterministic, and nothing outside of the donor's box is touched."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from nnunet_synthtumour.donor_bank import Crop, Donor, ring_limits, robust_mean_and_spread
from nnunet_synthtumour.donor_placement import Paste
from nnunet_synthtumour.donor_sampling import Linear, Mapping, grid
from nnunet_synthtumour.lattice import Lattice, steps_for
from nnunet_synthtumour.local_shape import tight_blocks

LARGEST_STEP = 2  # voxels between two looks at a donor's surface
FEWEST_RING_VOXELS, MANY_BLOCKS = 20, 10_000
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
    mapping = Mapping(paste, anchor, spacing)
    wide_box = _box_in_patch(crop.level.shape, anchor, paste, mapping, seg.shape)
    steps = [min(k, LARGEST_STEP) for k in steps_for(donor.radius_mm, spacing)]
    wide = Lattice.over([s.stop - s.start for s in wide_box], steps)
    corner = [s.start - c for s, c in zip(wide_box, paste.centre, strict=True)]
    on_blocks = mapping.parts([wide.positions(axis).numpy() + c for axis, c in enumerate(corner)])
    level_blocks = Linear(crop.level.shape, [grid(parts) for parts in on_blocks])(crop.level).mul_(crop.level_mm)
    gains = _matched(image, seg, wide_box, wide, level_blocks, donor, paste, ignore_label, margin_mm, spacing)

    blocks = tuple(
        slice(max(0, b.start - 1), min(n, b.stop + 1))  # voxels beyond the middles of the last ones
        for b, n in zip(tight_blocks(level_blocks, -paste.seam_mm), level_blocks.shape, strict=True)
    )
    lattice, voxels = wide.cut(blocks)
    box = tuple(slice(w.start + v.start, w.start + v.stop) for w, v in zip(wide_box, voxels, strict=True))
    whole_level = lattice.to_voxels(level_blocks[blocks])
    in_box = _where((whole_level > -paste.seam_mm) & (seg[box] == ignore_label))
    if not len(in_box):
        return box, None
    level = _at(whole_level, in_box)
    on_voxels = mapping.parts([np.arange(v.start, v.stop) + c for v, c in zip(voxels, corner, strict=True)])
    linear = Linear(crop.level.shape, [_at(grid(parts), in_box) for parts in on_voxels])
    in_patch = _at(grid(_in_patch(box, seg.shape)), in_box)
    opacity = _opacity(level, paste.seam_mm)
    for channel, values, (gain, offset) in zip(image, crop.image, gains, strict=True):
        x = _at(channel, in_patch)
        _put(channel, in_patch, x.add_(linear(values).mul_(gain).add_(offset).sub_(x).mul_(opacity)))
    inside = _where(level > 0)
    in_patch = _at(in_patch, inside)
    if len(donor.labels) == 1:
        _put(seg, in_patch, torch.full((len(inside),), donor.labels[0], dtype=seg.dtype))
        return box, None
    linear.keep(inside)
    theirs = torch.from_numpy(linear.nearest(crop.labels)).to(seg.dtype)
    _put(seg, in_patch, theirs)
    if ignore_label not in donor.labels:
        return box, None
    doubt = torch.zeros(lattice.shape, dtype=torch.bool)
    doubt.view(-1)[_at(in_box, inside)] = theirs == ignore_label
    return box, doubt


def _at(field: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The values at flat `index`; many times faster than any other way to index."""
    return field.reshape(-1).index_select(0, index)


def _put(whole: torch.Tensor, index: torch.Tensor, values: torch.Tensor) -> None:
    """Write `values` at flat `index` of a patch."""
    flat = whole.reshape(-1)
    flat.scatter_(0, index, values)
    if flat.data_ptr() != whole.data_ptr():  # a patch that is no contiguous piece of memory was copied
        whole.copy_(flat.view(whole.shape))


def _in_patch(box: tuple[slice, ...], shape: Sequence[int]) -> list[torch.Tensor]:
    """What each axis of a box adds to the flat index of its voxels in the patch."""
    return [torch.arange(part.start, part.stop) * math.prod(shape[axis + 1 :]) for axis, part in enumerate(box)]


def _where(mask: torch.Tensor) -> torch.Tensor:
    """Flat index of the voxels of a mask."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def _box_in_patch(
    shape: Sequence[int], anchor: Sequence[int], paste: Paste, mapping: Mapping, patch: Sequence[int]
) -> tuple[slice, ...]:
    """The part of the patch that the donor's crop comes to lie on."""
    back = np.linalg.inv(mapping.matrix)
    corners = np.stack(np.meshgrid(*[(-a, n - 1 - a) for a, n in zip(anchor, shape, strict=True)], indexing="ij"))
    reached = back @ corners.reshape(len(shape), -1) + np.array(paste.centre)[:, None]
    low = np.clip(np.floor(reached.min(1)).astype(int), 0, np.array(patch) - 1)
    high = np.clip(np.ceil(reached.max(1)).astype(int) + 1, low + 1, np.array(patch))
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


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
    every = 2 if level.numel() > MANY_BLOCKS else 1
    level = level[(slice(None, None, every),) * level.ndim]
    places = grid([part[lattice.look(axis)][::every] for axis, part in enumerate(_in_patch(box, seg.shape))])
    for where in (_at(places, _where((level > low) & (level < high))), places.reshape(-1)):
        ring = _at(where, _where(_at(seg, where) == ignore_label))
        if len(ring) >= FEWEST_RING_VOXELS:
            break
    else:
        return [(1.0, 0.0)] * len(image)
    found = []
    for channel, mean, spread in zip(image, donor.ring_mean, donor.ring_spread, strict=True):
        to_mean, to_spread = robust_mean_and_spread(_at(channel, ring).numpy())
        gain = float(np.clip(to_spread / max(spread, 1e-6), 1 / LARGEST_GAIN, LARGEST_GAIN))
        found.append((gain, to_mean - gain * mean))
    return found


def _opacity(level: torch.Tensor, seam_mm: float) -> torch.Tensor:
    """1 where level >= 0, falling smoothly to 0 at -seam."""
    if seam_mm <= 0:
        return (level > 0).float()
    t = (level / seam_mm + 1).clamp_(0, 1)
    return t * t * (3 - 2 * t)
