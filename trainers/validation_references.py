"""Reference label maps for nnU-Net's final validation, where those of the data set are not what is to be compared with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


class ReferenceWriter:
    """Writes to `folder` what a prediction of each case is compared with: the file in `given`, or what a data set loads."""

    def __init__(
        self, folder: Path, given: Path, configuration: ConfigurationManager, plans: PlansManager,
        dataset_json: dict[str, Any],
    ) -> None:  # fmt: skip
        self.folder, self.given = folder, given
        self.configuration, self.plans, self.dataset_json = configuration, plans, dataset_json

    def write(self, dataset: Any, is_given: Callable[[str], bool], ignored: int | None = None) -> None:
        """`is_given` says of which cases there is a file to be copied; in those that are loaded, voxels of the value
        `ignored` become background."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for case in dataset.identifiers:
            if is_given(case):
                shutil.copy(self.given / (case + self.dataset_json["file_ending"]), self.folder)
                continue
            _, seg, _, properties = dataset.load_case(case)
            seg = np.asarray(seg)
            write_reference(
                seg if ignored is None else np.where(seg == ignored, 0, seg), properties, self.folder / case,
                self.configuration, self.plans, self.dataset_json,
            )  # fmt: skip


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
