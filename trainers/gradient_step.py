"""One step of an optimiser as nnU-Net takes it: gradients are clipped, and scaled where a GPU computes in half precision.

A step whose gradient is not finite is left out, as a scaler leaves it out: it would make every weight NaN, and a velocity
of NaN is none at all, so that nobody would see it in the losses.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

LARGEST_NORM = 12.0  # nnU-Net's


def descend(
    loss: Tensor,
    parameters: Iterable[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    grad_scaler: torch.amp.GradScaler | None,
) -> None:
    """`parameters` are those that `optimizer` steps; `grad_scaler` is None where nothing needs to be scaled."""
    optimizer.zero_grad(set_to_none=True)
    if grad_scaler is None:
        loss.backward()
        if torch.isfinite(nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)):
            optimizer.step()
        return
    grad_scaler.scale(loss).backward()
    grad_scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
    grad_scaler.step(optimizer)
    grad_scaler.update()
