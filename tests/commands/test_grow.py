from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour.atomic_files import alone_in
from nnunet_synthtumour.cli import main
from nnunet_synthtumour.image_files import check_complete
from nnunet_synthtumour.phantom import make_subject
from tests.commands.failing_writes import at_most


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two healthy phantoms as 16-bit images with a geometry of their own."""
    folder = tmp_path_factory.mktemp("healthy")
    files = []
    for seed in range(2):
        subject = make_subject(seed, 3.0, scanner="b")
        image = sitk.Cast(sitk.GetImageFromArray(subject.images["flair"].transpose(2, 1, 0)), sitk.sitkInt16)
        image.SetSpacing((3.0, 3.0, 3.0))
        image.SetOrigin((10.0, -20.0, 30.0))
        files.append(folder / f"h{seed}.nii.gz")
        sitk.WriteImage(image, str(files[-1]))
    return files


def _arrays(folder: Path, name: str) -> tuple[sitk.Image, np.ndarray, np.ndarray]:
    image = sitk.ReadImage(str(folder / "imagesTr" / f"{name}_0000.nii.gz"))
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / f"{name}.nii.gz")))
    return image, sitk.GetArrayFromImage(image), label


def test_files_geometry_parameters_and_a_second_run(healthy: list[Path], tmp_path: Path) -> None:
    command = ["grow", *map(str, healthy), "-o", str(tmp_path / "out"), "-np", "1", "--seed", "1",
               "--set", "shape.volume_ml=[20,40]", "--set", "shape.satellites=0"]  # fmt: skip
    assert main([*command, "-n", "3"]) == 0
    dataset_json = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))
    assert dataset_json["numTraining"] == 3
    assert dataset_json["labels"] == {"background": 0, "tumour": 1}
    for k in range(3):
        source = sitk.ReadImage(str(healthy[k % 2]))
        image, array, label = _arrays(tmp_path / "out", f"case_{k:04d}")
        assert image.GetOrigin() == source.GetOrigin()
        assert image.GetPixelID() == source.GetPixelID()
        volume = (label == 1).sum() * 0.027
        assert 19 <= volume <= 41
        before = sitk.GetArrayFromImage(source)
        assert (array[before == 0] == 0).all()
        assert np.abs(array.astype(float) - before)[label == 1].mean() > 20
        about = json.loads((tmp_path / "out" / "parameters" / f"case_{k:04d}.json").read_text(encoding="utf-8"))
        assert about["volume_ml"] == pytest.approx(volume)
        assert about["lesions"]["lesions"]
    first = (tmp_path / "out" / "imagesTr" / "case_0000_0000.nii.gz").stat().st_mtime_ns
    assert main([*command, "-n", "4"]) == 0
    assert (tmp_path / "out" / "imagesTr" / "case_0000_0000.nii.gz").stat().st_mtime_ns == first
    assert (tmp_path / "out" / "labelsTr" / "case_0003.nii.gz").is_file()


def test_the_same_seed_gives_the_same_files_on_any_number_of_processes(healthy: list[Path], tmp_path: Path) -> None:
    for name, processes in (("a", "1"), ("b", "2")):
        assert main(["grow", str(healthy[0]), "-o", str(tmp_path / name), "-n", "2", "-np", processes]) == 0
    for k in range(2):
        _, first, labels = _arrays(tmp_path / "a", f"case_{k:04d}")
        _, second, again = _arrays(tmp_path / "b", f"case_{k:04d}")
        assert np.array_equal(first, second)
        assert np.array_equal(labels, again)


def test_sub_regions_and_host_masks(healthy: list[Path], tmp_path: Path) -> None:
    source = sitk.ReadImage(str(healthy[0]))
    mask = sitk.GetArrayFromImage(source) > 0
    mask[:, : mask.shape[1] // 2] = False
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.CopyInformation(source)
    sitk.WriteImage(image, str(tmp_path / "half.nii.gz"))
    always = [
        "--set",
        "parts.core.probability=1",
        "--set",
        "parts.necrosis.probability=1",
        "--set",
        "shape.volume_ml=[40,40]",
    ]
    assert main(["grow", str(healthy[0]), "--host", str(tmp_path / "half.nii.gz"), "-o", str(tmp_path / "out"), "-n", "2",
                 "--sub-regions", "-np", "1", *always]) == 0  # fmt: skip
    _, _, label = _arrays(tmp_path / "out", "case_0001")
    assert set(np.unique(label)) == {0, 1, 2, 3}
    assert not label[~mask].any()


def test_a_2d_image_has_an_area(healthy: list[Path], tmp_path: Path) -> None:
    image = sitk.ReadImage(str(healthy[0]))
    sitk.WriteImage(image[:, :, image.GetDepth() // 2], str(tmp_path / "slice.nii.gz"))
    command = ["grow", str(tmp_path / "slice.nii.gz"), "-o", str(tmp_path / "out"), "-n", "1", "-np", "1"]
    assert main([*command, "--set", "shape.volume_ml=[20,20]", "--set", "shape.satellites=0"]) == 0
    about = json.loads((tmp_path / "out" / "parameters" / "case_0000.json").read_text(encoding="utf-8"))
    _, _, label = _arrays(tmp_path / "out", "case_0000")
    assert about["area_cm2"] == pytest.approx((label > 0).sum() * 0.09) and "volume_ml" not in about
    assert about["area_cm2"] == pytest.approx(np.pi * 1.684**2, rel=0.1)  # the middle section of a ball of 20 ml


def test_mistakes_are_one_sentence(healthy: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: object) -> str:
        assert main(["grow", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    out = tmp_path / "out"
    assert "channel FLAIR is not CT" in said(healthy[0], "-o", out, "-np", 1, "--preset", "liver-ct")
    assert not out.exists()
    assert "There is no file" in said(tmp_path / "none.nii.gz", "-o", out, "-np", 1)
    assert "There is no lesion preset 'gliom'" in said(healthy[0], "-o", out, "--preset", "gliom")
    assert "did you mean 'volume_ml'" in said(healthy[0], "-o", out, "--set", "shape.volume=[1,2]")
    assert "is not KEY=VALUE" in said(healthy[0], "-o", out, "--set", "shape")
    assert "do not divide" in said(healthy[0], "-o", out, "--channel", "A", "--channel", "B")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert "is not empty" in said(healthy[0], "-o", tmp_path / "full")
    assert main(["grow", str(healthy[0]), "-o", str(out / "ok"), "-n", "1", "-np", "1"]) == 0
    capsys.readouterr()
    assert "grown with other options" in said(healthy[0], "-o", out / "ok", "--seed", 5)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["x"], "a folder of others is left as it is"
    about = json.loads((out / "ok" / "grow.json").read_text(encoding="utf-8"))
    del about["fingerprints"]  # an older version wrote none
    (out / "ok" / "grow.json").write_text(json.dumps(about), encoding="utf-8")
    assert "holds cases of another version" in said(healthy[0], "-o", out / "ok")


@pytest.mark.parametrize("command", ["grow", "phantom"])
def test_a_second_run_in_a_folder_is_refused_and_spares_what_the_first_is_writing(
    healthy: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out, scratch = tmp_path / "out", tmp_path / "out" / "labelsTr" / ".7.case_0000.nii.gz"
    arguments = {
        "grow": ["grow", str(healthy[0]), "-o", str(out), "-n", "1", "-np", "1"],
        "phantom": [
            "phantom",
            str(out),
            "--healthy",
            "1",
            "--unlabelled",
            "0",
            "--test",
            "0",
            "--spacing",
            "4",
            "-np",
            "1",
        ],
    }[command]
    assert main(arguments) == 0
    scratch.parent.mkdir(exist_ok=True)
    scratch.touch()
    with alone_in(out):
        assert main(arguments) == 2
        assert "Another process is writing to" in capsys.readouterr().err
        assert scratch.exists()
    assert main(arguments) == 0
    assert not scratch.exists()


def test_what_a_full_disk_cut_off_is_grown_again(
    healthy: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["grow", str(healthy[0]), "-o", str(tmp_path / "out"), "-n", "2", "-np", "1"]
    with at_most(20_000):  # an image has more, a label map and the parameters less
        assert main(command) == 2
    assert "is the disk full" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list((tmp_path / "out").rglob("*case*"))
    (tmp_path / "out" / "labelsTr").mkdir()
    (tmp_path / "out" / "labelsTr" / ".7.case_0000.nii.gz").touch()  # of a run that was killed
    (tmp_path / "out" / "parameters").mkdir()
    (tmp_path / "out" / "parameters" / "case_0001.json").touch()  # of a version that knew no better
    assert main(command) == 0
    assert {f.name for f in (tmp_path / "out" / "labelsTr").iterdir()} == {"case_0000.nii.gz", "case_0001.nii.gz"}
    for file in (tmp_path / "out").rglob("*.nii.gz"):
        check_complete(file)


@pytest.mark.parametrize("what", ["image", "host"])
def test_cases_of_two_states_of_a_file_are_not_mixed(
    healthy: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    files = {"image": tmp_path / "image.nii.gz", "host": tmp_path / "host.nii.gz"}
    image = sitk.ReadImage(str(healthy[0]))
    sitk.WriteImage(image, str(files["image"]))
    sitk.WriteImage(image > 0, str(files["host"]))
    command = ["grow", str(files["image"]), "--host", str(files["host"]), "-o", str(tmp_path / "out"), "-np", "1"]
    assert main([*command, "-n", "1"]) == 0
    assert main([*command, "-n", "2"]) == 0
    changed = image + 1 if what == "image" else image > 50
    sitk.WriteImage(changed, str(files[what]))
    capsys.readouterr()
    assert main([*command, "-n", "3"]) == 2
    assert "in images that have changed since" in capsys.readouterr().err


def test_images_that_cannot_be_used_are_all_named_and_nothing_is_written(
    healthy: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = sitk.ReadImage(str(healthy[0]))
    holes = sitk.GetArrayFromImage(image).astype(np.float32)
    holes[5, 5, 5] = np.nan
    with_nan = sitk.GetImageFromArray(holes)
    with_nan.CopyInformation(image)
    sitk.WriteImage(with_nan, str(tmp_path / "nan.nii.gz"))
    moved = sitk.Image(image)
    moved.SetSpacing([2 * mm for mm in image.GetSpacing()])
    sitk.WriteImage(moved, str(tmp_path / "moved.nii.gz"))
    files = [healthy[0], tmp_path / "moved.nii.gz", tmp_path / "nan.nii.gz", healthy[0]]
    two = ["--channel", "A", "--channel", "B", "-o", tmp_path / "out"]
    assert main(["grow", *map(str, [*files, *two])]) == 2
    said = capsys.readouterr().err
    assert "nan.nii.gz has 1 voxels that are NaN" in said
    assert "moved.nii.gz has another spacing" in said
    assert not (tmp_path / "out").exists()
