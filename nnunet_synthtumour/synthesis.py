"""`GrowLesion`: the transform that grows lesions in the host of a healthy patch, as a batchgeneratorsv2 transform.

It draws (`get_parameters`), applies (`apply`, deterministic given what was drawn), and what was drawn can be kept and
replayed. A lesion costs what its box costs: nothing but the last pass, which turns what is left of the host into
background, looks at the whole patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunet_synthtumour import drawing
from nnunet_synthtumour.appearance import (
    PAPER_TISSUE_SIGMA,
    ChannelContrast,
    additive_model,
    paper_shifted,
    paper_training,
    push_away,
    soft_edge,
    tissue_factor,
    tissue_model,
)
from nnunet_synthtumour.drawing import Distractor, Lesion, LesionParameters
from nnunet_synthtumour.lesion_model import LesionModel
from nnunet_synthtumour.noise import coherent_noise
from nnunet_synthtumour.shapes import Body, box_of, enclose, keep_off_map, level_field
from nnunet_synthtumour.smoothing import gaussian, smoothed

UNKNOWN_ZERO_IN_DEVIATIONS = 3.5
SLACKS = (1.35, 1.7, 2.4, 4.0)
PLACES_PROBED = 4000


class GrowLesion(BasicTransform):
    """Grow lesions in the host of a healthy patch.

    Called with `image` (C, X, Y[, Z]) float32, normalised, and `segmentation` (S, X, Y[, Z]) int16 whose first channel
    carries `ignore_label` in the host; optionally with `normalisation`, (mean (C,), std (C,)) of the raw image. Both
    tensors are changed in place. A patch without host comes back as it is.

    `labels` says which value each part of a lesion writes: `{"whole": 1}`, or with `core` and `necrosis` their own. Parts
    without a value keep that of the part around them. `region` is the part of the patch (slices) in which lesions are
    centred; what a later crop keeps.
    """

    def __init__(
        self,
        model: LesionModel,
        labels: Mapping[str, int],
        spacing: Sequence[float],
        ignore_label: int,
        channels: Sequence[str],
        probability: float = 1.0,
        region_shape: Sequence[int] | None = None,
        shifted: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.labels = dict(labels)
        self.spacing = tuple(float(s) for s in spacing)
        self.ignore_label = int(ignore_label)
        self.channels = tuple(channels)
        self.probability = float(probability)
        self.region_shape = None if region_shape is None else tuple(int(n) for n in region_shape)
        self.shifted = shifted

    # ------------------------------------------------------------------------------------------------- draw

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        """Draw what happens in this patch; the only place with randomness."""
        seg = data["segmentation"]
        drawn = LesionParameters()
        if drawing.chance(self.probability):
            drawn = LesionParameters(lesions=tuple(self._draw_lesions(seg)))
        if drawing.chance(self.model.distractors.probability):
            count = drawing.draw_count(self.model.distractors.count)
            places = [p for p in (self._place(seg, whole_patch=True) for _ in range(count)) if p is not None]
            drawn = LesionParameters(drawn.lesions, drawing.draw_distractors(self.model, len(self.channels), places))
        return {"lesions": drawn, "normalisation": data.get("normalisation")}

    def _draw_lesions(self, seg: torch.Tensor) -> list[Lesion]:
        shape = self.model.shape
        lesions: list[Lesion] = []
        for _ in range(drawing.draw_count(shape.count)):
            centre = self._place(seg, whole_patch=bool(lesions) and shape.family == "scattered")
            if centre is None:
                break
            lesion = drawing.draw_lesion(self.model, self.channels, centre, drawing.draw_volume_ml(shape))
            lesions += [lesion, *drawing.draw_satellites(self.model, self.channels, lesion, self.spacing)]
        return lesions

    def _place(self, seg: torch.Tensor, whole_patch: bool = False) -> tuple[int, ...] | None:
        """A voxel of the host, in the region that survives the crop: probed at random, searched only if that fails."""
        size = seg.shape[1:]
        shape = size if whole_patch or self.region_shape is None else self.region_shape
        low = [max(0, (n - r) // 2) for n, r in zip(size, shape, strict=True)]
        high = [min(n, lo + r) for n, lo, r in zip(size, low, shape, strict=True)]
        probes = np.stack([np.random.randint(lo, hi, PLACES_PROBED // 100) for lo, hi in zip(low, high, strict=True)])
        for probe in probes.T:
            if int(seg[(0, *probe)]) == self.ignore_label:
                return tuple(int(v) for v in probe)
        region = tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))
        inside = seg[0][region] == self.ignore_label
        voxels = torch.nonzero(inside)
        if not len(voxels):
            return None
        chosen = voxels[np.random.randint(len(voxels))].tolist()
        return tuple(int(v) + lo for v, lo in zip(chosen, low, strict=True))

    # ------------------------------------------------------------------------------------------------ apply

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Grow what was drawn. Deterministic: the same patch and parameters give the same bits."""
        image, seg = data_dict["image"], data_dict["segmentation"]
        drawn: LesionParameters = params["lesions"]
        zeros = raw_zeros(params.get("normalisation"), image.shape[0])
        stds = None if params.get("normalisation") is None else np.asarray(params["normalisation"][1], dtype=float)
        for distractor in drawn.distractors:
            self._distract(image, seg[0], distractor, zeros)
        for lesion in drawn.lesions:
            self.grow_one(image, seg[0], lesion, zeros, stds)
        host_to_background(seg[0], self.ignore_label)
        return data_dict

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        raise TypeError("a lesion needs image and segmentation together: call apply")

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        raise TypeError("a lesion needs image and segmentation together: call apply")

    def grow_one(self, image: torch.Tensor, seg: torch.Tensor, lesion: Lesion, zeros: list[float | None],
              stds: np.ndarray | None) -> None:  # fmt: skip
        found = shape_in_host(lesion.body, image[0], seg, self.ignore_label, self.spacing)
        if found is None:
            return
        box, level, host = found
        crop = image[(slice(None), *box)]
        if lesion.mass_effect > 0:
            centre = [c - s.start for c, s in zip(lesion.body.centre, box, strict=True)]
            pushed = push_away(crop, level, lesion.body.radius_mm, lesion.mass_effect, centre, self.spacing)
            crop.copy_(torch.where(host, pushed, crop))
        mask = (level > 0) & host
        inner = nested_levels(level, mask, lesion, self.spacing)
        region = mask
        for channel in range(crop.shape[0]):
            u, zero = rebased(crop[channel], host, zeros[channel])
            if self.shifted:
                new = paper_shifted(u, mask, lesion.contrast[channel].factor)
            elif lesion.law == "paper":
                second = inner[0] > 0 if inner else None
                inner_factor = lesion.parts[0].contrast[channel].factor if inner else 1.0
                tissue = paper_tissue(image[channel], box, zero)
                new, region = paper_training(u, tissue, mask, lesion.contrast[channel].factor, second, inner_factor)
                region = region & host
            else:
                new = self._tissue(u, level, host, inner, lesion, channel, stds)
            crop[channel] = torch.where(host, new.add_(zero), crop[channel])
        self._write_labels(seg[box], region, inner, lesion)

    def _tissue(self, u: torch.Tensor, level: torch.Tensor, host: torch.Tensor, inner: list[torch.Tensor],
                lesion: Lesion, channel: int, stds: np.ndarray | None) -> torch.Tensor:  # fmt: skip
        opacity = soft_edge(level, lesion.tissue, self.spacing) * host
        edges = [soft_edge(field, lesion.tissue, self.spacing) for field in inner]
        weight = host.float()
        of_parts: list[ChannelContrast] = [part.contrast[channel] for part in lesion.parts]
        whole = lesion.contrast[channel]
        if whole.hu is not None:
            unit = 1.0 if stds is None else float(stds[channel])
            added = torch.full_like(u, whole.hu / unit)
            for edge, contrast in zip(edges, of_parts, strict=True):
                added = torch.lerp(added, torch.full_like(u, (contrast.hu or 0.0) / unit), edge)
            return additive_model(u, weight, opacity, added, lesion.tissue, self.spacing)
        parts = [(edge, contrast.factor) for edge, contrast in zip(edges, of_parts, strict=True)]
        factor = tissue_factor(opacity, level, lesion.body.radius_mm, parts, whole.factor, lesion.tissue, self.spacing)
        return tissue_model(u, weight, opacity, factor, lesion.tissue, self.spacing)

    def _write_labels(self, seg: torch.Tensor, region: torch.Tensor, inner: list[torch.Tensor], lesion: Lesion) -> None:
        whole = self.labels["whole"]
        seg[region] = whole
        for part, field in zip(lesion.parts, inner, strict=True):
            value = self.labels.get(part.name)
            if value is not None:
                seg[region & (field > 0)] = value

    def _distract(self, image: torch.Tensor, seg: torch.Tensor, it: Distractor, zeros: list[float | None]) -> None:
        """Brighten (or darken) a strip along the border of the host near `it.centre`; no label changes."""
        reach = [it.radius_mm / mm + 1 for mm in self.spacing]
        box = tuple(slice(int(max(0, c - r)), int(min(n, c + r + 1))) for c, r, n in
                    zip(it.centre, reach, seg.shape, strict=True))  # fmt: skip
        host = seg[box] == self.ignore_label
        if not bool(host.any()):
            return
        weight = host.float()
        inside = gaussian(weight, [it.depth_mm / mm for mm in self.spacing])
        strip = ((0.85 - inside) / 0.3).clamp_(0, 1).mul_(weight)
        body = Body("body", it.centre, tuple(tuple(float(i == j) for j in range(host.ndim)) for i in range(host.ndim)),
                    (it.radius_mm,) * host.ndim, 0.0, 0.4, 0.7, 2, 0.0, it.seed)  # fmt: skip
        strip.mul_((level_field(body, box, self.spacing, None) / (0.4 * it.radius_mm)).clamp_(0, 1))
        generator = torch.Generator().manual_seed(it.seed)
        strip.mul_(coherent_noise(strip.shape, self.spacing, 8.0, 2, generator).mul_(0.4).add_(0.8).clamp_(0, 1))
        crop = image[(slice(None), *box)]
        for channel in range(crop.shape[0]):
            u, zero = rebased(crop[channel], host, zeros[channel])
            grown = u.mul_(strip.mul(it.factor[channel] - 1).add_(1)).add_(zero)
            crop[channel] = torch.where(host, grown, crop[channel])


