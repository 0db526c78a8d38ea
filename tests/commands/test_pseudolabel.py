from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_synthtumour import pseudolabel_cases
from nnunet_synthtumour.cli import main
from nnunet_synthtumour.pseudolabels import PseudoLabelOptions, _alone, pseudolabel
from nnunet_synthtumour.settings import BLOCK, settings_of
from tests.patients_dataset import UNLABELLED, trained_root  # noqa: F401 - a fixture
from tests.toy_dataset import FOLDERS, NAME

MODEL = f"{NAME}/SynthTumourTrainer__nnUNetTinyPlans__3d_fullres"
SENIOR = "Dataset002_ToySenior"
COMMAND = ("pseudolabel", "-d", "1", "-o", "2", "-p", "nnUNetTinyPlans", "-device", "cpu", "-np", "1")


@pytest.fixture
def root(trained_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A copy of the trained toy, for one test to write to."""
    shutil.copytree(trained_root, tmp_path, dirs_exist_ok=True)
    for name in FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def _work(root: Path) -> Path:
    return root / "nnUNet_results" / MODEL / "pseudolabels" / SENIOR


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in sorted(folder.iterdir())}


def _labels(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_from_patients_to_a_data_set_that_nnunet_trains_on(root: Path) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    splits_before = _json(root / "nnUNet_preprocessed" / NAME / "splits_final.json")
    assert main(list(COMMAND)) == 0
    raw, pre = root / "nnUNet_raw" / SENIOR, root / "nnUNet_preprocessed" / SENIOR
    verify_dataset_integrity(str(raw), num_processes=1)
    settings = settings_of(_json(raw / "dataset.json"))
    assert settings.cases("pseudo-labelled") == list(UNLABELLED)
    assert len(settings.cases("healthy")) == 4
    truth = np.zeros((26, 30, 24), dtype=bool)
    truth[10:16, 12:19, 8:14] = True
    for case in UNLABELLED:
        labels = _labels(raw / "labelsTr" / f"{case}.nii.gz")
        assert set(np.unique(labels)) <= {0, 1, 2}
        assert 2 * (truth & (labels == 1)).sum() / (truth.sum() + (labels == 1).sum()) > 0.3
    source = root / "nnUNet_raw" / NAME
    image = "imagesTr/case_000_0000.nii.gz"
    assert (raw / image).samefile(source / image)

    plans = _json(pre / "nnUNetTinyPlans.json")
    assert plans.pop("dataset_name") == SENIOR
    before = _json(root / "nnUNet_preprocessed" / NAME / "nnUNetTinyPlans.json")
    assert plans == {key: value for key, value in before.items() if key != "dataset_name"}
    for fold, (old, new) in enumerate(zip(splits_before, _json(pre / "splits_final.json"), strict=True)):
        assert set(old["val"]) == set(new["val"]) - set(UNLABELLED), fold
        assert set(old["train"]) == set(new["train"]) - set(UNLABELLED), fold
        assert set(new["val"]) & set(UNLABELLED)
        assert not set(new["val"]) & set(new["train"])

    data = "nnUNetTinyPlans_3d_fullres"
    for file in ("case_000.b2nd", "case_000_seg.b2nd", "case_000.pkl", "case_004.b2nd"):
        assert (pre / data / file).samefile(root / "nnUNet_preprocessed" / NAME / data / file), file
    ours = nnUNetDatasetBlosc2(str(pre / data))
    assert sorted(ours.identifiers) == sorted(settings.roles)
    manager = PlansManager(str(pre / "nnUNetTinyPlans.json"))
    for case in ("case_000", "case_005"):
        files = [str(raw / "imagesTr" / f"{case}_0000.nii.gz")], str(raw / "labelsTr" / f"{case}.nii.gz")
        stock = DefaultPreprocessor(verbose=False).run_case(
            *files, manager, manager.get_configuration("3d_fullres"), _json(pre / "dataset.json")
        )
        image_of_ours, seg_of_ours, _, properties = ours.load_case(case)
        assert np.array_equal(image_of_ours[:], stock[0])
        assert np.array_equal(seg_of_ours[:], stock[1])
        assert {key: len(at) for key, at in properties["class_locations"].items()} == {
            key: len(at) for key, at in stock[2]["class_locations"].items()
        }
    plans = _json(pre / "nnUNetTinyPlans.json") | {"continue_training": False}
    trainer = nnUNetTrainer(plans, "3d_fullres", 0, _json(pre / "dataset.json"), torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 1, 1
    trainer.run_training()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()


def test_the_report_says_what_was_kept(root: Path) -> None:
    assert main(list(COMMAND)) == 0
    page = (_work(root) / "report.html").read_text(encoding="utf-8")
    assert "3 of 3 cases" in page
    assert page.count("data:image/png;base64,") == 3
    listed = _json(_work(root) / "pseudolabels.json")
    assert [case["case"] for case in listed["cases"]] == list(UNLABELLED)
    assert all(case["ml"]["tumour"] > 1 for case in listed["cases"])
    provenance = listed["provenance"]
    assert provenance["epochs"] == {"0": 2}
    assert provenance["junior"] == MODEL
    for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
        assert _json(root / folder / SENIOR / "synthtumour_provenance.json") == provenance
        assert _json(root / folder / SENIOR / "dataset.json")["synthtumour_provenance"] == provenance


def test_what_is_done_is_not_done_again_and_what_changed_is(root: Path) -> None:
    assert main(list(COMMAND)) == 0
    work = _work(root)
    predicted, decided = _times(work / "probabilities"), _times(work / "cases")
    built = (root / "nnUNet_raw" / SENIOR).stat().st_ino
    assert main(list(COMMAND)) == 0
    assert (_times(work / "probabilities"), _times(work / "cases")) == (predicted, decided)
    assert (root / "nnUNet_raw" / SENIOR).stat().st_ino == built

    assert main([*COMMAND, "--upper", "0.45", "--lower", "0.25"]) == 0  # other thresholds: only the rules
    assert _times(work / "probabilities") == predicted
    assert not set(_times(work / "cases").values()) & set(decided.values())
    changed = settings_of(_json(root / "nnUNet_raw" / SENIOR / "dataset.json"))
    assert (changed.pseudolabels.lower, changed.pseudolabels.upper) == (0.25, 0.45)

    decided = _times(work / "cases")
    image = root / "nnUNet_raw" / NAME / "imagesTr" / "case_005_0000.nii.gz"
    array = sitk.ReadImage(str(image)) * 1.1
    image.unlink()
    sitk.WriteImage(array, str(image))  # another image: that case alone
    assert main([*COMMAND, "--upper", "0.45", "--lower", "0.25"]) == 0
    now = _times(work / "probabilities")
    assert [name for name in now if now[name] != predicted[name]] == ["case_005.npz"]

    checkpoint = root / "nnUNet_results" / MODEL / "fold_0" / "checkpoint_best.pth"
    shutil.copy(checkpoint.with_name("checkpoint_final.pth"), checkpoint)
    _touch_weights(checkpoint)
    assert main([*COMMAND, "--upper", "0.45", "--lower", "0.25"]) == 0  # another junior: everything
    assert not set(_times(work / "probabilities").values()) & set(now.values())


def _touch_weights(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=False)
    next(iter(content["network_weights"].values())).mul_(1.001)
    torch.save(content, checkpoint)


def test_a_killed_case_is_taken_up_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunet_synthtumour import pseudolabel_cases, senior_dataset

    store = pseudolabel_cases._store

    def killed_at_the_second(case: Any, *rest: Any) -> None:
        if case.name == "case_005":
            raise KeyboardInterrupt
        store(case, *rest)

    monkeypatch.setattr(pseudolabel_cases, "_store", killed_at_the_second)
    assert main(list(COMMAND)) == 130
    first = _times(_work(root) / "probabilities")
    assert list(first) == ["case_004.npz"]
    (_work(root) / "probabilities" / "case_006.npz").write_bytes(b"half a file")
    monkeypatch.setattr(pseudolabel_cases, "_store", store)

    preprocess = senior_dataset.preprocess_case

    def killed_while_building(case: str, recipe: Any) -> None:
        if case == "case_003":
            raise KeyboardInterrupt
        preprocess(case, recipe)

    monkeypatch.setattr(senior_dataset, "preprocess_case", killed_while_building)
    assert main(list(COMMAND)) == 130
    assert not (root / "nnUNet_preprocessed" / SENIOR / "synthtumour_provenance.json").exists()
    monkeypatch.setattr(senior_dataset, "preprocess_case", preprocess)
    assert main(list(COMMAND)) == 0
    assert (root / "nnUNet_preprocessed" / SENIOR / "synthtumour_provenance.json").is_file()
    assert _times(_work(root) / "probabilities")["case_004.npz"] == first["case_004.npz"]
    assert (root / "nnUNet_raw" / SENIOR / "labelsTr" / "case_006.nii.gz").is_file()


def test_parts_share_the_work_and_the_last_one_builds(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [[*COMMAND, "-num_parts", "2", "-part_id", str(part)] for part in (0, 1)]
    assert main(parts[1]) == 0
    assert "Part 1 of 2 is done" in capsys.readouterr().out
    assert list(_times(_work(root) / "cases")) == ["case_005.json"]
    assert not (root / "nnUNet_raw" / SENIOR).exists()
    with _alone(_work(root) / "assemble.lock") as alone:  # another part is building it
        assert alone
        assert main(parts[0]) == 0
    assert "another one is at work" in capsys.readouterr().out
    assert not (root / "nnUNet_raw" / SENIOR).exists()
    assert main(parts[0]) == 0
    assert "3 pseudo-labelled cases" in capsys.readouterr().out
    together = _labels(root / "nnUNet_raw" / SENIOR / "labelsTr" / "case_005.nii.gz")
    shutil.rmtree(_work(root))
    assert main(list(COMMAND)) == 0
    assert (_labels(root / "nnUNet_raw" / SENIOR / "labelsTr" / "case_005.nii.gz") == together).all()


def test_regions_keep_their_order(root: Path) -> None:
    """The junior's two heads become those of two regions: the tumour, and a core that is a little less probable."""
    regions = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    for folder in (root / "nnUNet_raw" / NAME, root / "nnUNet_preprocessed" / NAME, root / "nnUNet_results" / MODEL):
        changed = _json(folder / "dataset.json") | {"labels": regions, "regions_class_order": [1, 2]}
        changed[BLOCK]["roles"] |= {f"case_{i:03d}": "labelled" for i in range(4)}
        (folder / "dataset.json").write_text(json.dumps(changed), encoding="utf-8")
    checkpoint = root / "nnUNet_results" / MODEL / "fold_0" / "checkpoint_best.pth"
    content = torch.load(checkpoint, weights_only=False)
    for name, weights in content["network_weights"].items():
        if "seg_layers" in name:
            weights.copy_((weights[1] - weights[0]).expand_as(weights).clone())
            if name.endswith("bias"):
                weights[1] -= 2
    torch.save(content, checkpoint)
    done = pseudolabel(PseudoLabelOptions("1", 2, plans="nnUNetTinyPlans", device="cpu", processes=1))
    assert done.raw is not None
    assert set(np.unique(_labels(done.raw / "labelsTr" / "case_004.nii.gz"))) == {0, 1, 2, 3}
    volumes = _json(_work(root) / "cases" / "case_004.json")["ml_per_label"]
    assert set(volumes) == {"whole", "core"}
    assert "kept: whole" in done.report.read_text(encoding="utf-8")


def test_the_report_is_there_whenever_it_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(COMMAND)) == 0
    built = (root / "nnUNet_raw" / SENIOR).stat().st_ino
    shutil.rmtree(_work(root))
    assert main(list(COMMAND)) == 0
    report = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("report: "))
    assert report.is_file() and report.with_name("pseudolabels.json").is_file()
    assert (root / "nnUNet_raw" / SENIOR).stat().st_ino == built, "the data set is the same"


