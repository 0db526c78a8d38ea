"""Stages that run one after the other, each a command, and a record of them that survives being killed.

A stage counts as finished only when the record says so, its command is the same, its outputs are there and what it was
made from did not run again; everything else is done again, and nnU-Net's own `--c` continues a training.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.file_lock import take_lock
from nnunet_synthtumour.guarded_command import guarded

RECORD, LOCK, LOGS = "run.json", "run.lock", "logs"
LATE = ("pseudolabels", "donors", "senior")  # settings that nothing reads before there are pseudo-labels
WHERE_IT_RUNS = ("-device", "-num_gpus", "-np", "-npfp", "-npp", "-nps")  # options that change no result
TRIES_FOR_LOCK = 80  # a quarter of a second apart
MENDABLE = 2  # what our commands end with on a `UserError`
LAST_WORDS, LONGEST_SENTENCE = 12, 200  # lines; a sentence may list every case that cannot be used


class StageFailed(UserError):
    """A stage's command ended with an error; the text names the command and where its output is."""


@dataclass(frozen=True)
class Stage:
    """A command and the files that must exist once it is finished. `inputs` are recorded, and compared on a re-run: files,
    and folders whose images have these `channels`.

    `after` are keys of stages; when one of them ran again, so does this one. A stage that is `always` run is never done.
    So does it when its `settings` change; their words in its command are no other options.
    `made_of` is recorded; it stands for what a training, which is not done again because of that, is begun with.
    """

    key: str
    title: str
    command: tuple[str, ...]
    outputs: tuple[Path, ...]
    epochs: int = 0  # of a training: how many there are, to say how long it takes
    inputs: tuple[Path, ...] = ()
    channels: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    always: bool = False
    made_of: str = ""


class Record:
    """What was run, when and from what; `run.json` in the output folder."""

    def __init__(self, out: Path) -> None:
        self.file = out / RECORD
        self.stages: dict[str, dict[str, Any]] = {}
        self.about: dict[str, Any] = {}
        if self.file.is_file():
            try:
                kept = json.loads(self.file.read_text(encoding="utf-8"))
                self.stages, self.about = kept["stages"], kept["about"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.file} is damaged, so what is finished is not known; put back a copy of it, or begin anew with "
                    "another -o and -d."
                ) from error

    def save(self) -> None:
        unfinished = self.file.with_suffix(".unfinished")
        with unfinished.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps({"about": self.about, "stages": self.stages}, indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())  # or the new name could be on the disk before the content is
        unfinished.replace(self.file)

    def command(self, key: str, finished: bool = False) -> list[str]:
        """The command that a stage was last run with; empty where it was not run, or not `finished` if that is asked."""
        entry = self.stages.get(key)
        return list(entry["command"]) if entry and (not finished or entry["state"] == "finished") else []

    def stamps(self, keys: Sequence[str]) -> dict[str, Any]:
        """When stages were last begun; another stamp says that one ran again."""
        return {key: self.stages[key].get("stamp") for key in keys if key in self.stages}

    def outdated(self, stage: Stage) -> bool:
        """Whether a stage that was run before was made from what was made anew since, or with other settings."""
        entry = self.stages.get(stage.key, {})
        then = entry.get("after", {})
        if entry and entry.get("settings", []) != list(stage.settings):
            return True
        return any(then[key] != stamp for key, stamp in self.stamps(stage.after).items() if key in then)

    def finished(self, stage: Stage) -> bool:
        """Whether nothing is left to do. Raises `UserError` where the finished work is not what is asked for now."""
        if not self._is_kept(stage):
            return False
        self._compare(stage, stage)
        return all(path.exists() for path in stage.outputs)

    def check(self, stages: Sequence[Stage]) -> None:
        """Raise `UserError` where what will be kept is not what is asked for now, or came of something that is not.

        What a stage made may be gone, for want of space; what a later one made of it still is of those options and files.
        """
        again: set[str] = set()
        for stage in stages:
            if again.intersection(stage.after) or not (self._is_kept(stage) or self.goes_on(stage)):
                again.add(stage.key)
        kept: Stage | None = None
        for stage in reversed(stages):
            kept = kept if stage.key in again else stage
            if kept is not None:
                self._compare(stage, kept)

    def _is_kept(self, stage: Stage) -> bool:
        """Whether what a stage made is there and of what it is to be made from."""
        entry = self.stages.get(stage.key)
        if stage.always or entry is None or entry["state"] != "finished" or self.outdated(stage):
            return False
        return all(Path(path).exists() for path in entry["outputs"])

    def goes_on(self, stage: Stage) -> bool:
        """Whether this is a training that will go on from a checkpoint."""
        entry = self.stages.get(stage.key)
        return bool(stage.epochs and entry and any(Path(entry["outputs"][0]).parent.glob("checkpoint_*.pth")))

    def _compare(self, stage: Stage, kept: Stage) -> None:
        """Complain where a stage, from which `kept` came, was run with other options or files."""
        entry = self.stages.get(stage.key)
        if entry is None:
            return
        why = "" if kept.key == stage.key else f", and '{kept.title}', which came after it, is kept"
        then, now = _what_counts(entry["command"]), _what_counts(stage.command)
        if then != now:
            raise UserError(
                f"{self.file} says that stage '{stage.title}' was run with other options (then {_others(then, now)}, now "
                f"{_others(now, then)}){why}; use the same options, or other folders and ids."
            )
        changed = [path for path, read in _fingerprints(stage).items() if entry["inputs"].get(path) != read]
        if changed:
            raise UserError(
                f"{changed[0]} has changed since stage '{stage.title}' was run{why}; use another -o and -d for the new files."
            )


