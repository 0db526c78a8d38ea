"""Five epochs on drawn shapes: each network learns to register pairs it has never seen, without a fold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_synthtumour.registration.fields import jacobian_determinant, warp
from nnunet_synthtumour.registration.msc_gunet import GraphRegistration, MSCGUNet
from nnunet_synthtumour.registration.networks import RegistrationUNet
from nnunet_synthtumour.registration.regularity import diffusion
from nnunet_synthtumour.registration.similarity import mse_loss
from nnunet_synthtumour.registration.windows import gaussian_smooth
from tests.registration.plans import architecture

SIZE, EPOCHS, PAIRS = 48, 5, 20


def drawn_ellipsoids(count: int, seed: int) -> Tensor:
    """(count, 1, 48, 48, 48) masks; radii of 9 to 15 voxels, centres up to 3 voxels off the middle along every axis."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.stack(torch.meshgrid(*[torch.arange(float(SIZE))] * 3, indexing="ij"))
    centres = SIZE / 2 + 0.06 * SIZE * (2 * torch.rand(count, 3, 1, 1, 1, generator=generator) - 1)
    radii = SIZE * (0.18 + 0.14 * torch.rand(count, 3, 1, 1, 1, generator=generator))
    return (((x - centres) / radii).square().sum(1, keepdim=True) < 1).float()


def dice(a: Tensor, b: Tensor) -> float:
    axes = (1, 2, 3, 4)
    return float((2 * (a * b).sum(axes) / (a.sum(axes) + b.sum(axes))).mean())


def loss_of(network: Any, moving: Tensor, fixed: Tensor) -> Tensor:
    output = network(moving, fixed)
    velocities = output[:2] if isinstance(output, GraphRegistration) else (output,)
    loss = moving.new_zeros(())
    for weight, velocity in zip((1.0, 0.5), velocities, strict=False):
        there = warp(moving, network.displacement(velocity, moving.shape[2:]))
        back = warp(fixed, network.displacement(-velocity, moving.shape[2:]))
        loss = loss + weight * (mse_loss(there, fixed) + mse_loss(back, moving) + 3e-3 * diffusion(velocity))
    if isinstance(output, GraphRegistration):
        loss = loss + 1e-3 * (output.kl + output.diagonal)
    return loss


@pytest.mark.parametrize("network_class", [RegistrationUNet, MSCGUNet])
def test_five_epochs_reach_a_dice_of_075_from_068_without_folds(network_class: Any) -> None:
    torch.manual_seed(0)
    network = network_class.from_plans(*architecture((8, 8, 16, 16, 16)))
    optimiser = torch.optim.Adam(network.parameters(), 7e-3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, EPOCHS * PAIRS, power=0.9)
    images = gaussian_smooth(drawn_ellipsoids(2 * PAIRS, seed=0), 1.0)
    for epoch in range(EPOCHS):
        for moving, fixed in zip(images[::2].split(1), images[1::2].split(1), strict=True):
            loss = loss_of(network, *((fixed, moving) if epoch % 2 else (moving, fixed)))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()

    network.eval()
    masks = drawn_ellipsoids(8, seed=99)
    moving, fixed = masks[:4], masks[4:]
    velocity = network.predict(gaussian_smooth(moving, 1.0), gaussian_smooth(fixed, 1.0))
    forward, backward = network.displacements(velocity, moving.shape[2:])
    assert dice(moving, fixed) < 0.68
    assert dice(warp(moving, forward, "nearest"), fixed) > 0.75
    assert dice(warp(fixed, backward, "nearest"), moving) > 0.75
    assert (jacobian_determinant(forward) > 0).all() and (jacobian_determinant(backward) > 0).all()
