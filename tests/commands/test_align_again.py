"""`synthtumour align` a second time: what is kept, and what is followed where something has changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour import align_dataset as module
from nnunet_synthtumour.cli import main
from nnunet_synthtumour.settings import BLOCK
from tests.commands.apart import TARGET, align, labels_of, read, shifted, write_source


def test_finished_cases_are_kept_and_vanished_ones_forgotten(
    nnunet_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent)
    target = source.with_name(TARGET)
    work, done = module.align_case, []

    def stops_at_the_third(case: Any, task: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(case.name)
        return work(case, task)

    monkeypatch.setattr(module, "align_case", stops_at_the_third)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        raise SystemExit(align("--reference", "c0"))
    assert not target.exists()  # nothing that looks finished and is not
    monkeypatch.setattr(module, "align_case", work)
    assert align("--reference", "c0") == 0
    assert "2 kept from an earlier run" in capsys.readouterr().out

    times = {file: file.stat().st_mtime_ns for file in (target / "imagesTr").iterdir()}
    for file in ("imagesTr/c2_0000.nii.gz", "labelsTr/c2.nii.gz", "labelsTr/c3.nii.gz"):
        (source / file).unlink()
    assert align("--reference", "c0") == 0
    left = {file.name for sub in ("imagesTr", "labelsTr", "transforms", "checks") for file in (target / sub).iterdir()}
    assert not any(name.startswith("c2") for name in left) and "c3.nii.gz" not in left and "c1.nii.gz" in left
    assert read(target / "dataset.json")["numTraining"] == 3
    assert set(read(target / "dataset.json")[BLOCK]["roles"]) == {"c0", "c1", "c3"}
    assert [case["case"] for case in read(target / "alignment.json")["cases"]] == ["c0", "c1", "c3"]
    unchanged = target / "imagesTr" / "c1_0000.nii.gz"
    assert unchanged.stat().st_mtime_ns == times[unchanged]


def test_what_an_earlier_version_aligned_is_done_anew(
    nnunet_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent)
    target = source.with_name(TARGET)
    assert align("--reference", "c0") == 0
    assert "earlier version" not in capsys.readouterr().out
    record = target / "cases" / "c1.json"
    content = read(record)
    content["files"] = content["files"][1:]  # as the first version wrote it
    record.write_text(json.dumps(content), encoding="utf-8")
    times = {case: (target / "imagesTr" / f"{case}_0000.nii.gz").stat().st_mtime_ns for case in ("c1", "c2")}
    assert align("--reference", "c0") == 0
    said = capsys.readouterr().out
    assert "3 kept" in said and "1 of them an earlier version had aligned" in said and "train again" in said
    anew = {case: (target / "imagesTr" / f"{case}_0000.nii.gz").stat().st_mtime_ns for case in ("c1", "c2")}
    assert anew["c1"] > times["c1"] and anew["c2"] == times["c2"]


def test_settings_of_the_aligned_data_set_are_its_own(
    nnunet_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, dims=2, cases=2)
    target = source.with_name(TARGET)
    assert align("--reference", "c0") == 0
    assert read(target / "dataset.json")[BLOCK]["training"] == {"seed": 3}
    assert align("--reference", "c0") == 0
    assert "settings of its own" not in capsys.readouterr().out
    assert main(["settings", "-d", "11", "--set", "source.dataset=12", "--set", "training.epochs=77"]) == 0
    about = read(source / "dataset.json")
    about[BLOCK]["roles"]["c1"] = "unlabelled"
    (source / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    assert align("--reference", "c0") == 0
    block = read(target / "dataset.json")[BLOCK]
    assert block["source"] == {"dataset": 12} and block["training"] == {"seed": 3, "epochs": 77}
    assert block["roles"] == {"c0": "labelled", "c1": "unlabelled"}
    assert "keeps settings of its own, other than the source's: source, training." in capsys.readouterr().out


def test_a_data_set_without_a_block_keeps_the_settings_it_was_given(nnunet_folders: dict[str, Path]) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, dims=2, cases=2)
    about = read(source / "dataset.json")
    del about[BLOCK]
    (source / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    target = source.with_name(TARGET)
    assert align("--reference", "c0") == 0
    assert BLOCK not in read(target / "dataset.json")
    assert main(["settings", "-d", "11", "--set", "training.epochs=77"]) == 0
    assert align("--reference", "c0") == 0
    assert read(target / "dataset.json")[BLOCK] == {"training": {"epochs": 77}}


def test_a_reference_that_has_changed_is_followed(nnunet_folders: dict[str, Path]) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, cases=2)
    assert align("--reference", "c0") == 0
    target = nnunet_folders["nnUNet_raw"] / TARGET
    for sub in ("imagesTr", "labelsTr"):
        for file in (source / sub).glob("c0*"):
            shifted(file, 50.0)
    (target / "checks" / "c1.png").unlink()
    (target / "checks").joinpath("c0.png").unlink()
    (target / "checks").rmdir()
    assert align("--reference", "c0") == 0
    grid = sitk.ReadImage(str(source / "imagesTr" / "c0_0000.nii.gz"))
    for case in ("c0", "c1"):
        assert sitk.ReadImage(str(target / "imagesTr" / f"{case}_0000.nii.gz")).GetOrigin() == grid.GetOrigin()
        assert labels_of(target, case).any()
    assert len(list((target / "checks").iterdir())) == 2


def test_a_partner_that_has_changed_is_followed_and_no_case_is_taken_for_the_reference(
    nnunet_folders: dict[str, Path],
) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, cases=2)
    for sub, extra in (("imagesTr", "_0000"), ("labelsTr", "")):
        (source / sub / f"c0{extra}.nii.gz").rename(source / sub / f"10{extra}.nii.gz")
    about = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    about[BLOCK]["roles"] = {"10": "labelled", "c1": "labelled"}
    (source / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    partners = nnunet_folders["nnUNet_raw"] / "Dataset012_Partners"
    shutil.copytree(source, partners)
    for file in (partners / "imagesTr").iterdir():
        shifted(file, 12.0)
    onto = ("align", "-i", "10", "--onto", "12", "-o", "11_Together", "-np", "1")
    assert main([*onto]) == 0
    target = nnunet_folders["nnUNet_raw"] / TARGET
    cases = {case["case"]: case for case in read(target / "alignment.json")["cases"]}
    for case in cases.values():
        assert case["similarity"] > 0.95
        assert np.abs(np.array(case["matrix"])[:3, 3] + 12.0).max() < 3.0
    shifted(partners / "imagesTr" / "10_0000.nii.gz", 30.0)
    assert main([*onto]) == 0
    new = sitk.ReadImage(str(target / "imagesTr" / "10_0000.nii.gz")).GetOrigin()
    assert new == sitk.ReadImage(str(partners / "imagesTr" / "10_0000.nii.gz")).GetOrigin()


def test_a_changed_file_is_followed_as_the_reference(nnunet_folders: dict[str, Path], tmp_path: Path) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, cases=2)
    file = tmp_path / "reference.nii.gz"
    shutil.copy(source / "imagesTr" / "c0_0000.nii.gz", file)
    assert align("--reference", str(file)) == 0
    assert align("--reference", str(file)) == 0
    shifted(file, 50.0)
    assert align("--reference", str(file)) == 0
    origin = sitk.ReadImage(str(file)).GetOrigin()
    for image in (source.with_name(TARGET) / "imagesTr").iterdir():
        assert sitk.ReadImage(str(image)).GetOrigin() == origin


def test_another_spelling_is_no_other_option(
    nnunet_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, dims=2, cases=2)
    partners = nnunet_folders["nnUNet_raw"] / "Dataset012_Partners"
    shutil.copytree(source, partners)
    monkeypatch.chdir(partners)
    file = partners / "imagesTr" / "c0_0000.nii.gz"
    spellings = (
        ("--reference", (str(file), "imagesTr/c0_0000.nii.gz"), "11_Together"),
        ("--onto", ("12", "Dataset012_Partners", str(partners)), "13_Onto"),
    )
    for option, values, out in spellings:
        for value in values:
            assert align(option, value, "-o", out) == 0, value
        assert capsys.readouterr().out.count("2 kept from an earlier run") == len(values) - 1


def test_a_reference_of_unknown_age_is_chosen_anew(nnunet_folders: dict[str, Path]) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, dims=2, cases=2)
    assert align("--reference", "c0") == 0
    target = source.with_name(TARGET)
    (target / "reference.json").write_text('{"reference": "c0"}', encoding="utf-8")  # of an earlier version
    shifted(source / "imagesTr" / "c0_0000.nii.gz", 50.0)
    assert align("--reference", "c0") == 0
    grid = sitk.ReadImage(str(source / "imagesTr" / "c0_0000.nii.gz"))
    for image in (target / "imagesTr").iterdir():
        assert sitk.ReadImage(str(image)).GetOrigin() == grid.GetOrigin()


def test_results_that_are_gone_are_made_again(nnunet_folders: dict[str, Path]) -> None:
    source = write_source(nnunet_folders["nnUNet_raw"].parent, dims=2, cases=2)
    assert align("--reference", "c0") == 0
    gone = [source.with_name(TARGET) / name for name in ("labelsTr/c1.nii.gz", "transforms/c0.tfm")]
    for file in gone:
        file.unlink()
    assert align("--reference", "c0") == 0
    assert all(file.is_file() for file in gone)
