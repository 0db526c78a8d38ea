import numpy as np
import pytest

from nnunet_synthtumour.hosts import find_host


def _head(background: float) -> tuple[np.ndarray, np.ndarray]:
    """An image (Z, Y, X) of a ball with a dark hole, and the ball."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1.4, 1.4, n) for n in (30, 34, 32)], indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    ball = radius < 1
    image = np.where(ball, np.random.default_rng(0).normal(200, 20, ball.shape), background)
    image[radius < 0.3] = background  # a ventricle that was masked out
    return image, ball


def test_a_mask_is_the_host() -> None:
    image, ball = _head(0)
    host, how = find_host([image], ball * 255)
    assert how == "mask"
    assert np.array_equal(host, ball)


@pytest.mark.parametrize("background", [0.0, -1000.0])
def test_a_stripped_image_has_its_nonzero_region_without_holes_and_crumbs(background: float) -> None:
    image, ball = _head(background)
    image[1, 1, 1] = 50
    host, how = find_host([image])
    assert how == "nonzero"
    assert np.array_equal(host, ball)


def test_a_real_background_is_guessed_and_said_to_be() -> None:
    image, ball = _head(0)
    image += np.abs(np.random.default_rng(1).normal(5, 4, image.shape))
    host, how = find_host([image])
    assert how == "foreground"
    assert 2 * (host & ball).sum() / (host.sum() + ball.sum()) > 0.97


def test_the_host_is_what_any_channel_shows() -> None:
    image, ball = _head(0)
    half = image.copy()
    half[:, :17] = 0
    host, how = find_host([half, image])
    assert how == "nonzero"
    assert np.array_equal(host, ball)


def test_2d() -> None:
    image, ball = _head(0)
    host, _ = find_host([image[15]])
    assert np.array_equal(host, ball[15])