def test_what_is_taken_over_is_taken_over_anew_when_it_changed(root: Path) -> None:
    raw, pre = root / "nnUNet_raw", root / "nnUNet_preprocessed"
    for folder in (raw, pre):
        changed = _json(folder / NAME / "dataset.json")
        changed[BLOCK]["roles"]["case_003"] = "labelled"
        (folder / NAME / "dataset.json").write_text(json.dumps(changed), encoding="utf-8")
    assert main(list(COMMAND)) == 0
    data, label = "nnUNetTinyPlans_3d_fullres", "labelsTr/case_003.nii.gz"
    corrected = sitk.ReadImage(str(raw / NAME / label))
    corrected[10, 10, 10] = 1
    (raw / NAME / label).unlink()
    sitk.WriteImage(corrected, str(raw / NAME / label))
    assert main(list(COMMAND)) == 0
    assert (_labels(raw / SENIOR / label) == 1).sum() == 1
    places = pickle.loads((pre / SENIOR / data / "case_003.pkl").read_bytes())["class_locations"]
    assert len(places[1]), "nnU-Net has not preprocessed the corrected label map yet"
    assert (pre / SENIOR / data / "case_002.pkl").samefile(pre / NAME / data / "case_002.pkl")

    splits = _json(pre / NAME / "splits_final.json")
    (pre / NAME / "splits_final.json").write_text(json.dumps(splits[::-1]), encoding="utf-8")
    assert main(list(COMMAND)) == 0
    assert set(splits[-1]["val"]) <= set(_json(pre / SENIOR / "splits_final.json")[0]["val"])

    image = pre / NAME / data / "case_002.b2nd"
    shutil.copy2(image, image.with_suffix(".new"))
    image.with_suffix(".new").replace(image)
    os.utime(image)  # as nnU-Net does when it preprocesses again
    assert main(list(COMMAND)) == 0
    assert (pre / SENIOR / data / "case_002.b2nd").samefile(image)


