from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.run_progress import RunProgress, duration
from nnunet_synthtumour.stages import Record, Stage, StageFailed, only_one, run_stage

PYTHON = sys.executable


def _stage(out: Path, code: str, key: str = "one", inputs: tuple[Path, ...] = ()) -> Stage:
    return Stage(key, f"stage {key}", (PYTHON, "-c", code, "-device", "cpu"), (out / key,), inputs=inputs)


def _run(stage: Stage, out: Path) -> list[str]:
    lines: list[str] = []
    with only_one(out) as lock:
        run_stage(stage, Record(out), dict(os.environ), lines.append, lock)
    return lines


def test_a_stage_is_recorded_and_finished_only_with_its_outputs(tmp_path: Path) -> None:
    stage = _stage(tmp_path, f"print('hello'); open({str(tmp_path / 'one')!r}, 'w').close()")
    assert not Record(tmp_path).finished(stage)
    assert _run(stage, tmp_path) == ["hello\n"]
    record = Record(tmp_path)
    assert record.finished(stage)
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["stages"]["one"]["state"] == "finished"
    assert "hello" in (tmp_path / "logs" / "one.log").read_text(encoding="utf-8")
    (tmp_path / "one").unlink()
    assert not record.finished(stage)


def test_other_options_or_other_inputs_are_not_taken_for_finished(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    (given / "a.nii.gz").write_text("a", encoding="utf-8")
    code = f"open({str(tmp_path / 'one')!r}, 'w').close()"
    stage = _stage(tmp_path, code, inputs=(given,))
    _run(stage, tmp_path)
    elsewhere = Stage(stage.key, stage.title, (*stage.command[:-1], "cuda"), stage.outputs, inputs=stage.inputs)
    assert Record(tmp_path).finished(elsewhere)
    with pytest.raises(UserError, match=r"other options \(then .*close\(\)', now .*# another'\)"):
        Record(tmp_path).finished(_stage(tmp_path, code + " # another"))
    for beside in (".DS_Store", "notes.txt", ".cache/c.nii.gz", "drafts/d.png", "run/predictions/a.nii.gz"):
        (given / beside).parent.mkdir(parents=True, exist_ok=True)
        (given / beside).write_text("not read", encoding="utf-8")
    assert Record(tmp_path).finished(stage)
    (given / "b.nii.gz").write_text("b", encoding="utf-8")
    with pytest.raises(UserError, match="has changed since"):
        Record(tmp_path).finished(stage)


@pytest.mark.parametrize("text", ["", '{"about": {', "[]", "{}"])
def test_a_damaged_record_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.json is damaged.* another -o and -d"):
        Record(tmp_path)


def test_a_stage_is_done_again_after_what_it_was_made_from_or_without_its_outputs(tmp_path: Path) -> None:
    first = _stage(tmp_path, f"open({str(tmp_path / 'one')!r}, 'w').close()")
    code = f"open({str(tmp_path / 'two')!r}, 'w').close()"
    second = replace(_stage(tmp_path, code, "two"), after=("one",))
    _run(first, tmp_path)
    _run(second, tmp_path)
    assert Record(tmp_path).finished(second)
    assert not Record(tmp_path).finished(replace(second, always=True))
    _run(first, tmp_path)
    assert Record(tmp_path).outdated(second)
    assert not Record(tmp_path).finished(second)
    _run(second, tmp_path)
    assert Record(tmp_path).finished(second)
    (tmp_path / "two").unlink()
    assert not Record(tmp_path).finished(_stage(tmp_path, code + " # another", "two"))


def test_what_is_gone_is_not_made_of_something_else_while_what_came_of_it_is_kept(tmp_path: Path) -> None:
    given = tmp_path / "given.nii.gz"
    given.write_text("a", encoding="utf-8")
    code = "open({!r}, 'w').close()"
    first = _stage(tmp_path, code.format(str(tmp_path / "one")), inputs=(given,))
    second = _stage(tmp_path, code.format(str(tmp_path / "two")), "two")
    other = _stage(tmp_path, code.format(str(tmp_path / "one")) + " # another", inputs=(given,))
    _run(first, tmp_path)
    _run(second, tmp_path)
    (tmp_path / "one").unlink()
    Record(tmp_path).check([first, second])
    with pytest.raises(UserError, match=r"'stage one' was run with other options .* and 'stage two', .* is kept; use"):
        Record(tmp_path).check([other, second])
    Record(tmp_path).check([other, replace(second, after=("one",))])  # will be made anew of it
    given.write_text("another", encoding="utf-8")
    with pytest.raises(UserError, match=r"given\.nii\.gz has changed since stage 'stage one' was run, and 'stage two'"):
        Record(tmp_path).check([first, second])
    (tmp_path / "two").unlink()
    Record(tmp_path).check([other, second])
    (tmp_path / "checkpoint_latest.pth").touch()
    with pytest.raises(UserError, match="is kept"):  # a training that goes on
        Record(tmp_path).check([other, replace(second, epochs=3)])


def test_a_failed_stage_tells_its_last_words_and_is_not_finished(tmp_path: Path) -> None:
    stage = _stage(tmp_path, "import sys; print('the disk is full'); sys.exit(3)")
    with pytest.raises(StageFailed, match=r"code 3.*\n.*the disk is full"):
        _run(stage, tmp_path)
    assert not Record(tmp_path).finished(stage)
    with pytest.raises(StageFailed, match="wrote no"):
        _run(_stage(tmp_path, "pass"), tmp_path)


def test_of_a_user_s_mistake_only_the_sentence_is_told(tmp_path: Path) -> None:
    name = Path(PYTHON).name
    code = f"print('{name} -c: beware'); print('{name} -c: Mend x:'); print('  y'); raise SystemExit(2)"
    with pytest.raises(StageFailed) as told:
        _run(_stage(tmp_path, code), tmp_path)
    assert str(told.value) == "stage one: Mend x:\n  y"
    with pytest.raises(StageFailed, match=r"(?s)code 1\..*Mend x"):  # a crash after a warning is no mistake of the user
        _run(_stage(tmp_path, code.replace("(2)", "(1)")), tmp_path)


def test_two_runs_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunet_synthtumour.stages.TRIES_FOR_LOCK", 1)
    with only_one(tmp_path), pytest.raises(UserError, match="Another 'synthtumour run'"), only_one(tmp_path):
        pass


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "zombie" not in status.read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_a_killed_run_leaves_no_process_behind_not_even_a_worker(tmp_path: Path) -> None:
    worker = "import time; time.sleep(600)"
    code = (f"import os, subprocess, sys, time; w = subprocess.Popen([sys.executable, '-c', {worker!r}]); "
            f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{w.pid}}\\n'); time.sleep(600)")  # fmt: skip
    parent = (f"import os, sys; sys.path.insert(0, {str(Path.cwd())!r})\n"
              "from nnunet_synthtumour.stages import *\nfrom pathlib import Path\n"
              f"out = Path({str(tmp_path)!r})\n"
              f"with only_one(out) as lock: run_stage(Stage('one', 'one', ({PYTHON!r}, '-c', {code!r}), ()), "
              "Record(out), dict(os.environ), print, lock)")  # fmt: skip
    run = subprocess.Popen([PYTHON, "-c", parent])
    pids: list[int] = []
    for _ in range(400):
        text = (tmp_path / "pids").read_text(encoding="utf-8") if (tmp_path / "pids").exists() else ""
        if text.endswith("\n"):
            pids = [int(word) for word in text.split()]
            break
        time.sleep(0.05)
    assert len(pids) == 2
    assert all(map(_alive, pids))
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    with only_one(tmp_path):  # waits until the guard has ended them
        assert not any(map(_alive, pids))


def test_progress_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = RunProgress()
    train = Stage("junior", "junior, fold 0", ("x",), (), epochs=10)
    progress.begin(3, train, [train])
    for line in ("2026-01-01 00:00:00: Epoch 3\n", "2026-01-01 00:00:00: Epoch time: 60.0 s\n"):
        progress.line(line)
    printed = capsys.readouterr().out
    assert "[3/4] junior, fold 0" in printed
    assert "epoch 4 of 10, 60 s each: 6 min left, 16 min with the trainings to come" in printed
    assert [duration(s) for s in (5, 600, 9000)] == ["5 s", "10 min", "2 h 30 min"]
