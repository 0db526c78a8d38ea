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


def _share_found(image: np.ndarray, ball: np.ndarray) -> float:
    """Dice of the host with the ball; an image with air in it must not pass for a stripped one."""
    host, how = find_host([image])
    assert how == "foreground"
    return float(2 * (host & ball).sum() / (host.sum() + ball.sum()))


def test_the_zeros_of_noise_in_whole_numbers_are_no_stripping() -> None:
    image, ball = _head(0)
    noise = np.abs(np.random.default_rng(1).normal(0, 2, image.shape)).round()
    assert (noise == 0).mean() > 0.15
    assert _share_found(np.where(ball, image, noise), ball) > 0.97


def test_padding_around_a_background_is_no_stripping() -> None:
    image, ball = _head(0)
    image += np.abs(np.random.default_rng(1).normal(5, 4, image.shape)) * ~ball + 0.1
    assert _share_found(np.pad(image, ((9, 0), (0, 0), (0, 0))), np.pad(ball, ((9, 0), (0, 0), (0, 0)))) > 0.97


@pytest.mark.parametrize("padding", [-1024.0, -3024.0])
def test_the_round_field_of_view_of_ct_is_no_stripping(padding: float) -> None:
    _, ball = _head(0)
    generator = np.random.default_rng(0)
    image = np.where(ball, generator.normal(40, 20, ball.shape), generator.normal(-1000, 10, ball.shape))
    rows, columns = np.meshgrid(np.linspace(-1.4, 1.4, 34), np.linspace(-1.4, 1.4, 32), indexing="ij")
    image[:, rows**2 + columns**2 > 1.4**2] = padding
    assert (image == padding).mean() > 0.15
    assert _share_found(image, ball) > 0.97


def test_an_image_of_one_value_has_no_host() -> None:
    host, how = find_host([np.full((6, 7, 8), 3.0)])
    assert how == "foreground"
    assert not host.any()


def _unstripped(bone: float = 10.0) -> tuple[np.ndarray, np.ndarray]:
    """A head (Z, Y, X) on zeros, its scalp as bright as its brain, and the distance of every voxel from its middle."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, n) for n in (60, 72, 64)], indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    tissue = np.random.default_rng(0).normal(200, 20, radius.shape)
    tissue[(radius > 0.78) & (radius < 0.88)] = bone
    return np.where(radius < 1, tissue, 0.0), radius


@pytest.mark.parametrize("steps", [(1, 1, 1), (2, 2, 2), (3, 1, 1)])
def test_a_head_with_its_skull_on_zeros_is_no_stripped_brain(steps: tuple[int, ...]) -> None:
    image, radius = (a[tuple(slice(None, None, step) for step in steps)] for a in _unstripped())
    for head in (image, image[:, :, : -image.shape[2] // 4]):
        host, how = find_host([head])
        assert how == "head"
        assert np.array_equal(host, head != 0)
    brain = np.where(radius < 0.78, image, 0)
    assert find_host([brain])[1] == "nonzero"
    assert find_host([np.where(brain > 0, (brain - 200) / 20, 0)])[1] == "nonzero"  # z-scored before


def test_a_slice_does_not_tell_a_skull_from_a_fissure() -> None:
    image, _ = _unstripped()
    for head in (image[30], image[30:31]):
        host, how = find_host([head])
        assert how == "nonzero"
        assert np.array_equal(host, head != 0)


def test_fluid_beneath_the_rim_sulci_and_scalp_that_was_left_are_no_skull() -> None:
    image, radius = _unstripped(bone=40)
    x = np.indices(image.shape)[2]
    brain = np.where(radius < 0.88, image, 0)  # dark fluid all around it
    folded = np.where(x % 8 == 0, np.where(radius > 0.5, 85, image), image) * (radius < 0.78)
    top = np.where((radius > 0.78) & (x < 48), 0, image)
    for stripped in (brain, folded, top):
        host, how = find_host([stripped])
        assert how == "nonzero"
        assert np.array_equal(host, stripped != 0)