def host_to_background(seg: torch.Tensor, ignore_label: int) -> None:
    """What is left of the host becomes background; slice by slice in numpy, four times as fast as torch's own ways."""
    for part in seg.numpy():
        part *= part != ignore_label


def raw_zeros(normalisation: Any, channels: int) -> list[float | None]:
    """Where the raw zero lies in the normalised image, -mean / std, per channel; None where it is not known."""
    if normalisation is None:
        return [None] * channels
    mean, std = (np.asarray(v, dtype=float) for v in normalisation)
    return [float(-m / max(s, 1e-8)) for m, s in zip(mean, std, strict=True)]


def rebased(x: torch.Tensor, host: torch.Tensor, zero: float | None) -> tuple[torch.Tensor, float]:
    """u = x - z0 (a new tensor) and z0. Where the raw zero is unknown, it is put so far below the host's mean that a
    factor of t adds (t - 1) * 3.5 deviations of the host."""
    if zero is None:
        values = x[host]
        spread = float(values.std()) if values.numel() > 1 else 1.0
        zero = float(values.mean()) - UNKNOWN_ZERO_IN_DEVIATIONS * spread if values.numel() else 0.0
    return x - zero, zero


def paper_tissue(x: torch.Tensor, box: tuple[slice, ...], zero: float) -> torch.Tensor:
    """G5(x - z0) on the box, computed with what lies two and a half sigmas around it."""
    margin = int(2.5 * PAPER_TISSUE_SIGMA)
    wide = tuple(slice(max(0, s.start - margin), min(n, s.stop + margin)) for s, n in zip(box, x.shape, strict=True))
    inside = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(box, wide, strict=True))
    return smoothed(x[wide] - zero, [PAPER_TISSUE_SIGMA] * x.ndim)[inside]


