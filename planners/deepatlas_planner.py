"""Plans for two networks that see the whole, common grid of an aligned data set."""

from __future__ import annotations

from typing import Any

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.planners.named_plans import NamedPlans
from nnunet_synthtumour.planners.small_planner import SmallPlanner


class WholeGrid(NamedPlans):
    """A patch is the whole grid where memory allows it, and the size of a case is the grid's, not that of its crop."""

    def get_plans_for_configuration(
        self, spacing: Any, median_shape: Any, data_identifier: str, approximate_n_voxels_dataset: float, _cache: Any
    ) -> dict[str, Any]:
        if len(spacing) == 3:
            raw_shape, raw_spacing = self.common_raw_grid()
            transpose = self.determine_transpose()[0]
            here = compute_new_shape(raw_shape[transpose], raw_spacing[transpose], spacing)
            approximate_n_voxels_dataset *= float(np.prod(here) / np.prod(median_shape))
            median_shape = np.array(here, dtype=float)
        return super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )

    def common_raw_grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Shape and spacing (mm) that all raw images share, axes as nnU-Net reads them; raises `Refusal` if they do not."""
        import SimpleITK as sitk

        files = get_filenames_of_train_images_and_targets(self.raw_dataset_folder, self.dataset_json)
        first: tuple[str, tuple[int, ...], tuple[float, ...]] | None = None
        for case, entry in sorted(files.items()):
            reader = sitk.ImageFileReader()
            reader.SetFileName(entry["images"][0])
            reader.ReadImageInformation()
            size, spacing = reader.GetSize()[::-1], reader.GetSpacing()[::-1]
            if first is None:
                first = case, size, spacing
            elif size != first[1] or not np.allclose(spacing, first[2], rtol=1e-3):
                raise Refusal(
                    f"{case} has {_x(size)} voxels and {first[0]} {_x(first[1])}, but DeepAtlas needs all images on one "
                    "grid; run 'synthtumour align' on the raw data set first."
                )
        assert first is not None
        return np.array(first[1]), np.array(first[2])


class DeepAtlasPlanner(WholeGrid):
    """nnU-Net's planner with half of the memory, because two networks of this size are trained together."""

    PLANS_NAME = "nnUNetDeepAtlasPlans"

    UNet_vram_target_GB: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.UNet_vram_target_GB /= 2


class DeepAtlasSmallPlanner(WholeGrid, SmallPlanner):
    """The same for two CPU cores: `SmallPlanner`'s networks and spacing."""

    PLANS_NAME = "nnUNetDeepAtlasSmallPlans"

    def _median_shape(self, spacing: np.ndarray) -> np.ndarray:
        raw_shape, raw_spacing = self.common_raw_grid()
        return np.array(compute_new_shape(raw_shape, raw_spacing, spacing), dtype=float)


def _x(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in values)
