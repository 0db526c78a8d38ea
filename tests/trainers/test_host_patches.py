import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_synthtumour.donor_cutting import build_bank
from nnunet_synthtumour.mixing import PasteTumour
from nnunet_synthtumour.settings import DonorSettings
from nnunet_synthtumour.trainers.host_patches import HostPatchLoader
from tests.toy_dataset import IGNORE, NAME

HEALTHY, PATIENTS = ["case_000", "case_001"], ["case_006", "case_007"]


def _loader(toy: Path, configuration: str, patch: tuple[int, ...]) -> tuple[HostPatchLoader, Any, Path]:
    folder = toy / "nnUNet_preprocessed" / NAME
    plans = PlansManager(json.loads((folder / "nnUNetTinyPlans.json").read_text(encoding="utf-8")))
    of = plans.get_configuration(configuration)
    cases = folder / of.data_identifier
    data = infer_dataset_class(str(cases))(str(cases), HEALTHY)
    manager = plans.get_label_manager(json.loads((folder / "dataset.json").read_text(encoding="utf-8")))
    return HostPatchLoader(data, 2, patch, patch, manager, healthy=set(HEALTHY), ignore_label=IGNORE), of, cases


@pytest.mark.parametrize(("configuration", "patch"), [("3d_fullres", (12, 12, 12)), ("2d", (12, 12))])
def test_a_patch_says_where_it_lies(toy: Path, configuration: str, patch: tuple[int, ...]) -> None:
    loader, _, cases = _loader(toy, configuration, patch)
    seg = infer_dataset_class(str(cases))(str(cases), HEALTHY).load_case("case_000")[1][:][0]
    host = np.argwhere(seg == IGNORE)
    np.random.seed(0)
    for in_host in (True, True, False):
        sample = loader.patch_at("case_000", in_host, False)
        size = sample["host_box"][:, 1] - sample["host_box"][:, 0]
        assert np.array_equal(size, host.max(0) + 1 - host.min(0))
        corner = (host.min(0) - sample["host_box"][:, 0]).astype(int)  # of the patch in the case
        shape = (1, *patch) if len(patch) == 2 else patch
        for at in np.ndindex(*shape):
            there = corner + at
            if all(0 <= v < n for v, n in zip(there, seg.shape, strict=True)):
                assert sample["segmentation"][0].reshape(shape)[at] == seg[tuple(there)]


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_the_papers_place_is_that_in_the_raw_images(toy: Path, tmp_path: Path, configuration: str) -> None:
    """The toy tumours fill the same voxels of every raw image, cropped and resampled as nnU-Net wants."""
    patch = (40, 40, 40) if configuration == "3d_fullres" else (40, 40)
    loader, of, cases = _loader(toy, configuration, patch)
    settings = DonorSettings(probability=1.0, placement="paper", smallest_ml=1.0)
    bank = build_bank(cases, PATIENTS, tmp_path, settings, labels=[1], ignore_label=IGNORE, spacing=of.spacing)
    paste = PasteTumour(bank, settings, of.spacing, IGNORE)
    np.random.seed(1)
    found = 0
    for _ in range(12):
        sample = loader.patch_at("case_001", True, False)
        raw_corner = sample["raw_corner"]
        at = np.argwhere((paste(**sample)["segmentation"][0] == 1).numpy())
        if len(at):
            found += 1
            middle_mm = (at.mean(0) + 0.5 - raw_corner[-at.shape[1] :]) * of.spacing
            assert middle_mm == pytest.approx((3 * np.array([13, 15.5, 11]))[-at.shape[1] :], abs=2.5)
    assert found
