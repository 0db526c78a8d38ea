"""Imports point one way: see docs/architecture.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "nnunet_synthtumour"
FOLDERS = {
    "core": ROOT / PACKAGE,
    "trainers": ROOT / "trainers",
    "planners": ROOT / "planners",
    "registration": ROOT / "registration",
}
# `commands` (the command line) and `pipeline` stand on top: they may start anything.
TOP = ("commands/", "pipeline.py", "doctor.py")
NOT_TO_BE_IMPORTED_BY = {
    "registration": ("core", "trainers", "planners"),
    "planners": ("trainers",),
    "core": ("trainers", "planners"),
}
# What registration may not know: the trainers and the core; its own sub-package has the core's name as a prefix.


def _imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == PACKAGE}


def _part(name: str) -> str:
    second = name.split(".")[1] if "." in name else ""
    return second if second in FOLDERS else "core"


FILES = [(part, file) for part, folder in FOLDERS.items() for file in sorted(folder.rglob("*.py"))]


@pytest.mark.parametrize(("part", "file"), FILES, ids=[str(f.relative_to(ROOT)) for _, f in FILES])
def test_imports_point_one_way(part: str, file: Path) -> None:
    inside = file.relative_to(FOLDERS[part]).as_posix()
    if part == "core" and inside.startswith(TOP):
        return
    wrong = {name for name in _imported(file) if _part(name) in NOT_TO_BE_IMPORTED_BY.get(part, ())}
    assert wrong == set()


def test_discovery_modules_import_nothing_at_the_top() -> None:
    for file in (ROOT / PACKAGE / "discovery").rglob("*.py"):
        top = [
            node
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        assert top == [], file


def test_no_file_is_named_for_nothing() -> None:
    names = {file.name for _, file in FILES}
    assert names.isdisjoint({"utils.py", "helpers.py", "common.py", "misc.py"})
