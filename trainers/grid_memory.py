"""Whether whole grids that are registered fit into a GPU, before a training finds out hours later that they do not.

Plans of `DeepAtlasPlanner` do. Those of nnU-Net's own planners count patches alone, while pairs are whole grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.trainers.image_pairs import PairLoader
from nnunet_synthtumour.trainers.whole_grids import sides

GB_PER_FEATURE_VOXEL = 8 / 2 / 560e6
"""nnU-Net's reference: 8 GB for a batch of two with 560 million voxels in the feature maps of each."""


def refuse_grids_beyond(device: torch.device, loader: PairLoader, configuration: Any) -> None:
    """Raise `Refusal` where a batch of pairs needs more than all memory of the GPU."""
    if device.type != "cuda":
        return
    grid, channels = loader.cases.grid.shape, len(configuration.normalization_schemes)
    available = torch.cuda.get_device_properties(device).total_memory / 1024**3
    needed = gb_of_pairs(grid, configuration, channels, loader.batch_size)
    if needed > available:
        raise Refusal(
            f"Registering whole grids of {sides(grid)} voxels takes about {needed:.0f} GB by nnU-Net's estimate, but this "
            f"GPU has {available:.0f}; plan with -pl DeepAtlasPlanner, whose spacing lets whole grids fit, or lower "
            "registration.pairs."
        )


def gb_of_pairs(grid: Sequence[int], configuration: Any, channels: int, pairs: int) -> float:
    """What nnU-Net expects the plans' U-Net to need for `pairs` samples of two images of `channels` channels each."""
    kwargs = configuration.network_arch_init_kwargs
    network: Any = get_network_from_plans(
        configuration.network_arch_class_name, kwargs, configuration.network_arch_init_kwargs_req_import,
        2 * channels, len(grid), allow_init=False,
    )  # fmt: skip
    strides = np.prod(kwargs["strides"], 0)
    padded = [int(-(-n // stride) * stride) for n, stride in zip(grid, strides, strict=True)]
    return float(network.compute_conv_feature_map_size(padded)) * pairs * GB_PER_FEATURE_VOXEL
