from __future__ import annotations

import json
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.junior_model import Junior
from nnunet_synthtumour.model_export import export
from nnunet_synthtumour.settings import BLOCK
from tests.patients_dataset import trained_root  # noqa: F401 - a fixture
from tests.toy_dataset import FOLDERS, NAME

WHAT = ["export", "-d", "1", "-p", "nnUNetTinyPlans"]
INSIDE = f"{NAME}/nnUNetTrainer__nnUNetTinyPlans__3d_fullres"
WITHOUT_US = """
import sys, numpy as np, torch
sys.modules["nnunet_synthtumour"] = None  # importing it now fails, as where it is not installed
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
install_model_from_zip_file(sys.argv[1])
predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(sys.argv[2], None)
image = torch.from_numpy(np.load(sys.argv[3]))
np.save(sys.argv[4], predictor.predict_logits_from_preprocessed_data(image).numpy())
"""


@pytest.fixture
def root(trained_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    for name in FOLDERS:
        monkeypatch.setenv(name, str(trained_root / name))
    return trained_root


def test_a_machine_without_this_package_predicts_the_same(root: Path, tmp_path: Path) -> None:
    file, elsewhere = tmp_path / "model.zip", tmp_path / "elsewhere"
    assert main([*WHAT, "-o", str(file)]) == 0
    elsewhere.mkdir()
    image = np.random.default_rng(0).normal(size=(1, 30, 32, 28)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    environment = {
        "PATH": "/usr/bin:/bin",
        "nnUNet_results": str(elsewhere),
        "nnUNet_raw": "",
        "nnUNet_preprocessed": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, str(file), str(elsewhere / INSIDE), str(tmp_path / "image.npy"),
         str(tmp_path / "logits.npy")],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = Junior.find("1", "SynthTumourTrainer", "nnUNetTinyPlans", "3d_fullres", None, "checkpoint_best.pth")
    here = model.predictor("cpu").predict_logits_from_preprocessed_data(torch.from_numpy(image)).numpy()
    there = np.load(tmp_path / "logits.npy")
    assert here.shape == there.shape
    assert np.allclose(here.astype(np.float32), there.astype(np.float32), atol=0.05)


def test_no_settings_and_no_names_of_cases_leave_the_house(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.zip"
    assert main([*WHAT, "-o", str(file)]) == 0
    with zipfile.ZipFile(file) as archive:
        said = b"".join(archive.read(name) for name in archive.namelist())
        about = json.loads(archive.read(f"{INSIDE}/dataset.json"))
        names = [name for name in archive.namelist() if name.endswith(".pth")]
        archive.extract(names[0], tmp_path)
    model = Junior.find("1", "SynthTumourTrainer", "nnUNetTinyPlans", "3d_fullres", None, "checkpoint_best.pth")
    cases = model.dataset_json[BLOCK]["roles"]
    assert cases and not [name for name in (*cases, str(root)) if name.encode() in said]
    assert BLOCK not in about and about["labels"]["tumour"] == 1
    checkpoint = torch.load(tmp_path / names[0], weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert "optimizer_state" not in checkpoint and BLOCK not in checkpoint["init_args"]["dataset_json"]


def test_files_that_lie_elsewhere_are_not_named(tmp_path: Path) -> None:
    dataset_json = {
        "channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO", "description": "of the patients of Ward_7",
        "dataset": {"Ward_7_Smith": {"images": ["/clinic/Ward_7_Smith.nii.gz"], "label": "/clinic/Ward_7_Smith_l.nii.gz"}},
    }  # fmt: skip
    folder = tmp_path / "Dataset001_A" / "DeepAtlasTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text("{}", encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(dataset_json), encoding="utf-8")
    checkpoint = {"network_weights": {}, "init_args": {"dataset_json": dataset_json, "plans": {}},
                  "inference_allowed_mirroring_axes": None, "current_epoch": 1}  # fmt: skip
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_best.pth")
    export(Junior(folder, ("0",), "checkpoint_best.pth", {}, "3d_fullres"), tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert len(archive.namelist()) == 3
        assert not [name for name in archive.namelist() if b"Ward_7" in archive.read(name)]
        inside = json.loads(archive.read("Dataset001_A/nnUNetTrainer__nnUNetPlans__3d_fullres/dataset.json"))
    assert {**dataset_json, **inside} == dataset_json and "overwrite_image_reader_writer" in inside


def test_what_is_printed_can_be_given_to_a_shell(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a model.zip"
    assert main([*WHAT, "-o", str(file)]) == 0
    install, predict = capsys.readouterr().out.splitlines()[1:]
    assert shlex.split(install) == ["nnUNetv2_install_pretrained_model_from_zip", str(file)]
    assert predict.startswith("nnUNetv2_predict -d Dataset001_Toy -p nnUNetTinyPlans -c 3d_fullres -f 0 -i IN -o OUT")


def test_mistakes_are_one_sentence(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WHAT, "-o", str(tmp_path / "model.tar")]) == 2
    assert "does not end with .zip" in capsys.readouterr().err
    assert main([*WHAT, "-o", str(tmp_path / "model.zip"), "-f", "4"]) == 2
    assert "train that model first" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
