"""A velocity that is drawn, step by step, to where the same structures are found in two images: nothing is learnt here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_synthtumour.registration.anatomy import there_in_both
from nnunet_synthtumour.registration.fields import exponentiate, jacobian, warp
from nnunet_synthtumour.registration.instance import shrunk
from nnunet_synthtumour.registration.strides import padded_to
from nnunet_synthtumour.registration.velocity import added
from nnunet_synthtumour.registration.windows import gaussian_smooth

LENGTH, FLAT, SHORTENED = 2.0, 1e-3, 4


@torch.no_grad()
def drawn_together(
    velocity: Tensor,
    found: tuple[Tensor, Tensor],
    stride: Sequence[int],
    extent: Sequence[float],
    steps: int,
    limits: Mapping[str, float],
) -> Tensor:
    """The velocity after `steps` steps of demons between probabilities of structures, on its own grid.

        v <- v + 2 G * f      f = sum_c d_c grad p_c / (sum_c |grad p_c|^2 + d_c^2)      d_c = q_c - p_c

    with p the probabilities in the moving image, warped by exp(v), q those in the fixed one, G the Gaussian of `limits`,
    within which the sum is kept. No |f| is longer than half a voxel, and a step is shorter where the sum would be too steep.
    `found` are probabilities (B, classes, X, Y[, Z]), background first, on the images' grid, of which a voxel of the
    velocity covers `stride`; structures that are found in one image only do not count, as in `anatomy.in_both`.
    """
    if not steps:
        return velocity
    counts = there_in_both(found)[(..., *[None] * (velocity.ndim - 2))]
    grid = tuple(velocity.shape[2:])
    covered = [size * along for size, along in zip(grid, stride, strict=True)]  # the image, and what it is padded with
    p, q = (shrunk(padded_to(one[:, 1:].float(), covered), grid) * counts for one in found)
    for _ in range(steps):
        force = _demons(warp(p, exponentiate(velocity)), q)
        step = LENGTH * gaussian_smooth(force, limits["smoothing"])
        velocity = added(velocity, _not_too_steep(velocity, step, limits["max_gradient"]), extent, **limits)
    return velocity


def _not_too_steep(velocity: Tensor, step: Tensor, max_gradient: float) -> Tensor:
    """The step, shorter in and around places where the sum would be steeper than `max_gradient`.

    `added` would make the whole velocity smaller for one steep place, with all that was found far from it.
    """
    pool = F.max_pool3d if velocity.ndim == 5 else F.max_pool2d
    for _ in range(SHORTENED):  # what is shorter in one place may be steeper beside it
        share = -pool(-_share(velocity, step, max_gradient), 5, 1, 2)
        step = step * gaussian_smooth(share, 1.0)
    return step


def _share(velocity: Tensor, step: Tensor, max_gradient: float) -> Tensor:
    """How much of the step keeps the sum within `max_gradient`, (B, 1, ...) between 0 and 1: |D(v + t s)| is convex in t."""
    now, then = (jacobian(v).square().sum((1, 2)).sqrt()[:, None] for v in (velocity, velocity + step))
    room = (max_gradient - now).clamp(min=0) / (then - now).clamp(min=1e-6)
    return torch.where(then > max_gradient, room.clamp(max=1), 1.0)


def _demons(p: Tensor, q: Tensor) -> Tensor:
    """f as above, zero where both are all but constant and equal: (B, C, X, Y[, Z]) -> (B, D, X, Y[, Z])."""
    wide = [axis for axis in range(2, p.ndim) if p.shape[axis] > 1]
    slopes = dict(zip(wide, torch.gradient(p, dim=wide), strict=True))
    d = q - p
    norm = d.square().sum(1, keepdim=True) + sum(g.square().sum(1, keepdim=True) for g in slopes.values())
    along = [(d * slopes[a]).sum(1, keepdim=True) if a in slopes else torch.zeros_like(norm) for a in range(2, p.ndim)]
    return torch.cat(along, 1) * (norm > FLAT) / norm.clamp(min=FLAT)
