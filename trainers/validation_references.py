"""Reference label maps for nnU-Net's final validation, where those of the data set are not what is to be compared with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager


class ReferenceWriter:
    """Writes to `folder` what a prediction of each case is compared with: the file in `given`, or what a data set loads."""

    def __init__(
        self, folder: Path, given: Path, configuration: ConfigurationManager, plans: PlansManager,
        dataset_json: dict[str, Any],
    ) -> None:  # fmt: skip
        self.folder, self.given = folder, given
        self.configuration, self.plans, self.dataset_json = configuration, plans, dataset_json

    def write(self, dataset: Any, is_given: Callable[[str], bool]) -> None:
        """`is_given` says of which cases there is a file to be copied."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for case in dataset.identifiers:
            if is_given(case):
                shutil.copy(self.given / (case + self.dataset_json["file_ending"]), self.folder)
                continue
            _, seg, _, properties = dataset.load_case(case)
            write_reference(
                np.asarray(seg), properties, self.folder / case, self.configuration, self.plans, self.dataset_json
            )


def write_reference(
    seg: np.ndarray,
    properties: dict[str, Any],
    file: Path,
    configuration: ConfigurationManager,
    plans: PlansManager,
    dataset_json: dict[str, Any],
) -> None:
    """Write a label map (1, X, Y, Z) of the preprocessed grid as a file in the geometry of the raw image.

    nnU-Net's own export of predictions does the resampling, so that prediction and reference go the same way. The ignore
    label, which no prediction has, goes it as a label of its own.
    """
    labels, manager = torch.from_numpy(np.array(seg[0])), plans.get_label_manager(dataset_json)

    def back(values: torch.Tensor, of: LabelManager) -> np.ndarray:
        return np.asarray(convert_predicted_logits_to_segmentation_with_correct_shape(
            _logits_of(values, of), plans, configuration, of, properties, num_threads_torch=1
        ))  # fmt: skip

    reference = back(labels, manager)
    if manager.has_ignore_label:
        unsure = labels == manager.ignore_label
        if bool(unsure.any()):
            reference[back(unsure.short(), LabelManager({"background": 0, "unsure": 1}, None)) > 0] = (
                manager.ignore_label
            )
    writer = plans.image_reader_writer_class()
    writer.write_seg(reference, f"{file}{dataset_json['file_ending']}", properties)


def _logits_of(labels: torch.Tensor, manager: LabelManager) -> torch.Tensor:
    """What a network that is sure of `labels` would put out: +1 where a head applies, -1 elsewhere."""
    heads = manager.foreground_regions if manager.has_regions else manager.all_labels
    logits = torch.empty((len(heads), *labels.shape), dtype=torch.float32)
    labels = labels.clamp(min=0)  # nnU-Net marks what lies outside of the image with -1
    for i, head in enumerate(heads):
        values = torch.tensor(head if isinstance(head, (list, tuple)) else [head], dtype=labels.dtype)
        logits[i] = torch.isin(labels, values).float() * 2 - 1
    return logits
