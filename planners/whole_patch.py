"""nnU-Net's U-Net for a patch of a given size, and what nnU-Net estimates that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

NO_LIMIT = 999_999


class WholePatch(NamedTuple):
    """A patch padded to what its U-Net's strides divide, that U-Net as plans describe it, and nnU-Net's estimate of the
    voxels in all of its feature maps for one sample."""

    patch_size: tuple[int, ...]
    architecture: dict[str, Any]
    feature_maps: float

    def batch_size(self, planner: ExperimentPlanner) -> int:
        """Samples that fit, as nnU-Net counts them."""
        return int(feature_map_budget(planner) / self.feature_maps * planner.UNet_reference_val_corresp_bs_3d)


def feature_map_budget(planner: ExperimentPlanner) -> float:
    """Voxels in feature maps that one of the two samples of nnU-Net's least batch may have."""
    return planner.UNet_reference_val_3d * planner.UNet_vram_target_GB / planner.UNet_reference_val_corresp_GB


def whole_patch(
    planner: ExperimentPlanner,
    architecture: dict[str, Any],
    spacing: Sequence[float],
    shape: Sequence[int],
    cache: dict[Any, float],
) -> WholePatch:
    """A patch of (at least) `shape` voxels of `spacing` mm; `architecture` is that of any other patch of the planner.

    nnU-Net finds the same for a `shape` within 256^3 voxels, where its search for a patch begins.
    """
    _, strides, kernels, patch, _ = get_pool_and_conv_props(
        spacing, shape, planner.UNet_featuremap_min_edge_length, NO_LIMIT
    )
    stages = len(strides)
    kwargs = architecture["arch_kwargs"] | {
        "n_stages": stages,
        "features_per_stage": tuple(
            min(planner.UNet_max_features_3d, planner.UNet_base_num_features * 2**stage) for stage in range(stages)
        ),
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage": planner.UNet_blocks_per_stage_encoder[:stages],
        "n_conv_per_stage_decoder": planner.UNet_blocks_per_stage_decoder[: stages - 1],
    }
    patch = tuple(int(n) for n in patch)
    if (patch, strides) not in cache:
        # without the ignore label, which is no output: a source and a target of which one has it get one spacing
        outputs = len(set(planner.dataset_json["labels"]) - {"ignore"})
        cache[patch, strides] = float(
            planner.static_estimate_VRAM_usage(
                patch, len(planner.dataset_json["channel_names"]), outputs, architecture["network_class_name"], kwargs,
                architecture["_kw_requires_import"],
            )
        )  # fmt: skip
    return WholePatch(patch, architecture | {"arch_kwargs": kwargs}, cache[patch, strides])
