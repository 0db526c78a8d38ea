"""A network's answer does not depend on how the two images are stored."""

from itertools import permutations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_synthtumour.registration.instance import displacements_on
from nnunet_synthtumour.registration.model_files import Architecture
from nnunet_synthtumour.registration.physical import Geometry, to_physical
from nnunet_synthtumour.registration.trained_frame import Frame, frame_of, lie_alike, orientation

SPACING = (1.5, 1.0, 1.2)  # along the network's axes


def trained(transpose=(2, 0, 1), direction=(-1, 0, 0, 0, 0, 1, 0, 1, 0), spacing=SPACING) -> Architecture:
    return Architecture("unet", "", {}, [], 1, {}, spacing, None, transpose, direction)


def drawn(mm: float) -> sitk.Image:
    """Smooth blobs within 32 x 26 x 20 mm, in voxels of about `mm`, oblique by a few degrees."""
    size = [round(side / mm) for side in (32, 26, 20)]
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing([side / n for side, n in zip((32, 26, 20), size, strict=True)])
    c, s = np.cos(0.1), np.sin(0.1)
    image.SetDirection([c, -s, 0, s, c, 0, 0, 0, 1])
    image.SetOrigin(image.TransformContinuousIndexToPhysicalPoint([0.5] * 3))
    x, y, z = np.meshgrid(*[(np.arange(n) + 0.5) / n for n in size], indexing="ij")
    blobs = np.exp(-((x - 0.3) ** 2 + (y - 0.6) ** 2 + (z - 0.4) ** 2) * 20) + 0.5 * np.sin(3 * x + 2 * y - z)
    filled = sitk.GetImageFromArray(blobs.transpose(2, 1, 0).astype(np.float32))
    filled.CopyInformation(image)
    return filled


def told(image: sitk.Image, architecture: Architecture) -> torch.Tensor:
    """The displacement of a network whose velocity is a fixed function of what it sees, in mm, on the image's grid."""
    grid = Geometry.of(image)
    frame = frame_of(architecture, grid)
    shown = frame.image(torch.from_numpy(sitk.GetArrayFromImage(image))[None, None])
    assert tuple(shown.shape[2:]) == frame.shape
    # bends every axis by another amount: an exchanged or reversed one would be seen
    velocity = torch.cat([shown * 2.0, torch.sin(shown * 3), 1 - shown**2], 1)
    return to_physical(displacements_on(frame.velocity(velocity), grid.shape)[0], grid)[0]


def stored(image: sitk.Image, order: tuple[int, ...], flips: tuple[bool, ...]) -> sitk.Image:
    return sitk.Flip(sitk.PermuteAxes(image, order), flips, False)


def vectors(field: torch.Tensor, image: sitk.Image) -> sitk.Image:
    filled = sitk.GetImageFromArray(field.numpy(), isVector=True)
    filled.CopyInformation(image)
    return filled


@settings(max_examples=25)
@given(
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.booleans()] * 3),
    transpose=st.permutations([0, 1, 2]),
    mm=st.sampled_from([1.0, 1.3]),
)
def test_the_displacement_of_images_stored_otherwise_is_the_same_in_space(order, flips, transpose, mm) -> None:
    image, architecture = drawn(mm), trained(tuple(transpose))
    expected = vectors(told(image, architecture), image)
    other = stored(image, tuple(order), flips)
    found = vectors(told(other, architecture), other)
    back = sitk.GetArrayFromImage(sitk.Resample(found, image, sitk.Transform(), sitk.sitkNearestNeighbor))
    wanted = sitk.GetArrayFromImage(expected)
    assert np.abs(wanted).max() > 1
    assert np.abs(back - wanted).max() < 1e-3


