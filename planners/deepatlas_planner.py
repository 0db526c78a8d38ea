"""Plans for two networks that see the whole, common grid of an aligned data set."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.image_checks import same_direction
from nnunet_synthtumour.planners.coarsening import coarsened
from nnunet_synthtumour.planners.named_plans import NamedPlans
from nnunet_synthtumour.planners.small_planner import SmallPlanner
from nnunet_synthtumour.planners.whole_patch import WholePatch, feature_map_budget, whole_patch


class WholeGrid(NamedPlans):
    """A patch is the whole grid where memory allows it, and the size of a case is the grid's, not that of its crop."""

    def get_plans_for_configuration(
        self, spacing: Any, median_shape: Any, data_identifier: str, approximate_n_voxels_dataset: float, _cache: Any
    ) -> dict[str, Any]:
        if len(spacing) != 3:
            return super().get_plans_for_configuration(
                spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
            )
        grid = self.grid_at(spacing, self.determine_transpose()[0])
        approximate_n_voxels_dataset *= float(np.prod(grid) / np.prod(median_shape))
        plan = super().get_plans_for_configuration(
            spacing, grid.astype(float), data_identifier, approximate_n_voxels_dataset, _cache
        )
        return plan | self._whole_instead_of(plan, grid)

    def grid_at(self, spacing: Any, transpose: Sequence[int] = (0, 1, 2)) -> np.ndarray:
        """Voxels of the common grid at a spacing in mm, whose axes are transposed so."""
        raw_shape, raw_spacing = self._raw_grid
        axes = list(transpose)
        return np.array(compute_new_shape(raw_shape[axes], raw_spacing[axes], spacing))

    def whole_patch(self, spacing: Any, grid: np.ndarray) -> WholePatch:
        """The whole grid as a patch, whether it fits or not."""
        return whole_patch(self, self._any_architecture, list(spacing), grid.tolist(), self._estimates)

    def _whole_instead_of(self, plan: dict[str, Any], grid: np.ndarray) -> dict[str, Any]:
        """What changes where nnU-Net's patch is smaller than a grid that fits, for nnU-Net looks at 256^3 voxels at most and
        counts the ignore label as an output."""
        if (np.array(plan["patch_size"]) >= grid).all():
            return {}
        whole = self.whole_patch(plan["spacing"], grid)
        batch_size = min(whole.batch_size(self), plan["batch_size"])
        if batch_size < self.UNet_min_batch_size:
            return {}
        return {"patch_size": whole.patch_size, "architecture": whole.architecture, "batch_size": batch_size}

    @cached_property
    def _raw_grid(self) -> tuple[np.ndarray, np.ndarray]:
        return self.common_raw_grid()

    @cached_property
    def _any_architecture(self) -> dict[str, Any]:
        """The plan of a small patch that fits in any case, for what does not depend on the patch."""
        roomy, small = copy(self), np.full(3, 32.0)
        roomy.UNet_vram_target_GB = self.UNet_reference_val_corresp_GB
        plan = super(WholeGrid, roomy).get_plans_for_configuration(np.ones(3), small, "", float(small.prod()), {})
        return dict(plan["architecture"])

    @cached_property
    def _estimates(self) -> dict[Any, float]:
        return {}

    def common_raw_grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Shape and spacing (mm) that all raw images share, axes as nnU-Net reads them; raises `Refusal` if they do not."""
        import SimpleITK as sitk

        files = get_filenames_of_train_images_and_targets(self.raw_dataset_folder, self.dataset_json)
        first: tuple[str, tuple[int, ...], tuple[float, ...], tuple[float, ...]] | None = None
        turned = self.dataset_json.get("overwrite_image_reader_writer") == "NibabelIOWithReorient"
        for case, entry in sorted(files.items()):
            reader = sitk.ImageFileReader()
            reader.SetFileName(entry["images"][0])
            reader.ReadImageInformation()
            size, spacing = reader.GetSize()[::-1], reader.GetSpacing()[::-1]
            if first is None:
                first = case, size, spacing, reader.GetDirection()
            elif size != first[1] or not np.allclose(spacing, first[2], rtol=1e-3):
                raise Refusal(
                    f"{case} has {_x(size)} voxels and {first[0]} {_x(first[1])}, but DeepAtlas needs all images on one "
                    "grid; run 'synthtumour align' on the raw data set first."
                )
            elif not turned and not same_direction(reader.GetDirection(), first[3]):
                raise Refusal(
                    f"The axes of {case} point elsewhere than those of {first[0]}, but DeepAtlas needs all images on one "
                    "grid; run 'synthtumour align' on the raw data set first."
                )
        assert first is not None
        return np.array(first[1]), np.array(first[2])


class DeepAtlasPlanner(WholeGrid):
    """nnU-Net's planner with half of the memory for its batch, and half for whole grids that are registered.

    The spacing is made coarser until the whole grid fits as the patch; with `-overwrite_target_spacing` it is the user's,
    and the patch shrinks instead.
    """

    PLANS_NAME = "nnUNetDeepAtlasPlans"

    UNet_vram_target_GB: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.UNet_vram_target_GB /= 2

    def determine_fullres_target_spacing(self) -> np.ndarray:
        """nnU-Net's spacing in mm, made coarser, finest axes first, until nnU-Net's least batch of whole grids fits."""
        spacing = np.array(super().determine_fullres_target_spacing(), dtype=float)
        if self.overwrite_target_spacing is not None or not self._are_volumes():
            return spacing
        return coarsened(spacing, self.grid_at, self._fits)

    def _fits(self, spacing: np.ndarray) -> bool:
        return self.whole_patch(spacing, self.grid_at(spacing)).feature_maps <= feature_map_budget(self)

    def _are_volumes(self) -> bool:
        return bool((np.median(self.dataset_fingerprint["shapes_after_crop"], 0) > 1).all())


class DeepAtlasSmallPlanner(WholeGrid, SmallPlanner):
    """The same for two CPU cores: `SmallPlanner`'s networks and spacing."""

    PLANS_NAME = "nnUNetDeepAtlasSmallPlans"

    def _median_shape(self, spacing: np.ndarray) -> np.ndarray:
        raw_shape, raw_spacing = self.common_raw_grid()
        return np.array(compute_new_shape(raw_shape, raw_spacing, spacing), dtype=float)


def _x(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in values)
