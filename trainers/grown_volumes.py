"""nnU-Net's final validation on healthy cases: whole volumes with fixed lesions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

GrowVolume = Callable[[str, np.ndarray, np.ndarray, dict[str, Any]], tuple[np.ndarray, np.ndarray]]


def dataset_with_lesions(base: type[nnUNetBaseDataset], healthy: set[str], grow: GrowVolume) -> type[nnUNetBaseDataset]:
    """A dataset class that loads healthy cases with a lesion in them; `grow(case, data, seg, properties)` puts it there."""

    class DatasetWithLesions(base):
        def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
            data, seg, seg_prev, properties = super().load_case(identifier)
            if identifier in healthy:
                data, seg = grow(identifier, data[:], seg[:], properties)
            return data, seg, seg_prev, properties

    return DatasetWithLesions
