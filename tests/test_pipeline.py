from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.stages import RECORD
from tests.test_report import check_page

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
# A junior of one iteration knows nothing: with these rules something is kept of whatever it says.
SETTINGS = ("training.epochs=1", "training.iterations=1", "training.seed=1", "validation.patches=2",
            "pseudolabels.lower=0.0", "pseudolabels.upper=0.02", "pseudolabels.min_ml=0.01",
            "pseudolabels.min_confidence=0.0", "pseudolabels.rim_mm=0.0", "pseudolabels.max_host_share=1.0",
            "pseudolabels.max_rim_share=1.0", "pseudolabels.max_doubt=1000",
            "donors.smallest_ml=0.01")  # fmt: skip


def _ball(seed: int, tumour: bool) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1.1, 1.1, n) for n in (22, 24, 20)], indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    image = np.where(radius < 1, 100 + 40 * (radius < 0.7) + generator.normal(0, 6, radius.shape), 0)
    lesion = np.sqrt(((grid - generator.uniform(-0.3, 0.3, (3, 1, 1, 1))) ** 2).sum(0)) < 0.3 * tumour
    return np.where(lesion, image * 1.8, image).astype(np.float32), lesion.astype(np.uint8)


def _write(array: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((3.0, 3.0, 3.0))
    sitk.WriteImage(image, str(file))


def _options(folder: Path) -> list[str]:
    for i in range(4):
        _write(_ball(i, False)[0], folder / "healthy" / f"healthy_{i}.nii.gz")
        _write(_ball(10 + i, True)[0], folder / "unlabelled" / f"patient_{i}.nii.gz")
    for i in range(2):
        image, label = _ball(20 + i, True)
        _write(image, folder / "test" / f"new_{i}.nii.gz")
        _write(label, folder / "truth" / f"new_{i}.nii.gz")
    given = {"--healthy": "healthy", "--unlabelled": "unlabelled", "--test": "test", "--test-labels": "truth"}
    words = [word for option, name in given.items() for word in (option, str(folder / name))]
    return [*words, "-d", "301", "-n", "Run", "-o", str(folder / "out"), "-device", "cpu", "-np", "1", "-pl", "TinyPlanner",
            *(word for text in SETTINGS for word in ("--set", text))]  # fmt: skip


def _record(out: Path) -> dict[str, Any]:
    return json.loads((out / RECORD).read_text(encoding="utf-8"))["stages"] if (out / RECORD).exists() else {}


def test_dry_run_prints_commands_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *_options(tmp_path), "--rounds", "2", "--dry-run"]) == 0
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
        (("--preset", "gliomas"), "gliomas"),
        (("-d", "999"), "choose -d"),
        (("-pl", "SomebodysPlanner"), "name them with -p"),
    ],
)
def test_what_a_user_may_get_wrong_is_one_sentence_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], says: str
) -> None:
    assert main(["run", *_options(tmp_path), *change]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out" / RECORD).exists()


def test_a_run_that_is_killed_in_every_stage_continues_and_redoes_nothing(tmp_path: Path) -> None:
    options, out = _options(tmp_path), tmp_path / "out"
    environment = {k: v for k, v in os.environ.items() if k not in FOLDERS}
    environment |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nnunet_synthtumour.cli", "run", *options]
    killed: list[str] = []
    finished: dict[str, str] = {}
    for _ in range(20):
        with (tmp_path / "said.txt").open("w") as said:
            run = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
            while run.poll() is None:
                at_work = [k for k, entry in _record(out).items() if entry["state"] == "started" and k not in killed]
                if at_work:
                    time.sleep(0.3)
                    os.kill(run.pid, signal.SIGKILL)
                    killed.append(at_work[0])
                    break
                time.sleep(0.02)
            run.wait()
        stages = _record(out)
        for key, when in finished.items():
            assert stages[key]["finished"] == when, f"{key} was done again"
        finished = {key: entry["finished"] for key, entry in stages.items() if entry["state"] == "finished"}
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL, (tmp_path / "said.txt").read_text(encoding="utf-8")
    else:
        pytest.fail("the run never came to its end")
    assert set(killed) >= {"prepare", "plan", "preprocess", "junior-fold-0", "pseudolabels-1", "senior-1-fold-0",
                           "predict-junior", "predict-senior_1", "report"}  # fmt: skip
    for who in ("junior", "senior_1"):
        assert len(list((out / "predictions" / who).glob("new_*.nii.gz"))) == 2
    text = (out / "report" / "report.html").read_text(encoding="utf-8")
    check_page(text)
    report = json.loads((out / "report" / "report.json").read_text(encoding="utf-8"))
    for dice in report["dice"].values():
        assert f"{dice:.3f}" in text
    assert report["pseudo_labels"]["of"] == 4
    for name in ("curves", "scores", "preview", "pastes"):
        assert (out / "report" / "figures" / f"{name}.png").is_file()
