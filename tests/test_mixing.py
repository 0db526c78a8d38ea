import multiprocessing as mp
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nnunet_synthtumour.donor_bank import DonorBank
from nnunet_synthtumour.donor_placement import PasteParameters
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.mixing import PasteTumour, paste_in_volume
from nnunet_synthtumour.settings import DonorSettings
from tests.donor_cases import IGNORE, MM, PLAIN, SHAPE, cut, patient, write_case, write_patients

DRAWN = replace(DonorSettings(), probability=1.0)


@pytest.fixture(scope="module")
def banks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], DonorBank]:
    """By (dimensions, channels)."""
    folder = tmp_path_factory.mktemp("patients")
    found = {}
    for channels in (1, 2):
        cases = write_patients(folder / str(channels), 2, channels)
        for dims in (2, 3):
            found[dims, channels] = cut(folder / str(channels), cases, folder / f"bank_{dims}_{channels}", dims)
    return found


def _sample(
    shape: tuple[int, ...] = SHAPE, channels: int = 1, host: torch.Tensor | None = None, level: float = 0.0
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    seg = torch.zeros(1, *shape, dtype=torch.int16)
    seg[0][torch.ones(shape, dtype=torch.bool) if host is None else host] = IGNORE
    return {"image": 0.1 * torch.randn(channels, *shape, generator=generator) + level, "segmentation": seg}


def _ball(shape: tuple[int, ...] = SHAPE, radius: float = 13.5) -> torch.Tensor:
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) - n / 2 + 0.5 for n in shape], indexing="ij"))
    return (grid**2).sum(0) < radius**2


def _copy(sample: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() for key, value in sample.items()}


def _paste(bank: DonorBank, settings: DonorSettings = DRAWN, **options: Any) -> PasteTumour:
    return PasteTumour(bank, settings, bank.index.spacing, IGNORE, **options)


@pytest.mark.parametrize("dims", [2, 3])
def test_drawn_pastes_replay_bit_for_bit_after_printing_and_pickling(
    banks: dict[tuple[int, int], DonorBank], dims: int
) -> None:
    paste, sample = _paste(banks[dims, 2], replace(DRAWN, count=(2, 3))), _sample(SHAPE[-dims:], 2)
    np.random.seed(3)
    drawn = paste.get_parameters(**sample)
    first = paste.apply(_copy(sample), **drawn)
    assert (first["segmentation"] > 0).any()
    for copy in (PasteParameters.from_json(drawn["pastes"].to_json()), pickle.loads(pickle.dumps(drawn["pastes"]))):
        assert copy == drawn["pastes"]
        again = paste.apply(_copy(sample), pastes=copy)
        assert torch.equal(first["image"], again["image"])
        assert torch.equal(first["segmentation"], again["segmentation"])
    assert "centre" in repr(drawn["pastes"])


def test_nothing_drawn_changes_nothing_but_the_host(banks: dict[tuple[int, int], DonorBank]) -> None:
    sample = _sample()
    out = _paste(banks[3, 1], probability=0.0)(**_copy(sample))
    assert torch.equal(out["image"], sample["image"])
    assert not out["segmentation"].any()


@pytest.mark.parametrize("placement", ["relative", "anywhere", "paper"])
def test_a_patch_without_host_passes(banks: dict[tuple[int, int], DonorBank], placement: str) -> None:
    sample = _sample(host=torch.zeros(SHAPE, dtype=torch.bool))
    sample["segmentation"][0, :5] = -1
    out = _paste(banks[3, 1], replace(DRAWN, placement=placement))(**_copy(sample))
    assert torch.equal(out["image"], sample["image"])
    assert torch.equal(out["segmentation"], sample["segmentation"])


