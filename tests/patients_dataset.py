"""A preprocessed toy data set of healthy and unlabelled cases with a junior that was trained on it for a moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunet_synthtumour.settings import BLOCK
from tests.toy_dataset import FOLDERS, NAME, make_trainer, write_raw

UNLABELLED = ("case_004", "case_005", "case_006")


@pytest.fixture(scope="module")
def trained_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net's three folders: four healthy cases, three patients with a bright tumour, and a trained junior (fold 0)."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer

    root = tmp_path_factory.mktemp("patients")
    before = {name: os.environ.get(name) for name in (*FOLDERS, "nnUNet_n_proc_DA")}
    for name in FOLDERS:
        (root / name).mkdir()
        os.environ[name] = str(root / name)
    raw = root / "nnUNet_raw" / NAME
    training = {"seed": 1, "host_centred": 1.0, "healthy_patches": 0.2, "initial_lr": 0.02, "bfloat16": False}
    lesion = {
        "preset": "paper",
        "overrides": {"shape": {"volume_ml": [2, 8]}, "contrast": {"whole": {"*": {"factor": [1.6, 2]}}}},
    }
    write_raw(raw, 4, 3, {"training": training, "lesion": lesion, "validation": {"patches": 2}})
    _forget_labels(raw)
    extract_fingerprints([1], num_processes=1, show_progress_bar=False)
    plan_experiments([1], "TinyPlanner")
    preprocess([1], "nnUNetTinyPlans", ["3d_fullres"], [1], show_progress_bar=False)
    os.environ["nnUNet_n_proc_DA"] = "0"
    trainer = make_trainer(root, SynthTumourTrainer)
    trainer.num_epochs, trainer.num_iterations_per_epoch = 2, 40
    trainer.run_training()
    yield root
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _forget_labels(raw: Path) -> None:
    """Turn the labelled cases into unlabelled ones, as `synthtumour prepare` writes them."""
    import numpy as np
    import SimpleITK as sitk

    dataset_json = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    for case in UNLABELLED:
        image = sitk.ReadImage(str(raw / "imagesTr" / f"{case}_0000.nii.gz"))
        labels = sitk.GetImageFromArray(np.where(sitk.GetArrayFromImage(image) != 0, 2, 0).astype(np.uint8))
        labels.CopyInformation(image)
        sitk.WriteImage(labels, str(raw / "labelsTr" / f"{case}.nii.gz"))
        dataset_json[BLOCK]["roles"][case] = "unlabelled"
    (raw / "dataset.json").write_text(json.dumps(dataset_json), encoding="utf-8")