def test_what_a_user_set_in_the_new_data_set_stays(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(COMMAND)) == 0
    mine = ("donors.jitter_mm=3", "training.epochs=7", "pseudolabels.upper=0.9")
    assert main(["settings", "-d", "2", *(word for text in mine for word in ("--set", text))]) == 0
    assert main(["settings", "-d", "1", "--set", "training.epochs=5", "--set", "senior.epochs=4"]) == 0
    assert "keeps settings" not in capsys.readouterr().out
    for fewer in ("", "nnUNet_raw"):  # of a run that was killed the raw data set may be gone
        shutil.rmtree(root / fewer / SENIOR, ignore_errors=True)
        assert main([*COMMAND, "--upper", "0.45"]) == 0
        assert f"{SENIOR} keeps settings of its own: training.epochs, donors.jitter_mm\n" in capsys.readouterr().out
        for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
            settings = settings_of(_json(root / folder / SENIOR / "dataset.json"))
            assert (settings.donors.jitter_mm, settings.training.epochs, settings.senior.epochs) == (3, 7, 4)
            assert settings.pseudolabels.upper == 0.45, "rules are the command's"
            assert settings.cases("pseudo-labelled") == list(UNLABELLED)


def test_settings_are_given_for_the_new_data_set(root: Path) -> None:
    given = ("--set", "pseudolabels.max_doubt=3", "--set", "donors.jitter_mm=4")
    assert main([*COMMAND, *given, "--upper", "0.45"]) == 0
    for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
        settings = settings_of(_json(root / folder / SENIOR / "dataset.json"))
        assert (settings.pseudolabels.max_doubt, settings.pseudolabels.upper, settings.donors.jitter_mm) == (3, 0.45, 4)
    assert settings_of(_json(root / "nnUNet_raw" / NAME / "dataset.json")).donors.jitter_mm == 10
    assert main(list(COMMAND)) == 0
    settings = settings_of(_json(root / "nnUNet_preprocessed" / SENIOR / "dataset.json"))
    assert settings.donors.jitter_mm == 10, "what was given once is no change of the user's"


