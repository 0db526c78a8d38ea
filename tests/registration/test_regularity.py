"""Regularity: zero for what it lets pass, the same on every grid, exact gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nnunet_synthtumour.registration.fields import exponentiate, resize
from nnunet_synthtumour.registration.regularity import (
    bending_energy,
    diffusion,
    folding_penalty,
    inverse_consistency,
)
from tests.registration.test_fields import positions, smooth_field

AFFINE = torch.tensor([[0.1, 0.2, 0.0], [0.0, -0.3, 0.1], [0.3, 0.0, 0.2]])


def affine(shape: tuple[int, ...]) -> Tensor:
    return torch.einsum("ij,bj...->bi...", AFFINE[: len(shape), : len(shape)], positions(shape))


def wave(shape: tuple[int, int, int]) -> Tensor:
    """One period of a sine across the extent, an amplitude of a twentieth of it."""
    x = (positions(shape) + 0.5) / torch.tensor(shape).reshape(1, 3, 1, 1, 1)
    phase = 2 * math.pi * x
    u = torch.stack((phase[:, 1].sin(), phase[:, 2].cos() * phase[:, 0].sin(), phase[:, 0].sin()), dim=1)
    return u * torch.tensor(shape).reshape(1, 3, 1, 1, 1) / 20


@pytest.mark.parametrize("shape", [(7, 8), (7, 8, 6)])
def test_affine_maps_do_not_bend_and_translations_do_not_diffuse(shape: tuple[int, ...]) -> None:
    assert bending_energy(affine(shape)) == pytest.approx(0, abs=1e-8)
    assert diffusion(torch.ones(1, len(shape), *shape)) == 0
    expected = AFFINE[: len(shape), : len(shape)].square().sum().item()
    assert diffusion(affine(shape)).item() == pytest.approx(expected, rel=1e-4)


def test_bending_energy_of_a_parabola() -> None:
    """u_0 = x_0 x_1 on a grid of mean side 128: two mixed derivatives of one."""
    u = torch.zeros(1, 2, 64, 256)
    u[:, 0] = positions((64, 256))[:, 0] * positions((64, 256))[:, 1]
    assert bending_energy(u).item() == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize("energy", [bending_energy, diffusion])
def test_the_same_deformation_costs_the_same_on_every_grid(energy: object) -> None:
    coarse, fine, longer = (float(energy(wave(s))) for s in ((32, 32, 32), (64, 64, 64), (48, 48, 96)))  # type: ignore[operator]
    assert fine == pytest.approx(coarse, rel=0.02)
    if energy is diffusion:
        assert longer != pytest.approx(coarse, rel=0.02), "stretched by two along one axis, it is another deformation"


@pytest.mark.parametrize("energy", [bending_energy, diffusion])
def test_with_the_spacing_an_anisotropic_grid_measures_the_same(energy: object) -> None:
    isotropic = wave((48, 48, 48))
    anisotropic = resize(isotropic, (48, 48, 24))
    measured = energy(anisotropic, spacing=(1.0, 1.0, 2.0))  # type: ignore[operator]
    assert float(measured) == pytest.approx(float(energy(isotropic)), rel=0.03)  # type: ignore[operator]


def test_folding_is_penalised_only_where_it_happens() -> None:
    smooth = smooth_field((12, 12, 12), 1.0)
    assert folding_penalty(exponentiate(smooth)) == 0
    folded = torch.zeros(1, 3, 8, 8, 8)
    folded[:, 0] = -2 * positions((8, 8, 8))[:, 0]
    assert folding_penalty(folded).item() == pytest.approx(1)
    assert folding_penalty(torch.zeros(1, 3, 4, 4, 4), margin=1.5).item() == pytest.approx(0.5)


def test_inverse_consistency_of_a_velocity_and_of_two_strangers() -> None:
    v = smooth_field((24, 24, 24), 2.0)
    assert inverse_consistency(exponentiate(v), exponentiate(-v)) < 1e-2
    assert inverse_consistency(exponentiate(v), exponentiate(v)) > 0.1


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    u = (torch.rand(1, 3, 4, 5, 4, generator=generator, dtype=torch.float64) * 0.3 + 0.1).requires_grad_()
    spacing = (1.0, 2.0, 0.5)
    assert torch.autograd.gradcheck(lambda f: diffusion(f, spacing), (u,))
    assert torch.autograd.gradcheck(lambda f: bending_energy(f, spacing), (u,))
    assert torch.autograd.gradcheck(lambda f: folding_penalty(f, 1.02), (u,))
    assert torch.autograd.gradcheck(lambda f: inverse_consistency(f, -0.5 * f), (u,))
