"""Stripped images that are moved or resampled: their outline stays as sharp as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

STRIPPED = 0.1


def keeping_background(image: Tensor, resample: Callable[[Tensor, Literal["linear", "nearest"]], Tensor]) -> Tensor:
    """`resample(image, "linear")` of an image (B, C, X, Y[, Z]) that is zero where there is nothing.

    Of channels with more than a tenth of zeros, what lies next to nothing is nothing, and everything else is averaged over
    what there is: networks that learnt from such images take a rim of faint voxels for something. See
    `nnunet_synthtumour.resampling`, which does the same to files.
    """
    there = (image > 0).to(image.dtype)
    stripped = there.mean(tuple(range(2, image.ndim)), keepdim=True) < 1 - STRIPPED
    linear, share, kept = resample(image, "linear"), resample(there, "linear"), resample(there, "nearest") > 0.5
    sharp = torch.where(kept, linear / share.clamp(min=STRIPPED), torch.zeros_like(linear))
    return torch.where(stripped, sharp, linear)
