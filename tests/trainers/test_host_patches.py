import json
from pathlib import Path
from types import SimpleNamespace
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


class _OneCase:
    """An image of 30^3 voxels whose host is a small box."""

    identifiers = ("case",)

    def __init__(self, low: tuple[int, ...], high: tuple[int, ...]) -> None:
        self.seg = np.zeros((1, 30, 30, 30), np.int16)
        self.seg[(0, *(slice(a, b) for a, b in zip(low, high, strict=True)))] = IGNORE

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        properties = {"bbox_used_for_cropping": [(0, 30)] * 3, "shape_after_cropping_and_before_resampling": (30,) * 3}
        return self.seg.astype(np.float32), self.seg, None, properties


def _corners(low: tuple[int, ...], high: tuple[int, ...], size: int, crop: int) -> np.ndarray:
    """Where patches begin that are sought in the host."""
    labels = SimpleNamespace(has_ignore_label=True, all_labels=[0, 1])
    loader = HostPatchLoader(_OneCase(low, high), 1, (size,) * 3, (crop,) * 3, labels, healthy={"case"},
                             ignore_label=IGNORE)  # fmt: skip
    np.random.seed(0)
    return np.stack([low - loader.patch_at("case", True, False)["host_box"][:, 0] for _ in range(40)]).astype(int)


@pytest.mark.parametrize(("size", "crop"), [(8, 8), (14, 8)])
def test_the_middle_of_a_patch_lies_in_the_host(size: int, crop: int) -> None:
    low, high = (20, 7, 14), (23, 9, 17)
    middles = _corners(low, high, size, crop) + size // 2
    assert (middles >= low).all() and (middles < high).all()
    assert len(np.unique(middles, axis=0)) > 5


@pytest.mark.parametrize(("size", "crop"), [(8, 8), (14, 8), (30, 30), (40, 30), (34, 34), (46, 34)])
def test_the_crop_lies_within_the_image_or_shows_all_of_it(size: int, crop: int) -> None:
    for low, high in (((27, 0, 14), (30, 3, 17)), ((0, 28, 0), (3, 30, 2))):
        begins = _corners(low, high, size, crop) + (size - crop) // 2
        assert (begins >= min(0, (30 - crop) // 2)).all()
        assert (begins + crop <= max(30, 30 + (crop - 30) // 2)).all()
