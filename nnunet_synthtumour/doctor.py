"""What `synthtumour doctor` looks at: each check gives one finding with a pass or a fail and, on a fail, the remedy."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_synthtumour._version import __version__
from nnunet_synthtumour.dataset_folders import PREPROCESSED, RAW, RESULTS

TESTED_PYTHON = ((3, 10), (3, 14))
TESTED_NNUNET = ((2, 8), (3,))
LEAST_FREE_GB = 5.0


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    what: str
    passed: bool
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"[{'pass' if self.passed else 'FAIL'}] {self.what}: {self.text}"
        return line if self.passed or not self.remedy else f"{line}\n       -> {self.remedy}"


def examine() -> list[Finding]:
    """All findings, in the order in which a user would mend them."""
    findings = [*_versions(), *_devices()]
    findings += [_folder(variable) for variable in (RAW, PREPROCESSED, RESULTS)]
    if importlib.util.find_spec("nnunetv2") is not None:
        findings += [*_discovered(), _workers()]
    return findings


def _versions() -> Iterator[Finding]:
    yield Finding("nnunet-synthtumour", True, f"{__version__} in {Path(__file__).parent}")
    low, high = TESTED_PYTHON
    text = f"{platform.python_version()} ({sys.executable})"
    remedy = f"use Python {_dotted(low)} up to, but not including, {_dotted(high)}."
    yield Finding("python", low <= sys.version_info[:2] < high, text, remedy)
    try:
        import torch

        yield Finding("torch", True, torch.__version__)
    except Exception as error:
        yield Finding("torch", False, f"cannot be imported ({error})", "reinstall it with 'pip install torch'.")
    yield _nnunet_version()


def _nnunet_version() -> Finding:
    remedy = "install a tested one with \"pip install 'nnunetv2>=2.8,<3'\"."
    try:
        version = importlib.metadata.version("nnunetv2")
    except importlib.metadata.PackageNotFoundError:
        return Finding("nnunetv2", False, "not installed", remedy)
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    low, high = TESTED_NNUNET
    return Finding(
        "nnunetv2", low <= numbers < high, f"{version}, tested from {_dotted(low)} below {_dotted(high)}", remedy
    )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except Exception:
        return
    names = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    names.append(f"cpu ({os.cpu_count()} cores)")
    hint = (
        "" if len(names) > 1 else "; no GPU: add '-device cpu' to nnU-Net's commands and plan with '-pl SmallPlanner'"
    )
    yield Finding("devices", True, ", ".join(names) + hint)


def _folder(variable: str) -> Finding:
    value = os.environ.get(variable)
    if not value:
        return Finding(variable, False, "not set", f"export {variable}=/a/folder with room for your data.")
    folder = Path(value)
    if not folder.is_dir():
        return Finding(variable, False, f"{folder} is not a folder", f"create it: mkdir -p {shlex.quote(str(folder))}")
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding(variable, False, f"{folder} cannot be written ({error.strerror})", "choose a folder of yours.")
    free = shutil.disk_usage(folder).free / 1e9
    remedy = f"free some space or point {variable} to a larger disk."
    return Finding(variable, free >= LEAST_FREE_GB, f"{folder}, writable, {free:.0f} GB free", remedy)


def _discovered() -> Iterator[Finding]:
    from nnunet_synthtumour.discovery.planners.synthtumour_planners import PLANNERS
    from nnunet_synthtumour.discovery.trainers.synthtumour_trainers import TRAINERS

    for name in TRAINERS:
        yield _found_by_nnunet("trainer", name, _find_trainer, "or export nnUNet_extTrainer=" + str(_ours("trainers")))
    for name in PLANNERS:
        yield _found_by_nnunet(
            "planner", name, _find_planner, "or, for an editable install, 'synthtumour doctor --link'"
        )


def _found_by_nnunet(kind: str, name: str, find: Callable[[str], Any], otherwise: str) -> Finding:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found, where = find(name)
    except Exception as error:
        reason = str(error).split(" (")[0].splitlines()[0][:200] if str(error) else type(error).__name__
        remedy = f"reinstall with 'pip install --force-reinstall --no-deps nnunet-synthtumour' {otherwise}."
        return Finding(f"{kind} {name}", False, f"nnU-Net cannot load it ({reason})", remedy)
    return Finding(f"{kind} {name}", True, f"found by nnU-Net through {where} ({found.__module__})")


def _find_trainer(name: str) -> tuple[Any, str]:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    found = recursive_find_trainer_class_by_name(name)
    inside = next(_nnunet_folder("trainers").glob("*.py"), None) is not None
    return found, "its own package folder" if inside else f"nnUNet_extTrainer={os.environ.get('nnUNet_extTrainer')}"


def _find_planner(name: str) -> tuple[Any, str]:
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = str(Path(nnunetv2.__path__[0]) / "experiment_planning")
    found = recursive_find_python_class(folder, name, "nnunetv2.experiment_planning")
    if found is None:
        raise LookupError("it is in no folder that nnU-Net searches")
    return found, "its own package folder"


def _workers() -> Finding:
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    return Finding("workers", True, f"{get_allowed_n_proc_DA()} processes augment data (nnUNet_n_proc_DA changes that)")


KINDS = {
    "trainers": ("training", "nnUNetTrainer", "variants", "synthtumour"),
    "planners": ("experiment_planning", "experiment_planners", "synthtumour"),
}


def _ours(kind: str) -> Path:
    return Path(__file__).parent / "discovery" / kind


def _nnunet_folder(kind: str) -> Path:
    import nnunetv2

    return Path(nnunetv2.__path__[0]).joinpath(*KINDS[kind])


def link() -> list[str]:
    """Link our discovery modules into nnU-Net's folders, file by file: what a wheel would have installed there.

    Files, not folders: a later `pip install` replaces a linked file, but would write through a linked folder.
    """
    lines = []
    for kind in KINDS:
        target = _nnunet_folder(kind)
        target.mkdir(exist_ok=True)
        for module in sorted(_ours(kind).glob("*.py")):
            place = target / module.name
            if place.exists() and not place.is_symlink():
                lines.append(f"kept {place}: a regular install put it there")
                continue
            place.unlink(missing_ok=True)
            place.symlink_to(module)
            lines.append(f"linked {place}")
    return lines


def unlink() -> list[str]:
    """Undo `link`; files of a regular install stay."""
    lines = []
    for kind in KINDS:
        target = _nnunet_folder(kind)
        for place in sorted(target.glob("*.py")) if target.is_dir() else []:
            if place.is_symlink():
                place.unlink()
                lines.append(f"removed {place}")
        if target.is_dir() and not any(p for p in target.iterdir() if p.name != "__pycache__"):
            shutil.rmtree(target)
    return lines
