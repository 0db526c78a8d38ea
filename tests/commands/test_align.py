"""`synthtumour align`: one grid for all, and transforms that reproduce the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour.image_files import check_complete
from nnunet_synthtumour.settings import BLOCK
from tests.commands.apart import TARGET, align, dice, labels_of, read, shifted, write_case, write_source
from tests.commands.failing_writes import fails_for
from tests.registration.test_affine_alignment import drawn, moved, rigid


def test_everything_lies_on_one_grid(nnunet_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, channels=2)
    assert align("--reference", "c0") == 0
    target = source.with_name(TARGET)
    reference = sitk.ReadImage(str(source / "imagesTr" / "c0_0000.nii.gz"))
    for case in ("c0", "c1", "c2", "c3"):
        transform = sitk.ReadTransform(str(target / "transforms" / f"{case}.tfm"))
        for channel in (0, 1):
            name = f"{case}_{channel:04d}.nii.gz"
            image = sitk.ReadImage(str(target / "imagesTr" / name))
            assert (image.GetSize(), image.GetSpacing(), image.GetOrigin()) == (
                reference.GetSize(), reference.GetSpacing(), reference.GetOrigin())  # fmt: skip
            again = sitk.Resample(sitk.ReadImage(str(source / "imagesTr" / name)), reference, transform)
            plain, array = (sitk.GetArrayFromImage(one) for one in (again, image))
            assert (np.abs(plain - array) < 0.05).mean() > 0.9  # all but the outline of what is stripped
            before = sitk.GetArrayFromImage(sitk.ReadImage(str(source / "imagesTr" / name)))
            assert array[array > 0].min() >= before[before > 0].min()  # no rim of faint voxels
            if case != "c0":
                assert plain[plain > 0].min() < before[before > 0].min()
        assert dice(labels_of(target, case) == 1, labels_of(source, "c0") == 1) > 0.85
        assert (target / "checks" / f"{case}.png").stat().st_size > 5000
    dataset_json = read(target / "dataset.json")
    assert dataset_json["name"] == "Together" and dataset_json["numTraining"] == 4
    assert dataset_json[BLOCK] == read(source / "dataset.json")[BLOCK]
    report = read(target / "alignment.json")
    assert report["reference"] == "c0" and [case["case"] for case in report["cases"]] == ["c0", "c1", "c2", "c3"]
    assert all(case["similarity"] > 0.9 for case in report["cases"])
    assert "No case stands out" in capsys.readouterr().out


def test_outside_of_the_field_of_view_the_label_is_unknown(nnunet_folders: dict[str, Path]) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, cases=2)
    image = drawn(3)
    write_case(source, "c1", image[:, :, : image.GetDepth() // 2 + 5])
    assert align("--reference", "c0") == 0
    labels = labels_of(source.with_name(TARGET), "c1")
    assert (labels[-3:] == 2).any() and not (labels_of(source.with_name(TARGET), "c0") == 2).any()


def test_every_case_goes_onto_its_partner(nnunet_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, cases=3)
    partners = source.with_name("Dataset012_Other")
    (partners / "imagesTr").mkdir(parents=True)
    for name, degrees in (("c0", 5.0), ("c1", -6.0)):
        image = moved(drawn(3, inverted=True), rigid(drawn(3), degrees, 4.0), padding=3)
        sitk.WriteImage(image, str(partners / "imagesTr" / f"{name}_0000.nii.gz"))
    (partners / "dataset.json").write_text((source / "dataset.json").read_text(encoding="utf-8"), encoding="utf-8")
    assert align("--onto", "12", "--cross-modality") == 2
    assert "1 cases have no case of the same name" in capsys.readouterr().err
    for sub, name in (("imagesTr", "c2_0000.nii.gz"), ("labelsTr", "c2.nii.gz")):
        (source / sub / name).unlink()
    assert align("--onto", "12", "--cross-modality", "--kind", "rigid") == 0
    for name in ("c0", "c1"):
        partner = sitk.ReadImage(str(partners / "imagesTr" / f"{name}_0000.nii.gz"))
        found = sitk.ReadImage(str(source.with_name(TARGET) / "imagesTr" / f"{name}_0000.nii.gz"))
        assert found.GetSize() == partner.GetSize() and found.GetOrigin() == partner.GetOrigin()
        assert dice(sitk.GetArrayFromImage(found) > 10, sitk.GetArrayFromImage(partner) > 10) > 0.9


def test_pairs_that_came_aligned_are_not_warned_about(
    nnunet_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, dims=2, cases=3)
    partners = source.with_name("Dataset012_Other")
    (partners / "imagesTr").mkdir(parents=True)
    (partners / "dataset.json").write_text((source / "dataset.json").read_text(encoding="utf-8"), encoding="utf-8")
    for i in range(3):
        image = drawn(2)
        write_case(source, f"c{i}", sitk.AdditiveGaussianNoise(image, 2.0 * i, 0.0, 1))
        sitk.WriteImage(drawn(2, inverted=True), str(partners / "imagesTr" / f"c{i}_0000.nii.gz"))
    assert align("--onto", "12", "--cross-modality") == 0
    assert "No case stands out" in capsys.readouterr().out
    report = read(source.with_name(TARGET) / "alignment.json")
    assert any(case["similarity"] == case["similarity_before"] for case in report["cases"])
    assert not (source.with_name(TARGET) / "reference.nii.gz").exists()


@pytest.mark.parametrize("reference", ["auto", "template"])
def test_a_reference_is_found(nnunet_folders: dict[str, Path], reference: str) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, dims=2)
    assert align("--reference", reference, "--spacing", "1.5", "--kind", "rigid") == 0
    target = source.with_name(TARGET)
    images = [sitk.ReadImage(str(file)) for file in sorted((target / "imagesTr").iterdir())]
    assert {image.GetSpacing() for image in images} == {(1.5, 1.5)} and len({i.GetSize() for i in images}) == 1
    chosen = read(target / "alignment.json")["reference"]
    assert chosen == "template" if reference == "template" else chosen in {"c0", "c1", "c2", "c3"}
    first = labels_of(target, "c0") == 1
    assert all(dice(labels_of(target, case) == 1, first) > 0.8 for case in ("c1", "c2", "c3"))


def test_a_case_that_looks_wrong_is_warned_about(
    nnunet_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent)
    noise = np.random.default_rng(0).normal(100, 30, (30, 30, 30)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(source / "imagesTr" / "c2_0000.nii.gz"))
    sitk.WriteImage(drawn(3) * 0 + 3, str(source / "imagesTr" / "c3_0000.nii.gz"))
    for case in ("c2", "c3"):
        (source / "labelsTr" / f"{case}.nii.gz").unlink()
    assert align("--reference", "c0") == 0
    said = capsys.readouterr().out
    assert "warning: c2 looks misaligned" in said and "c3 looks misaligned: its first channel is constant" in said
    assert "c1 looks misaligned" not in said


def test_a_case_that_is_turned_against_its_header_is_warned_about(
    nnunet_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, cases=2)
    for file in (source / "imagesTr" / "c1_0000.nii.gz", source / "labelsTr" / "c1.nii.gz"):
        image = sitk.ReadImage(str(file))
        image.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
        sitk.WriteImage(image, str(file))
    assert align("--reference", "c0") == 0
    said = "it is turned by 1"
    assert f"warning: c1 looks misaligned: {said}" in capsys.readouterr().out
    report = read(source.with_name(TARGET) / "alignment.json")
    assert report["cases"][1]["warning"].startswith(said) and report["cases"][0]["warning"] is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--reference", "c9"), "--reference c9 is not a case of the data set"),
        (("--spacing", "-1"), "--spacing -1.0 is not a length"),
        (("-o", "10_Apart"), "is the data set that is to be aligned"),
        (("-o", "12"), "is an id without a name"),
        (("-o", "1000_Far"), "run from 1 to 999"),
        (("-i", "99"), "99"),
    ],
)
def test_mistakes_get_one_sentence(
    nnunet_folders: dict[str, Path], capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    write_source(nnunet_folders["nnUNet_raw"].parent, dims=2, cases=2)
    assert align(*options) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said


def test_broken_files_get_one_sentence(nnunet_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, channels=2, cases=2)
    (source / "imagesTr" / "c1_0001.nii.gz").unlink()
    assert align() == 2
    assert "c1 lacks the file" in capsys.readouterr().err
    (source / "imagesTr" / "c1_0001.nii.gz").write_bytes(b"not an image")
    assert align() == 2
    assert "c1_0001.nii.gz cannot be read" in capsys.readouterr().err
    for channel in (0, 1):
        (source / "imagesTr" / f"c1_{channel:04d}.nii.gz").unlink()
    assert align() == 2  # its label map is there
    assert "c1 lacks the file" in capsys.readouterr().err


def test_a_label_map_lies_on_its_image_whatever_its_header_says(nnunet_folders: dict[str, Path]) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, cases=2)
    assert align() == 0
    target = nnunet_folders["nnUNet_raw"] / TARGET
    before = {case: labels_of(target, case) for case in ("c0", "c1")}
    for case in before:
        shifted(source / "labelsTr" / f"{case}.nii.gz", 500.0)
    assert align() == 0
    for case, labels in before.items():
        assert np.array_equal(labels_of(target, case), labels)


def test_a_label_map_of_another_size_is_refused(
    nnunet_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, cases=2)
    label = sitk.ReadImage(str(source / "labelsTr" / "c1.nii.gz"))
    sitk.WriteImage(label[1:], str(source / "labelsTr" / "c1.nii.gz"))
    assert align() != 0
    assert "another size or spacing" in capsys.readouterr().err


@pytest.mark.parametrize("slices", [1, 3])
def test_few_slices_are_aligned(nnunet_folders: dict[str, Path], slices: int) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, cases=2)
    for file in [*(source / "imagesTr").iterdir(), *(source / "labelsTr").iterdir()]:
        image = sitk.ReadImage(str(file))
        middle = image.GetSize()[2] // 2
        sitk.WriteImage(image[:, :, middle : middle + slices], str(file))
    assert align("--reference", "c0") == 0


def test_a_case_called_template_is_aligned_to_the_template(nnunet_folders: dict[str, Path]) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, dims=2, cases=3)
    assert align("--reference", "template") == 0
    image = drawn(2)
    write_case(source, "template", moved(image, rigid(image, 8.0, 12.0)))
    about = read(source / "dataset.json")
    about[BLOCK]["roles"]["template"] = "labelled"
    (source / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    assert align("--reference", "template") == 0
    cases = {case["case"]: case for case in read(source.with_name(TARGET) / "alignment.json")["cases"]}
    assert cases["template"]["similarity"] > 0.9 > cases["template"]["similarity_before"]


def test_further_channels_lie_on_the_first(nnunet_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, dims=2, channels=2, cases=2)
    second = source / "imagesTr" / "c1_0001.nii.gz"
    shifted(second, 500.0)
    assert align("--reference", "c0") == 0
    found = (sitk.ReadImage(str(source.with_name(TARGET) / "imagesTr" / f"c1_000{c}.nii.gz")) for c in (0, 1))
    first, doubled = map(sitk.GetArrayFromImage, found)
    assert np.abs(2 * first - doubled).max() < 0.1 and doubled.any()
    image = sitk.ReadImage(str(second))
    image.SetSpacing([2 * mm for mm in image.GetSpacing()])
    sitk.WriteImage(image, str(second))
    assert align("--reference", "c0") == 2
    assert "c1_0001.nii.gz has another size or spacing" in capsys.readouterr().err


def test_a_torn_image_is_named_with_its_folder(
    nnunet_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, cases=2)
    file = source / "imagesTr" / "c1_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:-200])
    assert align("--reference", "c0") == 2
    assert f"{file} is not complete; copy it again" in capsys.readouterr().err


def test_test_images_are_said_to_stay(nnunet_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, dims=2, cases=2)
    assert align() == 0
    assert "test images" not in capsys.readouterr().out
    (source / "imagesTs").mkdir()
    assert align() == 0
    assert "The test images (imagesTs, labelsTs) are not aligned" in capsys.readouterr().out


@pytest.mark.parametrize(
    "written", ["reference.nii.gz", "reference_as_it_was.nii.gz", "c1_0000.nii.gz", "c1.nii.gz", "c1.tfm"]
)
def test_a_failed_write_is_told_in_one_sentence_and_made_good_by_the_next_run(
    nnunet_folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    written: str,
) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, dims=2, cases=2)
    with monkeypatch.context() as patched:
        fails_for(patched, written)
        assert align("--reference", "c0") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is the disk full" in said and "defect" not in said
    assert align("--reference", "c0") == 0
    files = [file for file in source.with_name(TARGET).rglob("*.nii.gz") if file.name[0] != "."]
    assert len(files) == 6
    for file in files:
        check_complete(file)
