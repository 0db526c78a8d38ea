from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnunet_synthtumour import stages
from nnunet_synthtumour.cli import main
from nnunet_synthtumour.pipeline import Run
from nnunet_synthtumour.run_recipe import RunOptions
from nnunet_synthtumour.stages import RECORD, Stage
from tests.small_run import FOLDERS, SETTINGS, ball_of, options_of, record_of, write_image


@pytest.mark.parametrize(
    ("device", "given", "expected"), [("cpu", "", "PASSIVE"), ("cpu", "ACTIVE", "ACTIVE"), ("cuda", "", None)]
)
def test_on_a_cpu_threads_that_wait_leave_the_core_to_the_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, given: str, expected: str | None
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    for name in FOLDERS:
        monkeypatch.setenv(name, "")
    options = RunOptions(tmp_path, tmp_path, 301, "Run", tmp_path / "out", device=device)
    assert Run(options).environment.get("OMP_WAIT_POLICY") == expected


@pytest.mark.parametrize(("device", "key", "keeps"), [("cpu", "junior-fold-0", True), ("cpu", "preprocess", False),
                                                      ("cuda", "junior-fold-0", False)])  # fmt: skip
def test_trainings_on_a_cpu_keep_their_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, key: str, keeps: bool
) -> None:
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    for name in FOLDERS:
        monkeypatch.setenv(name, "")
    run = Run(RunOptions(tmp_path, tmp_path, 301, "Run", tmp_path / "out", device=device))
    stage = next(stage for stage in run.first() if stage.key == key)
    assert ("MALLOC_TRIM_THRESHOLD_" in run.environment_of(stage)) == keeps
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    run = Run(RunOptions(tmp_path, tmp_path, 301, "Run", tmp_path / "out", device=device))
    assert run.environment_of(stage)["MALLOC_TRIM_THRESHOLD_"] == "1", "a choice of the user's stays"


def test_dry_run_prints_commands_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *options_of(tmp_path), "--rounds", "2", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for command in ("nnUNetv2_plan_and_preprocess -d 301", "nnUNetv2_train 301 3d_fullres 0 -tr SynthTumourTrainer",
                    "nnUNetv2_train 303 3d_fullres 0 -tr SynthTumourSeniorTrainer", "nnUNetv2_predict -d 303",
                    "synthtumour pseudolabel -d 301 -o 302"):  # fmt: skip
        assert command in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("--healthy", "/nowhere"), "is not a folder"),
        (("--rounds", "0"), "--rounds is 0"),
        (("--folds", "7"), "is not a fold"),
        (("-c", "3d_cascade_fullres"), "choose 3d_fullres or 3d_lowres"),
        (("--preset", "gliomas"), "gliomas"),
        (("-d", "999"), "choose -d"),
        (("-pl", "SomebodysPlanner"), "name them with -p"),
        (("-n", "My run"), "The name 'My run' has signs"),
        (("--set", "pseudolabels.max_dout=3"), "max_dout"),
    ],
)
def test_what_a_user_may_get_wrong_is_one_sentence_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], says: str
) -> None:
    for more in ((), ("--dry-run",)):
        assert main(["run", *options_of(tmp_path), *change, *more]) == 2
        assert says in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@dataclass
