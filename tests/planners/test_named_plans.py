from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_synthtumour.planners.deepatlas_planner import DeepAtlasPlanner, DeepAtlasSmallPlanner
from nnunet_synthtumour.planners.small_planner import SmallPlanner
from nnunet_synthtumour.planners.synthtumour_planner import SynthTumourPlanner
from tests.toy_dataset import NAME


@pytest.mark.parametrize(
    ("planner", "own", "memory"),
    [
        (SmallPlanner, "nnUNetSmallPlans", 10),
        (SynthTumourPlanner, "nnUNetSynthTumourPlans", 10),
        (DeepAtlasPlanner, "nnUNetDeepAtlasPlans", 5),
        (DeepAtlasSmallPlanner, "nnUNetDeepAtlasSmallPlans", 10),
    ],
)
def test_plans_have_the_planners_name_or_the_users(toy: Path, planner: type, own: str, memory: float) -> None:
    assert planner(NAME).plans_identifier == own
    chosen = planner(NAME, 10, "DefaultPreprocessor", "mine", [1.0, 1.0, 1.0], True)  # in nnU-Net's order
    assert chosen.plans_identifier == "mine" and chosen.UNet_vram_target_GB == memory
    assert chosen.overwrite_target_spacing == [1.0, 1.0, 1.0] and chosen.suppress_transpose