def test_a_donor_that_nothing_was_drawn_for_lies_as_it_lay(banks: dict[tuple[int, int], DonorBank]) -> None:
    bank = banks[3, 1].of(["patient_0"])
    image, seg = patient(0)
    box = np.stack([np.argwhere(seg[0] >= 0).min(0), np.argwhere(seg[0] >= 0).max(0) + 1], 1)
    sample = _sample(host=_ball())
    out = _paste(bank, replace(PLAIN, match_intensities=False))(**_copy(sample), host_box=box)
    pasted = out["segmentation"][0].numpy()
    assert np.array_equal(pasted, np.where(seg[0] == -1, 0, seg[0])), "parts and doubts included"
    inside = torch.from_numpy(seg[0] > 0)
    assert torch.allclose(out["image"][0, inside], torch.from_numpy(image)[0, inside], atol=2e-3)
    assert torch.equal(out["image"][0, ~inside], sample["image"][0, ~inside])


@pytest.mark.parametrize("dims", [2, 3])
def test_the_papers_rule_is_exact(tmp_path: Path, dims: int) -> None:
    """X = M X_i + (1 - M) X_j inside of the host, voxel on voxel by the grid of the raw images."""
    image, seg = patient(0)
    image = image.astype(np.float16).astype(np.float32)
    seg[seg == IGNORE] = 0
    write_case(tmp_path / "cases", "one", image, seg)
    bank = cut(tmp_path / "cases", ["one"], tmp_path / "bank", dims)
    shift = 5 if dims == 3 else 0  # the healthy patch begins five voxels later, and two voxels of its case were cut off
    sample = _sample((20, 36, 28) if dims == 3 else (36, 28))
    sample["segmentation"][0, 14:] = 0
    at_slice = 17
    raw_corner = np.array([-2.0 - (shift if dims == 3 else at_slice), -2, -2])
    host_box = np.array([[0, SHAPE[0]], [0, 36], [0, 28]]) + (raw_corner + 2)[:, None]
    host_box[0] = np.array([2, 29]) - (shift if dims == 3 else at_slice)
    paste = _paste(bank, replace(DRAWN, placement="paper"))
    out = paste(**_copy(sample), raw_corner=raw_corner, host_box=host_box)
    where = slice(shift, shift + 20) if dims == 3 else at_slice
    theirs, labels = torch.from_numpy(image[:, where]), torch.from_numpy(seg[0, where].astype(np.int16))
    mask = (labels > 0) & (sample["segmentation"][0] == IGNORE)
    assert mask.any()
    assert torch.equal(out["image"], torch.where(mask, theirs, sample["image"]))
    assert torch.equal(out["segmentation"][0], torch.where(mask, labels, 0))


def test_the_paper_pastes_nothing_that_has_its_place_elsewhere(banks: dict[tuple[int, int], DonorBank]) -> None:
    sample = _sample((8, 8, 8))
    out = _paste(banks[3, 1], replace(DRAWN, placement="paper"))(**_copy(sample), raw_corner=np.array([-200.0] * 3))
    assert torch.equal(out["image"], sample["image"])
    assert not out["segmentation"].any()


def test_rings_are_matched_in_mean_and_spread(banks: dict[tuple[int, int], DonorBank]) -> None:
    """The donor is 2 in a ring of 0 +- 0.1; in a host of 5 +- 0.15 it is 5 + 2 * 1.5."""
    bank = banks[3, 2].of(["patient_0"])
    sample = _sample(channels=2)
    sample["image"] = sample["image"] * 1.5 + torch.tensor([5.0, -3.0]).reshape(2, 1, 1, 1)
    np.random.seed(1)
    out = _paste(bank, replace(PLAIN, match_intensities=True, seam_mm=(4.0, 4.0)))(**_copy(sample))
    tumour = (out["segmentation"][0] > 0) & (out["segmentation"][0] != IGNORE)
    assert out["image"][0, tumour].mean() == pytest.approx(5 + 3, abs=0.4)
    assert out["image"][1, tumour].mean() == pytest.approx(-3 + 3, abs=0.4)
    seam = (out["image"] != sample["image"])[0] & (out["segmentation"][0] == 0)
    assert out["image"][0, seam].mean() == pytest.approx(5, abs=0.3)
    assert not (out["image"][0, seam] > 7).any(), "what is pasted around the tumour has the level of the host"


