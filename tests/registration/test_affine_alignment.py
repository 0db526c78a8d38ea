"""Known maps are found again, from starts that are far off, within and across modalities."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_synthtumour.registration.affine_alignment import (
    affine_transform,
    background_of,
    moments,
    similarity_after,
    turn_of,
)


def drawn(dims: int, inverted: bool = False) -> sitk.Image:
    """A lopsided head: an egg with a bright and a dark spot, so that no turn maps it to itself. Background 0."""
    shape, spacing = ((26, 32, 30), (2.0, 1.8, 2.2)) if dims == 3 else ((56, 60), (1.0, 1.2))
    index = np.indices(shape)
    points = [(i - (n - 1) / 2) * s for i, n, s in zip(index, shape, spacing[::-1], strict=True)]
    half = [0.36 * n * s for n, s in zip(shape, spacing[::-1], strict=True)]
    half[-1] *= 0.75

    def bump(centre: tuple[float, ...], size: float) -> np.ndarray:
        return np.exp(-sum(((p / h - c) / size) ** 2 for p, h, c in zip(points, half, centre, strict=False)))

    radius = sum((p / h) ** 2 for p, h in zip(points, half, strict=True))
    spots = [((0.5, 0.4, -0.3), 0.35, 90), ((-0.5, 0.3, 0.4), 0.3, -60), ((0.2, -0.6, 0.3), 0.3, -60),
             ((-0.4, -0.5, -0.3), 0.25, 110), ((0.0, 0.1, 0.6), 0.2, 80), ((0.6, -0.2, 0.2), 0.2, 100)]  # fmt: skip
    tissue = 100 + sum(height * bump(at, size) for at, size, height in spots)
    tissue = 280 - tissue if inverted else tissue
    image = sitk.GetImageFromArray(np.where(radius < 1, tissue, 0).astype(np.float32))
    image.SetSpacing(spacing)
    image.SetOrigin([5.0, -40.0, 12.0][:dims])
    return image


def centre_of(image: sitk.Image) -> list[float]:
    return list(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))


def rigid(image: sitk.Image, degrees: float, shift: float) -> sitk.Transform:
    if image.GetDimension() == 2:
        turn = sitk.Euler2DTransform(centre_of(image), np.radians(degrees), [shift, -shift])
    else:
        angles = np.radians([degrees, -degrees / 2, degrees / 3]).tolist()
        turn = sitk.Euler3DTransform(centre_of(image), *angles, [shift, -shift, shift / 2])
    return turn


def moved(image: sitk.Image, by: sitk.Transform, padding: int = 6) -> sitk.Image:
    """The image whose point by(p) shows what the image has at p; on a grid of its own."""
    dims = image.GetDimension()
    grid = sitk.ConstantPad(image, [padding] * dims, [padding] * dims)
    return sitk.Resample(image, grid, by.GetInverse(), sitk.sitkLinear, 0.0)


def worst_error(found: sitk.Transform, truth: sitk.Transform, image: sitk.Image) -> float:
    """Largest distance (mm) between where both maps put points of the object."""
    array = sitk.GetArrayFromImage(image)
    places = np.argwhere(array > 0)[::97, ::-1]
    points = [image.TransformIndexToPhysicalPoint([int(v) for v in place]) for place in places]
    return float(max(np.linalg.norm(np.subtract(found.TransformPoint(p), truth.TransformPoint(p))) for p in points))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("degrees", "shift"), [(8, 4), (35, 9)])
def test_a_rigid_map_is_found_within_less_than_half_a_voxel(dims: int, degrees: float, shift: float) -> None:
    image = drawn(dims)
    truth = rigid(image, degrees, shift)
    found = affine_transform(image, moved(image, truth), "rigid")
    assert worst_error(found, truth, image) < 0.8


@pytest.mark.parametrize("cross", [False, True])
def test_an_affine_map_is_found_within_about_a_voxel(cross: bool) -> None:
    image = drawn(3)
    truth = sitk.AffineTransform(3)
    truth.SetCenter(centre_of(image))
    truth.SetMatrix([1.12, 0.06, 0.0, -0.05, 0.92, 0.04, 0.02, 0.0, 1.05])
    truth.SetTranslation([3.0, -4.0, 2.0])
    moving = moved(drawn(3, inverted=True) if cross else image, truth)
    found = affine_transform(image, moving, "affine", cross_modality=cross)
    assert worst_error(found, truth, image) < (2.5 if cross else 0.8)
    assert similarity_after(image, moving, found, cross) > similarity_after(image, moving, truth, cross) - 0.06


def test_grids_that_do_not_touch_and_oblique_directions() -> None:
    image = drawn(3)
    moving = sitk.Image(image)
    moving.SetOrigin([900.0, -700.0, 400.0])
    c, s = np.cos(0.6), np.sin(0.6)
    moving.SetDirection([c, -s, 0, s, c, 0, 0, 0, 1])
    found = affine_transform(image, moving, "rigid")
    places = [[8, 10, 9], [20, 18, 14], [15, 16, 13]]
    for place in places:
        at = found.TransformPoint(image.TransformIndexToPhysicalPoint(place))
        assert np.linalg.norm(np.subtract(at, moving.TransformIndexToPhysicalPoint(place))) < 0.7


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_wrong_header_is_seen_through(axis: int) -> None:
    image = drawn(3)
    signs = [-1.0] * 3
    signs[axis] = 1.0
    moving = sitk.Image(image)
    moving.SetDirection(np.diag(signs).ravel().tolist())
    found = affine_transform(image, moving, "rigid")
    assert turn_of(np.array(found.GetMatrix()).reshape(3, 3)) == pytest.approx(180, abs=2)


def trunk(seed: int) -> sitk.Image:
    """Almost round, as a trunk is, with two organs that are small beside it; each seed has its own texture."""
    shape, sides = (20, 26, 24), (3.5, 3.0, 3.0)
    rng = np.random.default_rng(seed)
    centre = [(n - 1) / 2 + rng.uniform(-1, 1) for n in shape]
    away = [(i - c) * mm for i, c, mm in zip(np.indices(shape), centre, sides, strict=True)]
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    inside = sum((a / half) ** 2 for a, half in zip(away, (30, 36, 30), strict=True)) < 1
    tissue = np.where(inside, 40 + 60 * texture, -1000)
    for at, radius, value in (((10.5, 0, 9), 12, 120), ((-14, -6, -9), 8, 0)):
        tissue[sum((a - p) ** 2 for a, p in zip(away, at, strict=True)) < radius**2] = value
    image = sitk.GetImageFromArray(tissue.astype(np.float32))
    image.SetSpacing(sides[::-1])
    return image


@pytest.mark.parametrize("seed", [2, 3])
def test_headers_are_right_where_a_turn_gains_hardly_anything(seed: int) -> None:
    found = affine_transform(trunk(0), trunk(seed), "rigid")
    assert turn_of(np.array(found.GetMatrix()).reshape(3, 3)) < 20


@pytest.mark.parametrize("dims", [2, 3])
def test_the_turn_of_a_matrix(dims: int) -> None:
    turn = np.eye(dims)
    turn[:2, :2] = [[0, -1], [1, 0]]
    scaling = np.diag([1.3, 0.8, 1.1][:dims])
    assert turn_of(turn @ scaling) == pytest.approx(90) and turn_of(scaling) == pytest.approx(0, abs=1e-5)


def test_it_is_never_worse_than_doing_nothing_and_the_same_every_time() -> None:
    image = drawn(3)
    noise = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
    found = [affine_transform(image, noise) for _ in range(2)]
    identity = sitk.Transform(3, sitk.sitkIdentity)
    assert similarity_after(image, noise, found[0]) >= similarity_after(image, noise, identity)
    assert found[0].TransformPoint((1.0, 2.0, 3.0)) == found[1].TransformPoint((1.0, 2.0, 3.0))


def test_what_cannot_be_aligned_is_said() -> None:
    image = drawn(3)
    with pytest.raises(ValueError, match="moving image is constant"):
        affine_transform(image, image * 0 + 7)
    with pytest.raises(ValueError, match="several values per voxel"):
        affine_transform(sitk.Compose(image, image), image)
    with pytest.raises(ValueError, match="'rigid' or 'affine'"):
        affine_transform(image, image, "elastic")


def test_background_and_moments() -> None:
    image = drawn(3)
    assert background_of(image) == 0.0
    noisy = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(9, 9, 9)))
    assert background_of(noisy) is None
    centre, axes = moments(image)
    assert np.allclose(axes.T @ axes, np.eye(3)) and np.linalg.det(axes) == pytest.approx(1)
    assert np.linalg.norm(centre - centre_of(image)) < 3