class Faked:
    """Stages that do nothing but leave their outputs; `ran` are their keys, `found` what lay in a prediction's folder."""

    ran: list[str]
    found: dict[str, list[str]]
    configurations: tuple[str, ...] = ("2d", "3d_fullres")
    fails: str = ""
    digest: str = "one"

    def again(self, *options: str) -> list[str]:
        self.ran.clear()
        assert main(["run", *options]) == 0
        return list(self.ran)


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Faked:
    for name in FOLDERS:
        monkeypatch.setenv(name, "")
    fake, real = Faked([], {}), stages.run_stage

    @contextmanager
    def nothing(*_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(stdout=[], wait=lambda: int(fake.ran[-1] == fake.fails))

    def run_stage(stage: Stage, *rest: Any) -> None:
        fake.ran.append(stage.key)
        for path in stage.outputs if stage.key != fake.fails else ():
            if not path.suffix:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            plans = {"plans_name": path.stem, "configurations": {name: {} for name in fake.configurations}}
            content = plans if stage.key == "plan" else {"digest": fake.digest}
            path.write_text(json.dumps(content if path.name != "dataset.json" else {}), encoding="utf-8")
        if stage.key.startswith("predict-"):
            folder = stage.outputs[0].parent
            fake.found[stage.key] = sorted(file.name for file in folder.glob("*.nii.gz"))
            for i in range(4):
                (folder / f"new_{i}.nii.gz").write_bytes(b"")
                os.utime(folder / f"new_{i}.nii.gz", (i, i))
        real(stage, *rest)

    monkeypatch.setattr("nnunet_synthtumour.pipeline.run_stage", run_stage)
    monkeypatch.setattr("nnunet_synthtumour.stages.guarded", nothing)
    monkeypatch.setattr("nnunet_synthtumour.pseudolabel_agreement.agreement", lambda *_: SimpleNamespace(mean=0.5))
    return fake


def test_what_follows_from_a_training_is_done_again_with_it_and_the_report_always(
    tmp_path: Path, faked: Faked, capsys: pytest.CaptureFixture[str]
) -> None:
    options, out = options_of(tmp_path), tmp_path / "out"
    first = faked.again(*options)
    assert first[0] == "prepare" and first[-3:] == ["evaluate-junior", "evaluate-senior_1", "report"]
    assert faked.again(*options) == ["report"]
    (final,) = out.glob("nnUNet_results/Dataset301_Run/*/fold_0/checkpoint_final.pth")
    final.unlink()
    assert faked.again(*options) == ["junior-fold-0", "pseudolabels-1", "predict-junior", "evaluate-junior", "report"]
    assert faked.found["predict-junior"] == [], "predictions of the older model are no results"
    assert faked.again(*options, "--rounds", "2") == [
        "pseudolabels-2", "senior-2-fold-0", "predict-senior_2", "evaluate-senior_2", "report"
    ]  # fmt: skip
    assert faked.again(*options, "-device", "mps") == ["report"]
    assert main(["run", *options, "-n", "Other"]) == 2
    assert "other options" in capsys.readouterr().err


def test_progress_counts_no_round_that_is_not_made(
    tmp_path: Path, faked: Faked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnunet_synthtumour.pseudolabel_agreement.agreement", lambda *_: SimpleNamespace(mean=0.99))
    faked.again(*options_of(tmp_path), "--rounds", "2")
    printed = capsys.readouterr().out
    assert "[7/13] senior segments the patients" in printed
    assert "[8/12] junior segments the test images" in printed
    assert "[12/12] report" in printed


def test_test_images_that_are_trained_on_are_said_at_once(
    tmp_path: Path, faked: Faked, capsys: pytest.CaptureFixture[str]
) -> None:
    options, raw = options_of(tmp_path), tmp_path / "out" / "nnUNet_raw" / "Dataset301_Run"
    faked.again(*options)
    assert "test nothing" not in capsys.readouterr().out
    for sub in ("imagesTr", "imagesTs"):
        (raw / sub).mkdir()
        (raw / sub / f"{sub}_0000.nii.gz").write_text("the same", encoding="utf-8")
    faked.again(*options)
    assert "test cases that are trained on too, and so test nothing (1): imagesTs" in capsys.readouterr().out


def test_other_images_or_lesions_do_not_take_the_place_of_those_that_a_model_was_trained_on(
    tmp_path: Path, faked: Faked, capsys: pytest.CaptureFixture[str]
) -> None:
    options, out = options_of(tmp_path), tmp_path / "out"
    faked.again(*options)
    shutil.rmtree(out / "nnUNet_raw" / "Dataset301_Run")
    assert main(["run", *options, "--preset", "stroke"]) == 2
    assert "other options (then glioma, now stroke), and 'nnU-Net looks at" in capsys.readouterr().err
    assert faked.again(*options) == ["prepare", "predict-junior", "predict-senior_1", "evaluate-junior",
                                     "evaluate-senior_1", "report"]  # fmt: skip
    shutil.rmtree(out / "nnUNet_raw")
    shutil.rmtree(out / "nnUNet_preprocessed")
    write_image(ball_of(98, False)[0], tmp_path / "healthy" / "healthy_9.nii.gz")
    assert main(["run", *options]) == 2
    assert "healthy has changed since stage 'raw data set" in capsys.readouterr().err
    shutil.rmtree(out / "nnUNet_results")
    assert "junior-fold-0" in faked.again(*options), "nothing is left of the other images"


def test_a_senior_of_older_pseudo_labels_is_kept_and_said(
    tmp_path: Path, faked: Faked, capsys: pytest.CaptureFixture[str]
) -> None:
    options, out = options_of(tmp_path), tmp_path / "out"
    faked.again(*options)
    assert faked.again(*options) == ["report"]
    assert "older pseudo-labels" not in capsys.readouterr().out
    (junior,) = out.glob("nnUNet_results/Dataset301_Run/*/fold_0")
    (senior,) = out.glob("nnUNet_results/Dataset302_RunSenior1/*/fold_0")
    shutil.rmtree(junior)
    faked.digest = "another"
    again = faked.again(*options)
    assert "pseudolabels-1" in again and "senior-1-fold-0" not in again
    for _ in range(2):
        said = capsys.readouterr().out
        assert "senior, fold 0 was begun with older pseudo-labels than there are now" in said
        assert f"remove {senior} and" in said
        assert faked.again(*options) == ["report"]
    (senior / "checkpoint_final.pth").rename(senior / "checkpoint_latest.pth")  # goes on
    assert "senior-1-fold-0" in faked.again(*options)
    assert "older pseudo-labels" in capsys.readouterr().out
    faked.again(*options)
    assert "older pseudo-labels" in capsys.readouterr().out
    for checkpoint in senior.glob("*.pth"):  # nnU-Net begins anew, though the folder is there
        checkpoint.unlink()
    assert "senior-1-fold-0" in faked.again(*options)
    assert "older pseudo-labels" not in capsys.readouterr().out
    assert record_of(out)["senior-1-fold-0"]["made_of"] == "another"


def test_rules_may_change_in_a_run_that_was_begun_and_the_junior_stays(
    tmp_path: Path, faked: Faked, capsys: pytest.CaptureFixture[str]
) -> None:
    options, file = options_of(tmp_path), tmp_path / "out" / RECORD
    faked.again(*options)
    assert not any(
        "pseudolabels." in word or "donors." in word for word in record_of(tmp_path / "out")["prepare"]["command"]
    )
    faked.digest = "another"
    other = [*options, "--set", "pseudolabels.max_doubt=3", "--set", "senior.epochs=7"]
    assert faked.again(*other) == ["pseudolabels-1", "report"]
    assert record_of(tmp_path / "out")["pseudolabels-1"]["command"].count("senior.epochs=7") == 1
    capsys.readouterr()
    assert faked.again(*other) == ["report"]
    assert "senior, fold 0 was begun with older pseudo-labels" in capsys.readouterr().out
    assert faked.again(*options) == ["pseudolabels-1", "report"]
    assert main(["run", *options, "--set", "training.epochs=2"]) == 2
    assert "other options" in capsys.readouterr().err
    earlier = json.loads(file.read_text(encoding="utf-8"))  # all settings were prepare's
    earlier["stages"]["prepare"]["command"] += [word for text in SETTINGS[4:] for word in ("--set", text)]
    del earlier["stages"]["pseudolabels-1"]["settings"]
    file.write_text(json.dumps(earlier), encoding="utf-8")
    assert faked.again(*options) == ["pseudolabels-1", "report"]


def test_of_a_killed_prediction_as_many_files_are_dropped_as_it_had_processes(tmp_path: Path, faked: Faked) -> None:
    options = options_of(tmp_path)
    faked.again(*options, "-np", "3")
    (tmp_path / "out" / "predictions" / "junior" / "dataset.json").unlink()
    assert "predict-junior" in faked.again(*options, "-np", "1")
    assert faked.found["predict-junior"] == ["new_0.nii.gz"]


def test_the_planner_does_not_follow_the_device_once_there_are_plans(tmp_path: Path, faked: Faked) -> None:
    options = [word for word in options_of(tmp_path) if word not in ("-pl", "TinyPlanner")]
    faked.again(*options)
    assert "SmallPlanner" in record_of(tmp_path / "out")["plan"]["command"]
    assert faked.again(*options, "-device", "mps") == ["report"]


def test_ct_is_planned_by_a_planner_that_knows_which_cases_are_unlabelled() -> None:
    common = {"healthy": Path(), "unlabelled": Path(), "number": 1, "name": "A", "out": Path(), "device": "cuda"}
    for channel, plans in (("CT", "nnUNetSynthTumourPlans"), ("FLAIR", "nnUNetPlans")):
        assert RunOptions(**common, channels=(channel,)).plans_name() == plans


def test_folders_of_an_earlier_run_are_taken_and_others_refused(
    tmp_path: Path, faked: Faked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_of(tmp_path)
    for name in FOLDERS:
        monkeypatch.setenv(name, str(tmp_path / "exported" / name))
    faked.again(*options)
    for name in FOLDERS:
        monkeypatch.setenv(name, "")
    assert faked.again(*options) == ["report"]
    assert os.environ["nnUNet_raw"] == str(tmp_path / "exported" / "nnUNet_raw")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "elsewhere"))
    assert main(["run", *options]) == 2
    assert f"was begun with {tmp_path / 'exported'}" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


def test_nobody_elses_data_set_is_touched_after_a_failure_or_by_more_rounds(
    tmp_path: Path, faked: Faked, capsys: pytest.CaptureFixture[str]
) -> None:
    options, raw = options_of(tmp_path), tmp_path / "out" / "nnUNet_raw"
    for name in ("Dataset303_Run", "Dataset400_Run"):
        (raw / name).mkdir(parents=True)
    faked.fails = "prepare"
    assert main(["run", *options]) == 2
    for more in ((), ("--dry-run",)):
        assert main(["run", *options, "-d", "400", *more]) == 2
        assert "Dataset400_Run exists already" in capsys.readouterr().err
    faked.fails = ""
    faked.again(*options)
    assert main(["run", *options, "--rounds", "2"]) == 2
    assert "Dataset303_Run exists already" in capsys.readouterr().err
    assert faked.ran[-1] == "report"


def test_a_configuration_that_the_plans_lack_is_said_and_another_goes_on(
    tmp_path: Path, faked: Faked, capsys: pytest.CaptureFixture[str]
) -> None:
    options, faked.configurations = options_of(tmp_path), ("2d",)
    assert main(["run", *options]) == 2
    assert "has no configuration 3d_fullres, but 2d" in capsys.readouterr().err
    assert faked.ran == ["prepare", "plan"]
    assert faked.again(*options, "-c", "2d")[:2] == ["preprocess", "junior-fold-0"]
    (cases,) = (tmp_path / "out" / "nnUNet_preprocessed" / "Dataset301_Run").glob("*_2d")
    cases.rmdir()
    assert faked.again(*options, "-c", "2d") == ["preprocess", "report"]
    assert main(["run", *options, "-c", "3d_fullres"]) == 2
    assert "other options" in capsys.readouterr().err


@pytest.mark.parametrize("how", [("--preset",), ("--set", "lesion.preset=")])
def test_a_preset_file_that_changed_is_noticed(
    tmp_path: Path,
    faked: Faked,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    how: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    preset, parent = tmp_path / "my.json", tmp_path / "parent.json"
    parent.write_text('{"extends": "glioma"}', encoding="utf-8")
    preset.write_text('{"extends": "parent.json"}', encoding="utf-8")
    options = (
        [*options_of(tmp_path), *how[:-1], how[-1] + "my.json"]
        if len(how) > 1
        else [*options_of(tmp_path), *how, "my.json"]
    )
    faked.again(*options)
    prepare = record_of(tmp_path / "out")["prepare"]
    assert prepare["command"][prepare["command"].index("--preset") + 1] == str(preset)
    assert faked.again(*options) == ["report"]
    parent.write_text('{"extends": "stroke"}', encoding="utf-8")
    assert main(["run", *options]) == 2
    assert f"{parent} has changed" in capsys.readouterr().err