def test_the_seam_is_as_wide_as_drawn_and_not_wider(banks: dict[tuple[int, int], DonorBank]) -> None:
    from scipy import ndimage

    sample = _sample()
    for width in (0.0, 3.0, 6.0):
        np.random.seed(0)
        out = _paste(banks[3, 1], replace(PLAIN, seam_mm=(width, width)))(**_copy(sample))
        tumour = out["segmentation"][0].numpy() > 0
        away = ndimage.distance_transform_edt(~tumour, (MM,) * 3)
        changed = (out["image"] != sample["image"])[0].numpy()
        assert changed[tumour].all()
        assert away[changed].max() <= width + MM
        assert width == 0 or away[changed].max() > width - MM


def test_donors_survive_the_crop_that_follows(banks: dict[tuple[int, int], DonorBank]) -> None:
    for placement in ("relative", "anywhere"):
        paste = _paste(banks[3, 1], replace(DRAWN, placement=placement), region_shape=(8, 8, 8))
        sample = _sample((40, 40, 40))
        np.random.seed(0)
        for _ in range(15):
            corner = -np.random.randint(0, 60, 3).astype(float)
            out = paste(**_copy(sample), host_box=np.stack([corner, corner + 100], 1))
            middle = out["segmentation"][0, 16:24, 16:24, 16:24]
            assert ((middle > 0) & (middle != IGNORE)).any()


def test_relative_places_are_kept_and_flips_mirror_them(banks: dict[tuple[int, int], DonorBank]) -> None:
    bank = banks[3, 1].of(["patient_0"])
    (donor,) = bank.donors
    settings = replace(DRAWN, jitter_mm=3.0)
    sample = _sample((60, 60, 60))
    np.random.seed(0)
    centres = np.array([_paste(bank, settings).get_parameters(**sample)["pastes"].pastes[0].centre for _ in range(40)])
    places = (centres + 0.5) / 60
    assert np.abs(places[:, :2] - donor.place[:2]).max() < 0.03
    mirrored = np.abs(places[:, 2] - (1 - donor.place[2])) < 0.03
    assert (mirrored | (np.abs(places[:, 2] - donor.place[2]) < 0.03)).all()
    assert 5 < mirrored.sum() < 35


def test_slices_are_taken_at_the_height_of_the_patch(banks: dict[tuple[int, int], DonorBank]) -> None:
    bank = banks[2, 1].of(["patient_0"])
    (donor,) = bank.donors
    sample = _sample((36, 28))
    for index in (2, 6):
        height = donor.corner[0] + index
        box = np.array([[2 - height, 29 - height], [4, 31], [0, 27]])  # the patient's own head
        drawn = _paste(bank, PLAIN).get_parameters(**sample, host_box=box)["pastes"].pastes
        assert [p.slice for p in drawn] == [index]


def test_other_labels_and_the_outside_are_left_alone(banks: dict[tuple[int, int], DonorBank]) -> None:
    sample = _sample()
    sample["segmentation"][0, :14] = -1
    sample["segmentation"][0, 20:] = 5
    np.random.seed(0)
    out = _paste(banks[3, 1], replace(DRAWN, placement="anywhere"))(**_copy(sample))
    assert (out["segmentation"][0, :14] == -1).all()
    assert (out["segmentation"][0, 20:] == 5).all()
    outside = torch.ones(SHAPE[0], dtype=torch.bool)
    outside[14:20] = False
    assert torch.equal(out["image"][0, outside], sample["image"][0, outside])


def test_a_bank_of_another_grid_or_other_channels_is_one_sentence(banks: dict[tuple[int, int], DonorBank]) -> None:
    with pytest.raises(UserError, match="cut at 3 x 3 x 3 mm, but the patches have 1 x 1 mm"):
        PasteTumour(banks[3, 1], DRAWN, (1.0, 1.0), IGNORE)
    with pytest.raises(UserError, match="donors of 2 channels, but the patch has 1"):
        _paste(banks[3, 2])(**_sample())


