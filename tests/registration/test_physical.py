"""Voxel displacements against SimpleITK: anisotropic, rotated grids, a fixed and a moving image that share nothing."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_synthtumour.registration.fields import invert, warp
from nnunet_synthtumour.registration.physical import (
    Geometry,
    affine_displacement,
    from_physical,
    to_physical,
    voxel_map,
)
from tests.registration.test_fields import smooth_field


def rotated(angles: tuple[float, float, float]) -> tuple[float, ...]:
    return sitk.Euler3DTransform((0.0, 0.0, 0.0), *angles).GetMatrix()


def image(size: tuple[int, ...], spacing: tuple[float, ...], direction: tuple[float, ...], seed: int = 0) -> sitk.Image:
    """Smooth noise in [0, 1] on a grid whose centre is the physical point (10, -20, 30)."""
    array = np.random.default_rng(seed).random(size[::-1]).astype(np.float32)
    made = sitk.GetImageFromArray(array)
    made = sitk.RescaleIntensity(sitk.DiscreteGaussian(made, 1.0), 0.0, 1.0)
    made.SetSpacing(spacing)
    made.SetDirection(direction)
    centre = made.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in size])
    made.SetOrigin([10.0 - centre[0], -20.0 - centre[1], 30.0 - centre[2]])
    return made


FIXED = image((26, 22, 18), (0.8, 1.1, 2.3), rotated((0.2, -0.3, 0.4)))
MOVING = image((20, 24, 28), (1.4, 0.9, 1.2), rotated((-0.1, 0.25, -0.35)), seed=1)


def tensor(picture: sitk.Image) -> torch.Tensor:
    return torch.from_numpy(sitk.GetArrayFromImage(picture))[None, None].float()


def sampled_inside(picture: sitk.Image, u: torch.Tensor) -> torch.Tensor:
    """Voxels whose source lies at least one voxel inside the image: border rules differ between the two programs."""
    valid = torch.zeros(1, 1, *picture.GetSize()[::-1])
    valid[:, :, 1:-1, 1:-1, 1:-1] = 1
    return warp(valid, u, padding="zeros") > 0.999


@pytest.mark.parametrize("moving", [FIXED, MOVING], ids=["same grid", "other grid"])
@pytest.mark.parametrize("interpolator", [sitk.sitkLinear, sitk.sitkNearestNeighbor])
def test_the_field_written_for_itk_resamples_as_warp_does(moving: sitk.Image, interpolator: int) -> None:
    fixed_grid, moving_grid = Geometry.of(FIXED), Geometry.of(moving)
    u = smooth_field(fixed_grid.shape, 2.5).double()
    u = u + affine_displacement(voxel_map(fixed_grid, moving_grid), fixed_grid.shape)
    field = sitk.GetImageFromArray(to_physical(u, fixed_grid, moving_grid)[0].numpy(), isVector=True)
    field.CopyInformation(FIXED)

    theirs = tensor(sitk.Resample(moving, FIXED, sitk.DisplacementFieldTransform(field), interpolator, 0.0))
    ours = warp(tensor(moving), u.float(), "linear" if interpolator == sitk.sitkLinear else "nearest")
    valid = sampled_inside(moving, u.float())
    assert valid.float().mean() > 0.2
    difference = (ours - theirs).abs()[valid]
    if interpolator == sitk.sitkLinear:
        assert difference.max() < 1e-3
    else:
        assert (difference > 1e-3).float().mean() < 1e-3, "only ties may round the other way"


def test_an_affine_transform_resamples_as_warp_does() -> None:
    transform = sitk.AffineTransform(3)
    transform.SetMatrix([1.05, 0.1, 0.0, -0.08, 0.95, 0.05, 0.02, 0.0, 1.1])
    transform.SetTranslation([1.5, -2.0, 3.0])
    homogeneous = torch.eye(4, dtype=torch.float64)
    homogeneous[:3, :3] = torch.tensor(transform.GetMatrix()).reshape(3, 3)
    homogeneous[:3, 3] = torch.tensor(transform.GetTranslation())
    matrix = voxel_map(Geometry.of(FIXED), Geometry.of(MOVING), homogeneous)
    u = affine_displacement(matrix, Geometry.of(FIXED).shape).float()
    theirs = tensor(sitk.Resample(MOVING, FIXED, transform, sitk.sitkLinear, 0.0))
    valid = sampled_inside(MOVING, u)
    assert valid.any()
    assert (warp(tensor(MOVING), u) - theirs).abs()[valid].max() < 1e-3


@settings(max_examples=20)
@given(
    st.tuples(*[st.floats(0.3, 5.0)] * 3),
    st.tuples(*[st.floats(-1.5, 1.5)] * 3),
    st.sampled_from([None, MOVING]),
)
def test_there_and_back(spacing: tuple[float, ...], angles: tuple[float, ...], moving: sitk.Image | None) -> None:
    fixed = Geometry.of(image((7, 6, 5), spacing, rotated(angles)))  # type: ignore[arg-type]
    target = None if moving is None else Geometry.of(moving)
    u = smooth_field(fixed.shape, 1.0).double()
    torch.testing.assert_close(from_physical(to_physical(u, fixed, target), fixed, target), u)


def test_two_dimensions() -> None:
    picture = sitk.Image([8, 6], sitk.sitkFloat32)
    picture.SetSpacing((2.0, 0.5))
    picture.SetDirection((0.0, -1.0, 1.0, 0.0))
    geometry = Geometry.of(picture)
    u = torch.zeros(1, 2, 6, 8)
    u[:, 1] = 1.0  # one step along the last tensor axis, ITK's first index axis: 2 mm, turned onto y
    expected = torch.tensor(picture.TransformIndexToPhysicalPoint((1, 0)), dtype=torch.float64)
    torch.testing.assert_close(to_physical(u, geometry)[0, 3, 3], expected)


def test_the_inverse_field_brings_points_back() -> None:
    geometry = Geometry.of(FIXED)
    u = smooth_field(geometry.shape, 1.5).double()

    def transform(field: torch.Tensor) -> sitk.DisplacementFieldTransform:
        written = sitk.GetImageFromArray(to_physical(field, geometry)[0].numpy(), isVector=True)
        written.CopyInformation(FIXED)
        return sitk.DisplacementFieldTransform(written)

    forward, backward = transform(u), transform(invert(u).double())
    point = FIXED.TransformContinuousIndexToPhysicalPoint([12.3, 10.1, 8.7])
    returned = forward.TransformPoint(backward.TransformPoint(point))
    np.testing.assert_allclose(returned, point, atol=0.05)
