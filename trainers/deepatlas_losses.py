"""What the two networks of DeepAtlas minimise: L_i + lambda_r L_r + lambda_a L_a for registration, L_a for segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nnunet_synthtumour.registration.anatomy import one_hot, soft_dice_loss
from nnunet_synthtumour.registration.fields import warp
from nnunet_synthtumour.registration.instance import SIMILARITY
from nnunet_synthtumour.registration.mind import mind_ssc
from nnunet_synthtumour.registration.regularity import bending_energy, diffusion


class RegistrationTerms(NamedTuple):
    """Losses of one registration step, each a scalar."""

    similarity: Tensor
    regularity: Tensor
    anatomy: Tensor


class Anatomy(NamedTuple):
    """Segmentations of a batch: one-hot or probabilities (B, classes, X, Y, Z), weight (B, 1, X, Y, Z), and where known."""

    values: Tensor
    weight: Tensor
    known: Tensor  # (B,) bool: whether there is anything at all


def manual(side: dict[str, Any], classes: int) -> Anatomy:
    """Manual labels; voxels outside of the image or with the ignore label do not count."""
    seg = side["seg"]
    weight = ((seg >= 0) & (seg < classes)).float()
    weight[seg < 0] = 1.0  # outside of the image is background
    return Anatomy(one_hot(seg.clamp(min=0), classes), weight, torch.as_tensor(side["labelled"], device=seg.device))


def manual_or_predicted(side: dict[str, Any], classes: int, predicted: Tensor | None) -> Anatomy:
    """Manual labels where there are any, else what the segmentation network says."""
    given = manual(side, classes)
    if predicted is None:
        return given
    chosen = given.known.reshape(-1, *[1] * (predicted.ndim - 1))
    return Anatomy(torch.where(chosen, given.values, predicted.float()),
                   torch.where(chosen, given.weight, torch.ones_like(given.weight)),
                   torch.ones_like(given.known))  # fmt: skip


def registration_terms(
    moving: dict[str, Any], fixed: dict[str, Any], forward: Tensor, backward: Tensor, velocity: Tensor,
    segmentations: tuple[Anatomy, Anatomy], similarity: str, regularity: str, spacing: Sequence[float] | None = None,
) -> RegistrationTerms:  # fmt: skip
    """Both directions of similarity and anatomy, one regularity of the velocity, whose voxels have this `spacing`."""
    alike = likeness(similarity, moving["match"], fixed["match"], forward, backward)
    smooth = (diffusion if regularity == "diffusion" else bending_energy)(velocity, spacing)
    a, b = segmentations
    both = (a.known & b.known)[:, None].expand(-1, a.values.shape[1])
    anatomy = (
        soft_dice_loss(warp(a.values, forward), b.values, warp(a.weight, forward) * b.weight, both)
        + soft_dice_loss(warp(b.values, backward), a.values, warp(b.weight, backward) * a.weight, both)
    ) / 2
    return RegistrationTerms(alike, smooth, anatomy)


def likeness(similarity: str, moving: Tensor, fixed: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """The loss between each image (B, C, X, Y, Z) and the other one warped to it, on average."""
    if similarity == "mind":
        moving, fixed = (
            torch.cat([mind_ssc(channel) for channel in image.split(1, 1)], 1) for image in (moving, fixed)
        )
    compared = SIMILARITY[similarity]
    return (compared(warp(moving, forward), fixed, None) + compared(warp(fixed, backward), moving, None)) / 2
