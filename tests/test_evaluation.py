from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.evaluation import compare, lesions, structures_of, summary_of

masks = arrays(bool, (5, 6, 4))


def _box(*corner: int, side: int = 4, shape: tuple[int, ...] = (20, 20, 20)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(c, c + side) for c in corner)] = True
    return mask


def test_a_shifted_box_is_measured_in_mm_and_ml() -> None:
    found = compare(_box(5, 5, 6), _box(5, 5, 5), (1.0, 1.0, 2.0))
    assert found["dice"] == pytest.approx(0.75)
    assert found["hd95"] == pytest.approx(2.0)
    assert found["lesion_f1"] == 1.0
    assert found["ml"] == found["true_ml"] == pytest.approx(0.128)
    assert found["false_positive_ml"] == pytest.approx(16 * 0.002)


def test_lesions_are_matched_one_to_one() -> None:
    truth = _box(1, 1, 1) | _box(10, 10, 10) | _box(1, 14, 1)
    assert lesions(_box(1, 1, 2) | _box(15, 1, 15), truth) == (1, 2, 3)
    assert lesions(_box(1, 1, 1, side=18), _box(1, 1, 1)) == (0, 1, 1)  # a box around everything is no find


def test_empty_references_follow_the_stated_policy() -> None:
    nothing = np.zeros((8, 8, 8), bool)
    both = compare(nothing, nothing, (1, 1, 1))
    assert both["dice"] is both["hd95"] is both["lesion_f1"] is None
    alarm = compare(_box(1, 1, 1, shape=(8, 8, 8)), nothing, (1, 1, 1))
    assert (alarm["dice"], alarm["hd95"], alarm["lesion_f1"]) == (0, None, 0)
    assert alarm["false_positive_ml"] == pytest.approx(0.064)
    summary = summary_of([both, alarm])
    assert summary["dice"] == 0
    assert (summary["dice_undefined"], summary["hd95_undefined"], summary["cases"]) == (1, 2, 2)
    assert summary_of([both])["dice"] is None


@given(masks, masks)
def test_what_always_holds(found: np.ndarray, truth: np.ndarray) -> None:
    one, other = compare(found, truth, (1, 2, 3)), compare(truth, found, (1, 2, 3))
    for metric in ("dice", "hd95", "lesion_f1"):
        assert one[metric] == pytest.approx(other[metric]) if one[metric] is not None else other[metric] is None
    assert json.loads(json.dumps(one)) == one
    if found.any():
        assert compare(found, found, (1, 2, 3))["dice"] == compare(found, found, (1, 2, 3))["lesion_f1"] == 1


@given(st.lists(st.tuples(st.floats(0, 200), st.floats(0, 200)), min_size=2, max_size=12))
def test_limits_of_agreement_are_those_of_bland_and_altman(volumes: list[tuple[float, float]]) -> None:
    rows = [{"dice": None, "hd95": None, "lesion_f1": None, "ml": a, "true_ml": b, "false_positive_ml": 0.0}
            for a, b in volumes]  # fmt: skip
    summary, difference = summary_of(rows), np.array([a - b for a, b in volumes])
    low, high = summary["limits_of_agreement_ml"]
    assert (low + high) / 2 == pytest.approx(difference.mean(), abs=1e-6)
    assert high - low == pytest.approx(2 * 1.96 * difference.std(ddof=1), abs=1e-6)


def test_structures_are_labels_regions_and_the_whole() -> None:
    assert structures_of({"labels": {"background": 0, "tumour": 1, "ignore": 2}}) == {"tumour": (1,)}
    labels = {"background": 0, "oedema": 1, "core": 2}
    assert structures_of({"labels": labels}) == {"whole": (1, 2), "oedema": (1,), "core": (2,)}
    assert structures_of({"labels": {"background": 0, "all": [1, 2], "core": [2]}}) == {"all": (1, 2), "core": (2,)}