def _draw_in_worker(paste: PasteTumour) -> float:
    np.random.seed(5)
    torch.set_num_threads(1)
    return float(paste(**_sample())["image"].double().sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_can_be_handed_the_transform(banks: dict[tuple[int, int], DonorBank], method: str) -> None:
    paste = _paste(banks[3, 1])
    expected = _draw_in_worker(paste)
    with mp.get_context(method).Pool(1) as pool:
        assert pool.apply(_draw_in_worker, (paste,)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("placement", ["relative", "paper"])
def test_whole_volumes_hold_one_whole_donor(banks: dict[tuple[int, int], DonorBank], dims: int, placement: str) -> None:
    from scipy import ndimage

    sample = _sample(host=_ball(radius=17))
    image, seg = sample["image"].numpy(), sample["segmentation"].numpy()
    before = image.copy(), seg.copy()
    settings = replace(DRAWN, undeformed=1.0, flips="none", placement=placement, jitter_mm=0.0)
    np.random.seed(1)
    pasted, labels = paste_in_volume(_paste(banks[dims, 1], settings), image, seg)
    assert np.array_equal(image, before[0])
    assert np.array_equal(seg, before[1])
    tumour = np.isin(labels[0], (1, 2, 3))
    assert ndimage.label(tumour)[1] == 1
    assert tumour.sum() == pytest.approx(np.isin(patient(0)[1], (1, 2, 3)).sum(), rel=0.02)
    assert (labels == IGNORE).sum() == pytest.approx((patient(0)[1] == IGNORE).sum(), rel=0.05)
    assert (pasted != image).any()


def test_a_patch_that_is_part_of_something_larger_is_pasted_into_as_well(
    banks: dict[tuple[int, int], DonorBank],
) -> None:
    sample = _sample()
    outer = {k: torch.zeros(*v.shape[:2], *(n + 3 for n in v.shape[2:]), dtype=v.dtype) for k, v in sample.items()}
    inner = {k: v[..., 1:-2, 2:-1] for k, v in outer.items()}
    for key, value in sample.items():
        inner[key].copy_(value)
    paste = _paste(banks[3, 1])
    np.random.seed(5)
    drawn = paste.get_parameters(**sample)
    assert drawn["pastes"].pastes
    expected = paste.apply(_copy(sample), **drawn)
    paste.apply(inner, **drawn)
    for key, value in expected.items():
        assert torch.equal(inner[key], value)
    assert not outer["image"][..., 0].any()


axis = st.one_of(st.integers(1, 12), st.integers(1, 50))


@hypothesis_settings(max_examples=60)
@given(
    st.integers(2, 3), st.lists(axis, min_size=3, max_size=3), st.sampled_from([0.0, 0.01, 0.5, 1.0]), st.integers(1, 2),
    st.sampled_from(["relative", "anywhere", "paper"]), st.sampled_from(["none", "left-right", "all"]),
    st.floats(0.3, 3.0), st.floats(0, 180), st.floats(0, 8), st.booleans(), st.integers(0, 10_000),
)  # fmt: skip
def test_any_patch_comes_back_whole(
    banks: dict[tuple[int, int], DonorBank], dims: int, sides: list[int], share: float, channels: int, placement: str,
    flips: str, scale: float, degrees: float, seam: float, match: bool, seed: int,
) -> None:  # fmt: skip
    shape = tuple(sides[:dims])
    host = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    sample = _sample(shape, channels, host)
    settings = replace(
        DRAWN, placement=placement, flips=flips, scaling=(scale, scale), rotation_degrees=degrees, seam_mm=(seam, seam),
        match_intensities=match, count=(1, 3), elastic_mm=(0.0, 4.0),
    )  # fmt: skip
    paste = _paste(banks[dims, channels], settings)
    np.random.seed(seed)
    drawn = paste.get_parameters(**sample)
    out = paste.apply(_copy(sample), **drawn)
    image, seg = out["image"], out["segmentation"]
    assert image.shape == sample["image"].shape
    assert image.dtype == torch.float32
    assert seg.dtype == torch.int16
    assert torch.isfinite(image).all()
    assert set(seg.unique().tolist()) <= {0, 1, 2, 3, IGNORE}
    assert not (seg[0][~host] > 0).any()
    assert torch.equal(image[:, ~host], sample["image"][:, ~host])
    assert placement == "paper" or not host.any() or (seg > 0).any()
