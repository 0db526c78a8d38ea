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
from nnunet_synthtumour.drawing import Distractor, Lesion, LesionParameters
from nnunet_synthtumour.growing import grow_lesion, raw_zero
from nnunet_synthtumour.lesion_model import LesionModel
from nnunet_synthtumour.noise import coherent_noise
from nnunet_synthtumour.shapes import Body, level_field
from nnunet_synthtumour.smoothing import gaussian

PROBES = 40


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
        probes = np.stack([np.random.randint(lo, hi, PROBES) for lo, hi in zip(low, high, strict=True)])
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
        data_dict["reached"] = [
            grow_lesion(image, seg[0], lesion, zeros, stds, self.ignore_label, self.spacing, self.labels, self.shifted)
            for lesion in drawn.lesions
        ]
        host_to_background(seg[0], self.ignore_label)
        return data_dict

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        raise TypeError("a lesion needs image and segmentation together: call apply")

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        raise TypeError("a lesion needs image and segmentation together: call apply")

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
            zero = raw_zero(crop[channel], host, zeros[channel])
            grown = (crop[channel] - zero).mul_(strip.mul(it.factor[channel] - 1).add_(1)).add_(zero)
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


def grow_in_volume(transform: GrowLesion, image: np.ndarray, seg: np.ndarray, normalisation: Any = None
                   ) -> tuple[np.ndarray, np.ndarray, LesionParameters]:  # fmt: skip
    """Draw and grow in a whole volume (C, X, Y, Z) with its segmentation (1, X, Y, Z); the inputs stay as they are."""
    sample = {"image": torch.from_numpy(np.array(image, dtype=np.float32)),
              "segmentation": torch.from_numpy(np.array(seg, dtype=np.int16)), "normalisation": normalisation}  # fmt: skip
    drawn = transform.get_parameters(**sample)
    grown = transform.apply(sample, **drawn)
    return grown["image"].numpy(), grown["segmentation"].numpy(), drawn["lesions"]
