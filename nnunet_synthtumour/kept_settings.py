"""What a user set in a data set outlives that a command makes this data set anew from another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_synthtumour.dataset_folders import read_dataset_json
from nnunet_synthtumour.settings import BLOCK, settings_of

PER_CASE = ("roles", "hosts", "intensities")  # found by commands, case by case


def own_settings(folder: Path) -> dict[str, Any] | None:
    """The block of the data set in `folder` without what is found per case; None where there is no data set yet."""
    if not (folder / "dataset.json").is_file():
        return None
    dataset_json, _ = read_dataset_json(folder)
    settings_of(dataset_json)  # a mistake in the block shall show before the work, not after it
    return without_cases(dataset_json.get(BLOCK) or {})


def without_cases(block: dict[str, Any]) -> dict[str, Any]:
    """A block's settings alone."""
    return {key: value for key, value in block.items() if key not in PER_CASE}


def changed_since(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, block by block, that are in `now` and were not so `then`."""
    changed = {}
    for key, value in now.items():
        before = then.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping) and value and before != value:
            changed[key] = changed_since(before, value)
        elif before != value:
            changed[key] = value
    return changed
