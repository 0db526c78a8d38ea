from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.small_run import FOLDERS, options_of, record_of
from tests.test_report import check_page


def test_a_run_that_is_killed_in_every_stage_continues_and_redoes_nothing(tmp_path: Path) -> None:
    options, out = options_of(tmp_path), tmp_path / "out"
    environment = {k: v for k, v in os.environ.items() if k not in FOLDERS}
    environment |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nnunet_synthtumour.cli", "run", *options]
    killed: list[str] = []
    finished: dict[str, str] = {}
    for _ in range(20):
        with (tmp_path / "said.txt").open("w") as said:
            run = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
            while run.poll() is None:
                at_work = [k for k, entry in record_of(out).items() if entry["state"] == "started" and k not in killed]
                if at_work:
                    time.sleep(0.3)
                    os.kill(run.pid, signal.SIGKILL)
                    killed.append(at_work[0])
                    break
                time.sleep(0.02)
            run.wait()
        stages = record_of(out)
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
    said = (tmp_path / "said.txt").read_text(encoding="utf-8")
    for who in ("junior", "senior, round 1"):  # the last thing that a user reads
        assert f"{who}: tumour, Dice " in said
    text = (out / "report" / "report.html").read_text(encoding="utf-8")
    check_page(text)
    report = json.loads((out / "report" / "report.json").read_text(encoding="utf-8"))
    for dice in report["dice"].values():
        assert f"{dice:.3f}" in text
    assert report["pseudo_labels"]["of"] == 4
    for name in ("curves", "scores", "preview", "pastes"):
        assert (out / "report" / "figures" / f"{name}.png").is_file()
