"""Files that are there completely or not at all, whoever is killed when."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.file_lock import take_lock

LOCK = "writing.lock"


@contextmanager
def complete(file: Path) -> Iterator[Path]:
    """A path of the same ending beside `file` to write to; it takes the name of `file` when all went well."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{os.getpid()}.{file.name}")
    try:
        yield scratch
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a second run out of a folder: it would remove what this one has begun to write."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w", encoding="utf-8") as stream:
        if not take_lock(stream):
            raise UserError(
                f"Another process is writing to {folder}; wait for it or stop it, or choose another folder."
            )
        yield


def is_empty(folder: Path) -> bool:
    """Whether there is nothing in a folder but our lock, or no folder."""
    return not folder.exists() or all(file.name == LOCK for file in folder.iterdir())


def forget_unfinished(folder: Path) -> None:
    """Remove what killed runs left in a folder of ours and below: nnU-Net takes hidden images for cases.

    For who is alone in it, before the work.
    """
    for scratch in folder.rglob(".[0-9]*.*"):
        if scratch.is_file():
            scratch.unlink(missing_ok=True)


def write_json(value: Any, file: Path) -> None:
    with complete(file) as scratch:
        scratch.write_text(json.dumps(value, indent=1), encoding="utf-8")


def read_json(file: Path) -> Any:
    """The content of a JSON file, None where there is none or it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        with complete(target) as scratch:
            shutil.copyfile(source, scratch)
