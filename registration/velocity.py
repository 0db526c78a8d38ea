"""From what a network says to a velocity that cannot fold, and from a velocity to both displacements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_synthtumour.registration.fields import compose, exponentiate, jacobian, resize
from nnunet_synthtumour.registration.windows import gaussian_smooth

MAX_DISPLACEMENT = 0.2
OUTFLOW = 0.0
SMOOTHING = 1.0
MAX_GRADIENT = 1.5


def limit_velocity(
    raw: Tensor,
    extent: Sequence[float] | None = None,
    max_displacement: float = MAX_DISPLACEMENT,
    outflow: float = OUTFLOW,
    smoothing: float = SMOOTHING,
    max_gradient: float = MAX_GRADIENT,
) -> Tensor:
    """A velocity whose flow does not fold on its grid, for any input: (B, D, X, Y[, Z]) -> the same, at least float32.

        a_i(x) = min(max_displacement * n_i, outflow + d_i(x))
        s      = Gaussian of `smoothing` voxels * (a tanh(raw / a))
        v      = s / max(1, max_x |Ds(x)| / max_gradient)       (Frobenius norm, central differences, per item)

    n_i is the number of voxels along axis i and d_i(x) the distance to the nearer face of the image across it, in
    voxels; `extent` (voxels along every axis from the grid's first edge) says where the image ends inside a padded
    grid. So |v_i| <= a_i and |Dv| <= max_gradient: the flow stretches and squeezes by at most e^max_gradient, the
    smoothing keeps it resolved by the grid it is squared on, and (almost) nothing crosses the border, beyond which no
    inverse is known; an `outflow` of some voxels lets it. Small, smooth velocities pass unchanged but for the smoothing.
    """
    raw = raw if raw.dtype == torch.float64 else raw.float()
    # what a half-precision network overflowed to must not become inf / inf; tanh saturates long before
    raw = raw.nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6)
    bound = _largest(raw, raw.shape[2:] if extent is None else extent, max_displacement, outflow)
    return _no_steeper(gaussian_smooth(bound * torch.tanh(raw / bound), smoothing), max_gradient)


def added(
    velocity: Tensor,
    more: Tensor,
    extent: Sequence[float] | None = None,
    max_displacement: float = MAX_DISPLACEMENT,
    outflow: float = OUTFLOW,
    smoothing: float = SMOOTHING,  # of both, already
    max_gradient: float = MAX_GRADIENT,
) -> Tensor:
    """The sum of two velocities as `limit_velocity` leaves them, within the same limits.

    What is added may not carry beyond a_i(x); the whole is made smaller where the sum is too steep.
    """
    bound = _largest(velocity, velocity.shape[2:] if extent is None else extent, max_displacement, outflow)
    bound = torch.maximum(bound, velocity.abs())  # smoothing has carried something across, which stays
    return _no_steeper(torch.minimum(torch.maximum(velocity + more, -bound), bound), max_gradient)


def _no_steeper(velocity: Tensor, max_gradient: float) -> Tensor:
    squares = jacobian(velocity).square().sum(dim=(1, 2)).flatten(1)
    # the root of the largest square, not the largest root: a root has no gradient at zero, where training starts
    steepest = squares.amax(dim=1).clamp(min=max_gradient**2).sqrt()
    return velocity * (max_gradient / steepest).reshape(-1, *[1] * (velocity.ndim - 1))


def displacement_of(velocity: Tensor, stride: Sequence[int], shape: Sequence[int], steps: int = 7) -> Tensor:
    """exp(v), squared on v's own grid, on the image's grid: (B, D, *shape).

    A voxel of the velocity covers `stride` voxels of the image; both grids start at the same edge, and what the
    velocity covers beyond the image is cut off.
    """
    covered = tuple(size * along for size, along in zip(velocity.shape[2:], stride, strict=True))
    field = resize(exponentiate(velocity, steps), covered)
    whole, kept = (slice(None), slice(None)), tuple(slice(size) for size in shape)
    return field[whole + kept]


def displacements_of(
    velocity: Tensor, stride: Sequence[int], shape: Sequence[int], steps: int = 7
) -> tuple[Tensor, Tensor]:
    """u = exp(v) and its inverse w on the image's grid, compose(u, w) and compose(w, u) close to zero.

    exp(-v) on a grid is off by what linear interpolation loses in every squaring. One Newton step takes most of that
    out: with r = compose(u, w), phi_u(x + w(x)) = x + r(x), hence w <- compose(w, -r).
    """
    forward = displacement_of(velocity, stride, shape, steps)
    backward = displacement_of(-velocity, stride, shape, steps)
    return forward, compose(backward, -compose(forward, backward))


def _largest(raw: Tensor, extent: Sequence[float], max_displacement: float, outflow: float) -> Tensor:
    """a_i(x) of `limit_velocity`, (1, D, X, Y[, Z])."""
    bounds = []
    for axis, (size, end) in enumerate(zip(raw.shape[2:], extent, strict=True)):
        centre = torch.arange(size, device=raw.device, dtype=raw.dtype) + 0.5
        distance = torch.minimum(centre, end - centre).clamp(min=0)
        # never zero: it divides
        along = (outflow + distance).clamp(max=max_displacement * end).clamp(min=1e-3)
        bounds.append(along.reshape([-1 if i == axis else 1 for i in range(raw.ndim - 2)]).expand(raw.shape[2:]))
    return torch.stack(bounds)[None]
