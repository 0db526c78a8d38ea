"""Fits labelled images to unlabelled ones, case by case, and writes the labels and the warped images beside a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_synthtumour.settings import DeepAtlasSettings
from nnunet_synthtumour.trainers.carried_writer import CarriedWriter
from nnunet_synthtumour.trainers.fitted_labels import WARPED, LabelFitter, write_warped

MOST_TIMES = 10  # that a case is listed
NO_LABEL = -2  # nothing that labels are fitted to is ignored


@dataclass(frozen=True)
class Fitting:
    """The `sources` likest of the `labelled` cases give each target its labels."""

    fitter: LabelFitter
    writer: CarriedWriter
    labelled: Sequence[str]
    sources: int

    def to_target(self, target: str, folder: Path) -> dict[str, Any]:
        """Write what is fitted to a target; its row of the report."""
        chosen = self.fitter.most_alike(target, self.labelled, self.sources)
        fitted = self.fitter.fit(target, chosen)
        write_warped(folder, target, fitted, self.writer.locations(fitted.labels.numpy()))
        return self.writer.write(folder, target, chosen, fitted.carried, fitted.carried.labels)


def with_fitted(labelled: Sequence[str], fitted_to: Sequence[str], settings: DeepAtlasSettings) -> list[str]:
    """The cases that a segmenter's patches come from: others with fitted labels and images warped to them, as often as
    their weights say, and manually `labelled` ones so often that they are at least the share `settings.manual`."""
    carried, warped = _times(settings.carried, settings.warped)
    more = [*list(fitted_to) * carried, *[WARPED + case for case in fitted_to] * warped]
    copies = max(1, math.ceil(settings.manual / (1 - settings.manual) * len(more) / len(labelled) - 1e-9))
    return [*list(labelled) * copies, *more]


def _times(carried: float, warped: float) -> tuple[int, int]:
    """Small whole numbers in the proportion of two weights; what has a weight comes at least once."""
    least = min((weight for weight in (carried, warped) if weight > 0), default=1.0)
    one, other = (min(MOST_TIMES, round(weight / least)) for weight in (carried, warped))
    return one, other
