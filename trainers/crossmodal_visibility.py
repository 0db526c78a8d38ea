"""What targets show of each structure, judged before a training by sources that are quickly registered to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nnunet_synthtumour.registration.fields import warp
from nnunet_synthtumour.trainers.whole_grids import Whole
from nnunet_synthtumour.visibility import VisibilityCase
from nnunet_synthtumour.visibility_dataset import quick_field


def frame_of(properties: Mapping[str, Any]) -> tuple[float, ...]:
    """Where a raw image lies in space, as far as nnU-Net's reader tells: its origin and where its axes point."""
    read = properties.get("sitk_stuff", {})
    return (*read["origin"], *read["direction"]) if {"origin", "direction"} <= read.keys() else ()


def seen_in(
    case: str,
    target: Whole,
    source: Whole,
    own_labels: bool,
    spacing: Sequence[float],
    device: torch.device,
    frame: tuple[float, ...] = (),
    of_another: bool = False,
) -> VisibilityCase:
    """A target with its own labels or those of `source`, which may show another patient, and the image of `source`, as a
    quick field brings them over."""
    spacing = tuple(float(mm) for mm in spacing)
    u = quick_field(source.match()[None].to(device), target.match()[None].to(device), spacing).cpu()
    labels = target.seg
    if not own_labels:
        labels = warp(source.seg[None].clamp(min=0).float(), u, "nearest")[0].short()
    image = warp(source.image[None], u)[0]
    return VisibilityCase(case, target.image.numpy(), labels[0].clamp(min=0).numpy(), spacing, image.numpy(), frame,
                          carried=not own_labels, of_another=of_another and not own_labels)  # fmt: skip
