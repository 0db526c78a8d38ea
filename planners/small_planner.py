"""A planner for machines without a GPU: few features, a patch that covers the object, batch size 2."""

from __future__ import annotations

from typing import Any

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from nnunet_synthtumour.planners.coarsening import coarsened
from nnunet_synthtumour.planners.named_plans import NamedPlans


class SmallPlanner(NamedPlans):
    """nnU-Net's planner for two CPU cores: the spacing is made coarser until one patch holds the whole object.

    What is finer than the plan's spacing cannot be segmented: use nnU-Net's planners where there is a GPU.
    With `-overwrite_target_spacing` the spacing is the user's, and the patch shrinks instead.
    """

    PLANS_NAME = "nnUNetSmallPlans"
    VOXEL_BUDGET = 56 * 64 * 56
    FEATURES = 16  # of the first stage; eight times as many at most
    # What nnU-Net's own memory estimate gives for a little more than 64 x 64 x 64 voxels (28.4 million) and for
    # 160 x 160 pixels (3.9 million) with 16 to 128 features: its loop that shrinks patches then keeps to that.
    FEATURE_MAPS_3D = 30_000_000
    FEATURE_MAPS_2D = 4_000_000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.UNet_base_num_features = self.FEATURES
        self.UNet_max_features_2d = self.UNet_max_features_3d = 8 * self.FEATURES
        self.UNet_reference_val_3d = self.FEATURE_MAPS_3D
        self.UNet_reference_val_2d = self.FEATURE_MAPS_2D

    def determine_fullres_target_spacing(self) -> np.ndarray:
        """nnU-Net's spacing in mm, made coarser, finest axes first, until the median case fits into one patch."""
        spacing = np.array(super().determine_fullres_target_spacing(), dtype=float)
        if self.overwrite_target_spacing is not None:
            return spacing
        return coarsened(spacing, self._median_shape, lambda mm: np.prod(self._median_shape(mm)) <= self.VOXEL_BUDGET)

    def get_plans_for_configuration(self, spacing: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """nnU-Net's plan; in 3D the batch is 2 also where a small patch would leave room for more."""
        plan = super().get_plans_for_configuration(spacing, *args, **kwargs)
        if len(spacing) == 3:
            plan["batch_size"] = self.UNet_min_batch_size
        return plan

    def _median_shape(self, spacing: np.ndarray) -> np.ndarray:
        fingerprint = self.dataset_fingerprint
        shapes = [
            compute_new_shape(shape, old, spacing)
            for shape, old in zip(fingerprint["shapes_after_crop"], fingerprint["spacings"], strict=True)
        ]
        return np.median(shapes, 0)


class TinyPlanner(SmallPlanner):
    """`SmallPlanner` with half as many features and an eighth of the voxels, for trying things out on any computer."""

    PLANS_NAME = "nnUNetTinyPlans"
    VOXEL_BUDGET = SmallPlanner.VOXEL_BUDGET // 8
    FEATURES = 8
    FEATURE_MAPS_3D = SmallPlanner.FEATURE_MAPS_3D // 16
    FEATURE_MAPS_2D = SmallPlanner.FEATURE_MAPS_2D // 2
