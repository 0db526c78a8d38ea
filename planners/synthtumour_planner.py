"""nnU-Net's plans for data sets that mix unlabelled images with others."""

from __future__ import annotations

from nnunet_synthtumour.planners.named_plans import NamedPlans


class SynthTumourPlanner(NamedPlans):
    """nnU-Net's planner; what it adds is what all our planners do: unlabelled CT has no say in how CT is normalised."""

    PLANS_NAME = "nnUNetSynthTumourPlans"
