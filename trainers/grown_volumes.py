"""nnU-Net's final validation on healthy cases: whole volumes with fixed lesions, and the references to compare with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

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


def write_reference(
    seg: np.ndarray,
    properties: dict[str, Any],
    file: Path,
    configuration: ConfigurationManager,
    plans: PlansManager,
    dataset_json: dict[str, Any],
) -> None:
    """Write a label map (1, X, Y, Z) of the preprocessed grid as a file in the geometry of the raw image.

    nnU-Net's own export of predictions does the resampling, so that prediction and reference go the same way.
    """
    logits = _logits_of(torch.from_numpy(seg[0]), plans, dataset_json)
    export_prediction_from_logits(
        logits, properties, configuration, plans, dataset_json, str(file), num_threads_torch=1
    )


def _logits_of(labels: torch.Tensor, plans: PlansManager, dataset_json: dict[str, Any]) -> torch.Tensor:
    """What a network that is sure of `labels` would put out: +1 where a head applies, -1 elsewhere."""
    manager = plans.get_label_manager(dataset_json)
    heads = manager.foreground_regions if manager.has_regions else manager.all_labels
    logits = torch.empty((len(heads), *labels.shape), dtype=torch.float32)
    labels = labels.clamp(min=0)  # nnU-Net marks what lies outside of the image with -1
    for i, head in enumerate(heads):
        values = torch.tensor(head if isinstance(head, (list, tuple)) else [head], dtype=labels.dtype)
        logits[i] = torch.isin(labels, values).float() * 2 - 1
    return logits
