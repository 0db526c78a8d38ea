"""No input folds: the limits hold for anything, the identity passes, the inverse is one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnunet_synthtumour.registration.fields import compose, jacobian, jacobian_determinant
from nnunet_synthtumour.registration.velocity import (
    MAX_DISPLACEMENT,
    MAX_GRADIENT,
    added,
    displacement_of,
    displacements_of,
    limit_velocity,
)
from nnunet_synthtumour.registration.windows import gaussian_smooth
from tests.registration.test_fields import inside


def noise(shape: tuple[int, ...], seed: int, cells: int, scale: float) -> Tensor:
    """Random values on a grid of `cells` per axis, interpolated: white noise to a few large blobs."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, len(shape), *[cells] * len(shape), generator=generator)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return scale * torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=False)


@settings(max_examples=25)
@given(
    st.sampled_from([(24, 20, 22), (40, 32)]),
    st.integers(0, 1000),
    st.integers(2, 24),
    st.sampled_from([0.1, 1.0, 10.0, 1000.0]),
)
def test_whatever_goes_in_does_not_fold(shape: tuple[int, ...], seed: int, cells: int, scale: float) -> None:
    v = limit_velocity(noise(shape, seed, cells, scale))
    assert jacobian(v).square().sum((1, 2)).sqrt().max() <= MAX_GRADIENT * 1.001
    assert (v.abs().amax(dim=tuple(range(2, v.ndim)))[0] <= MAX_DISPLACEMENT * torch.tensor(shape)).all()
    image = tuple(2 * size for size in shape)
    forward, backward = displacements_of(v, [2] * len(shape), image)
    for displacement in (forward, backward):
        assert (jacobian_determinant(displacement) <= 0).float().mean() <= 3e-5
    if forward.abs().amax() <= 0.1 * min(image):
        assert compose(forward, backward).norm(dim=1).mean() < 0.1
        assert compose(backward, forward).norm(dim=1).mean() < 0.1


def test_small_and_smooth_passes() -> None:
    smooth = gaussian_smooth(noise((24, 24, 24), 0, 24, 1.0), 4.0)
    expected = gaussian_smooth(smooth, 1.0)
    torch.testing.assert_close(inside(limit_velocity(smooth), 2), inside(expected, 2), rtol=0.02, atol=1e-3)
    assert (limit_velocity(torch.zeros(1, 3, 6, 6, 6)) == 0).all()


def test_overflow_gives_a_finite_velocity() -> None:
    raw = torch.full((1, 3, 8, 8, 8), math.inf)
    raw[:, 1] = math.nan
    raw[:, 2, :4] = -math.inf
    assert limit_velocity(raw).isfinite().all()


def test_hardly_anything_leaves_the_image() -> None:
    v = limit_velocity(torch.full((1, 2, 40, 40), 100.0), extent=(40, 30), max_gradient=100.0)
    assert v[0, 0, -1].max() <= 1
    assert v[0, 1, :, 30:].max() <= 1, "past the end of the image inside the padded grid"
    assert v[0, 1, :, 15].min() > 4


def test_the_gradient_exists_where_training_starts_and_beyond_the_limits() -> None:
    for raw in (torch.zeros(1, 3, 6, 6, 6), noise((6, 6, 6), 0, 6, 50.0)):
        raw.requires_grad_()
        limit_velocity(raw).square().sum().backward()
        assert raw.grad is not None and raw.grad.isfinite().all()
    small = noise((4, 4, 5), 1, 4, 2.0).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: limit_velocity(r), (small,), fast_mode=True)


@pytest.mark.parametrize("image", [(48, 40, 36), (47, 33, 36)])
def test_displacements_live_on_the_images_grid(image: tuple[int, ...]) -> None:
    v = limit_velocity(noise((24, 20, 18), 0, 4, 3.0), extent=[size / 2 for size in image])
    displacement = displacement_of(v, (2, 2, 2), image)
    assert displacement.shape == (1, 3, *image)
    small = displacement_of(1e-3 * v, (2, 2, 2), image)[..., 20:24, 16, 18].mean()
    assert small.item() == pytest.approx(2e-3 * v[..., 10:12, 8, 9].mean().item(), rel=0.5, abs=1e-3)


@pytest.mark.parametrize("extent", [None, (9.5, 11, 12)])
def test_what_is_added_keeps_the_limits_and_nothing_added_changes_nothing(extent: tuple[float, ...] | None) -> None:
    one, other = (limit_velocity(noise((10, 11, 12), seed, 3, 30.0), extent) for seed in (0, 1))
    torch.testing.assert_close(added(one, torch.zeros_like(one), extent), one)
    both = added(one, other, extent)
    assert jacobian(both).square().sum((1, 2)).max().sqrt() <= 1.5 + 1e-4
    torch.testing.assert_close(added(-one, -other, extent), -both)
    small = 0.05 * one
    inner = (..., *[slice(2, -3)] * 3)
    torch.testing.assert_close(added(small, small, extent)[inner], 2 * small[inner])
    inward = added(torch.zeros_like(one), torch.full_like(one, 100.0), extent, max_gradient=1e3)
    assert inward[:, 0, 0].max() <= 0.5 and inward[:, 0, 5].min() > 1, "hardly anything crosses the faces"
