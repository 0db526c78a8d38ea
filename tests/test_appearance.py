import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunet_synthtumour.appearance import (
    LABEL_FROM,
    ChannelContrast,
    Tissue,
    edge_of,
    paper_mask,
    paper_shifted,
    paper_training,
)
from nnunet_synthtumour.drawing import LesionParameters
from nnunet_synthtumour.lesion_model import load_model
from nnunet_synthtumour.local_shape import find_shape
from nnunet_synthtumour.mass_effect import push_away
from nnunet_synthtumour.shapes import Body
from nnunet_synthtumour.smoothing import gaussian, resize, smoothed
from nnunet_synthtumour.synthesis import GrowLesion

IGNORE = 7


def _ball(n: int = 40, radius: float = 9.0) -> torch.Tensor:
    x = torch.arange(n) - n / 2
    return (x[:, None, None] ** 2 + x[None, :, None] ** 2 + x[None, None] ** 2) < radius**2


def _raw(n: int = 40, channels: int = 1) -> np.ndarray:
    generator = np.random.default_rng(3)
    noise = ndimage.gaussian_filter(generator.normal(size=(channels, n, n, n)), (0, 2, 2, 2))
    return (400 + 900 * noise / noise.std()).clip(1).astype(np.float64)


def test_gaussian_is_scipys_away_from_the_faces() -> None:
    field = torch.randn(40, 36, 44, generator=torch.Generator().manual_seed(0))
    ours = gaussian(field, [1.5, 2.0, 1.0]).numpy()
    theirs = ndimage.gaussian_filter(field.numpy(), [1.5, 2.0, 1.0], truncate=8)
    inside = (slice(12, -12),) * 3
    assert np.abs(ours - theirs)[inside].max() < 1e-4


def test_wide_smoothing_on_a_coarse_grid_is_close_to_exact() -> None:
    field = torch.randn(48, 50, 46, generator=torch.Generator().manual_seed(0)) + 5
    exact = gaussian(field, [5.0] * 3)
    assert float((smoothed(field, [5.0] * 3) - exact)[12:-12, 12:-12, 12:-12].abs().max()) < 0.01 * 5


def test_smoothing_a_part_is_the_part_of_the_smoothed() -> None:
    field = torch.randn(48, 50, 46, generator=torch.Generator().manual_seed(0))
    part = (slice(10, 31), slice(0, 50), slice(7, 40))
    for sigma in (1.0, 2.0, 5.0):
        assert torch.allclose(smoothed(field, [sigma] * 3, part), smoothed(field, [sigma] * 3)[part], atol=1e-5)


def test_resize_is_torchs() -> None:
    field = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    theirs = torch.nn.functional.interpolate(field[None, None], (20, 9, 11), mode="trilinear", align_corners=True)[0, 0]
    assert torch.allclose(resize(field, (20, 9, 11)), theirs, atol=1e-5)


def test_the_papers_training_model_is_its_formula() -> None:
    u, mask, t = torch.from_numpy(_raw(64)[0]).float(), _ball(64), 2.3
    smooth = smoothed(u, [5.0] * 3)
    m = ndimage.gaussian_filter(mask.numpy().astype(float), 1, truncate=8)
    tissue = ndimage.gaussian_filter(u.numpy().astype(float), 5, truncate=8)
    ours = paper_mask(mask)
    grown, label = paper_training(u.clone(), smooth.clone(), ours, t), ours > LABEL_FROM
    expected = u.numpy() * (1 - m) + t * tissue * m
    inside = (slice(16, -16),) * 3
    assert np.abs(grown.numpy() - expected)[inside].max() < 0.03 * t * float(
        u.std()
    )  # G5 is computed on a third of the grid
    assert (label.numpy() == (m > LABEL_FROM)).mean() > 0.9999
    brighter = paper_training(u.clone(), smooth.clone(), ours, t, paper_mask(_ball(64, 4.0)), 1.2)
    assert float((brighter / grown)[32, 32, 32]) == pytest.approx(1.2, rel=0.02)


def test_the_papers_shifted_model_keeps_texture_and_is_hard() -> None:
    u, mask = torch.from_numpy(_raw()[0]).float(), _ball()
    grown = paper_shifted(u, mask, ChannelContrast(1.7))
    assert torch.equal(grown[~mask], u[~mask])
    assert torch.equal(grown[mask], u[mask] * 1.7)
    in_hu = paper_shifted(u, mask, ChannelContrast(hu=-30.0), unit=20.0)
    assert torch.equal(in_hu[mask], u[mask] - 1.5)


@pytest.mark.parametrize("preset", ["paper", "glioma", "stroke", "ms", "metastases"])
@pytest.mark.parametrize("shifted", [False, True])
def test_growing_in_the_normalised_patch_is_normalising_the_grown_raw_image(preset: str, shifted: bool) -> None:
    raw = _raw(channels=2)
    mean, std = raw.mean((1, 2, 3)), raw.std((1, 2, 3))
    normalised = (raw - mean[:, None, None, None]) / std[:, None, None, None]
    # where the body may go is decided from intensities, whose order normalising keeps
    model = load_model(preset, {"shape": {"volume_ml": [3, 6], "volume_law": "uniform"}})
    transform = GrowLesion(model, {"whole": 1}, (1.5, 1.5, 1.5), IGNORE, ["FLAIR", "T1"], shifted=shifted)
    seg = torch.full((1, *raw.shape[1:]), IGNORE, dtype=torch.int16)
    for seed in range(3):
        np.random.seed(seed)
        drawn = transform.get_parameters(image=None, segmentation=seg)["lesions"]
        assert isinstance(drawn, LesionParameters)

        def grow(image: np.ndarray, normalisation: object) -> tuple[torch.Tensor, torch.Tensor]:
            sample = {"image": torch.from_numpy(image).float(), "segmentation": seg.clone()}
            out = transform.apply(sample, lesions=drawn, normalisation=normalisation)  # noqa: B023
            return out["image"], out["segmentation"]

        in_patch, labels = grow(normalised, (mean, std))
        in_raw, raw_labels = grow(raw, (np.zeros(2), np.ones(2)))
        then_normalised = (in_raw.numpy() - mean[:, None, None, None]) / std[:, None, None, None]
        assert torch.equal(labels, raw_labels)
        assert np.abs(in_patch.numpy() - then_normalised).max() < 1e-3
        assert np.abs(in_patch.numpy() - normalised).max() > 0.05


