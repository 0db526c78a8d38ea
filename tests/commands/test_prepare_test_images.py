from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour.settings import settings_of
from tests.commands.prepared import dataset, prepare
from tests.small_images import ball_image, write


def test_test_images_are_kept_apart_and_a_preset_is_written(nnunet_folders: dict[str, Path], tmp_path: Path,
                                                            capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    for i in range(2):
        write(ball_image(i), tmp_path / "h" / f"healthy_{i}.nii.gz")
        write(ball_image(10 + i), tmp_path / "t" / f"new_{i}.nii.gz")
        write((ball_image(10 + i) > 1200).astype(np.uint8), tmp_path / "tl" / f"new_{i}.nii.gz")
    options = ("--healthy", tmp_path / "h", "--channel", "FLAIR", "--test", tmp_path / "t")
    assert prepare(*options, "--preset", "no-such-preset") == 2
    assert "no-such-preset" in capsys.readouterr().err
    assert prepare(*options, "--preset", "liver-ct") == 2
    assert "channel FLAIR is not CT" in capsys.readouterr().err
    assert prepare("--healthy", tmp_path / "h", "--channel", "FLAIR", "--test-labels", tmp_path / "tl") == 2
    assert prepare(*options, "--test-labels", tmp_path / "tl", "--preset", "stroke") == 0
    target, dataset_json = dataset(nnunet_folders)
    assert sorted(file.name for file in (target / "imagesTs").iterdir()) == ["new_0_0000.nii.gz", "new_1_0000.nii.gz"]
    assert sorted(file.name for file in (target / "labelsTs").iterdir()) == ["new_0.nii.gz", "new_1.nii.gz"]
    assert dataset_json["numTraining"] == len(list((target / "imagesTr").iterdir())) == 2
    settings = settings_of(dataset_json)
    assert settings.lesion.preset == "stroke"
    assert set(settings.roles) == set(settings.intensities) == {"healthy_0", "healthy_1"}
    assert prepare(*options, "--overwrite") == 0
    assert not (target / "labelsTs").exists()


def test_the_truth_of_test_images_has_the_data_sets_labels(nnunet_folders: dict[str, Path], tmp_path: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    truth = np.zeros((20, 24, 22), np.uint8)
    truth[8:12, 8:12, 8:12], truth[9:11, 9:11, 9:11], truth[8, 8, 8] = 2, 4, 1
    write(ball_image(0), tmp_path / "h" / "healthy.nii.gz")
    write(ball_image(1), tmp_path / "t" / "new.nii.gz")
    write(truth, tmp_path / "tl" / "new.nii.gz")
    options = (
        "--healthy",
        tmp_path / "h",
        "--channel",
        "FLAIR",
        "--test",
        tmp_path / "t",
        "--test-labels",
        tmp_path / "tl",
    )
    assert prepare(*options) == 0
    assert "hold 2, 4; there is one label, so all that is not 0 counts" in capsys.readouterr().out
    target, _ = dataset(nnunet_folders)
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(target / "labelsTs" / "new.nii.gz")))
    assert np.array_equal(written, truth > 0)
    assert prepare(*options, "--label", "tumour=1", "--overwrite") == 2
    assert "new.nii.gz holds label 2" in capsys.readouterr().err
    for value in (1, 2):
        write(ball_image(value), tmp_path / "l" / f"case_{value}.nii.gz")
        write((truth > 0).astype(np.uint8) * value, tmp_path / "m" / f"case_{value}.nii.gz")
    labelled = ("--labelled", tmp_path / "l", "--labels", tmp_path / "m", "--overwrite")
    assert prepare(*options, *labelled) == 2
    assert "new.nii.gz holds label 4, but the data set's labels are 0, 1, 2" in capsys.readouterr().err
    write(np.where(truth == 4, 3, truth), tmp_path / "tl" / "new.nii.gz")
    assert prepare(*options, *labelled) == 2, "an ignore label that nobody named is no label of a truth"
    write(np.where(truth == 4, 0, truth), tmp_path / "tl" / "new.nii.gz")
    assert prepare(*options, *labelled) == 0


def test_test_images_of_another_dimension_than_the_training_images(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(ball_image(0), tmp_path / "h" / "healthy.nii.gz")
    (tmp_path / "t").mkdir()
    sitk.WriteImage(
        sitk.GetImageFromArray(np.arange(900, dtype=np.uint8).reshape(30, 30)), str(tmp_path / "t" / "a.png")
    )
    assert prepare("--healthy", tmp_path / "h", "--channel", "FLAIR", "--test", tmp_path / "t") == 2
    assert "test a: it is 2D among 3D images" in capsys.readouterr().err
