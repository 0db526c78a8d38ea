from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.intensities import normalisation
from nnunet_synthtumour.settings import settings_of


def _image(seed: int, stripped: bool = True, shape: tuple[int, ...] = (20, 24, 22), scale: float = 100.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in shape], indexing="ij"))
    ball = (grid**2).sum(0) < 1
    noise = generator.normal(3, 1, shape).clip(0.1)
    return (np.where(ball, generator.normal(10, 2, shape).clip(1), 0 if stripped else noise) * scale).astype(np.float32)


def _write(array: np.ndarray, file: Path, spacing: tuple[float, ...] = (3.0, 3.0, 3.0)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=False)
    image.SetSpacing(spacing[: image.GetDimension()] if image.GetDimension() <= 3 else (*spacing, 1.0))
    sitk.WriteImage(image, str(file))


def _prepare(*arguments: object) -> int:
    return main(["prepare", "-d", "100", "-n", "Test", "-np", "1", *map(str, arguments)])


def _dataset(folders: dict[str, Path]) -> tuple[Path, dict[str, Any]]:
    target = folders["nnUNet_raw"] / "Dataset100_Test"
    return target, json.loads((target / "dataset.json").read_text())


def _label(target: Path, case: str) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(target / "labelsTr" / f"{case}.nii.gz")))


