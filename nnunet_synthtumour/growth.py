"""Growing one drawn lesion in a patch: deterministic, and nothing outside of the lesion's box is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nnunet_synthtumour.appearance import (
    LABEL_FROM,
    PAPER_TISSUE_SIGMA,
    edge_of,
    gain_and_offset,
    layers_of,
    paper_mask,
    paper_shifted,
    paper_training,
)
from nnunet_synthtumour.drawing import Lesion
from nnunet_synthtumour.local_shape import LocalShape, find_shape
from nnunet_synthtumour.mass_effect import push_away
from nnunet_synthtumour.noise import coherent_noise
from nnunet_synthtumour.shapes import enclose
from nnunet_synthtumour.smoothing import smoothed

UNKNOWN_ZERO_IN_DEVIATIONS = 3.5
PAPER_MARGIN_VOXELS = 3
SLAB = 6  # planes at a time: what is held is the shape, and slabs stay in the cache


@dataclass(frozen=True)
class Scene:
    """A patch in which lesions grow, changed in place: `image` (C, X, Y[, Z]), `seg` (X, Y[, Z]).

    `zeros` is where the raw zero lies in each channel (None: unknown), `units` the raw units that make 1 there.
    """

    image: torch.Tensor
    seg: torch.Tensor
    ignore_label: int
    spacing: tuple[float, ...]
    zeros: tuple[float | None, ...]
    units: tuple[float, ...]

    @staticmethod
    def of(image: torch.Tensor, seg: torch.Tensor, ignore_label: int, spacing: Sequence[float],
           normalisation: Any = None) -> Scene:  # fmt: skip
        """`normalisation` is (mean (C,), std (C,)) of the raw image, or None; a mean of NaN is unknown."""
        channels = image.shape[0]
        zeros: tuple[float | None, ...] = (None,) * channels
        units = (1.0,) * channels
        if normalisation is not None:
            mean, std = (np.asarray(v, dtype=float).reshape(-1) for v in normalisation)
            units = tuple(float(max(s, 1e-8)) for s in std)
            zeros = tuple(None if np.isnan(m) else float(-m / s) for m, s in zip(mean, units, strict=True))
        return Scene(image, seg, int(ignore_label), tuple(float(mm) for mm in spacing), zeros, units)

    def zero(self, channel: int, box: tuple[slice, ...], host: torch.Tensor) -> float:
        """z0 of a channel. Where it is unknown, it is put so far below the mean of the host in the box that a factor of t
        adds (t - 1) * 3.5 deviations of the host."""
        known = self.zeros[channel]
        if known is not None:
            return known
        values = self.image[channel][box][host]
        spread = float(values.std()) if values.numel() > 1 else 1.0
        return float(values.mean()) - UNKNOWN_ZERO_IN_DEVIATIONS * spread if values.numel() else 0.0

    def rebased(self, channel: int, box: tuple[slice, ...], host: torch.Tensor) -> tuple[torch.Tensor, float]:
        """u = x - z0 (a new tensor) and z0."""
        zero = self.zero(channel, box, host)
        return self.image[channel][box] - zero, zero


def grow_lesion(scene: Scene, lesion: Lesion, labels: Mapping[str, int], shifted: bool = False) -> LocalShape | None:
    """Grow `lesion` in the host of `scene` and write `labels` (part -> value). None where there is no host for it.

    `shifted` grows it by the reference's validation model instead of its own law: the whole, then, each inside of its own
    hard mask, the nested parts that have a label of their own. What has none is not drawn: it would be one texture more
    under the same label, and the model is the reference's, which has one shape.
    """
    paper = lesion.law == "paper" or shifted
    margin = PAPER_MARGIN_VOXELS * max(scene.spacing) if paper else lesion.tissue.reach_mm
    shape = find_shape(lesion.body, scene.image[0], scene.seg, scene.ignore_label, scene.spacing, margin)
    if shape is None:
        return None
    with_parts = not shifted or bool(parts_with_labels(lesion, labels))
    parts = nested_levels(shape, lesion, scene.spacing) if with_parts else []
    if shifted:
        region = _grow_shifted(scene, lesion, shape, parts, labels)
    elif lesion.law == "paper":
        region = _grow_as_in_the_paper(scene, lesion, shape, parts)
    else:
        region = _grow_tissue(scene, lesion, shape, parts)
    _write_labels(scene.seg[shape.box], region, parts, lesion, labels, shape)
    return shape


def _grow_tissue(scene: Scene, lesion: Lesion, shape: LocalShape, parts: list[torch.Tensor]) -> torch.Tensor:
    if lesion.mass_effect > 0:
        push_away(scene.image, scene.seg, scene.ignore_label, shape, lesion.body, lesion.mass_effect, scene.spacing)
    lattice, tissue, host = shape.lattice, lesion.tissue, shape.host
    layers = layers_of(shape.blocks, parts, host.float(), lattice, tissue, lesion.body.radius_mm, scene.spacing)
    edge = edge_of(shape.blocks, tissue, lattice.spacing(scene.spacing))
    for channel in range(scene.image.shape[0]):
        x = scene.image[channel][shape.box]
        zero = scene.zero(channel, shape.box, host)
        u = lattice.mean(x * host) - zero * layers.host
        contrasts = [lesion.contrast[channel], *(part.contrast[channel] for part in lesion.parts)]
        gain, offset = gain_and_offset(u, contrasts, layers, lattice, tissue, scene.spacing, scene.units[channel])
        for start in range(0, len(host), SLAB):
            slab = slice(start, min(start + SLAB, len(host)))
            opacity = lattice.to_voxels(edge, slab).clamp(0, 1).mul_(host[slab])
            change = (x[slab] - zero).mul_(lattice.to_voxels(gain, slab) - 1).add_(lattice.to_voxels(offset, slab))
            x[slab] += change.mul_(opacity)  # exactly 0 where the opacity is 0
    return shape.mask


def parts_with_labels(lesion: Lesion, labels: Mapping[str, int]) -> tuple[int, ...]:
    """Which of the lesion's parts (by their order) get another label than what is around them."""
    found, around = [], labels["whole"]
    for i, part in enumerate(lesion.parts):
        value = labels.get(part.name, around)
        if value != around:
            found.append(i)
        around = value
    return tuple(found)


