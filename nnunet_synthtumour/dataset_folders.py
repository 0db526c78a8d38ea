"""Where nnU-Net keeps a data set, from the id, name or file that a user gives."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_synthtumour.errors import UserError

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"


def nnunet_folder(variable: str) -> Path:
    """The folder that an nnU-Net environment variable names; raises `UserError` when it is unset or absent."""
    value = os.environ.get(variable)
    if not value:
        raise UserError(f"The environment variable {variable} is not set; export {variable}=/a/folder first.")
    folder = Path(value)
    if not folder.is_dir():
        raise UserError(
            f"{variable} points to {folder}, which is not a folder; create it: mkdir -p {shlex.quote(value)}"
        )
    return folder


def dataset_name(id_or_name: str | int) -> str:
    """`100`, `"100"` or `"Dataset100_Glioma"` -> `"Dataset100_Glioma"`, looked up in all three nnU-Net folders."""
    text = str(id_or_name)
    folders = [Path(os.environ[v]) for v in (RAW, PREPROCESSED, RESULTS) if os.environ.get(v)]
    if not folders:
        nnunet_folder(RAW)
    names = sorted({p.name for folder in folders if folder.is_dir() for p in folder.glob("Dataset[0-9][0-9][0-9]_*")})
    if text.isdigit():
        found = [name for name in names if name.startswith(f"Dataset{int(text):03d}_")]
        if len(found) > 1:
            raise UserError(f"Data set id {text} is not unique: {', '.join(found)}; give the full name or remove one.")
    else:
        found = [name for name in names if name == text]
    if not found:
        known = ", ".join(names) or "none"
        raise UserError(f"There is no data set {text}; known data sets: {known}.")
    return found[0]


def read_dataset_json(id_name_or_file: str | int | Path) -> tuple[dict[str, Any], Path]:
    """`dataset.json` and where it lies: the raw one (which users edit) if it exists, else the preprocessed one."""
    file, found = next(iter(dataset_jsons(id_name_or_file).items()))
    return found, file


def dataset_jsons(id_name_or_file: str | int | Path) -> dict[Path, dict[str, Any]]:
    """Every copy of a data set's `dataset.json`, the raw one (which users edit) first, then nnU-Net's preprocessed one."""
    given = Path(str(id_name_or_file))
    if given.suffix == ".json" or given.is_dir():
        candidates = [given / "dataset.json" if given.is_dir() else given]
    else:
        name = dataset_name(str(id_name_or_file))
        candidates = [Path(os.environ[v]) / name / "dataset.json" for v in (RAW, PREPROCESSED) if os.environ.get(v)]
    found = {}
    for file in candidates:
        if file.is_file():
            try:
                found[file] = json.loads(file.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise UserError(f"{file} is not valid JSON (line {error.lineno}: {error.msg}); mend it.") from error
    if not found:
        raise UserError(f"There is no dataset.json at {candidates[0]}; is this the folder of a raw nnU-Net data set?")
    return found


def channels_of(dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a data set's channels, in their order; nnU-Net's first version called them modality."""
    names = dataset_json.get("channel_names") or dataset_json.get("modality") or {}
    return tuple(names[key] for key in sorted(names, key=int))


def raw_files(folder: Path, dataset_json: dict[str, Any], case: str) -> tuple[tuple[Path, ...], Path]:
    """The images of a case, one per channel, and its label map: where `dataset.json` says, or by nnU-Net's names."""
    if "dataset" in dataset_json:
        entry = dataset_json["dataset"][case]
        listed = [folder / os.path.expandvars(file) for file in (*entry["images"], entry["label"])]
        return tuple(listed[:-1]), listed[-1]
    ending = dataset_json["file_ending"]
    channels = range(len(dataset_json["channel_names"]))
    images = tuple(folder / "imagesTr" / f"{case}_{channel:04d}{ending}" for channel in channels)
    return images, folder / "labelsTr" / f"{case}{ending}"
