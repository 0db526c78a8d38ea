"""Carries the labels of sources to targets, case by case, and writes what is trusted of them, with pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_synthtumour.settings import CrossModalSettings
from nnunet_synthtumour.trainers.carried_labels import trusted
from nnunet_synthtumour.trainers.carried_report import draw_case
from nnunet_synthtumour.trainers.carried_writer import CarriedWriter
from nnunet_synthtumour.trainers.carrying import LabelCarrier
from nnunet_synthtumour.trainers.crossmodal_cases import SOURCE


@dataclass(frozen=True)
class Crossing:
    """`sources_of` names the sources that give a target its labels."""

    carrier: LabelCarrier
    writer: CarriedWriter
    sources_of: Callable[[str], Sequence[str]]
    settings: CrossModalSettings

    def to_target(self, target: str, folder: Path) -> dict[str, Any]:
        """Write a target's labels and its picture; its row of the report."""
        sources = self.sources_of(target)
        carried = self.carrier.carry(target, sources)
        ignore = self.writer.ignore
        kept = trusted(carried, self.settings.trusted, self.settings.doubtful, ignore)
        draw_case(folder, target, self.carrier.images[target].match()[0].numpy(), kept.numpy(), ignore)  # air is dark
        return self.writer.write(folder, target, [s.removeprefix(SOURCE) for s in sources], carried, kept)
