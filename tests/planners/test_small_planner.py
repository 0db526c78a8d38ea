from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_synthtumour.planners.small_planner import SmallPlanner, TinyPlanner
from tests.planners.forged_dataset import forge


def _plan(
    folders: dict[str, Path],
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    planner: type[SmallPlanner] = SmallPlanner,
    **kwargs: Any,
) -> dict[str, Any]:
    """Plan a data set of three equal cases of which only the fingerprint exists."""
    forge(folders, shape, spacing)
    return planner(1, **kwargs).plan_experiment()


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((140, 180, 140), (1.0, 1.0, 1.0)),
        ((64, 72, 64), (2.0, 2.0, 2.0)),
        ((155, 240, 240), (1.0, 1.0, 1.0)),
        ((24, 256, 256), (5.0, 0.9, 0.9)),
        ((30, 40, 30), (1.0, 1.0, 1.0)),
    ],
)
def test_one_small_patch_covers_the_object(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], nnunet_folders: dict[str, Path]
) -> None:
    plans = _plan(nnunet_folders, shape, spacing)
    plan = plans["configurations"]["3d_fullres"]
    assert plans["plans_name"] == "nnUNetSmallPlans"
    assert plan["batch_size"] == 2
    assert np.prod(plan["patch_size"]) <= 1.5 * SmallPlanner.VOXEL_BUDGET
    assert np.all(np.array(plan["patch_size"]) >= 0.95 * np.array(plan["median_image_size_in_voxels"]))
    features = plan["architecture"]["arch_kwargs"]["features_per_stage"]
    assert features[0] == 16
    assert max(features) <= 128
    assert "3d_lowres" not in plans["configurations"]


def test_the_tiny_plan_has_half_of_the_features_and_an_eighth_of_the_voxels(nnunet_folders: dict[str, Path]) -> None:
    plans = _plan(nnunet_folders, (140, 180, 140), (1.0, 1.0, 1.0), TinyPlanner)
    tiny = plans["configurations"]["3d_fullres"]
    features = tiny["architecture"]["arch_kwargs"]["features_per_stage"]
    assert plans["plans_name"] == "nnUNetTinyPlans"
    assert features[0] == 8 and max(features) <= 64
    assert np.prod(tiny["patch_size"]) <= 1.5 * TinyPlanner.VOXEL_BUDGET
    assert np.all(np.array(tiny["patch_size"]) >= 0.95 * np.array(tiny["median_image_size_in_voxels"]))


def test_the_spacing_of_small_images_is_left_alone(nnunet_folders: dict[str, Path]) -> None:
    plan = _plan(nnunet_folders, (30, 40, 30), (1.0, 1.5, 1.0))["configurations"]["3d_fullres"]
    assert sorted(plan["spacing"]) == [1.0, 1.0, 1.5]


def test_a_spacing_that_the_user_chose_is_kept_and_the_patch_shrinks(nnunet_folders: dict[str, Path]) -> None:
    plans = _plan(nnunet_folders, (140, 180, 140), (1.0, 1.0, 1.0), overwrite_target_spacing=[1.0, 1.0, 1.0])
    plan = plans["configurations"]["3d_fullres"]
    assert list(plan["spacing"]) == [1.0, 1.0, 1.0]
    assert np.prod(plan["patch_size"]) <= 1.5 * SmallPlanner.VOXEL_BUDGET


def test_a_training_step_of_a_full_size_brain_has_few_operations(nnunet_folders: dict[str, Path]) -> None:
    """The bound is on multiplications, which do not depend on the machine; benchmarks time the step itself."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from torch.utils.flop_counter import FlopCounterMode

    plan = _plan(nnunet_folders, (140, 180, 140), (1.0, 1.0, 1.0))["configurations"]["3d_fullres"]
    architecture = plan["architecture"]
    network = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"], 1, 2,
        allow_init=True, deep_supervision=True,
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        outputs = network(torch.zeros(2, 1, *plan["patch_size"]))
        sum(out.mean() for out in outputs).backward()
    assert counter.get_total_flops() < 4e11
