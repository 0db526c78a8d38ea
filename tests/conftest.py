"""One thread per test process, nnU-Net folders of its own for every test that asks, and a small raw data set."""

from __future__ import annotations

import os
from pathlib import Path

for variable in list(os.environ):  # a user's own folders and settings are no test's business
    if variable.startswith(("nnUNet_", "SYNTHTUMOUR_")):
        del os.environ[variable]
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # nnU-Net's commands compute on all cores, beside other tests
os.environ["nnUNet_n_proc_DA"] = "1"  # 0 (no worker) crashes nnU-Net's planner; tests of trainers set it
os.environ["nnUNet_def_n_proc"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings as hypothesis_settings

torch.set_num_threads(1)
hypothesis_settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
hypothesis_settings.load_profile("house")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test that draws without a seed draws the same, whatever ran before it."""
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Empty `nnUNet_raw`, `nnUNet_preprocessed` and `nnUNet_results`, exported to this process and its children."""
    folders = {name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for name, folder in folders.items():
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    return folders


from tests.toy_dataset import toy, toy_root, two  # noqa: F401 - fixtures for every test