def test_roles_ignore_labels_and_links(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    for i in range(2):
        _write(_image(i), tmp_path / "h" / f"healthy_{i}.nii.gz")
        _write(_image(10 + i), tmp_path / "u" / f"patient_{i}_0000.nii.gz")
        _write(_image(20 + i), tmp_path / "l" / f"case_{i}.mha")
        _write((_image(20 + i) > 1200).astype(np.uint8), tmp_path / "m" / f"case_{i}.nrrd")
    assert _prepare("--healthy", tmp_path / "h", "--unlabelled", tmp_path / "u", "--labelled", tmp_path / "l",
                    "--labels", tmp_path / "m", "--channel", "FLAIR") == 0  # fmt: skip
    target, dataset_json = _dataset(nnunet_folders)
    assert dataset_json["labels"] == {"background": 0, "tumour": 1, "ignore": 2}
    assert dataset_json["numTraining"] == 6
    settings = settings_of(dataset_json)
    assert settings.cases("healthy") == ["healthy_0", "healthy_1"]
    assert settings.cases("unlabelled") == ["patient_0", "patient_1"]
    assert settings.cases("labelled") == ["case_0", "case_1"]
    assert settings.hosts == {"healthy_0": "nonzero", "healthy_1": "nonzero"}
    brain = _image(0) != 0
    assert np.array_equal(_label(target, "healthy_0") == 2, brain)
    assert np.array_equal(_label(target, "patient_0") == 2, _image(10) != 0)
    assert set(np.unique(_label(target, "case_0"))) == {0, 1}
    linked = target / "imagesTr" / "healthy_0_0000.nii.gz"
    assert linked.stat().st_ino == (tmp_path / "h" / "healthy_0.nii.gz").stat().st_ino
    assert len(list((target / "imagesTr").iterdir())) == 6


def test_channels_as_suffixes_or_sub_folders_and_copies(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    for i in range(2):
        for channel, name in enumerate(("FLAIR", "T1")):
            _write(_image(i + 5 * channel), tmp_path / "a" / f"x_{i}_{channel:04d}.nii.gz")
            _write(_image(i + 5 * channel), tmp_path / "b" / name.lower() / f"y_{i}.nii.gz")
    channels = ("--channel", "FLAIR", "--channel", "T1")
    assert _prepare("--healthy", tmp_path / "a", "--unlabelled", tmp_path / "b", "--copy", *channels) == 0
    target, dataset_json = _dataset(nnunet_folders)
    assert dataset_json["channel_names"] == {"0": "FLAIR", "1": "T1"}
    names = {file.name for file in (target / "imagesTr").iterdir()}
    assert names == {f"{c}_{i}_{k:04d}.nii.gz" for c in "xy" for i in range(2) for k in range(2)}
    copied = target / "imagesTr" / "x_0_0001.nii.gz"
    assert copied.stat().st_ino != (tmp_path / "a" / "x_0_0001.nii.gz").stat().st_ino
    assert len(settings_of(dataset_json).intensities["x_0"].mean) == 2


def test_all_problems_of_all_files_in_one_run_and_nothing_left(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    for name in ("good_1", "good_2", "good_3", "shape", "nan", "constant", "missing", "four_d"):
        for channel in range(2):
            array = _image(channel)
            if channel and name == "shape":
                array = array[:-2]
            if channel and name == "nan":
                array[3, 3, 3] = np.nan
            if channel and name == "constant":
                array[:] = 7
            if channel and name == "four_d":
                array = np.stack([array, array])
            if not (channel and name == "missing"):
                _write(array, folder / f"{name}_{channel:04d}.nii.gz")
    assert _prepare("--healthy", folder, "--channel", "FLAIR", "--channel", "T1") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "5 of 8 cases" in lines[0], lines
    for name, word in {
        "shape": "voxels",
        "nan": "NaN",
        "constant": "constant",
        "missing": "T1 is missing",
        "four_d": "dimensions",
    }.items():
        mine = [line for line in lines if f"healthy {name}:" in line]
        assert len(mine) == 1
        assert word in mine[0]
    assert len(lines) == 6
    assert list(nnunet_folders["nnUNet_raw"].iterdir()) == []


def test_what_a_user_may_get_wrong_is_one_sentence(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, empty = tmp_path / "good", tmp_path / "empty"
    empty.mkdir()
    _write(_image(0), good / "a.nii.gz")
    _write((_image(0) > 1200).astype(np.uint8) * 5, tmp_path / "gaps" / "a.nii.gz")
    _write(np.zeros((20, 24, 22), np.uint8), tmp_path / "nothing" / "a.nii.gz")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.nii.gz").write_bytes(b"not an image")

    def said(*arguments: object) -> str:
        assert _prepare(*arguments) == 2
        text = capsys.readouterr().err
        assert "Traceback" not in text
        return text

    channel = ("--channel", "FLAIR")
    assert "holds no image" in said("--healthy", empty, *channel)
    assert "is not a folder" in said("--healthy", tmp_path / "nowhere", *channel)
    assert "No folder of images" in said(*channel)
    assert "go together" in said("--labelled", good, *channel)
    assert "goes with --healthy" in said("--host-masks", good, "--unlabelled", good, *channel)
    assert "cannot be read" in said("--healthy", tmp_path / "broken", *channel)
    assert "is empty; no lesion" in said("--healthy", good, "--host-masks", tmp_path / "nothing", *channel)
    assert "2 cases of this name" in said("--healthy", good, "--unlabelled", good, *channel)
    assert "renumber" in said("--labelled", good, "--labels", tmp_path / "gaps", *channel)
    assert "no --label declares" in said("--labelled", good, "--labels", tmp_path / "gaps", "--label", "a=1", *channel)
    assert "NAME=VALUE" in said("--healthy", good, "--label", "a", *channel)
    assert "every channel once" in said("--healthy", good, *channel, *channel)
    (nnunet_folders["nnUNet_raw"] / "Dataset100_Other").mkdir()
    assert "is taken by" in said("--healthy", good, *channel)
    (nnunet_folders["nnUNet_raw"] / "Dataset100_Other").rmdir()
    monkeypatch.delenv("nnUNet_raw")
    assert "nnUNet_raw is not set" in said("--healthy", good, *channel)


def _nnunet(*arguments: str) -> None:
    """Run one of nnU-Net's own commands as a user would."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / arguments[0]), *arguments[1:]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize("stripped", [True, False])
def test_all_healthy_data_sets_are_preprocessed_by_stock_nnunet_with_our_intensities(
    stripped: bool, nnunet_folders: dict[str, Path], tmp_path: Path
) -> None:
    for i in range(3):
        image = _image(i, stripped, shape=(20, 24, 22), scale=10.0 ** (i + 1))
        padded = np.pad(image, 5) if stripped else image
        _write(padded, tmp_path / "h" / f"h{i}.nii.gz")
    assert _prepare("--healthy", tmp_path / "h", "--channel", "FLAIR") == 0
    _nnunet("nnUNetv2_plan_and_preprocess", "-d", "100", "-pl", "SmallPlanner", "-c", "3d_fullres",
            "--verify_dataset_integrity", "-np", "1", "-npfp", "1")  # fmt: skip
    folder = nnunet_folders["nnUNet_preprocessed"] / "Dataset100_Test"
    plans = json.loads((folder / "nnUNetSmallPlans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["use_mask_for_norm"] == [stripped]
    settings = settings_of(json.loads((folder / "dataset.json").read_text()))

    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    cases = str(folder / plans["configurations"]["3d_fullres"]["data_identifier"])
    dataset = infer_dataset_class(cases)(cases)
    for name in dataset.identifiers:
        data, _, _, properties = dataset.load_case(name)
        raw = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "h" / f"{name}.nii.gz")))
        box = tuple(slice(*bounds) for bounds in properties["bbox_used_for_cropping"])
        known = normalisation(settings, plans, "3d_fullres", name)
        assert known is not None
        expected = (raw[box] - known[0][0]) / known[1][0]
        expected = np.where(raw[box] == 0, 0, expected) if stripped else expected
        assert np.abs(np.asarray(data[0]) - expected).max() < 1e-3


def test_2d_images_work(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    for i in range(2):
        _write(_image(i)[10], tmp_path / "h" / f"h{i}.nii.gz")
    assert _prepare("--healthy", tmp_path / "h", "--channel", "FLAIR") == 0
    target, _ = _dataset(nnunet_folders)
    assert np.array_equal(_label(target, "h0") == 2, _image(0)[10] != 0)


def test_ct_records_nothing_and_takes_the_plans_statistics(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    _write(_image(0, stripped=False), tmp_path / "h" / "h0.nii.gz")
    assert _prepare("--healthy", tmp_path / "h", "--channel", "CT") == 0
    _, dataset_json = _dataset(nnunet_folders)
    plans = {
        "configurations": {
            "3d_fullres": {"normalization_schemes": ["CTNormalization"]},
            "x": {"inherits_from": "3d_fullres"},
        },
        "foreground_intensity_properties_per_channel": {"0": {"mean": 40.0, "std": 20.0}},
    }
    known = normalisation(settings_of(dataset_json), plans, "x", "h0")
    assert known is not None
    assert (known[0][0], known[1][0]) == (40, 20)
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"]
    assert normalisation(settings_of({}), plans, "3d_fullres", "unknown") is None