def _grow_shifted(
    scene: Scene, lesion: Lesion, shape: LocalShape, parts: list[torch.Tensor], labels: Mapping[str, int]
) -> torch.Tensor:
    mask = shape.mask
    inner = [(lesion.parts[i], _inside(parts[i], shape, mask)) for i in parts_with_labels(lesion, labels)]
    for channel in range(scene.image.shape[0]):
        u, zero = scene.rebased(channel, shape.box, shape.host)
        unit = scene.units[channel]
        grown = paper_shifted(u, mask, lesion.contrast[channel], unit)
        for part, part_mask in inner:
            # the paper's law has a second factor on top of the first; in ours a part's contrast is to healthy tissue
            base = grown if lesion.law == "paper" else u
            grown = torch.where(part_mask, paper_shifted(base, part_mask, part.contrast[channel], unit), grown)
        crop = scene.image[channel][shape.box]
        crop.copy_(torch.where(mask, grown.add_(zero), crop))
    return mask


def _inside(field: torch.Tensor, shape: LocalShape, region: torch.Tensor) -> torch.Tensor:
    """The voxels of `region` in which a nested part's level is above its surface."""
    return (shape.lattice.to_voxels(field) > 0).logical_and_(region)


def _grow_as_in_the_paper(scene: Scene, lesion: Lesion, shape: LocalShape, parts: list[torch.Tensor]) -> torch.Tensor:
    m = paper_mask(shape.mask)
    inner = paper_mask(shape.lattice.to_voxels(parts[0]) > 0) if parts else None
    for channel in range(scene.image.shape[0]):
        tissue = _paper_tissue(scene.image[channel], shape.box)
        zero = scene.zero(channel, shape.box, shape.host)
        tissue.sub_(zero)
        inner_factor = lesion.parts[0].contrast[channel].factor if parts else 1.0
        crop = scene.image[channel][shape.box]
        for start in range(0, len(crop), SLAB):
            slab = slice(start, min(start + SLAB, len(crop)))
            second = None if inner is None else inner[slab]
            factor = lesion.contrast[channel].factor
            grown = paper_training(crop[slab] - zero, tissue[slab], m[slab], factor, second, inner_factor).add_(zero)
            crop[slab] = torch.where(shape.host[slab], grown, crop[slab])
    return (m > LABEL_FROM).logical_and_(shape.host)


def _paper_tissue(x: torch.Tensor, box: tuple[slice, ...]) -> torch.Tensor:
    """G5(x) on the box, computed with what lies two and a half sigmas around it."""
    margin = int(2.5 * PAPER_TISSUE_SIGMA)
    wide = tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, x.shape, strict=True))
    inside = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(box, wide, strict=True))
    return smoothed(x[wide], [PAPER_TISSUE_SIGMA] * x.ndim, inside)


def nested_levels(shape: LocalShape, lesion: Lesion, spacing: Sequence[float]) -> list[torch.Tensor]:
    """Level fields (mm, on blocks) of the nested parts, each enclosing its share of the part around it.

    A part's own noise moves its surface; its `offset` moves it off the middle of what surrounds it.
    """
    lattice, radius = shape.lattice, lesion.body.radius_mm
    mm = lattice.spacing(spacing)
    around = (lattice.sample(shape.host) & (shape.blocks > 0)) if lesion.parts else shape.host
    fields: list[torch.Tensor] = []
    for part in lesion.parts:
        generator = torch.Generator().manual_seed(part.seed)
        noise = coherent_noise(shape.blocks.shape, mm, max(0.8 * radius, 1e-3), 3, generator)
        field = torch.add(shape.blocks, noise, alpha=part.roughness * radius)
        for axis, shift in enumerate(part.offset):
            at = lattice.positions(axis) + (shape.box[axis].start - lesion.body.centre[axis])
            field.add_((at * (shift * spacing[axis])).reshape([-1 if i == axis else 1 for i in range(field.ndim)]))
        surface, _ = enclose(field, around, part.share * float(around.sum()), 1.0)
        field = torch.minimum(field.sub_(surface), fields[-1] if fields else shape.blocks)
        fields.append(field)
        around = around & (field > 0)
    return fields


def _write_labels(
    seg: torch.Tensor,
    region: torch.Tensor,
    parts: list[torch.Tensor],
    lesion: Lesion,
    labels: Mapping[str, int],
    shape: LocalShape,
) -> None:
    seg.masked_fill_(region, labels["whole"])
    for part, field in zip(lesion.parts, parts, strict=False):
        value = labels.get(part.name)
        if value is not None:
            seg.masked_fill_(_inside(field, shape, region), value)