def test_ct_contrast_is_in_hounsfield_units() -> None:
    mean, std = np.array([60.0]), np.array([40.0])
    raw = np.full((1, 40, 40, 40), 110.0)
    model = load_model("liver-ct", {
        "shape": {"volume_ml": [10, 10], "count": [1, 1]}, "contrast": {"whole": {"*": {"hu": [-50, -50]}}},
        "parts": {"core": {"probability": 0.0}}, "appearance": {"mass_effect": 0.0},
    })  # fmt: skip
    transform = GrowLesion(model, {"whole": 1}, (1.0, 1.0, 1.0), IGNORE, ["CT"])
    sample = {"image": torch.from_numpy((raw - mean) / std).float(),
              "segmentation": torch.full((1, 40, 40, 40), IGNORE, dtype=torch.int16)}  # fmt: skip
    np.random.seed(0)
    out = transform(**sample, normalisation=(mean, std))
    hounsfield = out["image"][0] * 40 + 60
    lesion = out["segmentation"][0] == 1
    assert float(hounsfield[lesion].min()) == pytest.approx(60, abs=0.5)
    assert float(hounsfield[~lesion].max()) == pytest.approx(110, abs=0.5)


def test_without_the_raw_zero_contrast_is_in_deviations_of_the_host() -> None:
    image = torch.from_numpy(_raw()).float()
    model = load_model("paper", {"shape": {"volume_ml": [3, 3]}, "contrast": {"whole": {"*": {"factor": [2, 2]}}}})
    transform = GrowLesion(model, {"whole": 1}, (1.0, 1.0, 1.0), IGNORE, ["FLAIR"])
    added = []
    for scale, offset in ((1.0, 0.0), (0.01, -7.0)):
        sample = {
            "image": image * scale + offset,
            "segmentation": torch.full((1, 40, 40, 40), IGNORE, dtype=torch.int16),
        }
        np.random.seed(1)
        out = transform(**sample)
        added.append((out["image"] - (image * scale + offset)) / scale)
    assert torch.allclose(added[0], added[1], atol=0.5)
    assert float(added[0].max()) > 2 * float(image.std())


def test_the_edge_is_where_it_says_and_as_soft_as_it_says() -> None:
    level = torch.linspace(-10, 10, 81).reshape(81, 1).expand(81, 5).contiguous()
    hard, soft = (
        edge_of(level, Tissue(softness_mm=mm, softness_spread=0.0), (1.0, 1.0)).clamp_(0, 1) for mm in (0.5, 6.0)
    )
    for edge in (hard, soft):
        assert float(edge[40, 0]) == pytest.approx(0.42)
        assert (edge.diff(dim=0) >= 0).all()
    assert int(((soft > 0) & (soft < 1)).sum()) > 5 * int(((hard > 0) & (hard < 1)).sum())


def test_nothing_is_visible_beyond_the_reach_of_the_edge() -> None:
    level = torch.linspace(-30, 10, 200).reshape(200, 1).expand(200, 50).contiguous()
    tissue = Tissue(softness_mm=5.0, softness_spread=0.6, seed=4)
    visible = edge_of(level, tissue, (1.0, 1.0)) > 0
    assert not visible[level < -tissue.reach_mm].any()


def test_mass_effect_pushes_outward_in_the_host_and_leaves_the_faces_of_the_box() -> None:
    x = torch.arange(80.0) - 40
    distance = torch.sqrt(x[:, None, None] ** 2 + x[None, :, None] ** 2 + x[None, None] ** 2)
    seg = torch.full(distance.shape, IGNORE, dtype=torch.int16)
    seg[:, :20] = 0
    identity = tuple(tuple(float(i == j) for j in range(3)) for i in range(3))
    radius = 15.0
    size = 4 / 3 * np.pi * radius**3
    body = Body("body", (40.0,) * 3, identity, (radius,) * 3, size, 0.0, 1.0, 1, 0.0, 0)
    shape = find_shape(body, distance, seg, IGNORE, (1.0,) * 3, 2.0)
    assert shape is not None
    image = distance[None].clone()
    push_away(image, seg, IGNORE, shape, body, 0.2, (1.0,) * 3)
    moved = distance - image[0]  # what is there came from further inside
    shell = (distance > 15) & (distance < 16) & (seg == IGNORE)
    assert float(moved[shell].mean()) == pytest.approx(3.0, abs=0.5)
    assert not moved[seg != IGNORE].any()
    outside = torch.ones(distance.shape, dtype=torch.bool)
    outside[tuple(slice(s.start + 1, s.stop - 1) for s in shape.wide_box)] = False
    assert not moved[outside].any()
