from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.planners.deepatlas_planner import DeepAtlasPlanner, DeepAtlasSmallPlanner
from tests.toy_dataset import NAME


@pytest.mark.parametrize("planner", [DeepAtlasPlanner, DeepAtlasSmallPlanner])
def test_the_patch_covers_the_whole_grid_and_the_plans_are_of_the_stock_kind(
    toy: Path, planner: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    planned = planner(NAME).plan_experiment()
    plan = planned["configurations"]["3d_fullres"]
    raw = sitk.ReadImage(str(next((toy / "nnUNet_raw" / NAME / "imagesTr").iterdir())))
    grid = np.array(raw.GetSize()[::-1]) * np.array(raw.GetSpacing()[::-1])
    assert (np.array(plan["patch_size"]) * np.array(plan["spacing"]) >= 0.95 * grid).all()
    assert planned["plans_name"] in ("nnUNetDeepAtlasPlans", "nnUNetDeepAtlasSmallPlans")
    assert plan["preprocessor_name"] == "DefaultPreprocessor"


def test_two_networks_share_the_memory(toy: Path) -> None:
    assert DeepAtlasPlanner(NAME, gpu_memory_target_in_gb=16).UNet_vram_target_GB == 8


def test_images_that_share_no_grid_are_refused(toy: Path, tmp_path: Path) -> None:
    planner = DeepAtlasPlanner(NAME)
    folder = tmp_path / "raw"
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    for i, size in enumerate(((8, 8, 8), (9, 8, 8))):
        for file in (folder / "imagesTr" / f"c{i}_0000.nii.gz", folder / "labelsTr" / f"c{i}.nii.gz"):
            sitk.WriteImage(sitk.GetImageFromArray(np.ones(size, np.uint8)), str(file))
    planner.raw_dataset_folder = str(folder)
    planner.dataset_json = json.loads((toy / "nnUNet_raw" / NAME / "dataset.json").read_text()) | {"numTraining": 2}
    with pytest.raises(Refusal, match="synthtumour align"):
        planner.common_raw_grid()
