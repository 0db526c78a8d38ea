"""One lesion in one patch: where its box lies, what is done there, slab by slab, in place.

A lesion holds its level field and little else of its box's size at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nnunet_synthtumour.appearance import (
    LABEL_FROM,
    PAPER_MASK_SIGMA,
    PAPER_TISSUE_SIGMA,
    Base,
    Edge,
    Factor,
    additive_model,
    paper_shifted,
    paper_training,
    push_away,
    reach_mm,
    tissue_model,
)
from nnunet_synthtumour.drawing import Lesion
from nnunet_synthtumour.shapes import Body, Nested, box_of, enclose, keep_off_map, level_field, nest, nested_fields
from nnunet_synthtumour.smoothing import coarsely_smoothed, gaussian, refined, slabs

UNKNOWN_ZERO_IN_DEVIATIONS = 3.5
SLACKS = (1.35, 1.7, 2.4, 4.0)


@dataclass(frozen=True)
class Place:
    """A body in its host: the box in the patch, the level (mm, positive inside) and the host (bool) there.

    `reached` is whether the host had room for the volume that was drawn.
    """

    box: tuple[slice, ...]
    level: torch.Tensor
    host: torch.Tensor
    reached: bool


def place_in_host(
    body: Body, intensity: torch.Tensor, seg: torch.Tensor, ignore_label: int, spacing: Sequence[float]
) -> Place | None:
    """The body so placed that its part in the host has the body's volume; None where there is no host.

    The box grows only where the body, clipped by the host, has to reach further.
    """
    voxel = float(np.prod(spacing))
    for slack in SLACKS:
        box = box_of(body, seg.shape, spacing, slack)
        if any(s.stop <= s.start for s in box):
            return None
        host = seg[box] == ignore_label
        if not bool(host.any()):
            if slack == SLACKS[-1]:
                return None
            continue
        keep_off = keep_off_map(intensity[box], host, spacing) if body.hug_tissue > 0 else None
        level = level_field(body, box, spacing, keep_off)
        surface, reached = enclose(level, host, body.size, voxel)
        # (1 - slack) r is the level at the faces of the box: a surface below it would be cut by the box.
        whole_patch = all(s.start == 0 and s.stop == n for s, n in zip(box, seg.shape, strict=True))
        if whole_patch or (reached and surface > (1 - slack) * body.radius_mm):
            break
    return Place(box, level.sub_(surface), host, reached)


def tightened(place: Place, reach: float) -> Place:
    """The part of the place in which the level is above -`reach` (mm): all that follows is done there alone."""
    seen = place.level > -reach
    parts = []
    for axis in range(seen.ndim):
        inside = torch.nonzero(seen.any(dim=tuple(a for a in range(seen.ndim) if a != axis)))
        parts.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 1))
    tight = tuple(parts)
    box = tuple(slice(b.start + p.start, b.start + p.stop) for b, p in zip(place.box, tight, strict=True))
    return Place(box, place.level[tight], place.host[tight], place.reached)


def grow_lesion(
    image: torch.Tensor,
    seg: torch.Tensor,
    lesion: Lesion,
    zeros: Sequence[float | None],
    stds: np.ndarray | None,
    ignore_label: int,
    spacing: Sequence[float],
    labels: Mapping[str, int],
    shifted: bool = False,
) -> bool | None:
    """Grow `lesion` in place in `image` (C, X, Y[, Z]) and `seg` (X, Y[, Z]).

    Returns whether its volume was reached, None where there was no host to grow in.
    """
    place = place_in_host(lesion.body, image[0], seg, ignore_label, spacing)
    if place is None:
        return None
    if lesion.mass_effect > 0:
        centre = [c - s.start for c, s in zip(lesion.body.centre, place.box, strict=True)]
        push_away(image[(slice(None), *place.box)], place.host, place.level, lesion.body.radius_mm, lesion.mass_effect,
                  centre, spacing)  # fmt: skip
    reach = 4 * PAPER_MASK_SIGMA * max(spacing) if lesion.law == "paper" else reach_mm(lesion.tissue)
    place = tightened(place, reach + max(spacing))
    mask = (place.level > 0) & place.host
    drawn = [(part.share, part.roughness, part.seed) for part in lesion.parts]
    parts = nest(place.level, mask, drawn, lesion.body.radius_mm, spacing)
    if shifted:
        _paint_shifted(image, place, mask, lesion, zeros)
    elif lesion.law == "paper":
        mask = _paint_paper(image, place, mask, parts, lesion, zeros)
    else:
        _paint_tissue(image, place, parts, lesion, zeros, stds, spacing)
    _write_labels(seg[place.box], place.level, mask, parts, lesion, labels)
    return place.reached


def raw_zero(x: torch.Tensor, host: torch.Tensor, zero: float | None) -> float:
    """Where the raw zero lies. Where it is unknown, it is put so far below the host's mean that a factor of t adds
    (t - 1) * 3.5 deviations of the host."""
    if zero is not None:
        return zero
    values = x[host]
    if not values.numel():
        return 0.0
    spread = float(values.std()) if values.numel() > 1 else 1.0
    return float(values.mean()) - UNKNOWN_ZERO_IN_DEVIATIONS * spread


def _paint_shifted(
    image: torch.Tensor, place: Place, mask: torch.Tensor, lesion: Lesion, zeros: Sequence[float | None]
) -> None:
    for channel, x in enumerate(image[(slice(None), *place.box)]):
        zero = raw_zero(x, place.host, zeros[channel])
        for rows in slabs(x.shape):
            grown = paper_shifted(x[rows] - zero, mask[rows], lesion.contrast[channel].factor)
            x[rows] = torch.where(mask[rows], grown + zero, x[rows])


def _paint_paper(
    image: torch.Tensor,
    place: Place,
    mask: torch.Tensor,
    parts: Sequence[Nested],
    lesion: Lesion,
    zeros: Sequence[float | None],
) -> torch.Tensor:
    """Returns the region of the label."""
    sigma = [PAPER_MASK_SIGMA] * mask.ndim
    m = gaussian(mask.float(), sigma)
    inner = None
    if parts:
        fields = [nested_fields(parts[:1], place.level[r], mask.shape, r)[0] > 0 for r in slabs(mask.shape)]
        inner = gaussian((torch.cat(fields) & mask).float(), sigma)
    for channel, x in enumerate(image[(slice(None), *place.box)]):
        zero = raw_zero(x, place.host, zeros[channel])
        tissue, steps, shape, offset = _paper_tissue(image[channel], place.box)
        factor = lesion.contrast[channel].factor
        inner_factor = lesion.parts[0].contrast[channel].factor if parts else 1.0
        for rows in slabs(x.shape):
            wide = slice(rows.start + offset[0].start, rows.stop + offset[0].start)
            smooth = refined(tissue, steps, shape, wide)[(slice(None), *offset[1:])] - zero
            second = None if inner is None else inner[rows]
            grown = paper_training(x[rows] - zero, smooth, m[rows], factor, second, inner_factor)
            x[rows] = torch.where(place.host[rows], grown + zero, x[rows])
    return (m > LABEL_FROM) & place.host


def _paper_tissue(
    x: torch.Tensor, box: tuple[slice, ...]
) -> tuple[torch.Tensor, list[int], tuple[int, ...], tuple[slice, ...]]:
    """G5(x) on a coarse grid, with what lies two and a half sigmas around the box; its steps, full shape, the box in it."""
    margin = int(2.5 * PAPER_TISSUE_SIGMA)
    wide = tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, x.shape, strict=True))
    offset = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(box, wide, strict=True))
    coarse, steps = coarsely_smoothed(x[wide], [PAPER_TISSUE_SIGMA] * x.ndim)
    return coarse, steps, tuple(w.stop - w.start for w in wide), offset


def _paint_tissue(
    image: torch.Tensor,
    place: Place,
    parts: Sequence[Nested],
    lesion: Lesion,
    zeros: Sequence[float | None],
    stds: np.ndarray | None,
    spacing: Sequence[float],
) -> None:
    shape = place.level.shape
    edge = Edge(lesion.tissue, shape, spacing)
    factor = Factor(lesion.tissue, lesion.body.radius_mm, shape, spacing)
    crop = image[(slice(None), *place.box)]
    known = [raw_zero(x, place.host, zero) for x, zero in zip(crop, zeros, strict=True)]
    bases = [Base(x, zero, place.host, lesion.tissue, spacing) for x, zero in zip(crop, known, strict=True)]
    for rows in slabs(shape):
        level, host = place.level[rows], place.host[rows]
        opacity, *edges = edge.opacities([level, *nested_fields(parts, level, shape, rows)], rows)
        opacity.mul_(host)
        for channel, x in enumerate(crop):
            whole, inner = lesion.contrast[channel], [part.contrast[channel] for part in lesion.parts]
            u = x[rows] - known[channel]
            base = bases[channel].values(u, rows)
            if whole.hu is not None:
                unit = 1.0 if stds is None else float(stds[channel])
                added = torch.full_like(u, whole.hu / unit)
                for part_edge, contrast in zip(edges, inner, strict=True):
                    added.add_(part_edge * ((contrast.hu or 0.0) / unit - added))
                new = additive_model(u, base, opacity, added)
            else:
                of_parts = [(part_edge, contrast.factor) for part_edge, contrast in zip(edges, inner, strict=True)]
                new = tissue_model(u, base, opacity, factor.values(level, whole.factor, of_parts, rows))
            x[rows] = torch.where(host, new.add_(known[channel]), x[rows])


def _write_labels(
    seg: torch.Tensor,
    level: torch.Tensor,
    region: torch.Tensor,
    parts: Sequence[Nested],
    lesion: Lesion,
    labels: Mapping[str, int],
) -> None:
    seg[region] = labels["whole"]
    values = [labels.get(part.name) for part in lesion.parts]
    if not any(value is not None for value in values):
        return
    for rows in slabs(level.shape):
        for value, field in zip(values, nested_fields(parts, level[rows], level.shape, rows), strict=True):
            if value is not None:
                seg[rows][region[rows] & (field > 0)] = value
