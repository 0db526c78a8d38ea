"""Carrying labels to many targets: each rank its share, a killed run goes on, and the folder appears when it is complete."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from nnunet_synthtumour.atomic_files import complete
from nnunet_synthtumour.trainers.carried_labels import REPORT, is_complete, write_report

MARK = "begun.json"
EACH = "each"  # in a mark: what every target's labels depend on beside the rest of the mark


def carry_to_all(
    folder: Path,
    targets: Sequence[str],
    mark: dict[str, Any],
    carry: Callable[[str, Path], dict[str, Any]],
    rank: int = 0,
    ranks: int = 1,
    draw: Callable[[Path, list[dict[str, Any]]], None] | None = None,
    files: Callable[[str], Sequence[str]] = lambda target: (),
) -> None:
    """`carry(target, scratch)` writes a target's `files` and returns its row of the report, and `draw(scratch, rows)` what
    is shown of all. What an earlier run with the same `mark` finished is kept, be it some targets or all; of one whose
    mark differs in what targets depend on one by one (`EACH`), those for which it is the same."""
    scratch = folder.with_name(f".{folder.name}")
    if rank == 0:
        _begin(folder, scratch, mark, files)
    _wait(ranks)
    if not scratch.is_dir():
        return
    for target in tqdm(targets[rank::ranks], desc="Labels carried", unit="target", disable=rank != 0):
        file = scratch / f"{target}.json"
        if not file.is_file():
            _note(file, carry(target, scratch))
    _wait(ranks)
    if rank == 0:
        of_rows = [scratch / f"{target}.json" for target in targets]
        rows = [json.loads(file.read_text(encoding="utf-8")) for file in of_rows]
        write_report(scratch, mark, rows)
        if draw is not None:
            draw(scratch, rows)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.replace(folder)
        for file in (*of_rows, scratch / MARK):  # until now, a run that is killed has all it needs to go on
            (folder / file.name).unlink()
    _wait(ranks)


def digest(state: dict[str, Tensor]) -> str:
    """Of a network's weights: labels that another network carried are not this one's."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode() + state[name].detach().cpu().contiguous().flatten().numpy().tobytes())
    return found.hexdigest()


def digest_of(cases: Any, names: Sequence[str]) -> str:
    """Of the images and labels of some of the `cases`: what was carried from others is not theirs."""
    found = hashlib.sha256()
    for name in names:
        for part in cases[name]:
            found.update(f"{name} {tuple(part.shape)}".encode() + part.contiguous().numpy().tobytes())
    return found.hexdigest()


def _begin(folder: Path, scratch: Path, mark: dict[str, Any], files: Callable[[str], Sequence[str]]) -> None:
    """`scratch` with the targets that are done; none where all of them are, in `folder`."""
    file, wanted = scratch / MARK, json.loads(json.dumps(mark))
    done = is_complete(folder, mark)
    if not done and file.is_file() and _goes_on(scratch, wanted, files):
        return
    shutil.rmtree(scratch, ignore_errors=True)
    if done:
        return
    scratch.mkdir(parents=True)
    for row in _still_right(folder, wanted):
        for name in files(row["case"]):
            shutil.copyfile(folder / name, scratch / name)
        _note(scratch / f"{row['case']}.json", row)
    _note(file, wanted)  # last: a run that is killed while it copies copies again


def _goes_on(scratch: Path, wanted: dict[str, Any], files: Callable[[str], Sequence[str]]) -> bool:
    """Whether what a killed run has done is still right, but for the targets that have changed, which it forgets."""
    file = scratch / MARK
    begun = json.loads(file.read_text(encoding="utf-8"))
    before, now = begun.get(EACH, {}), wanted.get(EACH, {})
    if {**begun, EACH: now} != {**wanted, EACH: now}:
        return False
    for case in before:
        if now.get(case) != before[case]:
            for name in (f"{case}.json", *files(case)):
                (scratch / name).unlink(missing_ok=True)
    _note(file, wanted)
    return True


def _note(file: Path, content: dict[str, Any]) -> None:
    """That a target is done, or what for."""
    with complete(file) as unfinished:
        unfinished.write_text(json.dumps(content), encoding="utf-8")


def _still_right(folder: Path, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the targets in `folder` for which nothing has changed."""
    if not (EACH in wanted and is_complete(folder)):
        return []
    written = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    rows, before, now = written.pop("cases"), written.get(EACH, {}), wanted[EACH]
    if {**written, EACH: now} != wanted:
        return []
    return [row for row in rows if row["case"] in now and now[row["case"]] == before.get(row["case"])]


def _wait(ranks: int) -> None:
    if ranks > 1:
        dist.barrier()
