"""What a structure's visibility is measured to be, on images whose visibility is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.visibility import INVISIBLE, UNKNOWN, VISIBLE, VisibilityCase, body_of, no_verdict, visibility
from nnunet_synthtumour.visibility_features import contrast_to_noise, edge_share, ring_around

SHAPE = (24, 26, 22)


def ball(centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.indices(SHAPE)
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) < radius**2


def case(contrast: float, seed: int, texture: float = 0.0) -> VisibilityCase:
    """A noisy head with a ball that is `contrast` deviations brighter, or noisier by a factor."""
    generator = np.random.default_rng(seed)
    mask = ball(tuple(generator.uniform(6.5, 16, 3)), 3.8)
    head = ball((11.5, 12.5, 10.5), 10.5)
    image = 10 + generator.normal(size=SHAPE) * (1 + texture * mask) + contrast * mask
    return VisibilityCase(f"c{seed}", np.where(head, image, 0)[None].astype(np.float32), (mask & head).astype(np.int16),
                          (2.0, 2.0, 2.0))  # fmt: skip


def verdict(contrast: float, texture: float = 0.0):
    return visibility([case(contrast, seed, texture) for seed in range(4)], {"ball": 1})[0]


def test_verdicts_follow_contrast() -> None:
    found = [verdict(contrast) for contrast in (5.0, 1.5, 0.0)]
    assert found[0].verdict == VISIBLE and found[2].verdict == INVISIBLE
    assert found[0].expected_dice > found[1].expected_dice > found[2].expected_dice
    assert found[0].target.auc_intensity > 0.98 and found[2].target.separability < 0.6
    assert found[0].target.edge_share > 0.5 > 0.1 > found[2].target.edge_share
    assert "not visible" in found[2].sentence() and "Do not train" in found[2].sentence()


def test_texture_alone_can_be_seen() -> None:
    found = verdict(0.0, texture=3.0)
    assert found.target.auc_texture > 0.9 and found.target.auc_texture > found.target.auc_intensity + 0.1
    assert found.target.cnr < 0.3


def test_two_small_lesions_are_enough_to_be_seen() -> None:
    cases = []
    for seed in range(2):
        shown = case(5.0, seed)
        centre = [float(i.mean()) for i in np.nonzero(shown.labels)]
        labels = (shown.labels == 1) & ball(tuple(centre), 2.1)
        cases.append(replace(shown, labels=labels.astype(np.int16), target=np.where(
            (shown.labels == 1) & ~labels, 10, shown.target).astype(np.float32)))  # fmt: skip
        assert 20 <= labels.sum() < 45
    assert visibility(cases, {"ball": 1})[0].verdict == VISIBLE


def test_a_structure_that_no_case_has_gets_no_verdict() -> None:
    assert visibility([case(3.0, 0)], {"nothing": 7}) == []
    assert no_verdict([verdict(5.0)], {"ball": 1}) == ""
    assert "about nothing, cube: none of the labels" in no_verdict([verdict(5.0)], {"nothing": 7, "ball": 1, "cube": 2})


def test_labels_of_other_patients_cannot_tell_of_what_lies_anywhere() -> None:
    frame = (0.0, 0.0, 0.0, *np.eye(3).ravel())
    anywhere = [replace(case(0.0, seed), frame=frame) for seed in range(4)]
    of_others = [replace(one, of_another=True) for one in anywhere]
    at_one_place = [replace(one, labels=ball((11, 12, 10), 3.8).astype(np.int16)) for one in of_others]
    bright = [replace(case(5.0, seed), frame=frame, of_another=True) for seed in range(4)]
    healthy = [replace(one, labels=np.zeros_like(one.labels)) for one in of_others]
    few = [*at_one_place[:2], *healthy]  # of six strangers have it
    sets = (anywhere, of_others, at_one_place, of_others[:2], bright, few, [*at_one_place, healthy[0]])
    found = [visibility(cases, {"ball": 1})[0] for cases in sets]
    assert [one.verdict for one in found] == [INVISIBLE, UNKNOWN, INVISIBLE, INVISIBLE, VISIBLE, UNKNOWN, INVISIBLE]
    assert found[1].sentence().startswith("ball: not to be told. The labels looked at are other patients'")


def test_a_fixed_place_makes_nothing_visible_and_is_told_beside_the_verdict() -> None:
    at_one_place = [replace(case(0.0, seed), labels=ball((11, 12, 10), 3.8).astype(np.int16)) for seed in range(3)]
    frames = [(0.0, 0.0, 0.0, *np.eye(3).ravel())] * 3
    apart = [(30.0 * i, *frame[1:]) for i, frame in enumerate(frames)]
    alike, elsewhere, unknown = (
        visibility([replace(c, frame=frame) for c, frame in zip(at_one_place, some, strict=True)], {"ball": 1})[0]
        for some in (frames, apart, [()] * 3)
    )
    assert alike.place_dice == 1 and elsewhere.place_dice == unknown.place_dice == 0
    assert alike.verdict == INVISIBLE and alike.expected_dice < 0.2
    assert "not visible in this modality (AUC" in alike.sentence() and "Do not train" in alike.sentence()
    assert alike.sentence().startswith(elsewhere.sentence())
    assert "Its usual place alone gives a Dice of 1.00" in alike.sentence()


def test_features_have_known_values() -> None:
    mask = ball((11, 12, 10), 5)
    image = mask * 4.0 + np.random.default_rng(0).normal(size=SHAPE)
    ring = ring_around(mask, np.ones(SHAPE, bool), (2.0, 2.0, 2.0))
    assert not (ring & mask).any() and ring.any()
    assert contrast_to_noise(image, mask, ring) == pytest.approx(4, abs=0.2)
    assert edge_share(image, mask, ring) > 0.7 > 0.1 > edge_share(image - 4 * mask, mask, ring)
    padded = np.zeros((1, *SHAPE))
    padded[0, 4:-4, 4:-4, 4:-4] = 1
    assert body_of(padded).sum() == 16 * 18 * 14


def write(array: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 2.0, 2.0))
    sitk.WriteImage(image, str(file))


def dataset(raw: Path, name: str, labelled: bool, contrast: float) -> Path:
    folder = raw / name
    for seed in range(3):
        one = case(contrast, seed)
        write(one.target[0], folder / "imagesTr" / f"c{seed}_0000.nii.gz")
        write(
            (one.labels if labelled else 2 * (one.target[0] != 0)).astype(np.uint8),
            folder / "labelsTr" / f"c{seed}.nii.gz",
        )
    role = "labelled" if labelled else "unlabelled"
    dataset_json = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "ball": 1, "ignore": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
        "synthtumour": {"roles": {f"c{seed}": role for seed in range(3)}},
    }
    (folder / "dataset.json").write_text(json.dumps(dataset_json), encoding="utf-8")
    return folder


def test_the_command_judges_by_labels_of_the_source(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = nnunet_folders["nnUNet_raw"]
    dataset(raw, "Dataset001_Target", False, 0.0)
    dataset(raw, "Dataset002_Source", True, 5.0)
    assert main(["visibility", "-d", "1", "-o", str(tmp_path / "out")]) == 2
    assert "give --labels FOLDER, or --source" in capsys.readouterr().err
    command = ["visibility", "-d", "1", "--source", "2", "-o", str(tmp_path / "out"), "-n", "3"]
    assert main(command) == 0
    assert "ball: not to be told" in capsys.readouterr().out  # the balls of others lie elsewhere
    file = raw / "Dataset001_Target" / "dataset.json"
    target = json.loads(file.read_text(encoding="utf-8"))
    target["synthtumour"]["source"] = {"dataset": "Dataset002_Source", "pairing": "paired"}
    target["labels"] = {"background": 0, "ball": 1, "cube": 2, "ignore": 3}
    file.write_text(json.dumps(target), encoding="utf-8")
    assert main(command) == 0
    said = capsys.readouterr()
    assert "ball: not visible in this modality" in said.out and "Nothing can be said about cube" in said.out
    assert "warning: Dataset002_Source has no label called cube: where they are, background is taught" in said.err
    assert main([*command[:6], str(file)]) == 2
    assert "dataset.json is a file; give a folder with -o." in capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "visibility.json").read_text(encoding="utf-8"))["verdicts"][0]
    assert found["source"]["auc_intensity"] > 0.9 > 0.65 > found["target"]["auc_intensity"]
    page = (tmp_path / "out" / "visibility.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64") == 1 and "Do not train on carried labels" in page

    assert main(["visibility", "-d", "2", "-o", str(tmp_path / "own")]) == 0
    assert "ball: visible in this modality" in capsys.readouterr().out
    assert main(["visibility", "-d", "2", "--labels", str(tmp_path), "-o", str(tmp_path / "own")]) == 2
    assert "no label map named like a case" in capsys.readouterr().err


def test_a_data_set_without_roles_is_labelled_where_it_has_label_files(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = nnunet_folders["nnUNet_raw"]
    folder = dataset(raw, "Dataset002_Plain", True, 5.0)
    plain = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    del plain["synthtumour"]
    (folder / "dataset.json").write_text(json.dumps(plain), encoding="utf-8")
    (folder / "labelsTr" / "c1.nii.gz").unlink()
    command = ["visibility", "-o", str(tmp_path / "out"), "--no-registration"]
    for more in ((), ("--source", "3")):  # what the target has itself comes first
        assert main([*command, "-d", "2", *more]) == 0
        found = json.loads((tmp_path / "out" / "visibility.json").read_text(encoding="utf-8"))
        assert found["labels"] == "labels: the target's own" and found["verdicts"][0]["cases"] == 2
    target = dataset(raw, "Dataset001_Target", False, 5.0) / "dataset.json"
    assert main([*command, "-d", "1", "--source", "2"]) == 0
    found = json.loads((tmp_path / "out" / "visibility.json").read_text(encoding="utf-8"))
    assert found["verdicts"][0]["cases"] == 3 and "of other patients" in found["labels"], (
        "a name says nothing by itself"
    )
    settings = json.loads(target.read_text(encoding="utf-8"))
    settings["synthtumour"]["source"] = {"dataset": "2", "pairing": "paired"}
    target.write_text(json.dumps(settings), encoding="utf-8")
    assert main([*command, "-d", "1"]) == 0
    found = json.loads((tmp_path / "out" / "visibility.json").read_text(encoding="utf-8"))
    assert found["verdicts"][0]["cases"] == 2, "c1 has no label in the source"
    assert "of the same patients" in found["labels"]
    dataset(raw, "Dataset004_Others", True, 5.0)
    assert main([*command, "-d", "1", "--source", "4"]) == 0  # pairs are of the source that the settings name
    found = json.loads((tmp_path / "out" / "visibility.json").read_text(encoding="utf-8"))
    assert "Dataset004_Others, of other patients" in found["labels"]
    for file in (*(folder / "imagesTr").iterdir(), *(folder / "labelsTr").iterdir()):
        file.rename(file.with_name(f"other_{file.name}"))
    assert main([*command, "-d", "1"]) == 2
    assert "no case of Dataset001_Target is called like a labelled one of Dataset002_Plain" in capsys.readouterr().err
    for file in (folder / "labelsTr").iterdir():
        file.unlink()
    assert main([*command, "-d", "1", "--source", "2"]) == 2
    assert "Dataset002_Plain has no labelled case" in capsys.readouterr().err


def test_data_sets_that_lie_apart_are_to_be_aligned_first(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = nnunet_folders["nnUNet_raw"]
    dataset(raw, "Dataset001_Target", False, 5.0)
    source = dataset(raw, "Dataset002_Source", True, 5.0)
    for file in (*(source / "imagesTr").iterdir(), *(source / "labelsTr").iterdir()):
        image = sitk.ReadImage(str(file))
        image.SetOrigin((500.0, 0.0, 0.0))
        sitk.WriteImage(image, str(file))
    assert main(["visibility", "-d", "1", "--source", "2", "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "Only 0% of the labels of Dataset002_Source lie within" in said and "'synthtumour align' first" in said


def test_channels_of_another_size_are_refused_wherever_labels_come_from(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = nnunet_folders["nnUNet_raw"]
    folder = dataset(raw, "Dataset001_Target", False, 5.0)
    dataset(raw, "Dataset002_Source", True, 5.0)
    about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    about["channel_names"]["1"] = "CT"
    (folder / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    for seed in range(3):
        write(case(5.0, seed).target[0, 2:], folder / "imagesTr" / f"c{seed}_0001.nii.gz")
    for more in (["--source", "2"], ["--labels", str(raw / "Dataset002_Source" / "labelsTr")]):
        assert main(["visibility", "-d", "1", "-o", str(tmp_path / "out"), *more]) == 2
        assert "c0_0001.nii.gz has another size than the first image" in capsys.readouterr().err


def test_labels_in_another_orientation_and_nan_are_refused(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = dataset(nnunet_folders["nnUNet_raw"], "Dataset002_Source", True, 5.0)
    for file in (folder / "labelsTr").iterdir():
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), "RAS"), str(tmp_path / file.name))
    command = ["visibility", "-d", "2", "-o", str(tmp_path / "out")]
    assert main([*command, "--labels", str(tmp_path)]) == 2
    assert "has another direction than the first image of the case" in capsys.readouterr().err
    image = sitk.ReadImage(str(folder / "imagesTr" / "c0_0000.nii.gz"), sitk.sitkFloat32)
    image[3, 3, 3] = float("nan")
    sitk.WriteImage(image, str(folder / "imagesTr" / "c0_0000.nii.gz"))
    assert main(command) == 2
    assert "c0_0000.nii.gz has voxels that are NaN" in capsys.readouterr().err


def test_labels_that_are_a_little_off_do_not_hide_what_is_visible() -> None:
    shifted = []
    for seed in range(4):
        shown = case(5.0, seed)
        shifted.append(replace(shown, labels=np.roll(shown.labels, 2, axis=2)))
    as_true, as_carried = (
        visibility([replace(c, carried=carried) for c in shifted], {"ball": 1})[0].target.separability
        for carried in (False, True)
    )
    assert as_carried > as_true + 0.02
