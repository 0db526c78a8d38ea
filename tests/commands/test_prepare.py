from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.settings import settings_of
from tests.commands.prepared import dataset, prepare
from tests.small_images import ball_image, write


def _label(target: Path, case: str) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(target / "labelsTr" / f"{case}.nii.gz")))


def test_roles_ignore_labels_and_links(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    for i in range(2):
        write(ball_image(i), tmp_path / "h" / f"healthy_{i}.nii.gz")
        write(ball_image(10 + i), tmp_path / "u" / f"patient_{i}_0000.nii.gz")
        write(ball_image(20 + i), tmp_path / "l" / f"case_{i}.mha")
        write((ball_image(20 + i) > 1200).astype(np.uint8), tmp_path / "m" / f"case_{i}.nrrd")
    assert prepare("--healthy", tmp_path / "h", "--unlabelled", tmp_path / "u", "--labelled", tmp_path / "l",
                    "--labels", tmp_path / "m", "--channel", "FLAIR") == 0  # fmt: skip
    target, dataset_json = dataset(nnunet_folders)
    assert dataset_json["labels"] == {"background": 0, "tumour": 1, "ignore": 2}
    assert dataset_json["numTraining"] == 6
    settings = settings_of(dataset_json)
    assert settings.cases("healthy") == ["healthy_0", "healthy_1"]
    assert settings.cases("unlabelled") == ["patient_0", "patient_1"]
    assert settings.cases("labelled") == ["case_0", "case_1"]
    assert settings.hosts == {"healthy_0": "nonzero", "healthy_1": "nonzero"}
    brain = ball_image(0) != 0
    assert np.array_equal(_label(target, "healthy_0") == 2, brain)
    assert np.array_equal(_label(target, "patient_0") == 2, ball_image(10) != 0)
    assert set(np.unique(_label(target, "case_0"))) == {0, 1}
    linked = target / "imagesTr" / "healthy_0_0000.nii.gz"
    assert linked.stat().st_ino == (tmp_path / "h" / "healthy_0.nii.gz").stat().st_ino
    assert len(list((target / "imagesTr").iterdir())) == 6


def test_channels_as_suffixes_or_sub_folders_and_copies(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    for i in range(2):
        for channel, name in enumerate(("FLAIR", "T1")):
            write(ball_image(i + 5 * channel), tmp_path / "a" / f"x_{i}_{channel:04d}.nii.gz")
            write(ball_image(i + 5 * channel), tmp_path / "b" / name.lower() / f"y_{i}.nii.gz")
    channels = ("--channel", "FLAIR", "--channel", "T1")
    assert prepare("--healthy", tmp_path / "a", "--unlabelled", tmp_path / "b", "--copy", *channels) == 0
    target, dataset_json = dataset(nnunet_folders)
    assert dataset_json["channel_names"] == {"0": "FLAIR", "1": "T1"}
    names = {file.name for file in (target / "imagesTr").iterdir()}
    assert names == {f"{c}_{i}_{k:04d}.nii.gz" for c in "xy" for i in range(2) for k in range(2)}
    copied = target / "imagesTr" / "x_0_0001.nii.gz"
    assert copied.stat().st_ino != (tmp_path / "a" / "x_0_0001.nii.gz").stat().st_ino
    assert len(settings_of(dataset_json).intensities["x_0"].mean) == 2


def test_heads_with_their_skulls_are_told_of(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    radius = np.sqrt((np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, 40)] * 3, indexing="ij")) ** 2).sum(0))
    tissue = ball_image(0, stripped=False, shape=radius.shape) + 500
    head = np.where((radius > 0.74) & (radius < 0.88), 30, tissue) * (radius < 1)
    write(np.where(radius < 0.74, tissue, 0), tmp_path / "h" / "brain.nii.gz")
    write(head, tmp_path / "h" / "skull.nii.gz")
    assert prepare("--healthy", tmp_path / "h", "--channel", "FLAIR") == 0
    said = capsys.readouterr().out
    assert "The host of 1 cases (skull) is a guess (all but the background)" in said
    assert "a bright rim over a dark layer, as of scalp over bone" in said and "give --host-masks" in said
    assert settings_of(dataset(nnunet_folders)[1]).hosts == {"brain": "nonzero", "skull": "head"}


