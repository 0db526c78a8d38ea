"""Fields: exact where exactness is possible, close to a known diffeomorphism where it is not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nnunet_synthtumour.registration.fields import (
    compose,
    exponentiate,
    invert,
    jacobian,
    jacobian_determinant,
    resize,
    transform_points,
    warp,
)

SHAPES = [(12, 15), (10, 12, 9)]


def smooth_field(shape: tuple[int, ...], amplitude: float, seed: int = 0, cells: int = 4) -> Tensor:
    """A displacement (1, D, *shape) drawn on a coarse grid, zero at the border, |u_i| <= amplitude voxels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.zeros(1, len(shape), *[cells + 2] * len(shape))
    inner = (slice(None), slice(None), *[slice(1, -1)] * len(shape))
    coarse[inner] = torch.rand(coarse[inner].shape, generator=generator) * 2 - 1
    mode = "bicubic" if len(shape) == 2 else "trilinear"
    field = torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=True)
    return field * amplitude / field.abs().max()


def positions(shape: tuple[int, ...]) -> Tensor:
    return torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))[None]


def inside(field: Tensor, margin: int) -> Tensor:
    return field[(slice(None), slice(None), *[slice(margin, -margin)] * (field.ndim - 2))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_the_zero_displacement_is_the_identity(shape: tuple[int, ...], mode: str) -> None:
    image = torch.rand(2, 3, *shape)
    torch.testing.assert_close(warp(image, torch.zeros(1, len(shape), *shape), mode), image, rtol=0, atol=1e-5)  # type: ignore[arg-type]


@given(st.sampled_from(SHAPES), st.lists(st.integers(-3, 3), min_size=3, max_size=3))
def test_a_translation_by_whole_voxels_shifts_the_array(shape: tuple[int, ...], shift: list[int]) -> None:
    image = torch.rand(1, 1, *shape)
    u = torch.tensor(shift[: len(shape)], dtype=torch.float32).reshape(1, -1, *[1] * len(shape)).expand(1, -1, *shape)
    expected = torch.roll(image, [-s for s in shift[: len(shape)]], dims=tuple(range(2, image.ndim)))
    torch.testing.assert_close(inside(warp(image, u), 3), inside(expected, 3), rtol=0, atol=1e-5)


def test_channel_i_moves_along_tensor_axis_2_plus_i() -> None:
    ramp = positions((9, 8, 7))
    for axis in range(3):
        u = torch.zeros(1, 3, 9, 8, 7)
        u[:, axis] = 0.25
        moved = warp(ramp, u) - ramp
        expected = torch.zeros(3)
        expected[axis] = 0.25
        torch.testing.assert_close(inside(moved, 1).mean((0, 2, 3, 4)), expected, atol=1e-5, rtol=0)


def test_a_linear_ramp_is_read_exactly_on_a_large_grid() -> None:
    """float32 coordinates cost less than a thousandth of the intensity range on an axis of 1024 voxels."""
    image = torch.rand(1, 1, 1024, 6)
    u = torch.rand(1, 2, 1024, 6) * 4 - 2
    torch.testing.assert_close(warp(image, u), warp(image.double(), u.double()).float(), rtol=0, atol=1e-3)


def test_labels_keep_their_type_and_images_become_floating_point() -> None:
    u = smooth_field((10, 12, 9), 2.0)
    labels = torch.randint(0, 4, (1, 1, 10, 12, 9), dtype=torch.uint8)
    assert warp(labels, u, "nearest").dtype == torch.uint8
    assert set(warp(labels, u, "nearest").unique().tolist()) <= {0, 1, 2, 3}
    assert warp(labels, u).dtype == torch.float32
    assert warp(labels.half(), u.half()).dtype == torch.float32


def test_outside_is_border_or_zero() -> None:
    image, u = torch.ones(1, 1, 6, 6), torch.full((1, 2, 6, 6), 20.0)
    assert warp(image, u).min() == 1
    assert warp(image, u, padding="zeros").max() == 0


def test_autocast_does_not_touch_the_precision() -> None:
    v = smooth_field((16, 16, 16), 3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        computed = exponentiate(v)
    assert computed.dtype == torch.float32
    torch.testing.assert_close(computed, exponentiate(v))


@pytest.mark.parametrize("shape", [(40, 36), (24, 28, 20)])
def test_composition_is_one_warp_after_the_other(shape: tuple[int, ...]) -> None:
    x = positions(shape)
    image = torch.sin(x.sum(1, keepdim=True) * 0.1)
    u, v = smooth_field(shape, 1.5, seed=1), smooth_field(shape, 1.5, seed=2)
    once, twice = warp(image, compose(u, v)), warp(warp(image, u), v)
    torch.testing.assert_close(once, twice, rtol=0, atol=0.01)


@given(st.floats(-0.6, 0.6), st.floats(-0.3, 0.3))
def test_exponentiation_of_a_linear_velocity_is_the_matrix_exponential(rate: float, turn: float) -> None:
    """v(x) = A (x - c) flows to exp(A) (x - c) + c: a known diffeomorphism, exact up to the first step's error."""
    shape = (31, 31)
    matrix = torch.tensor([[rate, -turn], [turn, -rate]]) * 0.5
    relative = positions(shape) - 15
    v = torch.einsum("ij,bjxy->bixy", matrix, relative)
    expected = torch.einsum("ij,bjxy->bixy", torch.linalg.matrix_exp(matrix) - torch.eye(2), relative)
    torch.testing.assert_close(inside(exponentiate(v), 10), inside(expected, 10), rtol=0, atol=0.03)


@pytest.mark.parametrize("shape", [(48, 40), (28, 32, 24)])
def test_minus_velocity_is_the_inverse(shape: tuple[int, ...]) -> None:
    v = smooth_field(shape, 0.1 * min(shape))
    forward, backward = exponentiate(v), exponentiate(-v)
    assert compose(forward, backward).norm(dim=1).mean() < 0.1
    assert (jacobian_determinant(forward) > 0).all()


@pytest.mark.parametrize("shape", [(48, 40), (28, 32, 24)])
def test_inversion_of_any_displacement(shape: tuple[int, ...]) -> None:
    u = exponentiate(smooth_field(shape, 0.12 * min(shape), seed=3))
    assert jacobian_determinant(u).min() < 0.5, "the case should be a hard one"
    inverse = invert(u)
    assert inside(compose(u, inverse), 3).norm(dim=1).max() < 0.05
    assert compose(u, inverse).norm(dim=1).mean() < 0.01


def test_inversion_where_the_plain_iteration_diverges() -> None:
    """u = 2 (x - c): the inverse is -2/3 (x - c), but |Du| = 2 is no contraction."""
    relative = positions((21, 21)) - 10
    inverse = invert(2 * relative)
    torch.testing.assert_close(inverse, -2 / 3 * relative, rtol=0, atol=0.01)


@pytest.mark.parametrize("new", [(20, 24, 18), (5, 6, 9), (10, 12, 9)])
def test_resizing_keeps_a_linear_map(new: tuple[int, ...]) -> None:
    """An affine displacement about the centre of the extent is the same affine map on any grid."""
    old = (10, 12, 9)
    matrix = torch.tensor([[0.1, 0.02, 0.0], [0.0, -0.05, 0.03], [0.04, 0.0, 0.2]])

    def affine(shape: tuple[int, ...]) -> Tensor:
        size = torch.tensor(shape, dtype=torch.float32)
        relative = (positions(shape) + 0.5) / size.reshape(1, 3, 1, 1, 1) - 0.5
        return torch.einsum("ij,bj...->bi...", matrix, relative) * size.reshape(1, 3, 1, 1, 1)

    torch.testing.assert_close(inside(resize(affine(old), new), 1), inside(affine(new), 1), rtol=0, atol=1e-4)


def test_jacobian_of_an_affine_map() -> None:
    matrix = torch.tensor([[0.1, 0.2, 0.0], [0.0, -0.3, 0.1], [0.3, 0.0, 0.2]])
    u = torch.einsum("ij,bj...->bi...", matrix, positions((6, 7, 8)))
    torch.testing.assert_close(jacobian(u)[0, :, :, 3, 3, 3], matrix)
    expected = torch.linalg.det(torch.eye(3) + matrix)
    torch.testing.assert_close(jacobian_determinant(u), expected.expand(1, 6, 7, 8))
    torch.testing.assert_close(
        jacobian_determinant(u[:, :2, :, :, 0]), torch.linalg.det(torch.eye(2) + matrix[:2, :2]).expand(1, 6, 7)
    )


@pytest.mark.parametrize("shape", [(1, 6, 5), (6, 1, 1), (1, 7), (1, 1)])
def test_along_a_single_slice_nothing_changes(shape: tuple[int, ...]) -> None:
    u = torch.rand(1, len(shape), *shape)
    du = jacobian(u)
    assert du.shape == (1, len(shape), *u.shape[1:])
    for axis, size in enumerate(shape):
        assert bool(du[:, :, axis].any()) == (size > 1)
    assert jacobian_determinant(u).isfinite().all()


def test_a_reflection_folds_everywhere() -> None:
    u = torch.zeros(1, 3, 6, 6, 6)
    u[:, 1] = -2 * positions((6, 6, 6))[:, 1]
    assert (jacobian_determinant(u) < 0).all()


def test_points_move_as_the_grid_does() -> None:
    u = smooth_field((10, 12, 9), 2.0, seed=5)
    index = torch.tensor([[[1, 2, 3], [7, 8, 4], [0, 11, 8]]])
    expected = index + torch.stack([u[(0, slice(None), *row)] for row in index[0].tolist()])[None]
    torch.testing.assert_close(transform_points(index.float(), u), expected, rtol=0, atol=1e-4)


def test_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 5, 4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    u = (torch.rand(1, 3, 5, 4, 6, generator=generator, dtype=torch.float64) * 0.4 + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, f: warp(m, f), (image, u))
    assert torch.autograd.gradcheck(lambda f: exponentiate(f * 0.3, steps=2), (u,))
    assert torch.autograd.gradcheck(lambda f: jacobian_determinant(f), (u,))


def test_a_rotation_by_scaling_and_squaring_keeps_area() -> None:
    relative = positions((41, 41)) - 20
    angle = math.pi / 6
    v = angle * torch.stack([-relative[:, 1], relative[:, 0]], dim=1)
    determinant = jacobian_determinant(exponentiate(v))
    torch.testing.assert_close(determinant[:, 15:-15, 15:-15], torch.ones(1, 11, 11), rtol=0, atol=5e-3)
