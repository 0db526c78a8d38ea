"""Real tumours for a trainer: the bank of its data set, and what pastes its donors into training and fixed patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_synthtumour.donor_bank import DonorBank
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.mixing import PasteTumour, paste_in_volume
from nnunet_synthtumour.renormalising import Renormaliser
from nnunet_synthtumour.settings import Settings
from nnunet_synthtumour.trainers.fixed_patches import PASTED, FixedPatch
from nnunet_synthtumour.trainers.host_patches import whole_voxels
from nnunet_synthtumour.trainers.lesions import changed

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
        renormaliser: Renormaliser,
    ) -> None:
        self.renormaliser = renormaliser
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
        paste = self.transform(self.train, None, patch_size)
        return _PasteOrGrow(paste, grow, self.settings.senior.synthetic, self.renormaliser)

    def for_validation(
        self, patch_size: Sequence[int], grow: Callable[[FixedPatch, Sample], Sample]
    ) -> Callable[[FixedPatch, Sample], Sample]:
        """Pastes a held-out donor into patches of that kind; `grow` does the others."""
        return _InFixedPatch(
            self.transform(self.held_out, 1.0, patch_size), self.transform(self.held_out, 0.0, patch_size), grow,
            self.renormaliser,
        )  # fmt: skip

    def in_volume(self, data: np.ndarray, seg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A whole preprocessed case (C, X, Y, Z) and (1, X, Y, Z) with a held-out donor in it."""
        image, labels = paste_in_volume(self.transform(self.held_out, 1.0, None), data, seg)
        before = self.renormaliser.sums(torch.from_numpy(np.array(data, dtype=np.float32)))
        self.renormaliser.apply(torch.from_numpy(image), before, whole_voxels(seg))
        return image, labels


class _PasteOrGrow:
    """A callable that workers can be handed, unlike a closure."""

    def __init__(
        self, paste: PasteTumour, grow: Callable[[str, Sample], Sample], synthetic: float, renormaliser: Renormaliser
    ) -> None:
        self.paste, self.grow, self.synthetic, self.renormaliser = paste, grow, synthetic, renormaliser

    def __call__(self, case: str, sample: Sample) -> Sample:
        if np.random.uniform() < self.synthetic:
            return self.grow(case, sample)
        return changed(self.paste, sample, self.renormaliser)


class _InFixedPatch:
    def __init__(
        self, paste: PasteTumour, nothing: PasteTumour, grow: Callable[[FixedPatch, Sample], Sample],
        renormaliser: Renormaliser,
    ) -> None:  # fmt: skip
        self.paste, self.nothing, self.grow, self.renormaliser = paste, nothing, grow, renormaliser

    def __call__(self, patch: FixedPatch, sample: Sample) -> Sample:
        if patch.kind != PASTED:
            return self.grow(patch, sample)
        return changed(self.paste if patch.affected else self.nothing, sample, self.renormaliser)
