"""nnU-Net's own console commands with our trainer and planner, in processes of their own as users start them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk
import torch

from tests.toy_dataset import FOLDERS, write_raw

ROOT = Path(__file__).parent.parent
DATASET = "Dataset002_Commands"
PLANS = "nnUNetTinyPlans"
# Several commands in one process, each through the entry point that its console script has: torch is imported once.
RUN = """
import json, os, sys
from importlib.metadata import entry_points
scripts = {e.name: e for e in entry_points(group="console_scripts")}
for variables, words in json.loads(sys.argv[1]):
    os.environ.update(variables)
    sys.argv = words
    scripts[words[0]].load()()
"""


def _environment(root: Path) -> dict[str, str]:
    short = {"SYNTHTUMOUR_EPOCHS": "1", "SYNTHTUMOUR_ITERATIONS": "2"}
    frugal = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    folders = {name: str(root / name) for name in FOLDERS}
    return os.environ | short | frugal | folders | {"PYTHONPATH": str(ROOT)}


def _run(root: Path, *commands: str, **variables: str) -> str:
    """The output of `commands`; those of `variables` are set for the last one."""
    steps = [({}, shlex.split(command)) for command in commands]
    steps[-1] = (variables, steps[-1][1])
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(steps)], capture_output=True, text=True, encoding="utf-8", check=False,
        env=_environment(root), cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _train(configuration: str, *options: str) -> str:
    return shlex.join(
        ["nnUNetv2_train", DATASET, configuration, "0", "-tr", "SynthTumourTrainer", "-p", PLANS, "-device", "cpu",
         *options])  # fmt: skip


def _results(root: Path, configuration: str = "3d_fullres") -> Path:
    return root / "nnUNet_results" / DATASET / f"SynthTumourTrainer__{PLANS}__{configuration}"


def _hashes(fold: Path) -> set[str]:
    logs = "\n".join(file.read_text(encoding="utf-8") for file in fold.glob("training_log*"))
    return {line.split()[-1] for line in logs.splitlines() if "Fixed validation set" in line}


def _weights(checkpoint: Path) -> dict[str, Any]:
    return dict(torch.load(checkpoint, weights_only=False)["network_weights"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planned, preprocessed and trained for one epoch by the commands a user would type."""
    root = tmp_path_factory.mktemp("commands")
    for name in FOLDERS:
        (root / name).mkdir()
    write_raw(root / "nnUNet_raw" / DATASET, 4, 0, {"validation": {"patches": 2}, "training": {"seed": 1}})
    plan = (
        "nnUNetv2_plan_and_preprocess -d 2 -pl TinyPlanner -c 3d_fullres 2d -np 1 1 -npfp 1 --verify_dataset_integrity"
    )
    _run(root, plan, _train("3d_fullres"))
    return root


def test_train_resume_validate_and_predict(trained: Path) -> None:
    model, fold = _results(trained), _results(trained) / "fold_0"
    assert (fold / "checkpoint_final.pth").is_file() and (fold / "checkpoint_best.pth").is_file()
    assert (
        json.loads((fold / "validation" / "summary.json").read_text(encoding="utf-8"))["foreground_mean"]["n_ref"] > 0
    )
    assert not list((fold / "validation").glob("*.npz"))
    first = _hashes(fold)

    _run(trained, _train("3d_fullres", "--c"), SYNTHTUMOUR_EPOCHS="2")
    assert torch.load(fold / "checkpoint_final.pth", weights_only=False)["current_epoch"] == 2
    assert _hashes(fold) == first and len(first) == 1

    images, out = trained / "nnUNet_raw" / DATASET / "imagesTr", trained / "predicted"
    predict = shlex.join(
        ["nnUNetv2_predict", "-i", str(images), "-o", str(out), "-d", "2", "-c", "3d_fullres", "-f", "0",
         "-tr", "SynthTumourTrainer", "-p", PLANS, "-chk", "checkpoint_best.pth", "-device", "cpu", "--disable_tta",
         "-npp", "0", "-nps", "0"])  # fmt: skip
    _run(trained, _train("3d_fullres", "--val", "--val_best", "--npz"), predict)
    cases = [path.name.replace("_0000", "") for path in sorted(images.iterdir())]
    for case in cases:
        of_case = [sitk.ReadImage(str(file)) for file in (out / case, images / case.replace(".nii", "_0000.nii"))]
        assert of_case[0].GetSize() == of_case[1].GetSize()
        assert int(sitk.GetArrayViewFromImage(of_case[0]).max()) <= 1
    validated = {path.stem for path in (fold / "validation").glob("*.npz")}
    assert validated and validated < {case.removesuffix(".nii.gz") for case in cases}
    assert (model / "dataset.json").is_file() and (model / "plans.json").is_file()


def test_2d_then_pretrained_weights_without_checkpoints(trained: Path) -> None:
    fold = _results(trained, "2d") / "fold_0"
    _run(trained, _train("2d"))
    given = fold.parent.parent / "given.pth"
    (fold / "checkpoint_final.pth").rename(given)
    (fold / "checkpoint_best.pth").unlink()
    said = _run(trained, _train("2d", "-pretrained_weights", str(given), "--disable_checkpointing"))
    assert "Loading pretrained weights" in said and str(given) in said
    assert not list(fold.glob("checkpoint*.pth"))
    assert (fold / "validation" / "summary.json").is_file()
    assert _weights(given)


def test_what_cannot_be_trained_is_one_sentence(trained: Path) -> None:
    file = trained / "nnUNet_preprocessed" / DATASET / f"{PLANS}.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    plans["configurations"] |= {
        "3d_lowres": {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    (file.parent / "WithCascade.json").write_text(json.dumps(plans | {"plans_name": "WithCascade"}), encoding="utf-8")
    script = Path(sys.executable).with_name("nnUNetv2_train")
    command = [script, DATASET, "3d_cascade_fullres", "0", "-tr", "SynthTumourTrainer", "-p", "WithCascade"]
    done = subprocess.run(
        [*command, "-device", "cpu"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env=_environment(trained),
    )
    assert done.returncode == 1
    assert "cannot train 3d_cascade_fullres" in done.stderr and "Traceback" not in done.stderr
