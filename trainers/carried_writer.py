"""Writes labels that were carried to a case beside the model, as nnU-Net's loaders read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunet_synthtumour.trainers.carried_labels import Carried, summary, to_case, write_case
from nnunet_synthtumour.trainers.whole_grids import Grid


class CarriedWriter:
    """`dataset` holds the preprocessed cases and `grid` is the one they share; `structures` are the names of labels and
    their values, `ignore` is what voxels carry that are not trusted."""

    def __init__(
        self, dataset: Any, grid: Grid, labels: LabelManager, structures: dict[str, int], ignore: int,
        spacing: Sequence[float],
    ) -> None:  # fmt: skip
        self.dataset, self.grid, self.labels, self.ignore, self.spacing = dataset, grid, labels, ignore, spacing
        self.names = {value: name for name, value in structures.items()}

    def write(
        self, folder: Path, case: str, sources: Sequence[str], carried: Carried, kept: Tensor
    ) -> dict[str, Any]:  # fmt: skip
        """Write `kept` (X, Y, Z), which is what is trusted of `carried`; the row of the case in the report."""
        _, seg, _, properties = self.dataset.load_case(case)
        on_case = to_case(kept.numpy(), np.asarray(seg[:]), properties, self.grid)
        write_case(folder, case, on_case, self.locations(on_case))
        return summary(case, sources, kept, carried, self.names, self.ignore, self.spacing)

    def locations(self, seg: np.ndarray) -> dict[Any, Any]:
        """Where nnU-Net may centre patches: voxels of each label, and of anything that is not ignored."""
        classes = [*self.labels.foreground_labels, (-1, *self.labels.all_labels)]
        return dict(DefaultPreprocessor._sample_foreground_locations(seg, classes))
