import pickle

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from nnunet_synthtumour.drawing import LesionParameters
from nnunet_synthtumour.lesion_model import DISTRACTOR_KINDS, available_presets, load_model
from nnunet_synthtumour.synthesis import GrowLesion, grow_in_volume

IGNORE = 7
ALWAYS = {"parts": {"core": {"probability": 1.0}, "necrosis": {"probability": 1.0}}, "shape": {"volume_ml": [60, 60]}}


def _sample(shape: tuple[int, ...] = (40, 44, 36), channels: int = 1, host: object = None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    seg = torch.zeros(1, *shape, dtype=torch.int16)
    seg[0][torch.ones(shape, dtype=torch.bool) if host is None else host] = IGNORE
    return {"image": torch.randn(channels, *shape, generator=generator), "segmentation": seg}


def _copy(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in sample.items()}


def _transform(preset: str = "glioma", dims: int = 3, channels: int = 1, **options: object) -> GrowLesion:
    overrides = options.pop("overrides", {})
    options = {"labels": {"whole": 1, "core": 2, "necrosis": 3}, "spacing": (3.0,) * dims} | options
    model = load_model(preset, overrides)
    return GrowLesion(model, ignore_label=IGNORE, channels=["FLAIR", "T1", "T1ce", "T2"][:channels], **options)


@pytest.mark.parametrize("preset", list(available_presets()))
def test_drawn_lesions_replay_bit_for_bit_after_printing_and_pickling(preset: str) -> None:
    transform, sample = _transform(preset, channels=2), _sample(channels=2)
    np.random.seed(3)
    drawn = transform.get_parameters(**sample)
    first = transform.apply(_copy(sample), **drawn)
    for copy in (LesionParameters.from_json(drawn["lesions"].to_json()), pickle.loads(pickle.dumps(drawn["lesions"]))):
        assert copy == drawn["lesions"]
        again = transform.apply(_copy(sample), lesions=copy, normalisation=None)
        assert torch.equal(first["image"], again["image"])
        assert torch.equal(first["segmentation"], again["segmentation"])
    assert "centre" in repr(drawn["lesions"])


def test_a_healthy_draw_changes_nothing_but_the_host() -> None:
    sample = _sample()
    out = _transform(probability=0.0, overrides={"distractors": {"probability": 0.0}})(**_copy(sample))
    assert torch.equal(out["image"], sample["image"])
    assert not out["segmentation"].any()


def test_a_patch_without_host_passes() -> None:
    sample = _sample(host=torch.zeros(40, 44, 36, dtype=torch.bool))
    sample["segmentation"][0, :5] = -1
    out = _transform()(**_copy(sample))
    assert torch.equal(out["image"], sample["image"])
    assert torch.equal(out["segmentation"], sample["segmentation"])


def test_other_labels_and_the_outside_are_left_alone() -> None:
    sample = _sample()
    sample["segmentation"][0, :10] = -1
    sample["segmentation"][0, 30:] = 5
    overrides = {"shape": {"volume_ml": [100, 100]}, "distractors": {"probability": 0.0}}
    out = _transform(overrides=overrides)(**_copy(sample))
    assert (out["segmentation"][0, :10] == -1).all()
    assert (out["segmentation"][0, 30:] == 5).all()
    assert (out["segmentation"][0, 10:30] == 1).any()
    outside = torch.ones(40, dtype=torch.bool)
    outside[10:30] = False
    assert torch.equal(out["image"][0, outside], sample["image"][0, outside])


@pytest.mark.parametrize("kind", DISTRACTOR_KINDS)
def test_distractors_change_the_image_and_no_label(kind: str) -> None:
    sample = _sample()
    inside = torch.zeros(1, 40, 44, 36, dtype=torch.bool)
    inside[:, 8:32, 8:36, 8:28] = True
    sample["segmentation"][~inside] = 0
    sample["image"] = torch.where(inside, sample["image"] * 0.2 + 3, 0.0)
    kinds = {other: float(other == kind) for other in DISTRACTOR_KINDS}
    transform = _transform(probability=0.0, overrides={"distractors": {"probability": 1.0, "kinds": kinds}})
    changed = torch.zeros_like(inside)
    np.random.seed(0)
    for _ in range(10):
        out = transform(**_copy(sample))
        changed |= out["image"] != sample["image"]
        assert not out["segmentation"].any()
        assert torch.isfinite(out["image"]).all()
    assert changed.any()
    assert not (changed & (inside if kind == "leftover" else ~inside)).any()


def test_leftovers_of_a_stripped_image_outlast_nnunets_mask() -> None:
    inside = torch.zeros(40, 44, 36, dtype=torch.bool)
    inside[8:32, 8:36, 8:28] = True
    sample = _sample(host=inside)
    sample["segmentation"][0, ~inside] = -1
    sample["image"] = torch.where(inside, sample["image"], 0.0)
    leftovers = {"probability": 1.0, "kinds": {"leftover": 1.0}}
    transform = _transform(probability=0.0, overrides={"distractors": leftovers})
    mask = MaskImageTransform([0], channel_idx_in_seg=0, set_outside_to=0)
    found = 0
    np.random.seed(0)
    for _ in range(5):
        out = transform(**_copy(sample))
        changed = out["image"][0] != sample["image"][0]
        assert not (changed & inside).any()
        assert ((out["segmentation"][0] == 0) == (changed | inside)).all()
        assert torch.equal(mask(**_copy(out))["image"], out["image"])
        found += int(changed.sum())
    assert found


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (6.0, 1.5, 1.5), (1.5, 1.5)])
def test_some_leftovers_are_eyes_bright_balls_that_touch_the_host_from_outside(spacing: tuple[float, ...]) -> None:
    shape = tuple(int(140 / mm) for mm in spacing)
    axes = [(np.arange(n) - n / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    at = np.stack(np.meshgrid(*axes, indexing="ij"))
    host = torch.from_numpy((at**2).sum(0) < 40**2)
    sample = _sample(shape, host=host)
    sample["segmentation"][0, ~host] = -1
    sample["image"] = torch.where(host, sample["image"] * 0.2 + 3, 0.0)
    leftovers = {"probability": 1.0, "count": [1, 1], "kinds": {"leftover": 1.0}}
    transform = _transform(
        "glioma", len(spacing), spacing=spacing, probability=0.0, overrides={"distractors": leftovers}
    )
    np.random.seed(0)
    drawn = [transform.get_parameters(**sample, normalisation=(np.array([3.0]), np.array([1.0]))) for _ in range(40)]
    eyes = [d for d in drawn if d["lesions"].distractors[0].kind == "eye"]
    assert 5 < len(eyes) < 30
    balls = [d["lesions"].distractors for d in eyes]
    assert {len({ball.centre for ball in found}) for found in balls} == {1, 2}  # alone, or side by side
    assert {len({ball.radius_mm for ball in found}) for found in balls} == {1, 2}  # bright throughout, or with a rim
    for each in eyes:
        out = transform.apply(_copy(sample), **each)
        changed = (out["image"][0] != sample["image"][0]).numpy()
        assert changed.any()
        assert not (changed & host.numpy()).any()
        assert ((out["segmentation"][0] == 0).numpy() == (changed | host.numpy())).all()
        assert out["image"][0][changed].max() > sample["image"][0][host].mean()
        elsewhere = changed.copy()
        for eye in each["lesions"].distractors:
            away = np.sqrt(sum((a - (c - n / 2) * mm) ** 2
                               for a, c, n, mm in zip(at, eye.centre, shape, spacing, strict=True)))  # fmt: skip
            assert 6 <= eye.radius_mm <= 13
            assert away[host].min() < 13
            assert changed[away < 5].any()
            elsewhere &= away > 17
        assert not elsewhere.any()


def test_an_eye_has_no_room_where_the_host_fills_the_patch() -> None:
    kinds = {"distractors": {"probability": 1.0, "kinds": {"leftover": 1.0}}}
    np.random.seed(0)
    for _ in range(20):
        drawn = _transform(probability=0.0, overrides=kinds).get_parameters(**_sample())
        assert all(d.kind == "leftover" for d in drawn["lesions"].distractors)


@pytest.mark.parametrize("seed", range(4))
def test_shifted_lesions_of_ct_are_visible(seed: int) -> None:
    sample = _sample()
    np.random.seed(seed)
    out = _transform("liver-ct", shifted=True, overrides={"shape": {"volume_ml": [50, 50], "count": [1, 1]}})(
        **_copy(sample), normalisation=(np.array([60.0]), np.array([20.0]))
    )
    whole, outer = out["segmentation"] > 0, out["segmentation"] == 1  # inner parts may be as bright as the host
    assert (out["image"] - sample["image"])[outer].max() < -0.3
    assert torch.equal(out["image"][~whole], sample["image"][~whole])


def test_parts_are_nested_and_whole_alone_is_one_label() -> None:
    sample = _sample()
    np.random.seed(2)
    parts = _transform(overrides=ALWAYS)(**_copy(sample))["segmentation"]
    np.random.seed(2)
    whole = _transform(overrides=ALWAYS, labels={"whole": 1})(**_copy(sample))["segmentation"]
    assert set(parts.unique().tolist()) == {0, 1, 2, 3}
    assert torch.equal(parts > 0, whole == 1)


@pytest.mark.parametrize(
    "labels",
    [{"whole": 1, "core": 2, "necrosis": 3}, {"whole": 1, "core": 2}, {"whole": 1, "necrosis": 3}],
)
def test_shifted_lesions_have_the_parts_that_have_labels(labels: dict[str, int]) -> None:
    """t u inside of each hard mask: the factor of whatever label a voxel has, and nothing smoothed."""
    sample = _sample()
    transform = _transform(shifted=True, labels=labels, overrides=ALWAYS)
    np.random.seed(2)
    drawn = transform.get_parameters(**sample, normalisation=(np.array([0.0]), np.array([1.0])))
    out = transform.apply(_copy(sample), **drawn)
    seg = out["segmentation"][0]
    assert set(seg.unique().tolist()) == {0, *labels.values()}
    lesion = drawn["lesions"].lesions[0]
    contrast = {"whole": lesion.contrast[0], **{part.name: part.contrast[0] for part in lesion.parts}}
    expected = sample["image"][0].clone()
    for name, value in labels.items():
        expected[seg == value] *= contrast[name].factor
    assert torch.allclose(out["image"][0], expected, atol=1e-5)


def test_shifted_lesions_of_one_label_are_of_one_piece() -> None:
    sample, grown = _sample(), []
    for parts in (ALWAYS["parts"], {"core": {"probability": 0.0}}):
        for labels in ({"whole": 1}, {"whole": 1, "core": 1, "necrosis": 1}):
            np.random.seed(2)
            transform = _transform(shifted=True, labels=labels, overrides={**ALWAYS, "parts": parts})
            grown.append(transform(**_copy(sample)))
    for again in grown[1:]:
        assert torch.equal(grown[0]["segmentation"], again["segmentation"])
    assert torch.equal(grown[0]["image"], grown[1]["image"])


def test_the_papers_second_factor_is_on_top_of_the_first_when_shifted_too() -> None:
    sample = _sample()
    transform = _transform("paper", shifted=True, overrides={"parts": {"core": {"probability": 1.0}}})
    np.random.seed(2)
    drawn = transform.get_parameters(**sample, normalisation=(np.array([0.0]), np.array([1.0])))
    out = transform.apply(_copy(sample), **drawn)
    core = out["segmentation"][0] == 2
    lesion = drawn["lesions"].lesions[0]
    factor = lesion.contrast[0].factor * lesion.parts[0].contrast[0].factor
    assert core.any()
    assert torch.allclose(out["image"][0][core], factor * sample["image"][0][core], atol=1e-5)


def test_lesions_are_centred_where_the_crop_will_keep_them() -> None:
    transform = _transform(region_shape=(12, 12, 12), overrides={"shape": {"satellites": 0.0}})
    np.random.seed(0)
    for _ in range(30):
        for lesion in transform.get_parameters(**_sample())["lesions"].lesions:
            assert all(abs(c - n / 2) <= 6.5 for c, n in zip(lesion.body.centre, (40, 44, 36), strict=True))


def test_eight_seeds_give_eight_streams_and_the_same_seed_the_same() -> None:
    transform, sample = _transform(), _sample()

    def stream(seed: int) -> list[str]:
        np.random.seed(seed)
        torch.manual_seed(0)
        return [transform.get_parameters(**sample)["lesions"].to_json() for _ in range(5)]

    streams = [stream(seed) for seed in range(8)]
    assert len({tuple(s) for s in streams}) == 8
    assert len({text for s in streams for text in s}) == 40
    assert stream(3) == streams[3]


def test_volumes_follow_the_configured_law() -> None:
    overrides = {"shape": {"volume_ml": [20, 80], "satellites": 0.0}, "distractors": {"probability": 0.0}}
    transform = _transform("paper", overrides=overrides, spacing=(4.0, 4.0, 4.0), labels={"whole": 1}, shifted=True)
    sample = _sample((44, 44, 44))
    np.random.seed(0)
    volumes = []
    for _ in range(2000):
        out = transform(**_copy(sample))
        volumes.append(float((out["segmentation"] == 1).sum()) * 0.064)
        assert not torch.isnan(out["image"]).any()
    assert stats.kstest(volumes, stats.uniform(20, 60).cdf).pvalue > 0.01


def test_scattered_lesions_are_many_and_small() -> None:
    sample = _sample((60, 60, 60))
    np.random.seed(0)
    out = _transform("ms", spacing=(1.5, 1.5, 1.5), labels={"whole": 1})(**sample)
    from scipy import ndimage

    pieces, n = ndimage.label(out["segmentation"][0].numpy() == 1)
    assert n >= 5
    assert (np.bincount(pieces.ravel())[1:] * 1.5**3 / 1000).max() < 12


def test_whole_volumes_leave_their_input_alone() -> None:
    sample = _sample()
    image, seg = sample["image"].numpy(), sample["segmentation"].numpy()
    before = image.copy(), seg.copy()
    grown, label, drawn = grow_in_volume(_transform(), image, seg)
    assert np.array_equal(image, before[0])
    assert np.array_equal(seg, before[1])
    assert (label > 0).any()
    assert len(drawn.lesions) >= 1
    assert grown.shape == image.shape


@pytest.mark.parametrize("shifted", [False, True])
def test_a_single_slice_is_a_2d_image_however_thick(shifted: bool) -> None:
    sample = _sample((160, 160))
    flat = _transform(dims=2, spacing=(1.0, 1.0), shifted=shifted)
    slab = _transform(spacing=(999.0, 1.0, 1.0), shifted=shifted)  # what nnU-Net reads from a 2D file
    for seed in range(5):
        np.random.seed(seed)
        expected = flat(**_copy(sample))
        np.random.seed(seed)
        image, label, _ = grow_in_volume(
            slab, sample["image"][:, None].numpy(), sample["segmentation"][:, None].numpy()
        )
        assert image.shape == label.shape == (1, 1, 160, 160)
        assert np.array_equal(image[:, 0], expected["image"].numpy())
        assert np.array_equal(label[:, 0], expected["segmentation"].numpy())
        assert (label > 0).sum() > 200


axis = st.one_of(st.integers(1, 12), st.integers(1, 60), st.integers(150, 200))


@st.composite
def patches(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[float, ...], float, int]:
    dims = draw(st.integers(2, 3))
    shape = [draw(axis) for _ in range(dims)]
    while np.prod(shape) > 400_000:
        shape[int(np.argmax(shape))] //= 2
    spacing = tuple(draw(st.floats(0.3, 6.0)) for _ in range(dims))
    return tuple(shape), spacing, draw(st.sampled_from([0.0, 0.001, 0.1, 0.6, 1.0])), draw(st.integers(1, 4))


@hypothesis_settings(max_examples=60)
@given(patches(), st.sampled_from(list(available_presets())), st.booleans(), st.integers(0, 10_000))
def test_any_patch_comes_back_whole(
    patch: tuple[tuple[int, ...], tuple[float, ...], float, int], preset: str, shifted: bool, seed: int
) -> None:
    shape, spacing, share, channels = patch
    host = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    sample = _sample(shape, channels, host)
    np.random.seed(seed)
    transform = _transform(preset, len(shape), channels, spacing=spacing, shifted=shifted, region_shape=shape)
    drawn = transform.get_parameters(**sample)
    out = transform.apply(_copy(sample), **drawn)
    image, seg = out["image"], out["segmentation"]
    assert image.shape == sample["image"].shape
    assert image.dtype == torch.float32
    assert seg.dtype == torch.int16
    assert torch.isfinite(image).all()
    assert set(seg.unique().tolist()) <= {0, 1, 2, 3}
    assert not (seg[0][~host] > 0).any()
    drawn_outside = any(d.kind in ("leftover", "eye") for d in drawn["lesions"].distractors)
    assert drawn_outside or torch.equal(image[:, ~host], sample["image"][:, ~host])
    if shifted and host.any() and shape == tuple(min(n, 8) for n in shape):
        assert (seg > 0).any()