def test_all_problems_of_all_files_in_one_run_and_nothing_left(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    for name in ("good_1", "good_2", "good_3", "shape", "nan", "constant", "missing", "four_d"):
        for channel in range(2):
            array = ball_image(channel)
            if channel and name == "shape":
                array = array[:-2]
            if channel and name == "nan":
                array[3, 3, 3] = np.nan
            if channel and name == "constant":
                array[:] = 7
            if channel and name == "four_d":
                array = np.stack([array, array])
            if not (channel and name == "missing"):
                write(array, folder / f"{name}_{channel:04d}.nii.gz")
    assert prepare("--healthy", folder, "--channel", "FLAIR", "--channel", "T1") == 2
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
    write(ball_image(0), good / "a.nii.gz")
    write((ball_image(0) > 1200).astype(np.uint8) * 5, tmp_path / "gaps" / "a.nii.gz")
    write(np.zeros((20, 24, 22), np.uint8), tmp_path / "nothing" / "a.nii.gz")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.nii.gz").write_bytes(b"not an image")

    def said(*arguments: object) -> str:
        assert prepare(*arguments) == 2
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
    for label in ("a", "a=", "a=1,", "a=1,x", "=1"):
        assert "NAME=VALUE" in said("--healthy", good, "--label", label, *channel)
    assert "without a gap" in said("--healthy", good, "--label", "a=2", *channel)
    assert "every channel once" in said("--healthy", good, *channel, *channel)
    assert "every channel once" in said("--healthy", good, "--channel", "")
    for number in ("0", "-1", "two"):
        with pytest.raises(SystemExit):
            prepare("--healthy", good, *channel, "-np", number)
        assert f"'{number}' is not a number of processes" in capsys.readouterr().err
    for folder in nnunet_folders.values():
        (folder / "Dataset100_Other").mkdir()
        assert "is taken by" in said("--healthy", good, *channel)
        (folder / "Dataset100_Other").rmdir()
    monkeypatch.delenv("nnUNet_raw")
    assert "nnUNet_raw is not set" in said("--healthy", good, *channel)


def test_what_nnunet_could_not_train_on_is_refused(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(ball_image(0), tmp_path / "h" / "a_seg.nii.gz")
    write(ball_image(1), tmp_path / "t" / "b_seg.nii.gz")
    options = ("--channel", "FLAIR", "--test", tmp_path / "t")
    assert prepare("--healthy", tmp_path / "h", *options) == 2
    said = capsys.readouterr().err
    assert "healthy a_seg: its name ends in _seg" in said and "b_seg" not in said
    for i in range(2):
        write(ball_image(i, shape=(5, 7, 6)), tmp_path / "u" / f"tiny_{i}.nii.gz")
    for i in range(2):
        assert prepare("--unlabelled", tmp_path / "u", *options, "--overwrite") == 2
        assert "tiny_1: it is 6 x 7 x 5 voxels, but nnU-Net's networks need 8" in capsys.readouterr().err
        write(ball_image(i), tmp_path / "u" / f"usual_{i}.nii.gz")
    assert prepare("--unlabelled", tmp_path / "u", *options, "--overwrite") == 0


def test_regions_are_declared_as_nnunet_wants_them(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    write(ball_image(0), tmp_path / "h" / "h.nii.gz")
    write(ball_image(1), tmp_path / "l" / "l.nii.gz")
    write((ball_image(1) > 1100).astype(np.uint8) + 2 * (ball_image(1) > 1300), tmp_path / "m" / "l.nii.gz")
    words = ("--labelled", tmp_path / "l", "--labels", tmp_path / "m", "--label", "core=2,3", "--label", "whole=1,2,3")
    assert prepare("--healthy", tmp_path / "h", *words, "--label", "necrosis=3", "--channel", "FLAIR") == 0
    target, dataset_json = dataset(nnunet_folders)
    assert dataset_json["labels"] == {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "necrosis": 3, "ignore": 4}
    assert dataset_json["regions_class_order"] == [1, 2, 3]
    assert set(np.unique(_label(target, "h"))) == {0, 4}
    assert set(np.unique(_label(target, "l"))) == {0, 1, 3}


def test_the_next_command_keeps_unlabelled_ct_out_of_the_statistics(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(ball_image(0), tmp_path / "h" / "h.nii.gz")
    write(ball_image(1), tmp_path / "u" / "u.nii.gz")
    assert prepare("--healthy", tmp_path / "h", "--unlabelled", tmp_path / "u", "--channel", "CT") == 0
    assert capsys.readouterr().out.strip().endswith("-c 3d_fullres -pl SynthTumourPlanner")
    assert prepare("--healthy", tmp_path / "h", "--channel", "CT", "--overwrite") == 0
    assert "SynthTumourPlanner" not in capsys.readouterr().out
    write((ball_image(0) > 1200).astype(np.uint8), tmp_path / "m" / "h.nii.gz")
    words = (
        "--labelled",
        tmp_path / "h",
        "--labels",
        tmp_path / "m",
        "--unlabelled",
        tmp_path / "u",
    )
    for channel, why in (("CT", "blur"), ("MRI", "register whole images")):
        assert prepare(*words, "--channel", channel, "--overwrite") == 0
        said = capsys.readouterr().out.strip()
        assert why in said and said.endswith("-pl DeepAtlasPlanner")


def test_2d_pictures_are_converted_and_the_next_command_says_2d(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = (ball_image(0)[10] / 10).astype(np.uint8)
    for i in range(2):
        write(picture, tmp_path / "h" / f"h{i}.png")
    assert prepare("--healthy", tmp_path / "h", "--channel", "FLAIR") == 0
    assert capsys.readouterr().out.strip().endswith("-c 2d")
    target, _ = dataset(nnunet_folders)
    assert np.array_equal(_label(target, "h0") == 2, picture != 0)


def test_a_single_slice_in_3d_is_planned_in_2d(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(ball_image(0)[10:11], tmp_path / "h" / "h0.nii.gz")
    assert prepare("--healthy", tmp_path / "h", "--channel", "FLAIR") == 0
    assert capsys.readouterr().out.strip().endswith("-c 2d")


def test_a_data_set_is_replaced_only_if_asked_and_if_it_is_ours(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write(ball_image(0), tmp_path / name / f"{name}.nii.gz")
    killed = nnunet_folders["nnUNet_raw"] / ".Dataset100_Other.preparing"
    killed.mkdir()
    to_be_continued = killed.with_suffix(".unfinished")
    to_be_continued.mkdir()  # of 'synthtumour align'
    assert prepare("--healthy", tmp_path / "a", "--channel", "FLAIR") == 0
    assert not killed.exists() and to_be_continued.exists()
    to_be_continued.rmdir()
    target, _ = dataset(nnunet_folders)
    assert prepare("--healthy", tmp_path / "b", "--channel", "FLAIR") == 2
    assert "--overwrite" in capsys.readouterr().err
    write(np.full((20, 24, 22), 3.0), tmp_path / "bad" / "c.nii.gz")
    assert prepare("--healthy", tmp_path / "bad", "--channel", "FLAIR", "--overwrite") == 2
    assert (target / "labelsTr" / "a.nii.gz").is_file()
    (nnunet_folders["nnUNet_preprocessed"] / target.name).mkdir()
    capsys.readouterr()
    assert prepare("--healthy", tmp_path / "b", "--channel", "FLAIR", "--overwrite") == 0
    assert "--clean" in capsys.readouterr().out
    assert [file.name for file in (target / "labelsTr").iterdir()] == ["b.nii.gz"]
    assert [folder.name for folder in nnunet_folders["nnUNet_raw"].iterdir()] == [target.name]
    (target / "dataset.json").write_text("{}", encoding="utf-8")
    assert prepare("--healthy", tmp_path / "b", "--channel", "FLAIR", "--overwrite") == 2
    assert "was not made by" in capsys.readouterr().err


def test_what_a_user_set_outlives_that_images_are_added(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(ball_image(0), tmp_path / "h" / "a.nii.gz")
    words = ("--healthy", tmp_path / "h", "--overwrite", "--channel")
    assert prepare(*words, "FLAIR", "--set", "training.seed=3") == 0
    assert "keeps" not in capsys.readouterr().out
    assert main(["settings", "-d", "100", "--set", "training.epochs=7", "--set", "lesion.preset=ms"]) == 0
    write(ball_image(1), tmp_path / "h" / "b.nii.gz")
    assert prepare(*words, "FLAIR", "--set", "training.seed=4") == 0
    assert "keeps settings of its own, which --set changes: training.epochs, lesion.preset" in capsys.readouterr().out
    target, dataset_json = dataset(nnunet_folders)
    settings = settings_of(dataset_json)
    assert (settings.training.epochs, settings.training.seed, settings.lesion.preset) == (7, 4, "ms")
    assert set(settings.roles) == set(settings.intensities) == {"a", "b"}

    assert prepare(*words, "CT") == 2, "settings that the new data set cannot have"
    assert "preset 'ms' multiply intensities" in capsys.readouterr().err
    dataset_json["synthtumour"]["epochs"] = 3
    (target / "dataset.json").write_text(json.dumps(dataset_json), encoding="utf-8")
    assert prepare(*words, "FLAIR") == 2
    said = capsys.readouterr().err
    assert f"{target / 'dataset.json'}, whose settings the new data set keeps: synthtumour.epochs" in said


def test_nothing_stays_behind_when_writing_fails(
    nnunet_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(ball_image(0), tmp_path / "h" / "a.nii.gz")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nnunet_synthtumour.case_writing.crop", interrupted)
    assert prepare("--healthy", tmp_path / "h", "--channel", "FLAIR") == 130
    assert list(nnunet_folders["nnUNet_raw"].iterdir()) == []

    # killed when the old data set had made room and the new one had not taken its place
    old = nnunet_folders["nnUNet_raw"] / ".Dataset100_Test.replaced"
    old.mkdir()
    assert prepare("--healthy", tmp_path / "h", "--channel", "FLAIR") == 130
    assert [folder.name for folder in nnunet_folders["nnUNet_raw"].iterdir()] == ["Dataset100_Test"]


def test_a_full_disk_is_said_before_anything_is_written(
    nnunet_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(ball_image(0), tmp_path / "h" / "a.nii.gz")
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    assert prepare("--healthy", tmp_path / "h", "--channel", "FLAIR", "--copy") == 2
    assert "0.0 GB free" in capsys.readouterr().err
    assert list(nnunet_folders["nnUNet_raw"].iterdir()) == []


def test_channels_that_nnunet_would_refuse_for_their_last_digits_get_one_geometry(
    nnunet_folders: dict[str, Path], tmp_path: Path
) -> None:
    write(ball_image(0), tmp_path / "h" / "a_0000.nii.gz")
    write(ball_image(1), tmp_path / "h" / "a_0001.nii.gz", spacing=(3.0, 3.0004, 3.0))
    assert prepare("--healthy", tmp_path / "h", "--channel", "FLAIR", "--channel", "T1") == 0
    target, _ = dataset(nnunet_folders)
    first, second = (sitk.ReadImage(str(target / "imagesTr" / f"a_{i:04d}.nii.gz")) for i in range(2))
    assert first.GetSpacing() == second.GetSpacing()
    assert np.array_equal(sitk.GetArrayFromImage(second), ball_image(1))


def test_images_that_lie_otherwise_are_told_of(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        write(ball_image(i), tmp_path / "h" / f"h{i}.nii.gz")
        write(ball_image(5 + i), tmp_path / "u" / f"u{i}.nii.gz")
    words = ("--healthy", tmp_path / "h", "--unlabelled", tmp_path / "u", "--channel", "FLAIR")
    assert prepare(*words) == 0
    assert "axes" not in capsys.readouterr().out
    turned = sitk.ReadImage(str(tmp_path / "u" / "u1.nii.gz"))
    turned.SetDirection((-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0))
    sitk.WriteImage(turned, str(tmp_path / "u" / "u1.nii.gz"))
    assert prepare(*words, "--overwrite") == 0
    said = capsys.readouterr().out
    assert "(healthy: 2 LPS; unlabelled: 1 LPS, 1 RAS)" in said and "mirroring" in said
    turned.SetDirection((0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    sitk.WriteImage(turned, str(tmp_path / "u" / "u1.nii.gz"))
    assert prepare(*words, "--overwrite") == 0
    said = capsys.readouterr().out
    assert "1 PLS" in said and "mirroring" not in said
