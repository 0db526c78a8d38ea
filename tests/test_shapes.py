import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_synthtumour.infiltration import detour, effort
from nnunet_synthtumour.local_shape import find_shape
from nnunet_synthtumour.shapes import Body, enclose, half_axes, random_rotation

IGNORE = 7


def _body(centre: tuple[float, ...], volume_ml: float, seed: int = 0, **changes: object) -> Body:
    np.random.seed(seed)
    axes, size = half_axes(volume_ml, 1.6, len(centre))
    fields = {"family": "body", "roughness": 0.3, "wavelength": 0.9, "octaves": 4, "hug_tissue": 0.0, "seed": seed}
    return Body(
        centre=centre, rotation=random_rotation(len(centre)), half_axes_mm=axes, size=size, **(fields | changes)
    )


def _grow(body: Body, seg: torch.Tensor, spacing: tuple[float, ...]) -> tuple[torch.Tensor, float]:
    found = find_shape(body, torch.zeros(seg.shape), seg, IGNORE, spacing, 1.0)
    assert found is not None
    assert found.complete == (body.size < int((seg == IGNORE).sum()) * float(np.prod(spacing)))
    mask = torch.zeros(seg.shape, dtype=torch.bool)
    mask[found.box] = found.mask
    return mask, float(mask.sum()) * float(np.prod(spacing))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.8)])