def shape_in_host(
    body: Body, intensity: torch.Tensor, seg: torch.Tensor, ignore_label: int, spacing: Sequence[float]
) -> tuple[tuple[slice, ...], torch.Tensor, torch.Tensor] | None:
    """Box, level (mm, positive inside) and host of a body whose part in the host has the body's size, where the host is
    large enough; None where there is no host. The box grows only if the body, clipped by the host, has to reach further."""
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
        surface, enough = enclose(level, host, body.size, voxel)
        # The level reached at the faces of the box: below it, the body would be cut by the box.
        if enough and surface > (1 - slack) * body.radius_mm:
            break
        if all(s.start == 0 and s.stop == n for s, n in zip(box, seg.shape, strict=True)):
            break
    return box, level.sub_(surface), host


def nested_levels(
    level: torch.Tensor, mask: torch.Tensor, lesion: Lesion, spacing: Sequence[float]
) -> list[torch.Tensor]:
    """Level fields of the nested parts, each enclosing its share of the part around it."""
    fields: list[torch.Tensor] = []
    around, voxel = mask, float(np.prod(spacing))
    radius = lesion.body.radius_mm
    for part in lesion.parts:
        generator = torch.Generator().manual_seed(part.seed)
        noise = coherent_noise(level.shape, spacing, max(0.8 * radius, 1e-3), 3, generator)
        field = torch.add(level, noise, alpha=part.roughness * radius)
        surface, _ = enclose(field, around, part.share * float(around.sum()) * voxel, voxel)
        field = torch.minimum(field.sub_(surface), fields[-1] if fields else level)
        fields.append(field)
        around = around & (field > 0)
    return fields


def grow_in_volume(transform: GrowLesion, image: np.ndarray, seg: np.ndarray, normalisation: Any = None
                   ) -> tuple[np.ndarray, np.ndarray, LesionParameters]:  # fmt: skip
    """Draw and grow in a whole volume (C, X, Y, Z) with its segmentation (1, X, Y, Z); the inputs stay as they are."""
    sample = {"image": torch.from_numpy(np.array(image, dtype=np.float32)),
              "segmentation": torch.from_numpy(np.array(seg, dtype=np.int16)), "normalisation": normalisation}  # fmt: skip
    drawn = transform.get_parameters(**sample)
    grown = transform.apply(sample, **drawn)
    return grown["image"].numpy(), grown["segmentation"].numpy(), drawn["lesions"]
