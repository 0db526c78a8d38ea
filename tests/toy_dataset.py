"""A preprocessed toy data set that the tests of trainers share: healthy balls with texture, planned by TinyPlanner."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_synthtumour.settings import BLOCK

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
NAME = "Dataset001_Toy"
IGNORE = 2


def _case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (Z, Y, X) and host mask of a ball of two tissues."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1.1, 1.1, n) for n in (26, 30, 24)], indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    host = radius < 1
    image = np.where(host, 100 + 40 * (radius < 0.7) + generator.normal(0, 6, host.shape), 0)
    return image.astype(np.float32), host


def _write(array: np.ndarray, file: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((3.0, 3.0, 3.0))
    sitk.WriteImage(image, str(file))


def write_raw(folder: Path, healthy: int, labelled: int, settings: dict[str, Any]) -> None:
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    roles = {}
    for i in range(healthy + labelled):
        name = f"case_{i:03d}"
        image, host = _case(i)
        label = np.where(host, IGNORE, 0)
        if i >= healthy:
            tumour = np.zeros_like(host)
            tumour[10:16, 12:19, 8:14] = True
            image[tumour] *= 1.8
            label = tumour.astype(int)
        roles[name] = "healthy" if i < healthy else "labelled"
        _write(image, folder / "imagesTr" / f"{name}_0000.nii.gz")
        _write(label.astype(np.uint8), folder / "labelsTr" / f"{name}.nii.gz")
    dataset_json = {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "tumour": 1, "ignore": IGNORE},
        "numTraining": healthy + labelled,
        "file_ending": ".nii.gz",
        BLOCK: {"roles": roles, **settings},
    }
    (folder / "dataset.json").write_text(json.dumps(dataset_json), encoding="utf-8")


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with nnU-Net's three; six healthy and two labelled cases, preprocessed for 3d_fullres and 2d."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    root = tmp_path_factory.mktemp("toy")
    before = {name: os.environ.get(name) for name in FOLDERS}
    for name in FOLDERS:
        (root / name).mkdir()
        os.environ[name] = str(root / name)
    write_raw(root / "nnUNet_raw" / NAME, 6, 2, {"validation": {"patches": 6}, "training": {"seed": 1}})
    extract_fingerprints([1], num_processes=1, show_progress_bar=False)
    plan_experiments([1], "TinyPlanner")
    preprocess([1], "nnUNetTinyPlans", ["3d_fullres", "2d"], [1, 1], show_progress_bar=False)
    yield root
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture
def toy(toy_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy data set with a results folder of the test's own; no worker processes."""
    for name in FOLDERS:
        monkeypatch.setenv(name, str(toy_root / name))
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    (toy_root / "nnUNet_preprocessed" / NAME / "splits_final.json").unlink(missing_ok=True)
    return toy_root


@pytest.fixture
def two(toy: Path) -> Path:
    """The toy data set as the target, and its labelled cases once more as a data set of their own: the source."""
    source = toy / "nnUNet_preprocessed" / "Dataset002_Source"
    if not source.exists():
        shutil.copytree(source.with_name(NAME), source)
        file = source / "dataset.json"
        dataset_json = json.loads(file.read_text(encoding="utf-8"))
        dataset_json["synthtumour"]["roles"] = {"case_006": "labelled", "case_007": "labelled"}
        file.write_text(json.dumps(dataset_json), encoding="utf-8")
    return toy


def make_trainer(
    toy: Path,
    trainer: type,
    configuration: str = "3d_fullres",
    fold: int | str = 0,
    resume: bool = False,
    **settings: Any,
) -> Any:
    """A trainer of the toy data set whose settings block is changed by `settings`."""
    from nnunet_synthtumour.settings import with_settings

    folder = toy / "nnUNet_preprocessed" / NAME
    plans = json.loads((folder / "nnUNetTinyPlans.json").read_text(encoding="utf-8")) | {"continue_training": resume}
    dataset_json = with_settings(json.loads((folder / "dataset.json").read_text(encoding="utf-8")), settings)
    return trainer(plans, configuration, fold, dataset_json, torch.device("cpu"))
