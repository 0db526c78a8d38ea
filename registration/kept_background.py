"""Stripped images that are moved or resampled: their outline stays as sharp as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

LEAST = 0.1  # of what is averaged: the nearest of eight voxels has an eighth


def keeping_background(
    image: Tensor, there: Tensor, resample: Callable[[Tensor, Literal["linear", "nearest"]], Tensor]
) -> tuple[Tensor, Tensor]:
    """`resample(image, "linear")` and where the result is, of an image (1, C, X, Y[, Z]) that is `there`, 1 or 0, and one
    value wherever it is not.

    What lies next to nothing is nothing, and everything else is averaged over what there is, as
    `nnunet_synthtumour.resampling` does with files: networks that learnt from such images take a rim of faint voxels for
    something.
    """
    axes = tuple(range(2, image.ndim))
    nothing = torch.where(there > 0.5, torch.inf, image).amin(axes, keepdim=True)
    nothing = torch.where(nothing.isinf(), image.amin(axes, keepdim=True), nothing)
    share, kept = resample(there, "linear"), resample(there, "nearest")
    mean = resample(torch.where(there > 0.5, image, torch.zeros_like(image)), "linear") / share.clamp(min=LEAST)
    return torch.where(kept > 0.5, mean, nothing), kept
