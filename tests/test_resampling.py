"""Images on other grids: the outline of what is stripped stays sharp, everything else is interpolated as ever."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour.resampling import background_value, resampled


def _ball(background: float = 0.0, dtype: type = np.float32, noise: float = 0.0) -> sitk.Image:
    """A ramp from 100 to 200 inside of a ball, a constant (and perhaps noise) around it."""
    z, y, x = np.meshgrid(*[np.arange(24.0)] * 3, indexing="ij")
    around = background + noise * np.random.default_rng(0).random((24, 24, 24))
    inside = (z - 12) ** 2 + (y - 12) ** 2 + (x - 12) ** 2 < 64
    return sitk.GetImageFromArray(np.where(inside, 100 + 4 * x, around).astype(dtype))


def _turned() -> sitk.Transform:
    return sitk.Euler3DTransform((11.5, 11.5, 11.5), 0.1, 0.2, 0.15, (0.4, 0.3, -0.6))


@pytest.mark.parametrize("background", [0.0, -1024.0, 250.0])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_a_stripped_image_gets_no_rim(background: float, dtype: type) -> None:
    image = _ball(background, dtype)
    moved = resampled(image, image, _turned())
    array, before = sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(image)
    assert array.dtype == before.dtype and moved.GetSpacing() == image.GetSpacing()
    inside = array != np.asarray(background, dtype)
    assert abs(inside.sum() / (before != np.asarray(background, dtype)).sum() - 1) < 0.03
    assert (
        array[inside].min() >= 115 and array[inside].max() <= 181
    )  # the ramp's own values, none mixed with background


def test_inside_it_is_interpolated_as_ever() -> None:
    image = _ball()
    plain = sitk.GetArrayFromImage(sitk.Resample(image, image, _turned(), sitk.sitkLinear, 0.0))
    deep = sitk.GetArrayFromImage(sitk.BinaryErode(image > 0, (3, 3, 3))) > 0
    np.testing.assert_allclose(sitk.GetArrayFromImage(resampled(image, image, _turned()))[deep], plain[deep], rtol=1e-4)


def _noise() -> sitk.Image:
    return _ball(noise=20.0)


def _clipped_noise() -> sitk.Image:
    """Air in whole numbers of which half is 0, as of a CT that was clipped."""
    image = sitk.GetArrayFromImage(_ball()) + np.maximum(0, np.random.default_rng(0).normal(0, 5, (24, 24, 24)))
    return sitk.GetImageFromArray(image.astype(np.int16))


def _bright_side() -> sitk.Image:
    array = sitk.GetArrayFromImage(_noise())
    array[:4] = 255
    return sitk.GetImageFromArray(array)


@pytest.mark.parametrize("make", [_noise, _clipped_noise, _bright_side])
def test_an_image_without_background_is_interpolated_everywhere(make: Callable[[], sitk.Image]) -> None:
    image = make()
    plain = sitk.Resample(image, image, _turned(), sitk.sitkLinear, background_value(image))
    moved = resampled(image, image, _turned())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(plain))


def test_the_value_of_the_background_inside_is_image() -> None:
    array = sitk.GetArrayFromImage(_ball())
    array[10:15, 10:15, 10:15] = 0  # a ventricle in a stripped head
    image = sitk.GetImageFromArray(array)
    plain = sitk.GetArrayFromImage(sitk.Resample(image, image, _turned(), sitk.sitkLinear, 0.0))
    moved = sitk.GetArrayFromImage(resampled(image, image, _turned()))
    np.testing.assert_allclose(moved[9:16, 9:16, 9:16], plain[9:16, 9:16, 9:16], rtol=1e-4, atol=1e-4)
    assert ((moved > 0) & (moved < 100)).sum() > 50


@pytest.mark.parametrize("background", [-3.4e38, -1e10, 1e7, -32768.0])
def test_a_background_that_is_far_away_costs_no_digits(background: float) -> None:
    moved = sitk.GetArrayFromImage(resampled(_ball(background), _ball(), _turned()))
    near = sitk.GetArrayFromImage(resampled(_ball(0.0), _ball(), _turned()))
    np.testing.assert_allclose(moved[near > 0], near[near > 0], rtol=1e-5)
    assert (moved[near == 0] == np.float32(background)).all()


def test_whole_numbers_are_rounded_and_stay_in_their_range() -> None:
    ones = sitk.GetArrayFromImage(_ball())
    image = sitk.GetImageFromArray(
        np.where(ones > 0, np.where(np.indices(ones.shape)[2] % 2, 255, 254), 0).astype(np.uint8)
    )
    moved = sitk.GetArrayFromImage(resampled(image, image, _turned()))
    assert set(np.unique(moved)) == {0, 254, 255}
    assert (moved == 255).sum() > 0.3 * (moved > 0).sum()


def test_a_grid_that_is_its_own_changes_nothing() -> None:
    image = _ball(-1024.0, np.int16)
    same = resampled(image, image, sitk.Transform(3, sitk.sitkIdentity))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(same), sitk.GetArrayFromImage(image))


def test_images_of_two_dimensions() -> None:
    image = _ball()[:, :, 12]
    moved = resampled(image, image, sitk.Euler2DTransform((11.5, 11.5), 0.2, (0.4, -0.3)))
    array = sitk.GetArrayFromImage(moved)
    assert array[array > 0].min() >= 115
