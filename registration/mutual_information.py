"""Normalised mutual information from a differentiable joint histogram."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

QUANTILE_SAMPLES = 1 << 16


def nmi_loss(
    warped: Tensor,
    fixed: Tensor,
    bins: int = 32,
    weight: Tensor | None = None,
    chunk: int = 1 << 18,
) -> Tensor:
    """2 - (H(M) + H(F)) / H(M, F), a mean over the batch; in [0, 1], 1 for independent images.

    Entropies of the joint histogram p(a, b) = sum_x w(x) k(a - m(x)) k(b - f(x)) / sum_x w(x) with the cubic B-spline
    k (its values over the bins sum to one). Intensities are scaled to the bins between their 0.1 and 99.9 % quantile,
    clamped beyond. Images (B, 1, X, Y[, Z]), weight of the same shape or None.

    Voxels are taken `chunk` at a time and the kernel values are computed again in the backward pass, so memory is
    some multiple of chunk * bins floats, plus a few images, whatever their size.
    """
    losses = []
    for index in range(len(fixed)):
        w = None if weight is None else weight[index].flatten().to(torch.promote_types(weight.dtype, torch.float32))
        m = _bin_position(warped[index].flatten(), bins, w)
        f = _bin_position(fixed[index].flatten(), bins, w)
        losses.append(2 - _normalised_information(joint_histogram(m, f, bins, w, chunk)))
    return torch.stack(losses).mean()


def joint_histogram(m: Tensor, f: Tensor, bins: int, weight: Tensor | None = None, chunk: int = 1 << 18) -> Tensor:
    """(bins, bins), sums to one. m and f (N,) in bins, between 1 and bins - 2: the kernel reaches two bins."""
    total = m.new_zeros(bins, bins)
    for start in range(0, len(m), chunk):
        part = slice(start, start + chunk)
        w = None if weight is None else weight[part]
        if torch.is_grad_enabled() and (m.requires_grad or f.requires_grad) and len(m) > chunk:
            total = total + checkpoint(_histogram_of, m[part], f[part], w, bins, use_reentrant=False)
        else:
            total = total + _histogram_of(m[part], f[part], w, bins)
    return total / total.sum().clamp(min=torch.finfo(total.dtype).tiny)


def _histogram_of(m: Tensor, f: Tensor, weight: Tensor | None, bins: int) -> Tensor:
    shares_m, shares_f = _bspline(m, bins), _bspline(f, bins)
    if weight is not None:
        shares_f = shares_f * weight
    with torch.autocast(m.device.type, enabled=False):
        return shares_m @ shares_f.T


def _bspline(position: Tensor, bins: int) -> Tensor:
    """k(b - position) for every bin b, (bins, N): k(t) = ((2 - |t|)_+^3 - 4 (1 - |t|)_+^3) / 6."""
    index = torch.arange(bins, device=position.device, dtype=position.dtype)
    distance = (index[:, None] - position[None]).abs()
    outer, inner = (2 - distance).clamp(min=0), (1 - distance).clamp(min=0)
    return (outer * outer * outer - 4 * inner * inner * inner) / 6


def _bin_position(values: Tensor, bins: int, weight: Tensor | None) -> Tensor:
    values = values if values.dtype == torch.float64 else values.float()
    with torch.no_grad():
        counted = values if weight is None else torch.where(weight > 0, values, torch.nan)
        sample = counted[:: max(1, len(values) // QUANTILE_SAMPLES)]
        low, high = torch.nanquantile(sample, sample.new_tensor([0.001, 0.999])).nan_to_num()
    scaled = (values - low) / (high - low).clamp(min=1e-8)
    return 1 + scaled.clamp(0, 1) * (bins - 3)


def _normalised_information(joint: Tensor) -> Tensor:
    tiny = torch.finfo(joint.dtype).tiny

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.clamp(min=tiny).log()).sum()

    return (entropy(joint.sum(0)) + entropy(joint.sum(1))) / entropy(joint).clamp(min=1e-8)
