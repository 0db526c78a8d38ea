"""The base of our planners: nnU-Net's, with a name of its own for the plans and CT statistics of known foreground."""

from __future__ import annotations

from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_synthtumour.planners.known_statistics import without_unlabelled


class NamedPlans(ExperimentPlanner):
    """`plans_name` is the planner's own name for its plans unless another is given; the rest is nnU-Net's signature."""

    PLANS_NAME: str

    dataset_fingerprint: dict[str, Any]

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            self.PLANS_NAME if plans_name is None else plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )

    def plan_experiment(self) -> dict[str, Any]:
        """nnU-Net's plans; unlabelled images have no say in how CT is normalised (`known_statistics`)."""
        self.dataset_fingerprint = without_unlabelled(self.dataset_name, self.dataset_json, self.dataset_fingerprint)
        return dict(super().plan_experiment())