@pytest.mark.parametrize("volume_ml", [1.0, 20.0, 60.0])
def test_the_volume_is_hit_also_where_the_host_cuts(seed: int, spacing: tuple[float, ...], volume_ml: float) -> None:
    shape = tuple(int(110 / s) for s in spacing)
    seg = torch.full(shape, IGNORE, dtype=torch.int16)
    seg[:, : shape[1] // 2] = 0
    centre = (shape[0] / 2, shape[1] / 2 + 2, shape[2] / 2)  # next to the face of the host
    mask, volume = _grow(_body(centre, volume_ml, seed), seg, spacing)
    assert volume == pytest.approx(volume_ml * 1000, rel=0.02)
    assert not (mask & (seg != IGNORE)).any()


def test_a_host_that_is_too_small_is_filled() -> None:
    seg = torch.zeros(40, 40, 40, dtype=torch.int16)
    seg[15:25, 15:25, 15:25] = IGNORE
    mask, volume = _grow(_body((20.0, 20.0, 20.0), 30.0), seg, (1.0, 1.0, 1.0))
    assert volume == 1000
    assert (mask == (seg == IGNORE)).all()


def test_the_surface_is_rough_and_the_body_mostly_in_one_piece() -> None:
    seg = torch.full((90, 90, 90), IGNORE, dtype=torch.int16)
    centre = (45.0, 45.0, 45.0)
    smooth, _ = _grow(_body(centre, 40.0, roughness=0.0), seg, (1.0, 1.0, 1.0))
    rough, _ = _grow(_body(centre, 40.0, roughness=0.35), seg, (1.0, 1.0, 1.0))

    def surface(mask: torch.Tensor) -> int:
        return int((mask.numpy() & ~ndimage.binary_erosion(mask.numpy())).sum())

    assert surface(rough) > 1.1 * surface(smooth)
    pieces, _ = ndimage.label(rough.numpy())
    assert np.bincount(pieces.ravel())[1:].max() > 0.95 * int(rough.sum())


def test_half_axes_have_the_volume_and_the_ratio() -> None:
    np.random.seed(0)
    axes, size = half_axes(40.0, 2.0, 3)
    assert 4 / 3 * np.pi * np.prod(axes) == pytest.approx(40_000)
    assert size == 40_000
    assert max(axes) / min(axes) == pytest.approx(2.0)
    axes, area = half_axes(40.0, 2.0, 2)
    assert np.pi * np.prod(axes) == pytest.approx(area)


@pytest.mark.parametrize("dims", [2, 3])
def test_rotations_are_rotations(dims: int) -> None:
    np.random.seed(1)
    for _ in range(20):
        rotation = np.array(random_rotation(dims))
        assert np.allclose(rotation @ rotation.T, np.eye(dims), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)


def test_a_wedge_is_narrow_at_one_end() -> None:
    seg = torch.full((100, 100, 100), IGNORE, dtype=torch.int16)
    body = _body((50.0, 50.0, 50.0), 20.0, family="wedge", roughness=0.0)
    mask, volume = _grow(body, seg, (1.0, 1.0, 1.0))
    assert volume == pytest.approx(20_000, rel=0.02)
    axis = np.array(body.rotation)[:, int(np.argmax(body.half_axes_mm))]
    along = (np.argwhere(mask.numpy()) - 50) @ axis
    middle = (along.min() + along.max()) / 2
    assert (along > middle).mean() > 0.6 or (along < middle).mean() > 0.6


def _brain() -> tuple[torch.Tensor, torch.Tensor]:
    """Tissue with a sheet of fluid through the middle, and a host that is all of it."""
    generator = np.random.default_rng(0)
    image = torch.from_numpy(generator.normal(1.0, 0.05, (60, 60, 60)).astype(np.float32))
    image[:, 34:40] = -2.0
    return image, torch.full(image.shape, IGNORE, dtype=torch.int16)


@pytest.mark.parametrize("sign", [1, -1])
def test_fluid_is_not_crossed_be_it_dark_or_bright(sign: int) -> None:
    image, seg = _brain()
    inside, beyond = {}, {}
    for hug in (0.0, 2.0):
        body = _body((30.0, 28.0, 30.0), 20.0, roughness=0.1, hug_tissue=hug)
        found = find_shape(body, sign * image, seg, IGNORE, (1.0, 1.0, 1.0), 1.0)
        assert found is not None
        mask = torch.zeros(image.shape, dtype=torch.bool)
        mask[found.box] = found.mask
        assert int(mask.sum()) == pytest.approx(20_000, rel=0.02)
        inside[hug], beyond[hug] = int(mask[:, 35:39].sum()), int(mask[:, 42:].sum())
    assert inside[2.0] < 0.1 * inside[0.0]
    assert beyond[2.0] < 0.1 * beyond[0.0]


def test_effort_is_small_in_tissue_and_large_in_fluid_and_outside() -> None:
    image, _ = _brain()
    host = torch.ones(image.shape, dtype=torch.bool)
    host[:, 55:] = False
    per_mm = effort(image, host, (1.0, 1.0, 1.0))
    assert float(per_mm[:, 8:26].mean()) < 0.05
    assert float(per_mm[:, 36:38].min()) > 2
    assert float(per_mm[:, 56:].min()) > 2
    assert 0.2 < float(per_mm[:, 32].mean()) < 2  # next to fluid, as cortex is


def test_a_detour_is_nothing_in_tissue_and_the_way_around_where_there_is_one() -> None:
    per_mm = torch.zeros(20, 20, 20)
    assert float(detour(per_mm, (3.0, 9.0, 9.0), (1.0, 1.0, 1.0)).abs().max()) == 0
    per_mm[10:12] = 5.0
    across = detour(per_mm, (3.0, 9.0, 9.0), (1.0, 1.0, 1.0))
    assert float(across[16, 9, 9]) == pytest.approx(10, rel=0.1)
    assert float(across[5, 2, 17]) == 0
    per_mm[10:12, 16:] = 0.0  # a gap
    assert float(detour(per_mm, (3.0, 9.0, 9.0), (1.0, 1.0, 1.0))[16, 9, 9]) == pytest.approx(0, abs=1e-3)


@given(
    st.integers(1, 400), st.floats(0.5, 500), st.integers(0, 2**31 - 1)
)  # fmt: skip
def test_enclose_takes_what_it_was_asked_for(n: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    level = torch.randn(n, 3, 2, generator=generator)
    host = torch.rand(n, 3, 2, generator=generator) < 0.7
    surface, enough = enclose(level, host, size, 1.0)
    taken = int(((level > surface) & host).sum())
    assert enough == (int(host.sum()) > size)
    assert taken == int(host.sum()) if not enough else abs(taken - size) <= max(2.0, 0.02 * size)
