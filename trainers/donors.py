"""Real tumours for a trainer: the bank of its data set, and what pastes its donors into training and fixed patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synthtumour.donor_bank import DonorBank
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.mixing import PasteTumour, paste_in_volume
from nnunet_synthtumour.settings import Settings
from nnunet_synthtumour.trainers.fixed_patches import PASTED, FixedPatch

Sample = dict[str, Any]


class Donors:
    """Donors for training, and others, held out, for the fixed set."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        spacing: Sequence[float],
        ignore_label: int,
        train: list[str],
        val: list[str],
    ) -> None:
        self.settings, self.spacing, self.ignore_label = settings, tuple(spacing), ignore_label
        bank = DonorBank.open(folder)
        self.train = bank.of(train)
        try:
            self.held_out, self.shared = bank.of(val), False
        except UserError:  # a handful of patients, none of the held-out ones with a tumour that is large enough
            self.held_out, self.shared = self.train, True

    def describe(self) -> list[str]:
        """Lines for the log."""
        lines = [f"Donors: {len(self.train)} to train with, {len(self.held_out)} held out"]
        if self.shared:
            lines.append(
                "WARNING: no held-out patient of this fold has a donor, so the fixed set shows donors of the training; "
                "more patients or another fold would choose the epoch better."
            )
        return lines

    def transform(self, bank: DonorBank, probability: float | None, region: Sequence[int] | None) -> PasteTumour:
        return PasteTumour(bank, self.settings.donors, self.spacing, self.ignore_label, probability, region)

    def for_training(
        self, patch_size: Sequence[int], grow: Callable[[str, Sample], Sample]
    ) -> Callable[[str, Sample], Sample]:
        """Pastes a donor, or for a share of the patches does what stage one does, `grow`."""
        return _PasteOrGrow(self.transform(self.train, None, patch_size), grow, self.settings.senior.synthetic)

    def for_validation(
        self, patch_size: Sequence[int], grow: Callable[[FixedPatch, Sample], Sample]
    ) -> Callable[[FixedPatch, Sample], Sample]:
        """Pastes a held-out donor into patches of that kind; `grow` does the others."""
        return _InFixedPatch(
            self.transform(self.held_out, 1.0, patch_size), self.transform(self.held_out, 0.0, patch_size), grow
        )

    def in_volume(self, data: np.ndarray, seg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A whole preprocessed case (C, X, Y, Z) and (1, X, Y, Z) with a held-out donor in it."""
        return paste_in_volume(self.transform(self.held_out, 1.0, None), data, seg)


class _PasteOrGrow:
    """A callable that workers can be handed, unlike a closure."""

    def __init__(self, paste: PasteTumour, grow: Callable[[str, Sample], Sample], synthetic: float) -> None:
        self.paste, self.grow, self.synthetic = paste, grow, synthetic

    def __call__(self, case: str, sample: Sample) -> Sample:
        return self.grow(case, sample) if np.random.uniform() < self.synthetic else _pasted(self.paste, sample)


class _InFixedPatch:
    def __init__(self, paste: PasteTumour, nothing: PasteTumour, grow: Callable[[FixedPatch, Sample], Sample]) -> None:
        self.paste, self.nothing, self.grow = paste, nothing, grow

    def __call__(self, patch: FixedPatch, sample: Sample) -> Sample:
        if patch.kind != PASTED:
            return self.grow(patch, sample)
        return _pasted(self.paste if patch.affected else self.nothing, sample)


def _pasted(transform: PasteTumour, sample: Sample) -> Sample:
    pasted = transform(**sample)
    return {"image": pasted["image"], "segmentation": pasted["segmentation"]}
