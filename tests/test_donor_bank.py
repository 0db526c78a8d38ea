import json
import multiprocessing as mp
import pickle
from pathlib import Path

import numpy as np
import pytest

from nnunet_synthtumour.donor_bank import INDEX, DonorBank, robust_mean_and_spread
from nnunet_synthtumour.errors import UserError
from tests.donor_cases import IGNORE, LABELS, MM, cut, patient, write_case, write_patients


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patients")
    write_patients(folder, 2, channels=2)
    return folder


def _cases(folder: Path) -> list[str]:
    return sorted(f.stem for f in folder.glob("*.pkl"))


def test_a_donor_is_the_tumour_with_its_parts_and_doubts(patients: Path, tmp_path: Path) -> None:
    bank = cut(patients, _cases(patients), tmp_path)
    assert [d.name for d in bank.donors] == ["patient_0_1", "patient_1_1"]
    donor, (image, seg) = bank.donors[0], patient(0, 2)
    crop = bank.crop(donor)
    box = tuple(slice(c, c + n) for c, n in zip(donor.corner, donor.shape, strict=True))
    tumour = np.isin(seg[0], LABELS)
    assert donor.ml == pytest.approx(tumour.sum() * MM**3 / 1000)
    assert donor.labels == (1, 2, 3, IGNORE)
    inside = crop.level > 0
    assert np.array_equal(np.isin(seg[0][box], [*LABELS, IGNORE]), inside)
    assert np.array_equal(crop.labels[inside], seg[0][box][inside])
    assert np.allclose(crop.image[:, inside], image[(slice(None), *box)][:, inside], atol=2e-3)
    assert crop.image.min() > -2, "the outside of the head must not reach what is pasted"
    assert seg[0][tuple(np.add(donor.corner, donor.anchor))] in LABELS
    assert donor.ring_mean == pytest.approx([0.0, 0.0], abs=0.1)
    assert donor.ring_spread == pytest.approx([0.07, 0.07], abs=0.05)
    assert donor.place == pytest.approx([0.61, 0.36, 0.58], abs=0.04)
    assert donor.raw_mm == pytest.approx([MM * (v + 2.5) for v in np.add(donor.corner, donor.anchor)])


def test_a_second_build_does_nothing_and_changes_are_seen(patients: Path, tmp_path: Path) -> None:
    first = cut(patients, _cases(patients), tmp_path)
    written = {f: f.stat().st_mtime_ns for f in tmp_path.iterdir()}
    assert cut(patients, _cases(patients)[::-1], tmp_path) == first
    assert {f: f.stat().st_mtime_ns for f in tmp_path.iterdir()} == written
    other = cut(patients, _cases(patients), tmp_path, margin_mm=9.0)
    assert other.donors[0].shape > first.donors[0].shape
    assert len(list(tmp_path.iterdir())) == 2, "the older voxels and unfinished files go"


def test_held_out_donors_stay_apart(patients: Path, tmp_path: Path) -> None:
    bank = cut(patients, _cases(patients), tmp_path, held_out=["patient_1"])
    assert [d.case for d in bank.held_out(True).donors] == ["patient_1"]
    assert [d.case for d in bank.held_out(False).donors] == ["patient_0"]
    assert [d.case for d in bank.of(["patient_1", "nobody"]).donors] == ["patient_1"]
    with pytest.raises(UserError, match="no donor of these cases: nobody; it has some of patient_0, patient_1"):
        bank.of(["nobody"])


def test_pieces_are_donors_and_small_ones_are_not(tmp_path: Path) -> None:
    image, seg = patient(0)
    seg[seg > 0] = 0
    seg[0, 10:14, 10:14, 10:14] = 1  # 1.7 ml
    seg[0, 20:23, 20:23, 18:21] = 2  # 0.7 ml
    seg[0, 16, 24, 16] = 1  # 0.03 ml
    write_case(tmp_path / "cases", "one", image, seg)
    bank = cut(tmp_path / "cases", ["one"], tmp_path / "bank")
    assert [(d.component, d.labels) for d in bank.donors] == [(1, (1,)), (3, (2,))]


def test_an_empty_bank_and_an_absent_one_are_one_sentence(tmp_path: Path) -> None:
    image, seg = patient(0)
    write_case(tmp_path / "cases", "one", image, np.where(seg > 0, 0, seg).astype(np.int8))
    with pytest.raises(UserError, match=r"None of the 1 patients .* loosen the thresholds"):
        cut(tmp_path / "cases", ["one"], tmp_path / "bank")
    assert not list((tmp_path / "bank").iterdir())
    with pytest.raises(UserError, match="no donor bank"):
        DonorBank.open(tmp_path / "bank")
    with pytest.raises(UserError, match="no case two"):
        cut(tmp_path / "cases", ["two"], tmp_path / "bank")


