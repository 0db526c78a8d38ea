"""`synthtumour prepare` as the tests of its results call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnunet_synthtumour.cli import main


def prepare(*arguments: object, number: int = 100) -> int:
    return main(["prepare", "-d", str(number), "-n", "Test", "-np", "1", *map(str, arguments)])


def dataset(folders: dict[str, Path]) -> tuple[Path, dict[str, Any]]:
    target = folders["nnUNet_raw"] / "Dataset100_Test"
    return target, json.loads((target / "dataset.json").read_text(encoding="utf-8"))