def _what_counts(command: Sequence[str]) -> list[str]:
    """A command without its program's folder and without what changes no result."""
    words = [Path(command[0]).name, *command[1:]]
    skipped = {
        i + step
        for i, word in enumerate(words)
        if word in WHERE_IT_RUNS or (word == "--set" and is_late(words[i + 1]))
        for step in (0, 1)
    }
    return [word for i, word in enumerate(words) if i not in skipped]


def is_late(assignment: str) -> bool:
    """Whether `KEY=VALUE` is a setting of `LATE`."""
    return assignment.partition("=")[0].partition(".")[0] in LATE


def _others(words: Sequence[str], of: Sequence[str]) -> str:
    """The words that another command lacks."""
    return shlex.join(word for word in words if word not in of) or "without"


def option_of(command: Sequence[str], name: str) -> str | None:
    """What follows an option in a command."""
    return command[command.index(name) + 1] if name in command[:-1] else None


def _fingerprints(stage: Stage) -> dict[str, str]:
    return {str(path): fingerprint(path, stage.channels) for path in stage.inputs}


def fingerprint(path: Path, channels: Sequence[str] = ()) -> str:
    """Names, sizes and times of a file, or of those that the images of a folder are read from, as one short text."""
    import hashlib

    from nnunet_synthtumour.image_folders import image_data_in

    files = image_data_in(path, channels)
    lines = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files if file.exists()]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


@contextmanager
def only_one(out: Path) -> Iterator[int]:
    """Keep a second run out of the same folder; yields the lock's file descriptor, which the stages' guards keep open.

    What a killed run leaves behind ends within seconds, so a second run waits for it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w", encoding="utf-8") as stream:
        for _ in range(TRIES_FOR_LOCK):
            if take_lock(stream):
                break
            time.sleep(0.25)
        else:
            raise UserError(f"Another 'synthtumour run' is at work in {out}; wait for it or stop it.")
        yield stream.fileno()


def _sentence(command: Sequence[str], last: Sequence[str]) -> str | None:
    """What a command of ours says about a mistake that the user can mend, None where it says nothing of the kind."""
    name, lines = f"{Path(command[0]).name} {command[1]}: ", list(last)
    begins = [i for i, line in enumerate(lines) if line.startswith(name)]
    return "\n".join(lines[begins[-1] :]).removeprefix(name) if begins else None


def run_stage(
    stage: Stage, record: Record, environment: Mapping[str, str], on_line: Callable[[str], None], lock: int
) -> None:
    """Run a stage's command with its output in a log file, line by line also to `on_line`; record begin and end."""
    logs = record.file.parent / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{stage.key}.log"
    begun = time.time()
    entry: dict[str, Any] = {
        "title": stage.title,
        "command": list(stage.command),
        "inputs": _fingerprints(stage),
        "outputs": [str(path) for path in stage.outputs],
        "after": record.stamps(stage.after),
        "settings": list(stage.settings),
        "made_of": stage.made_of,
        "stamp": begun,
        "state": "started",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(begun)),
        "log": str(log),
    }
    record.stages[stage.key] = entry
    record.save()
    last: deque[str] = deque(maxlen=LONGEST_SENTENCE)
    with (
        log.open("a", encoding="utf-8") as to,
        guarded(stage.command, {**environment, "PYTHONUNBUFFERED": "1"}, [lock]) as process,
    ):
        to.write(f"$ {shlex.join(stage.command)}\n")
        assert process.stdout is not None
        for line in process.stdout:
            to.write(line)
            to.flush()
            last.append(line.rstrip())
            on_line(line)
        code = process.wait()
    absent = [path for path in stage.outputs if not path.exists()]
    if code != 0 or absent:
        sentence = _sentence(stage.command, last) if code == MENDABLE else None
        if sentence is not None:
            raise StageFailed(f"{stage.title}: {sentence}")
        why = f"ended with code {code}" if code else f"wrote no {absent[0]}"
        said = "\n".join(f"  | {line}" for line in list(last)[-LAST_WORDS:] if line)
        raise StageFailed(f"{shlex.join(stage.command)} {why}. Its last words (all of them: {log}):\n{said}")
    entry |= {
        "state": "finished",
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "seconds": round(time.time() - begun, 1),
    }
    record.save()
