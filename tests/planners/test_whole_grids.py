"""Whole grids and half of the memory target, on data sets of which only the fingerprint exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.planners.coarsening import STEP, coarsened
from nnunet_synthtumour.planners.deepatlas_planner import DeepAtlasPlanner, DeepAtlasSmallPlanner
from tests.planners.forged_dataset import forge

Sides = tuple[int, int, int]
Spacing = tuple[float, float, float]


def _planner(
    folders: dict[str, Path], shape: Sides, spacing: Spacing, kind: type[Any] = DeepAtlasPlanner, **kwargs: Any
) -> Any:
    forge(folders, [round(0.9 * n) for n in shape], spacing)  # what nnU-Net's crop would leave
    planner = kind(1, **kwargs)
    planner.common_raw_grid = lambda: (np.array(shape), np.array(spacing))
    return planner


def _estimate(plan: dict[str, Any]) -> float:
    """Voxels in the feature maps of one sample of a plan's patch, by nnU-Net."""
    architecture = plan["architecture"]
    network: Any = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"], 1, 2,
        allow_init=False,
    )  # fmt: skip
    return float(network.compute_conv_feature_map_size(plan["patch_size"]))


@pytest.mark.parametrize(
    ("shape", "spacing", "target"),
    [
        ((182, 218, 182), (1.0, 1.0, 1.0), 8),
        ((182, 218, 182), (1.0, 1.0, 1.0), 24),
        ((120, 400, 400), (2.5, 0.8, 0.8), 8),
        ((24, 320, 320), (5.0, 0.7, 0.7), 8),
        ((64, 56, 640), (1.0, 1.0, 1.0), 16),
    ],
)
def test_a_batch_of_whole_grids_takes_half_of_the_target(
    shape: Sides, spacing: Spacing, target: float, nnunet_folders: dict[str, Path]
) -> None:
    planner = _planner(nnunet_folders, shape, spacing, gpu_memory_target_in_gb=target)
    plans = planner.plan_experiment()
    plan = plans["configurations"]["3d_fullres"]
    axes = plans["transpose_forward"]
    grid = compute_new_shape(np.array(shape)[axes], np.array(spacing)[axes], plan["spacing"])
    assert (np.array(plan["patch_size"]) >= grid).all()
    assert plan["batch_size"] >= 2
    assert plan["batch_size"] / 2 * _estimate(plan) <= 1.25 * 560e6 * target / 2 / 8  # nnU-Net rounds batches up, too
    assert _estimate(plan) <= 560e6 * target / 2 / 8
    assert (np.array(plan["spacing"]) >= np.array(spacing)[axes]).all()
    assert "3d_lowres" not in plans["configurations"]


def test_the_spacing_is_only_as_coarse_as_needed(nnunet_folders: dict[str, Path]) -> None:
    planner = _planner(nnunet_folders, (182, 218, 182), (1.0, 1.0, 1.0))
    spacing = planner.determine_fullres_target_spacing()
    assert spacing == pytest.approx([spacing[0]] * 3) and spacing[0] > 1.5
    assert planner._fits(spacing) and not planner._fits(spacing / STEP)
    planner.UNet_vram_target_GB *= 2
    assert (planner.determine_fullres_target_spacing() < spacing).all()


def test_the_finest_axes_are_the_first_to_lose(nnunet_folders: dict[str, Path]) -> None:
    planner = _planner(nnunet_folders, (24, 320, 320), (5.0, 0.7, 0.7))
    spacing = planner.determine_fullres_target_spacing()
    assert spacing[0] == 5 and spacing[1] == spacing[2] and 0.7 < spacing[1] < 5


@pytest.mark.parametrize("kind", [DeepAtlasPlanner, DeepAtlasSmallPlanner])
def test_the_spacing_of_small_grids_is_nnunets(nnunet_folders: dict[str, Path], kind: type[Any]) -> None:
    planner = _planner(nnunet_folders, (40, 48, 40), (1.0, 1.5, 1.0), kind)
    assert planner.determine_fullres_target_spacing().tolist() == [1.0, 1.5, 1.0]


def test_a_spacing_that_the_user_chose_is_kept_and_the_patch_shrinks(nnunet_folders: dict[str, Path]) -> None:
    planner = _planner(nnunet_folders, (182, 218, 182), (1.0, 1.0, 1.0), overwrite_target_spacing=[1.1, 1.2, 1.3])
    plan = planner.plan_experiment()["configurations"]["3d_fullres"]
    assert sorted(plan["spacing"]) == [1.1, 1.2, 1.3]
    assert np.prod(plan["patch_size"]) < 182 * 218 * 182 / 1.1 / 1.2 / 1.3 / 2
    assert _estimate(plan) <= 560e6 / 2


def test_the_estimate_is_nnunets_own(nnunet_folders: dict[str, Path]) -> None:
    """Of a grid that fits, nnU-Net's planner finds the same patch and the same network."""
    planner = _planner(nnunet_folders, (80, 100, 90), (1.0, 1.0, 1.0))
    spacing, grid = np.ones(3), np.array([80, 100, 90])
    stock = ExperimentPlanner.get_plans_for_configuration(planner, spacing, grid.astype(float), "", 1e6, {})
    whole = planner.whole_patch(spacing, grid)
    assert whole.patch_size == tuple(stock["patch_size"])
    assert whole.architecture == stock["architecture"]
    assert whole.feature_maps == _estimate(stock)


def test_no_grid_fits_into_no_memory(nnunet_folders: dict[str, Path]) -> None:
    planner = _planner(nnunet_folders, (20, 20, 20), (1.0, 1.0, 1.0), gpu_memory_target_in_gb=0)
    with pytest.raises(Refusal, match="-gpu_memory_target"):
        planner.determine_fullres_target_spacing()


def test_an_axis_of_one_voxel_is_left_alone() -> None:
    def shape_at(spacing: np.ndarray) -> np.ndarray:
        return np.maximum(1, np.round([2, 64, 64] / spacing))

    found = coarsened(np.array([3.0, 1.0, 1.0]), shape_at, lambda mm: bool(np.prod(shape_at(mm)) <= 64))
    assert found[0] == 3 and found[1] == found[2] > 3
