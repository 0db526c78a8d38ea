"""MIND-SSC: an image described by its own self-similarity, comparable across modalities."""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_synthtumour.registration.similarity import weighted_mean
from nnunet_synthtumour.registration.windows import box_sum


def mind_ssc(image: Tensor, radius: int = 1, dilation: int = 2) -> Tensor:
    """The self-similarity context of an image, (B, 1, X, Y[, Z]) -> (B, 12, X, Y, Z) in 3D, (B, 4, X, Y) in 2D.

    The neighbours of x are the 2 D voxels x + a at distance `dilation` along the axes. For every pair of them that is
    not opposite, at a distance of sqrt(2) dilation (12 pairs in 3D, 4 in 2D):

        d_k(x)    = mean over the box of `radius` around x of (I(. + a) - I(. + b))^2
        mind_k(x) = exp(-(d_k(x) - min_k d(x)) / V(x)),   V(x) = mean_k d_k(x), kept within 1e-3 ... 1e3 of its mean

    in [0, 1], unchanged by I -> c I + d with any c but zero. The border value is repeated outside.
    """
    image = image if image.dtype == torch.float64 else image.float()
    dims, shape = image.ndim - 2, image.shape[2:]
    margin = dilation + radius
    padded = F.pad(image, [margin] * (2 * dims), mode="replicate")

    def neighbour(axis: int, sign: int) -> Tensor:
        """I(. + a) on the grid grown by the radius, so that boxes at the border are whole."""
        view = padded
        for other in range(dims):
            start = dilation + (sign * dilation if other == axis else 0)
            view = view.narrow(2 + other, start, shape[other] + 2 * radius)
        return view

    neighbours = {(axis, sign): neighbour(axis, sign) for axis in range(dims) for sign in (-1, 1)}
    inner = (slice(None), slice(None), *[slice(radius, radius + size) for size in shape])
    squares = [(neighbours[a] - neighbours[b]) ** 2 for a, b in combinations(neighbours, 2) if a[0] != b[0]]
    window = 2 * radius + 1
    distance = box_sum(torch.cat(squares, dim=1), window)[inner] / window**dims
    variance = distance.mean(dim=1, keepdim=True)
    typical = variance.detach().mean(dim=tuple(range(1, image.ndim)), keepdim=True).clamp(min=1e-12)
    variance = variance.clamp(min=1e-3 * typical, max=1e3 * typical)
    return torch.exp(-(distance - distance.amin(dim=1, keepdim=True)) / variance)


def mind_loss(
    warped: Tensor, fixed: Tensor, weight: Tensor | None = None, radius: int = 1, dilation: int = 2
) -> Tensor:
    """mean_x mean_k (mind_k(m)(x) - mind_k(f)(x))^2, weighted by `weight` (B, 1, X, Y[, Z]); several channels add up
    as independent images do, by their mean."""
    losses = [
        weighted_mean((mind_ssc(m, radius, dilation) - mind_ssc(f, radius, dilation)) ** 2, weight)
        for m, f in zip(warped.split(1, dim=1), fixed.split(1, dim=1), strict=True)
    ]
    return torch.stack(losses).mean()
