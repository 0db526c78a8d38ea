"""Stage two of SynthTumour: a segmenter trained on real tumours, carved out by pseudo-labels and pasted online."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch._dynamo import OptimizedModule

from nnunet_synthtumour.donor_cutting import build_bank
from nnunet_synthtumour.errors import Refusal, UserError
from nnunet_synthtumour.junior_model import file_digest
from nnunet_synthtumour.settings import LABELLED, PSEUDO
from nnunet_synthtumour.trainers.donors import Donors
from nnunet_synthtumour.trainers.fixed_patches import PASTED, SHIFTED, FixedPatch
from nnunet_synthtumour.trainers.lesion_loader import Sample
from nnunet_synthtumour.trainers.random_streams import seeded
from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer

GENTLER = 0.3  # share of the usual learning rate


class SynthTumourSeniorTrainer(SynthTumourTrainer):
    """Trains on healthy images with real tumours pasted in, on the patients themselves, and on grown lesions.

    The epoch is chosen on two kinds of fixed patches of held-out healthy cases: with tumours of held-out patients pasted
    in, and with the shifted lesions of stage one.
    """

    CHOOSING = (PASTED, SHIFTED)
    BESIDE: ClassVar[dict[str, str]] = {PASTED: "pasted_dice", SHIFTED: "shifted_dice"}

    donors: Donors | None = None
    _restoring = False

    def _refuse_what_cannot_work(self) -> None:
        super()._refuse_what_cannot_work()
        if not self.settings.cases(PSEUDO, LABELLED):
            raise Refusal(
                f"{self.plans_manager.dataset_name} has no patient with a (pseudo-)label whose tumour "
                f"{type(self).__name__} could paste; make the data set with 'synthtumour pseudolabel'."
            )

    def epochs_wanted(self) -> int | None:
        return self.settings.senior.epochs or super().epochs_wanted()

    def initialize(self) -> None:
        first = not self.was_initialized
        super().initialize()
        if first and not self._restoring and self.settings.senior.start == "junior":
            self.load_junior(self.junior_checkpoint())

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """A senior's own weights need no junior any more."""
        self._restoring = True
        try:
            super().load_checkpoint(filename_or_checkpoint)
        finally:
            self._restoring = False

    def default_lr(self) -> float:
        """A smaller one where the junior's weights are the start of SGD, whose usual one would undo them first."""
        if self.settings.senior.start == "junior" and self.settings.training.initial_lr is None:
            share = GENTLER if self.optimizer_name() == "sgd" else 1.0
            return self.settings.senior.initial_lr or share * super().default_lr()
        return super().default_lr()

    def junior_checkpoint(self) -> Path:
        """The checkpoint that wrote the pseudo-labels: of this fold, or of the first that there is."""
        about = self.dataset_json.get("synthtumour_provenance") or {}
        if "junior" not in about:
            raise Refusal(
                f"{self.plans_manager.dataset_name} does not say which junior labelled it; set "
                "synthtumour.senior.start to 'scratch' in dataset.json, or give -pretrained_weights with it."
            )
        folder = Path(os.environ["nnUNet_results"]) / about["junior"]
        folds = [str(self.fold), *about["checkpoints"]]
        for fold in folds:
            file = folder / f"fold_{fold}" / about["checkpoint"]
            if file.is_file():
                if about["checkpoints"].get(fold) not in (None, file_digest(file)):
                    raise Refusal(
                        f"{file} is another one than that which wrote {self.plans_manager.dataset_name}'s pseudo-labels; "
                        "repeat 'synthtumour pseudolabel', put it back, or set synthtumour.senior.start to 'scratch'."
                    )
                return file
        raise Refusal(
            f"There is no {file}, from which the senior starts; put it back or set synthtumour.senior.start to 'scratch'."
        )

    def load_junior(self, file: Path) -> None:
        weights = torch.load(file, map_location=self.device, weights_only=False)["network_weights"]
        network = self.network.module if self.is_ddp else self.network
        if isinstance(network, OptimizedModule):
            network = network._orig_mod
        network.load_state_dict({key.removeprefix("module."): value for key, value in weights.items()})
        self.print_to_log_file(f"Starts from the junior's weights, {file}")

    # ------------------------------------------------------------------------------------------------ data

    def initialize_donors(self) -> None:
        """Open the bank, which the first rank builds where it is missing or out of date."""
        try:
            self.donors = self._opened_donors()
        except UserError as error:
            raise Refusal(str(error)) from error

    def _opened_donors(self) -> Donors:
        train, val = ([case for case in cases if case not in self.healthy] for cases in self.do_split())
        configuration = self.configuration_manager
        folder = Path(self.preprocessed_dataset_folder_base) / f"donors_{configuration.data_identifier}"
        if self.local_rank == 0:
            build_bank(
                Path(self.preprocessed_dataset_folder), sorted({*train, *val}), folder, self.settings.donors,
                labels=[int(v) for v in self.label_manager.all_labels if v != 0], ignore_label=self.lesions.ignore_label,
                spacing=configuration.spacing, transpose_forward=self.plans_manager.transpose_forward,
            )  # fmt: skip
        if self.is_ddp:
            dist.barrier()
        donors = Donors(folder, self.settings, configuration.spacing, self.lesions.ignore_label, train, val,
                        self.lesions.renormaliser)  # fmt: skip
        for line in donors.describe():
            self.print_to_log_file(line)
        return donors

    def get_dataloaders(self) -> tuple[Any, Any]:
        self.initialize_donors()
        return super().get_dataloaders()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        if self.donors is None:  # --val, or nothing was left to train: there were no loaders
            self.initialize_donors()
        super().perform_actual_validation(save_probabilities)

    def labelled_share(self) -> float:
        return self.settings.senior.patients

    def validation_cases(self, healthy: list[str], real: list[str]) -> dict[str, list[str]]:
        return {PASTED: healthy, **{SHIFTED: super().validation_cases(healthy, real)[SHIFTED]}}

    def growth_for_training(self, patch_size: Sequence[int]) -> Callable[[str, Sample], Sample]:
        assert self.donors is not None
        return self.donors.for_training(patch_size, super().growth_for_training(patch_size))

    def growth_for_validation(self, patch_size: Sequence[int]) -> Callable[[FixedPatch, Sample], Sample]:
        assert self.donors is not None
        return self.donors.for_validation(patch_size, super().growth_for_validation(patch_size))

    def grow_volume(
        self, case: str, data: np.ndarray, seg: np.ndarray, properties: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """`data` and `seg` of a held-out healthy case with a tumour of a held-out patient."""
        assert self.donors is not None
        with seeded(self.settings.validation.seed, *case.encode()):
            return self.donors.in_volume(data, seg)
