"""Data sets whose cases do not share a space, for the tests of `synthtumour align`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.settings import BLOCK
from tests.registration.test_affine_alignment import drawn, moved, rigid

SOURCE, TARGET = "Dataset010_Apart", "Dataset011_Together"


def write_case(folder: Path, name: str, image: sitk.Image, channels: int = 1) -> None:
    labels = sitk.Cast(image > 125, sitk.sitkUInt8)
    for channel in range(channels):
        sitk.WriteImage(image * (channel + 1), str(folder / "imagesTr" / f"{name}_{channel:04d}.nii.gz"))
    sitk.WriteImage(labels, str(folder / "labelsTr" / f"{name}.nii.gz"))


def write_source(root: Path, dims: int = 3, channels: int = 1, cases: int = 4) -> Path:
    folder = root / "nnUNet_raw" / SOURCE
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for i in range(cases):
        image = drawn(dims)
        write_case(folder, f"c{i}", moved(image, rigid(image, 7.0 * i, 3.0 * i)), channels)
    roles = {f"c{i}": "unlabelled" if i == 3 else "labelled" for i in range(cases)}
    dataset_json = {
        "channel_names": {str(c): f"MR{c}" for c in range(channels)},
        "labels": {"background": 0, "core": 1, "ignore": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        BLOCK: {"roles": roles, "training": {"seed": 3}},
    }
    (folder / "dataset.json").write_text(json.dumps(dataset_json), encoding="utf-8")
    return folder


def align(*more: str) -> int:
    return main(["align", "-i", "10", "-o", "11_Together", "-np", "1", *more])


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def labels_of(folder: Path, case: str) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / f"{case}.nii.gz")))


def shifted(file: Path, mm: float) -> None:
    image = sitk.ReadImage(str(file))
    image.SetOrigin([o + mm for o in image.GetOrigin()])
    sitk.WriteImage(image, str(file))
