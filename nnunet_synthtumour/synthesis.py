"""`GrowLesion`: the transform that grows lesions in the host of a healthy patch, as a batchgeneratorsv2 transform.

It draws (`get_parameters`), applies (`apply`, deterministic given what was drawn), and what was drawn can be kept and
replayed. A lesion costs what its box costs: nothing but the last pass, which turns what is left of the host into
background, looks at the whole patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunet_synthtumour import drawing
from nnunet_synthtumour.distractors import distract
from nnunet_synthtumour.drawing import Distractor, Lesion, LesionParameters
from nnunet_synthtumour.growth import Scene, grow_lesion
from nnunet_synthtumour.host_room import fitted
from nnunet_synthtumour.lesion_model import LesionModel
from nnunet_synthtumour.placement import Places


class GrowLesion(BasicTransform):
    """Grow lesions in the host of a healthy patch.

    Called with `image` (C, X, Y[, Z]) float32, normalised, and `segmentation` (S, X, Y[, Z]) int16 whose first channel
    carries `ignore_label` in the host; optionally with `normalisation`, (mean (C,), std (C,)) of the raw image, `inside`,
    the part of the patch (slices) that is not padding, and `host_voxels`, how many voxels the whole host has where a 3D
    patch shows a part of it. Both tensors are changed in place. A patch without host comes back as it is. Lesions take at
    most half of the host (`host_room.py`).

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

    def in_plane(self) -> GrowLesion:
        """The same without the first axis."""
        flat = copy(self)
        flat.spacing = self.spacing[1:]
        flat.region_shape = None if self.region_shape is None else self.region_shape[1:]
        return flat

    # ------------------------------------------------------------------------------------------------- draw

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        """Draw what happens in this patch; the only place with randomness."""
        places = Places(data.get("image"), data["segmentation"][0], self.ignore_label, self.spacing, self.region_shape)
        lesions: list[Lesion] = []
        distractors: list[Distractor] = []
        if drawing.chance(self.probability):
            lesions = self._fitted(self._draw_lesions(places), data)
        if drawing.chance(self.model.distractors.probability):
            distractors = self._draw_distractors(places)
        return {
            "lesions": LesionParameters(tuple(lesions), tuple(distractors)),
            "normalisation": data.get("normalisation"),
        }

    def _draw_lesions(self, places: Places) -> list[Lesion]:
        shape = self.model.shape
        lesions: list[Lesion] = []
        for _ in range(drawing.draw_count(shape.count)):
            anywhere = bool(lesions) and shape.family == "scattered"  # one that survives the crop is enough
            centre = places.in_host(drawing.draw_preference(shape), in_region=not anywhere)
            if centre is None:
                break
            lesion = drawing.draw_lesion(self.model, self.channels, centre, drawing.draw_volume_ml(shape))
            lesions += [lesion, *drawing.draw_satellites(self.model, self.channels, lesion, self.spacing)]
        return lesions

    def _fitted(self, lesions: list[Lesion], data: dict[str, Any]) -> list[Lesion]:
        seg = data["segmentation"][0]
        of_case = data.get("host_voxels") if seg.ndim == 3 else None  # of a slice, the slice's own host counts
        return fitted(lesions, seg, self.ignore_label, self.spacing, of_case)

    def _draw_distractors(self, places: Places) -> list[Distractor]:
        model, found = self.model.distractors, []
        for _ in range(drawing.draw_count(model.count)):
            kind = drawing.draw_distractor_kind(model)
            if kind == "eye":
                eye = drawing.draw_eye(model, len(self.channels))
                centres = places.beside_host(eye[0].radius_mm)
                found += [replace(ball, centre=centre) for centre in centres for ball in eye]
                continue
            at = places.at_border() if kind in ("rim", "leftover") else places.in_host(in_region=False)
            if at is not None:
                found.append(drawing.draw_distractor(model, kind, len(self.channels), at))
        return found

    # ------------------------------------------------------------------------------------------------ apply

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Grow what was drawn. Deterministic: the same patch and parameters give the same bits."""
        seg = data_dict["segmentation"][0]
        drawn: LesionParameters = params["lesions"]
        scene = Scene.of(data_dict["image"], seg, self.ignore_label, self.spacing, params.get("normalisation"))
        for distractor in drawn.distractors:
            distract(scene, distractor)
        for lesion in drawn.lesions:
            grow_lesion(scene, lesion, self.labels, self.shifted)
        host_to_background(seg[data_dict.get("inside", ...)], self.ignore_label)
        return data_dict

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        raise TypeError("a lesion needs image and segmentation together: call apply")

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        raise TypeError("a lesion needs image and segmentation together: call apply")


def host_to_background(seg: torch.Tensor, ignore_label: int) -> None:
    """What is left of the host becomes background; slice by slice in numpy, four times as fast as torch's own ways."""
    for part in seg.numpy():
        part *= part != ignore_label


def grow_in_volume(transform: GrowLesion, image: np.ndarray, seg: np.ndarray, normalisation: Any = None
                   ) -> tuple[np.ndarray, np.ndarray, LesionParameters]:  # fmt: skip
    """Draw and grow in a whole volume (C, X, Y, Z) with its segmentation (1, X, Y, Z); the inputs stay as they are.

    A single slice (X = 1) is the 2D image that it is: nnU-Net gives it a thickness of 999 mm, and a lesion of that depth
    would be a few pixels wide.
    """
    if image.ndim == 4 and image.shape[1] == 1 and len(transform.spacing) == 3:
        grown, label, drawn = grow_in_volume(transform.in_plane(), image[:, 0], seg[:, 0], normalisation)
        return grown[:, None], label[:, None], drawn
    sample = {"image": torch.from_numpy(np.array(image, dtype=np.float32)),
              "segmentation": torch.from_numpy(np.array(seg, dtype=np.int16)), "normalisation": normalisation}  # fmt: skip
    parameters = transform.get_parameters(**sample)
    done = transform.apply(sample, **parameters)
    return done["image"].numpy(), done["segmentation"].numpy(), parameters["lesions"]
