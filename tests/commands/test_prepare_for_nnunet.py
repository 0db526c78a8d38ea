from __future__ import annotations

import json
import multiprocessing.dummy
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour.intensities import normalisation
from nnunet_synthtumour.settings import settings_of
from tests.commands.prepared import dataset, prepare
from tests.small_images import ball_image, write


def test_stock_nnunet_preprocesses_what_prepare_made_with_the_intensities_it_recorded(
    nnunet_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All healthy with a background; healthy and unlabelled, stripped, two channels; all healthy in 2D."""
    for i in range(3):
        write(ball_image(i, stripped=False, scale=10.0 ** (i + 1)), tmp_path / "100" / f"h{i}.nii.gz")
        write(ball_image(i)[10], tmp_path / "102" / f"h{i}.nii.gz")
        for channel in range(2):
            image = np.pad(ball_image(i + 10 * channel, scale=10.0 ** (i + 1)), 5)
            role, name = ("u", f"u{i}") if i == 2 else ("h", f"h{i}")
            write(image, tmp_path / "101" / role / f"{name}_{channel:04d}.nii.gz")
    assert prepare("--healthy", tmp_path / "100", "--channel", "FLAIR") == 0
    assert prepare("--healthy", tmp_path / "101" / "h", "--unlabelled", tmp_path / "101" / "u", "--channel", "FLAIR",
                    "--channel", "T1", number=101) == 0  # fmt: skip
    assert prepare("--healthy", tmp_path / "102", "--channel", "FLAIR", number=102) == 0
    _plan_and_preprocess("-d", "100", "101", "102", "-npfp", "1", "-pl", "SmallPlanner", "-c", "3d_fullres", "2d",
                         "--verify_dataset_integrity", "-np", "1", "1", monkeypatch=monkeypatch)  # fmt: skip
    for number, masked, configuration in ((100, False, "3d_fullres"), (101, True, "3d_fullres"), (102, True, "2d")):
        name = f"Dataset{number}_Test"
        assert _check_preprocessed(nnunet_folders, name, configuration, masked) < 1e-3


def _plan_and_preprocess(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's own command, in this process: each of its pools of fresh processes would import torch once more. And
    with fewer than its 10^8 samples of the foreground, which only CT needs."""
    from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry

    real = multiprocessing.get_context
    with monkeypatch.context() as patch:
        patch.setattr(
            "multiprocessing.get_context", lambda method=None: real(method) if method is None else multiprocessing.dummy
        )
        patch.setattr("sys.argv", ["nnUNetv2_plan_and_preprocess", *arguments])
        plan_and_preprocess_entry()


def _check_preprocessed(folders: dict[str, Path], name: str, configuration: str, masked: bool) -> float:
    """Largest difference between nnU-Net's preprocessed voxels and (raw - mean) / std."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    folder = folders["nnUNet_preprocessed"] / name
    plans = json.loads((folder / "nnUNetSmallPlans.json").read_text(encoding="utf-8"))
    assert set(plans["configurations"][configuration]["use_mask_for_norm"]) == {masked}
    settings = settings_of(json.loads((folder / "dataset.json").read_text(encoding="utf-8")))
    cases = str(folder / plans["configurations"][configuration]["data_identifier"])
    dataset = infer_dataset_class(cases)(cases)
    assert len(dataset.identifiers) == 3
    worst = 0.0
    for case in dataset.identifiers:
        data, _, _, properties = dataset.load_case(case)
        known = normalisation(settings, plans, configuration, case)
        assert known is not None
        box = tuple(slice(*bounds) for bounds in properties["bbox_used_for_cropping"])
        for channel, normalised in enumerate(np.asarray(data[:])):
            file = folders["nnUNet_raw"] / name / "imagesTr" / f"{case}_{channel:04d}.nii.gz"
            raw = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
            raw = (raw[None] if raw.ndim == 2 else raw)[box]
            expected = (raw - known[0][channel]) / known[1][channel]
            expected = np.where(raw == 0, 0, expected) if masked else expected
            worst = max(worst, float(np.abs(normalised - expected).max()))
    return worst


def test_ct_records_nothing_and_takes_the_plans_statistics(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    write(ball_image(0, stripped=False), tmp_path / "h" / "h0.nii.gz")
    assert prepare("--healthy", tmp_path / "h", "--channel", "CT") == 0
    _, dataset_json = dataset(nnunet_folders)
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
    assert normalisation(settings_of(dataset_json), plans, "3d_fullres", "h0") is None
    assert normalisation(settings_of({}), plans, "3d_fullres", "unknown") is None