def test_settings_of_one_copy_stay_and_those_of_an_earlier_version_are_the_sources(root: Path) -> None:
    assert main(list(COMMAND)) == 0
    copies = [root / folder / SENIOR for folder in ("nnUNet_raw", "nnUNet_preprocessed")]
    for copy, settings in zip(
        copies, ({"training.epochs": 7, "donors.jitter_mm": 2}, {"donors.jitter_mm": 3}), strict=True
    ):
        assert main(["settings", "-d", str(copy / "dataset.json"),
                     *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]) == 0  # fmt: skip
    assert main([*COMMAND, "--upper", "0.45"]) == 0
    settings = settings_of(_json(copies[0] / "dataset.json"))
    assert (settings.training.epochs, settings.donors.jitter_mm) == (7, 3)

    for copy in copies:
        provenance = _json(copy / "synthtumour_provenance.json")
        del provenance["settings"]
        (copy / "synthtumour_provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    assert main(["settings", "-d", "1", "--set", "training.epochs=5"]) == 0
    assert main(list(COMMAND)) == 0
    assert settings_of(_json(copies[0] / "dataset.json")).training.epochs == 5


def test_a_case_with_nothing_left_is_set_aside(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a junior of a moment finds nothing in a healthy head is a matter of the machine: here it finds nothing."""
    store = pseudolabel_cases._store

    def store_nothing(case: Any, probabilities: torch.Tensor, *others: Any) -> None:
        if case.name == "case_006":
            probabilities = torch.zeros_like(probabilities)
            probabilities[0] = 1
        store(case, probabilities, *others)

    monkeypatch.setattr(pseudolabel_cases, "_store", store_nothing)
    done = pseudolabel(PseudoLabelOptions("1", 2, "Few", plans="nnUNetTinyPlans", device="cpu", processes=1))
    assert done.raw is not None
    assert done.raw.name == "Dataset002_Few"
    provenance = _json(done.raw / "synthtumour_provenance.json")
    assert provenance["kept"] == ["case_004", "case_005"]
    assert list(provenance["set_aside"]) == ["case_006"]
    assert not list(done.raw.rglob("case_006*"))
    assert "case_006: set aside" in done.report.read_text(encoding="utf-8")


def test_mistakes_are_one_sentence(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        assert main([*COMMAND, *arguments]) == 2
        return capsys.readouterr().err

    assert "fold_3/checkpoint_best.pth; train that model first: nnUNetv2_train" in said("-f", "3")
    assert "fold_0/none.pth; train that model first" in said("-chk", "none.pth")
    assert "lower must not exceed upper" in said("--lower", "0.9")
    assert "numbered from 0" in said("-num_parts", "2", "-part_id", "2")
    assert "choose another -o" in said("-o", "1")
    assert "There is no data set 77" in said("--junior", "77")
    assert "No pseudo-label is left of 3 cases" in said("--min-ml", "1000")
    assert (_work(root) / "report.html").is_file()
    (root / "nnUNet_raw" / "Dataset003_Mine").mkdir()
    assert "was not made by 'synthtumour pseudolabel'" in said("-o", "3")
    assert "is taken by Dataset003_Mine" in said("-o", "3", "-n", "Other")
    file = root / "nnUNet_raw" / NAME / "dataset.json"
    dataset_json = _json(file)
    dataset_json[BLOCK]["roles"] = dict.fromkeys(dataset_json[BLOCK]["roles"], "healthy")
    file.write_text(json.dumps(dataset_json), encoding="utf-8")
    assert "has no unlabelled case to segment" in said()
