"""Instance optimisation: one stationary velocity field, fitted to one pair of images without any training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_synthtumour.registration.anatomy import soft_dice_loss
from nnunet_synthtumour.registration.fields import compose, exponentiate, resize, warp
from nnunet_synthtumour.registration.mind import mind_ssc
from nnunet_synthtumour.registration.mutual_information import nmi_loss
from nnunet_synthtumour.registration.regularity import bending_energy, diffusion
from nnunet_synthtumour.registration.similarity import global_ncc_loss, lncc_loss, mse_loss
from nnunet_synthtumour.registration.velocity import limit_velocity

SIMILARITIES = ("mind", "lncc", "nmi", "ncc", "mse")
Similarity = Literal["mind", "lncc", "nmi", "ncc", "mse"]
Progress = Callable[[int, int, float], None]
SMALLEST_SIDE = 8
REGULARITY_WEIGHTS = {"lncc": 0.2, "mind": 0.03, "nmi": 0.1, "ncc": 0.2, "mse": 0.02}
BENDING_SHARE = 1.0


@dataclass(frozen=True)
class InstanceSettings:
    """How a pair is optimised. `iterations` is the total over all levels, half as many on the finest as on others.

    `levels` are the shrink factors of the images, coarse to fine; `stride` image voxels of a level share one voxel of
    the velocity. `regularity_weight` multiplies the diffusion or bending energy of the velocity; None takes that of
    REGULARITY_WEIGHTS, as the similarities differ in scale. `anatomy` is the weight of structures that were found in both
    images, where they are given. The limits are those of `velocity.limit_velocity`, finer than a network's: no field folded
    so far, whatever the images; an inverse did in a few voxels where images were noise and nothing regularised, in 2D and in
    thick slices, and with a `max_gradient` of 3 anywhere.
    """

    similarity: Similarity = "lncc"
    iterations: int = 40
    levels: tuple[int, ...] = (4, 2, 1)
    stride: int = 2
    regularity: Literal["diffusion", "bending"] = "diffusion"
    regularity_weight: float | None = None
    anatomy: float = 0.1
    learning_rate: float = 0.4
    smoothing: float = 0.5
    max_displacement: float = 0.3
    outflow: float = 1.0
    max_gradient: float = 2.0
    symmetric: bool = False
    steps: int = 5

    def weight(self) -> float:
        """The weight of the regularity."""
        if self.regularity_weight is not None:
            return self.regularity_weight
        return REGULARITY_WEIGHTS[self.similarity] * (BENDING_SHARE if self.regularity == "bending" else 1.0)


@dataclass(frozen=True)
class Deformation:
    """What was found: velocity, displacement u and its inverse w, the latter two on the images' grid; similarity of
    every iteration."""

    velocity: Tensor
    displacement: Tensor
    inverse: Tensor
    history: tuple[float, ...]


def normalised(image: Tensor, low: float = 0.005, high: float = 0.995) -> Tensor:
    """Clipped at two quantiles of its voxels and scaled to 0 ... 1, every image and channel on its own.

    A few bright vessels or metal would otherwise set the scale; a constant image becomes zero.
    """
    flat = image.float().flatten(2)
    sample = flat[..., :: max(1, flat.shape[2] // 1_000_000)]  # quantile() refuses more than 16 million numbers
    bounds = torch.quantile(sample, sample.new_tensor([low, high]), dim=2)
    bottom, top = (bound.reshape(*bound.shape, *[1] * (image.ndim - 2)) for bound in bounds)
    return (image.float().clamp(bottom, top) - bottom) / (top - bottom).clamp(min=1e-8)


def optimise(
    moving: Tensor,
    fixed: Tensor,
    settings: InstanceSettings = InstanceSettings(),
    spacing: Sequence[float] | None = None,
    weight: Tensor | None = None,
    initial: Tensor | None = None,
    progress: Progress | None = None,
    found: tuple[Tensor, Tensor] | None = None,
) -> Deformation:
    """Fit exp(v) to two images (1, C, X, Y[, Z]) that lie on one grid, affinely aligned and `normalised`.

    Minimises, by Adam, level by level on velocities that `limit_velocity` keeps from folding,

        (S(m o exp(v), f) + S(f o exp(-v), m)) / 2 + regularity_weight * R(v) + anatomy * A

    with the similarity S (of one direction only if not `symmetric`), R the diffusion or bending energy, and A, with
    `found`, the soft Dice loss of structures in the same directions: `found` are probabilities of labels in the moving and
    the fixed image, (1, classes, X, Y[, Z]), background first. `weight` (1, 1, X, Y[, Z]) is where the moving image is
    known, `spacing` that of the tensor axes, `initial` a velocity on any grid that covers the images. `progress` hears
    (iteration, iterations, similarity).
    """
    shape, dims = tuple(fixed.shape[2:]), fixed.ndim - 2
    spacing = tuple(spacing or (1.0,) * dims)
    raw = fixed.new_zeros(1, dims, *level_shape(shape, spacing, settings.levels[0] * settings.stride))
    if initial is not None:
        raw = resize(initial.detach().float(), raw.shape[2:])
    history: list[float] = []
    for level, count in zip(settings.levels, _shares(settings.iterations, len(settings.levels)), strict=True):
        raw = resize(raw, level_shape(shape, spacing, level * settings.stride))
        cost = _Cost(moving, fixed, weight, level_shape(shape, spacing, level), settings, found)
        sides = [side * n / m for side, n, m in zip(spacing, shape, raw.shape[2:], strict=True)]
        regularity = diffusion if settings.regularity == "diffusion" else bending_energy
        parameter = raw.clone().requires_grad_()
        optimiser = torch.optim.Adam([parameter], lr=settings.learning_rate)
        for _ in range(count):
            velocity = _limited(parameter, settings)
            similarity, anatomy = cost(velocity)
            loss = similarity + settings.weight() * regularity(velocity, sides) + settings.anatomy * anatomy
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            history.append(float(similarity.detach()))
            if progress is not None:
                progress(len(history), settings.iterations, history[-1])
        raw = parameter.detach()
    velocity = _limited(raw, settings)
    forward, backward = displacements_on(velocity, shape)
    return Deformation(velocity, forward, backward, tuple(history))


def displacements_on(velocity: Tensor, shape: Sequence[int], steps: int = 7) -> tuple[Tensor, Tensor]:
    """exp(v) and its inverse on another grid of the same extent, the inverse corrected as in
    `velocity.displacements_of`."""
    forward = resize(exponentiate(velocity, steps), tuple(shape))
    backward = resize(exponentiate(-velocity, steps), tuple(shape))
    return forward, compose(backward, -compose(forward, backward))


def level_shape(shape: Sequence[int], spacing: Sequence[float], factor: float) -> tuple[int, ...]:
    """A coarser grid of the same extent: voxels `factor` times the smallest side, no axis below eight voxels.

    Coarse axes of anisotropic images are shrunk only once the fine ones have caught up with them.
    """
    target = factor * min(spacing)
    return tuple(
        min(size, max(SMALLEST_SIDE, round(size * side / target))) for size, side in zip(shape, spacing, strict=True)
    )


def image_cost(similarity: Similarity, moving: Tensor, fixed: Tensor, weight: Tensor | None = None) -> float:
    """The similarity of two images on one grid as `optimise` measures it (a cost), NaN if `weight` is zero throughout."""
    if weight is not None and not bool(weight.any()):
        return math.nan
    if similarity == "mind":
        moving, fixed = _descriptors(moving), _descriptors(fixed)
    return float(SIMILARITY[similarity](moving, fixed, weight))


class _Cost:
    """Similarity and anatomy loss of a velocity on one level, everything that does not change computed once."""

    def __init__(
        self,
        moving: Tensor,
        fixed: Tensor,
        weight: Tensor | None,
        shape: tuple[int, ...],
        settings: InstanceSettings,
        found: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.settings, self.shape = settings, shape
        self.moving, self.fixed = shrunk(moving, shape), shrunk(fixed, shape)
        self.weight = None if weight is None else shrunk(weight.float(), shape)
        self.found = None
        if found is not None and settings.anatomy:
            self.found = shrunk(found[0].float(), shape), shrunk(found[1].float(), shape)
        if settings.similarity == "mind":
            # the descriptors are warped, not the images: many times cheaper, and the same up to local rotations
            self.moving, self.fixed = _descriptors(self.moving), _descriptors(self.fixed)

    def __call__(self, velocity: Tensor) -> tuple[Tensor, Tensor | float]:
        forward = self._displacement(velocity)
        # the moving image is unknown where the warp reads what the affine map left empty
        weight = None if self.weight is None else warp(self.weight, forward.detach())
        there = self._of_one_way(forward, self.moving, self.fixed, weight, self.found)
        if not self.settings.symmetric:
            return there
        found = None if self.found is None else self.found[::-1]
        back = self._of_one_way(self._displacement(-velocity), self.fixed, self.moving, self.weight, found)
        return (there[0] + back[0]) / 2, (there[1] + back[1]) / 2

    def _of_one_way(
        self, u: Tensor, one: Tensor, other: Tensor, weight: Tensor | None, found: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor | float]:
        similarity = SIMILARITY[self.settings.similarity](warp(one, u), other, weight)
        return similarity, 0.0 if found is None else soft_dice_loss(warp(found[0], u), found[1], weight)

    def _displacement(self, velocity: Tensor) -> Tensor:
        return resize(exponentiate(velocity, self.settings.steps), self.shape)


def _shares(total: int, levels: int) -> list[int]:
    """Iterations per level: the finest, by far the dearest, gets half as many as each other; the remainder goes to the
    coarsest."""
    finest = total // (2 * levels - 1)
    between = [2 * finest] * (levels - 2)
    return [total] if levels == 1 else [total - finest - sum(between), *between, finest]


def _limited(raw: Tensor, settings: InstanceSettings) -> Tensor:
    return limit_velocity(
        raw,
        max_displacement=settings.max_displacement,
        outflow=settings.outflow,
        smoothing=settings.smoothing,
        max_gradient=settings.max_gradient,
    )


def shrunk(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The means over the voxels of a coarser grid of the same extent."""
    if tuple(image.shape[2:]) == shape:
        return image
    pool: Any = F.adaptive_avg_pool3d if len(shape) == 3 else F.adaptive_avg_pool2d
    return pool(image, shape)


def _descriptors(image: Tensor) -> Tensor:
    return torch.cat([mind_ssc(channel) for channel in image.split(1, dim=1)], dim=1)


SIMILARITY: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "mind": mse_loss,
    "lncc": lambda m, f, w: lncc_loss(m, f, weight=w),
    "nmi": lambda m, f, w: nmi_loss(m, f, weight=w),
    "ncc": global_ncc_loss,
    "mse": mse_loss,
}