def _write(array: np.ndarray, file: Path, spacing: float = 1.0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing((spacing,) * image.GetDimension())
    sitk.WriteImage(image, str(file))


def test_the_command_writes_what_it_prints_and_complains_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, truth = tmp_path / "said", tmp_path / "truth"
    for i in range(3):
        _write(_box(2 + i, 5, 5), said / f"case_{i}.nii.gz")
        _write(_box(3, 5, 5), truth / f"case_{i}.nii.gz")
    command = ["evaluate", "-i", str(said), "-r", str(truth), "-np", "1"]
    assert main(command) == 2
    assert "has no dataset.json" in capsys.readouterr().err
    (said / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "tumour": 1, "ignore": 2}, "file_ending": ".nii.gz"}), encoding="utf-8"
    )
    assert main(command) == 0
    summary = json.loads((said / "evaluation.json").read_text(encoding="utf-8"))["summary"]["tumour"]
    assert summary["dice"] == pytest.approx((0.75 + 1 + 0.75) / 3)
    assert "0.833" in capsys.readouterr().out
    _write(_box(3, 5, 5), truth / "case_9.nii.gz")
    assert main(command) == 2
    assert "has no prediction of case_9.nii.gz" in capsys.readouterr().err
    (truth / "case_9.nii.gz").unlink()
    _write(_box(3, 5, 5) * 4, truth / "case_0.nii.gz")
    assert main(command) == 2
    assert "case_0.nii.gz holds 4, but the labels are 0, 1, 2" in capsys.readouterr().err
    _write(_box(3, 5, 5), truth / "case_0.nii.gz", spacing=2.0)
    assert main(command) == 2
    assert "differ in spacing; predict" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(20, 20), (1, 20, 20)])
def test_2d_images_have_areas(tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, ...]) -> None:
    said, truth = tmp_path / "said", tmp_path / "truth"
    for i in range(2):
        _write(_box(2, 2, side=10, shape=(20, 20)).reshape(shape), said / f"case_{i}.nii.gz", spacing=2.0)
        _write(_box(2, 2, side=5, shape=(20, 20)).reshape(shape), truth / f"case_{i}.nii.gz", spacing=2.0)
    (said / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}), encoding="utf-8"
    )
    assert main(["evaluate", "-i", str(said), "-r", str(truth), "-np", "1"]) == 0
    found = json.loads((said / "evaluation.json").read_text(encoding="utf-8"))
    row = found["cases"][0]["structures"]["tumour"]
    assert (row["cm2"], row["true_cm2"], row["false_positive_cm2"]) == pytest.approx((4.0, 1.0, 3.0))
    assert found["summary"]["tumour"]["area_difference_cm2"] == pytest.approx(3.0)
    assert found["summary"]["tumour"]["limits_of_agreement_cm2"] == pytest.approx([3.0, 3.0])
    assert not any(key.endswith("ml") for key in {**row, **found["summary"]["tumour"]})
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("area difference (cm²)") and out[1].endswith("3.0") and len(out[0]) == len(out[1])


def _reoriented(file: Path) -> None:
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), "RAS"), str(file))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: _reoriented(folder / "case.nii.gz"), "differ in direction; predict"),
        (lambda folder: (folder / "case.nii.gz").write_bytes((folder / "case.nii.gz").read_bytes()[:60]),
         "case.nii.gz is not complete; copy it again."),
        (lambda folder: (folder / "dataset.json").write_text("{", encoding="utf-8"), "is not valid JSON"),
        (lambda folder: (folder / "dataset.json").write_text('{"file_ending": ".nii.gz"}', encoding="utf-8"),
         "has no 'labels'"),
    ],
)  # fmt: skip
def test_predictions_that_cannot_be_compared_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], sentence: str
) -> None:
    said, truth = tmp_path / "said", tmp_path / "truth"
    for folder in (said, truth):
        _write(_box(3, 5, 6), folder / "case.nii.gz")
    (truth / "._case.nii.gz").write_text("left by a file system", encoding="utf-8")
    (said / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}), encoding="utf-8"
    )
    command = ["evaluate", "-i", str(said), "-r", str(truth), "-np", "1"]
    assert main(command) == 0
    capsys.readouterr()
    spoil(said)
    assert main(command) == 2
    err = capsys.readouterr().err
    assert sentence in err and "defect" not in err
