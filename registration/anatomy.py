"""Agreement of segmentations: the soft Dice between a warped and a fixed one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B, 1, X, Y[, Z]) integer labels -> (B, classes, X, Y[, Z]) float32; other values (ignore, -1) are zeros."""
    values = labels[:, 0].long()
    known = (values >= 0) & (values < classes)
    encoded = F.one_hot(torch.where(known, values, classes), classes + 1)[..., :classes]
    return encoded.movedim(-1, 1).float()


def in_both(found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Of probabilities (1, C, X, Y[, Z]) in two images, the background and what is more likely than not somewhere in both.

    The tails of a softmax are not zero where there is nothing: a structure that one image lacks would be made to vanish.
    """
    kept = [0, *(1 + there_in_both(found)[0].nonzero()[:, 0]).tolist()]
    return (found[0][:, kept], found[1][:, kept]) if len(kept) > 1 else None


def there_in_both(found: tuple[Tensor, Tensor]) -> Tensor:
    """(B, C - 1), without the background: whether a structure is more likely than not somewhere in both images."""
    there = [(one[:, 1:] > 0.5).flatten(2).any(2) for one in found]
    return there[0] & there[1]


def soft_dice_loss(
    warped: Tensor,
    fixed: Tensor,
    weight: Tensor | None = None,
    labelled: Tensor | None = None,
    background: bool = False,
) -> Tensor:
    """1 - mean_c 2 sum_x w p_c q_c / (sum_x w p_c^2 + sum_x w q_c^2); zero if and only if p = q where it counts.

    warped p and fixed q: one-hot or probabilities (B, C, X, Y[, Z]), channel 0 the background, left out unless asked
    for. `weight` (B, 1, X, Y[, Z]) takes voxels out (ignore label, outside of the image).

    Missing labels: `labelled` (B, C), boolean, says which structures are annotated in *both* segmentations; the others
    do not count. A structure that is empty on one side does not count either: no deformation makes it appear, and its
    gradient would only shrink the other side to nothing. If nothing is left, the loss is zero and its gradient too.
    """
    p = warped if warped.dtype == torch.float64 else warped.float()
    q = fixed.to(p.dtype)
    first = 0 if background else 1
    p, q = p[:, first:], q[:, first:]
    w = torch.ones_like(q[:, :1]) if weight is None else weight.to(p.dtype)
    axes = tuple(range(2, p.ndim))
    size_p, size_q = (w * p * p).sum(axes), (w * q * q).sum(axes)
    dice = 2 * (w * p * q).sum(axes) / (size_p + size_q).clamp(min=1e-6)
    counts = (size_p > 1e-6) & (size_q > 1e-6)
    if labelled is not None:
        counts = counts & labelled[:, first:]
    return ((1 - dice) * counts).sum() / counts.sum().clamp(min=1)
