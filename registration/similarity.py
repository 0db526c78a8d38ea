"""Image similarity as costs: zero is a perfect match, lower is better, every value a mean over the batch.

Images are (B, C, X, Y[, Z]). `weight` is (B, 1, X, Y[, Z]), not negative: a mask, or how much every voxel counts
(zero where the warped image came from outside). The costs for two modalities are in `mutual_information.py`, `mind.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_synthtumour.registration.windows import box_count, box_sum


def mse_loss(warped: Tensor, fixed: Tensor, weight: Tensor | None = None) -> Tensor:
    """sum_x w (m - f)^2 / sum_x w."""
    return weighted_mean((_precise(warped) - _precise(fixed)) ** 2, weight)


def global_ncc_loss(warped: Tensor, fixed: Tensor, weight: Tensor | None = None, epsilon: float = 1e-6) -> Tensor:
    """1 - cov(m, f) / sqrt(var(m) var(f)), weighted over the whole image, for every image and channel of the batch.

    In [0, 2]; unchanged by m -> a m + b with a > 0. `epsilon` is added to both variances: a constant image gives 1.
    """
    warped, fixed = _precise(warped), _precise(fixed)
    share = torch.ones_like(fixed[:, :1]) if weight is None else weight.to(fixed.dtype)
    axes = tuple(range(2, fixed.ndim))
    share = share / share.sum(axes, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
    m = warped - (share * warped).sum(axes, keepdim=True)
    f = fixed - (share * fixed).sum(axes, keepdim=True)
    covariance = (share * m * f).sum(axes)
    variances = ((share * m * m).sum(axes) + epsilon) * ((share * f * f).sum(axes) + epsilon)
    return 1 - (covariance / variances.sqrt()).mean()


def lncc_loss(
    warped: Tensor, fixed: Tensor, window: int = 9, weight: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """1 - mean_x cov_x(m, f)^2 / (var_x(m) var_x(f)), the moments taken in the window^D box around x.

    In [0, 1]. Boxes are cut at the border of the image and, with a weight, hold only what it lets through:
    E_x[g] = sum_box w g / sum_box w. Each image is first brought to zero mean and unit variance over all its voxels;
    `epsilon` is added to every local variance on that scale, so that flat regions count as no match, not as noise,
    and E[g^2] - E[g]^2 loses no digits. The cost hardly depends on the window (`windows.box_sum`).
    """
    m, f = _standardised(_precise(warped)), _standardised(_precise(fixed))
    channels = f.shape[1]
    if weight is None:
        moments = box_sum(torch.cat((m, f, m * m, f * f, m * f), dim=1), window)
        moments = moments / box_count(f.shape[2:], window, f)
    else:
        w = weight.to(f.dtype)
        moments = box_sum(torch.cat((w * m, w * f, w * m * m, w * f * f, w * m * f), dim=1), window)
        moments = moments / box_sum(w, window).clamp(min=1e-3)
    mean_m, mean_f, square_m, square_f, product = moments.split(channels, dim=1)
    variance_m = (square_m - mean_m * mean_m).clamp(min=0) + epsilon
    variance_f = (square_f - mean_f * mean_f).clamp(min=0) + epsilon
    covariance = product - mean_m * mean_f
    return 1 - weighted_mean(covariance * covariance / (variance_m * variance_f), weight)


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """sum w g / sum w over all voxels, channels and images; 0 where nothing has weight."""
    if weight is None:
        return values.mean()
    w = weight.to(values.dtype).expand_as(values)
    return (w * values).sum() / w.sum().clamp(min=torch.finfo(values.dtype).tiny)


def _precise(image: Tensor) -> Tensor:
    return image if image.dtype == torch.float64 else image.float()


def _standardised(image: Tensor) -> Tensor:
    """Zero mean, unit variance. Constants of the gradient: LNCC does not depend on them but through epsilon."""
    axes = tuple(range(2, image.ndim))
    with torch.no_grad():
        mean = image.mean(axes, keepdim=True)
        deviation = (image - mean).square().mean(axes, keepdim=True).sqrt().clamp(min=1e-8)
    return (image - mean) / deviation
