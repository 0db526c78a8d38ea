"""`PasteTumour`: the transform that pastes real tumours into the host of a healthy patch, as a batchgeneratorsv2 transform.

Same contract as `GrowLesion`: it draws, applies, and what was drawn can be kept and replayed. A donor costs what its box
costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunet_synthtumour import drawing
from nnunet_synthtumour.donor_bank import Crop, DonorBank
from nnunet_synthtumour.donor_pasting import Pasted, paste_donor, paste_untouched
from nnunet_synthtumour.donor_placement import Landing, Paste, PasteParameters
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.placement import Places, box_of_label
from nnunet_synthtumour.settings import DonorSettings
from nnunet_synthtumour.synthesis import host_to_background


class PasteTumour(BasicTransform):
    """Paste donors into the host of a healthy patch.

    Called with `image` (C, X, Y[, Z]) float32, normalised, and `segmentation` (S, X, Y[, Z]) int16 whose first channel
    carries `ignore_label` in the host; optionally with `host_box` and `raw_corner` (see `Landing`). Both tensors are
    changed in place. A patch without host comes back as it is.

    `probability` takes the place of the setting. `region_shape` is the middle part of the patch that a later crop keeps;
    the first donor's middle lies in it.
    """

    def __init__(
        self,
        bank: DonorBank,
        settings: DonorSettings,
        spacing: Sequence[float],
        ignore_label: int,
        probability: float | None = None,
        region_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.bank = bank
        self.settings = settings
        self.spacing = tuple(float(s) for s in spacing)
        self.ignore_label = int(ignore_label)
        self.probability = float(settings.probability if probability is None else probability)
        self.region_shape = None if region_shape is None else tuple(int(n) for n in region_shape)
        cut_at = bank.index.spacing
        if len(self.spacing) != len(cut_at) or not np.allclose(self.spacing, cut_at):
            raise UserError(
                f"{bank.folder} was cut at {_mm(cut_at)}, but the patches have {_mm(self.spacing)}; build the "
                "bank from the same configuration."
            )

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        """Draw what happens in this patch; the only place with randomness."""
        if not drawing.chance(self.probability):
            return {"pastes": PasteParameters()}
        places = Places(data.get("image"), data["segmentation"][0], self.ignore_label, self.spacing, self.region_shape)
        landing = Landing(places, self.spacing, data.get("host_box"), data.get("raw_corner"))
        pastes: list[Paste] = []
        for _ in range(drawing.draw_count(self.settings.count)):
            paste = landing.draw(self.bank, self.settings, in_region=not pastes)  # one that survives the crop is enough
            if paste is not None:
                pastes.append(paste)
        return {"pastes": PasteParameters(tuple(pastes))}

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Paste what was drawn. Deterministic: the same patch and parameters give the same bits."""
        image, seg = data_dict["image"], data_dict["segmentation"][0]
        if image.shape[0] != self.bank.index.channels:
            raise UserError(
                f"{self.bank.folder} has donors of {self.bank.index.channels} channels, but the patch has "
                f"{image.shape[0]}; build the bank from the same data set."
            )
        doubts = [self.paste(image, seg, paste) for paste in params["pastes"].pastes]
        host_to_background(seg[data_dict.get("inside", ...)], self.ignore_label)
        for box, doubt in doubts:
            self.doubt(seg[box], doubt)
        return data_dict

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        raise TypeError("a donor needs image and segmentation together: call apply")

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        raise TypeError("a donor needs image and segmentation together: call apply")

    def paste(self, image: torch.Tensor, seg: torch.Tensor, paste: Paste) -> Pasted:
        """One donor into `image` (C, X, Y[, Z]) and `seg` (X, Y[, Z]); what is left of the host stays host."""
        donor = self.bank.by_name[paste.donor]
        crop, anchor = self.bank.crop(donor), donor.anchor
        if paste.slice is not None:
            part = next(s for s in donor.slices if s.index == paste.slice)
            crop = Crop(crop.image[:, part.index], crop.labels[part.index], crop.level[part.index], crop.level_mm)
            anchor = part.anchor
        if paste.paper:
            return paste_untouched(image, seg, crop, anchor, paste, self.ignore_label)
        return paste_donor(
            image, seg, donor, crop, anchor, paste, self.ignore_label, self.spacing, self.bank.index.margin_mm
        )

    def doubt(self, part: torch.Tensor, doubt: torch.Tensor | None) -> None:
        """Mark again, once the host is background, where a donor's own label is in doubt."""
        if doubt is not None:
            part.masked_fill_(doubt & (part == 0), self.ignore_label)


def paste_in_volume(paste: PasteTumour, image: np.ndarray, seg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw and paste in a whole volume (C, X, Y, Z) with its segmentation (1, X, Y, Z); the inputs stay as they are.

    A transform for 2D patches pastes the slices of one donor into neighbouring slices of the volume, without bending them.
    """
    image, seg = np.array(image, dtype=np.float32), np.array(seg, dtype=np.int16)
    if len(paste.spacing) == 3:
        paste(image=torch.from_numpy(image), segmentation=torch.from_numpy(seg))
        return image, seg
    doubts = []
    host = (seg[0] == paste.ignore_label).reshape(len(seg[0]), -1).sum(1)
    if host.any():
        at = int(np.random.choice(len(host), p=host / host.sum()))
        box = box_of_label(seg[0], paste.ignore_label) - np.array([[at], [0], [0]])
        drawn = paste.get_parameters(
            image=torch.from_numpy(image[:, at]), segmentation=torch.from_numpy(seg[:, at]), host_box=box
        )
        for there, flat in (part for first in drawn["pastes"].pastes for part in _stacked(paste, first)):
            if 0 <= at + there < len(host):
                here = torch.from_numpy(seg[0, at + there])
                box_in_slice, doubt = paste.paste(torch.from_numpy(image[:, at + there]), here, flat)
                doubts.append((here[box_in_slice], doubt))
    host_to_background(torch.from_numpy(seg[0]), paste.ignore_label)
    for part, doubt in doubts:
        paste.doubt(part, doubt)
    return image, seg


def _stacked(paste: PasteTumour, first: Paste) -> list[tuple[int, Paste]]:
    """The pastes of all slices of a donor that keep their places to one another, by how many slices they lie further."""
    slices = paste.bank.by_name[first.donor].slices
    (at,) = (s for s in slices if s.index == first.slice)
    back = np.linalg.inv(np.array(first.matrix)) / np.array(paste.spacing)[:, None] * np.array(paste.spacing)
    return [
        (s.index - at.index,
         replace(first, slice=s.index, elastic_mm=0.0,
                 centre=tuple(map(float, first.centre + back @ np.subtract(s.anchor, at.anchor)))))
        for s in slices
    ]  # fmt: skip


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{s:g}" for s in spacing) + " mm"