@given(
    st.permutations(range(3)), st.tuples(*[st.booleans()] * 3), st.tuples(*[st.integers(4, 9)] * 3), st.sampled_from([1, 2])
)  # fmt: skip
def test_what_a_network_says_of_every_voxel_comes_home(axes, flipped, shape, finer: int) -> None:
    frame = Frame(tuple(axes), flipped, tuple(finer * shape[axis] for axis in axes))
    image = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))[None]
    inner = (..., *[slice(1, -1)] * 3)  # linear interpolation bends at the faces
    assert torch.allclose(frame.home(frame.image(image), shape)[inner], image[inner], atol=1e-4)


@pytest.mark.parametrize("mm", [0.7, 2.0])
def test_voxels_of_another_size_change_the_answer_by_no_more_than_interpolation(mm: float) -> None:
    image, architecture = drawn(1.0), trained()
    expected = sitk.GetArrayFromImage(vectors(told(image, architecture), image))
    other = drawn(mm)
    found = sitk.Resample(vectors(told(other, architecture), other), image, sitk.Transform(), sitk.sitkLinear)
    inner = (slice(2, -2),) * 3
    error = np.abs(sitk.GetArrayFromImage(found) - expected)[inner]
    assert error.mean() < 0.03 * np.abs(expected).mean() and error.max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0), (1.009, 0.991, 1.0)])
def test_images_as_in_training_are_shown_as_they_are(spacing) -> None:
    image = torch.rand(1, 2, 5, 6, 7)
    grid = Geometry((5, 6, 7), (0, 0, 0), (1, 1, 1), tuple(np.eye(3).ravel()))
    for transpose, direction in (((0, 1, 2), grid.direction), ((0, 1, 2), None), (None, None)):
        frame = frame_of(trained(transpose, direction, spacing), grid)
        assert torch.equal(frame.image(image), image)
        assert torch.equal(frame.velocity(image[:, :1].expand(1, 3, 5, 6, 7)), image[:, :1].expand(1, 3, 5, 6, 7))


def test_thick_slices_that_nnunet_puts_first() -> None:
    """The reviewer's case: 2 x 2 x 6 mm with the thick axis last in the array, trained on it first."""
    grid = Geometry((44, 48, 12), (0, 0, 0), (6.0, 2.0, 2.0), tuple(np.eye(3).ravel()))
    assert frame_of(trained((2, 0, 1), grid.direction, (6.0, 2.0, 2.0)), grid).shape == (12, 44, 48)
    # an older file does not say which axis has which side
    assert frame_of(trained(None, None, (6.0, 2.0, 2.0)), grid).shape == (44, 48, 12)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_orientation_as_simpleitk_reorders_images(order) -> None:
    image = drawn(2.0)
    turned = stored(image, order, (True, False, True))
    axes, flipped = orientation(turned.GetDirection(), image.GetDirection())
    array = np.flip(sitk.GetArrayFromImage(turned).transpose(axes), [a for a in range(3) if flipped[a]])
    assert np.array_equal(array, sitk.GetArrayFromImage(image))
    assert not lie_alike(turned.GetDirection(), image.GetDirection())
    assert lie_alike(image.GetDirection(), np.eye(3).ravel()) and not lie_alike((1, 0, 0, 1), np.eye(3).ravel())


def test_an_axis_between_two_others_stays_where_it_is() -> None:
    c = np.sqrt(0.5)
    assert orientation((c, -c, 0, c, c, 0, 0, 0, 1), np.eye(3).ravel()) == ((0, 1, 2), (False,) * 3)


def test_two_dimensions() -> None:
    image = torch.rand(1, 1, 6, 9)
    grid = Geometry((6, 9), (0, 0), (1, 1), (1, 0, 0, 1))
    frame = frame_of(trained((0, 1), (0, 1, -1, 0), (2.0, 1.0)), grid)
    assert frame.axes == (1, 0) and frame.image(image).shape[2:] == (4, 6)
    assert frame.velocity(torch.rand(1, 2, *frame.shape)).shape == (1, 2, 6, 4)