def test_a_tumour_at_the_edge_of_the_image_keeps_its_margin(tmp_path: Path) -> None:
    image, seg = patient(0)
    image[:], seg[:] = -1.0, -1
    image[:, :20], seg[:, :20] = 1.0, 0
    seg[0, :6, 10:16, 10:16] = 1
    write_case(tmp_path / "cases", "edge", image, seg)
    bank = cut(tmp_path / "cases", ["edge"], tmp_path / "bank")
    (donor,) = bank.donors
    crop = bank.crop(donor)
    assert donor.corner[0] < 0
    assert crop.level[0].max() < 0
    assert np.all(crop.image == 1)


def test_slices_of_a_2d_configuration(patients: Path, tmp_path: Path) -> None:
    bank = cut(patients, _cases(patients), tmp_path, dims=2)
    donor, (_, seg) = bank.donors[0], patient(0)
    assert donor.ml == pytest.approx(np.isin(seg, LABELS).sum() * MM**3 / 1000)
    assert len(donor.slices) == 10
    for part in donor.slices:
        assert bank.crop(donor).labels[(part.index, *part.anchor)] in LABELS
        assert part.area_mm2 == np.isin(seg[0, donor.corner[0] + part.index], LABELS).sum() * MM**2


def test_a_donor_of_a_2d_image_is_as_large_as_the_ball_around_it(tmp_path: Path) -> None:
    image, seg = patient(0)
    image, seg = image[:, 18:19], seg[:, 18:19]
    write_case(tmp_path / "cases", "flat", image, seg, slice_mm=999 * MM)
    donor = cut(tmp_path / "cases", ["flat"], tmp_path / "bank", dims=2).donors[0]
    area = np.isin(seg, LABELS).sum() * MM**2
    assert donor.radius_mm == pytest.approx(np.sqrt(area / np.pi))
    assert donor.ml == pytest.approx(4 / 3 * np.pi * donor.radius_mm**3 / 1000)
    with pytest.raises(UserError, match="None of the 1 patients"):
        cut(tmp_path / "cases", ["flat"], tmp_path / "bank", dims=2, smallest_ml=donor.ml * 1.01)


def _mean_of_first(bank: DonorBank) -> float:
    return float(bank.crop(bank.donors[0]).image.astype(np.float32).mean())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_open_the_bank_themselves(patients: Path, tmp_path: Path, method: str) -> None:
    bank = cut(patients, _cases(patients), tmp_path)
    expected = _mean_of_first(bank)
    assert len(pickle.dumps(bank)) < 10_000
    with mp.get_context(method).Pool(1) as pool:
        assert pool.apply(_mean_of_first, (bank,)) == expected


def test_the_index_is_plain_json(patients: Path, tmp_path: Path) -> None:
    bank = cut(patients, _cases(patients), tmp_path)
    index = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))
    assert index["channels"] == 2
    assert index["donors"][0]["ml"] == bank.donors[0].ml


@pytest.mark.parametrize(
    ("values", "expected"), [([3.0], (3.0, 0.0)), ([1.0, 3.0], (2.0, 1.0)), ([0, 4, 5, 6, 99], (5.0, None))]
)
def test_the_tissue_around_a_donor_may_be_a_voxel_or_two(
    values: list[float], expected: tuple[float, float | None]
) -> None:
    mean, spread = robust_mean_and_spread(np.array(values))
    assert mean == expected[0] and spread == (
        expected[1] if expected[1] is not None else pytest.approx(np.std([4, 5, 6]))
    )


def test_a_damaged_bank_is_built_anew(patients: Path, tmp_path: Path) -> None:
    bank = cut(patients, _cases(patients), tmp_path)
    index = tmp_path / INDEX
    whole = index.read_text(encoding="utf-8")
    damaged = json.loads(whole)
    damaged["donors"][0]["ring_mean"][0] = float("nan")
    index.write_text(json.dumps(damaged), encoding="utf-8")
    assert [d.name for d in cut(patients, _cases(patients), tmp_path).donors] == [d.name for d in bank.donors]
    assert json.loads(index.read_text(encoding="utf-8")) == json.loads(whole)
