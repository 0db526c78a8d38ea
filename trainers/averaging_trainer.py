"""What all our trainers share: settings, averaged weights, a choice of the epoch that suits short trainings too."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_synthtumour.atomic_files import complete
from nnunet_synthtumour.chosen_epoch import moved
from nnunet_synthtumour.errors import Refusal, UserError
from nnunet_synthtumour.settings import SHORT, Settings, settings_of
from nnunet_synthtumour.short_training import EPOCHS, ITERATIONS, number_in
from nnunet_synthtumour.trainers.averaged_weights import Averaging, horizon_of, with_averages
from nnunet_synthtumour.trainers.case_splits import splits_by_role
from nnunet_synthtumour.trainers.earlier_checkpoints import BEST, FINAL, LATEST, make_way
from nnunet_synthtumour.trainers.precision import channels_innermost, has_bfloat16, in_float, mixed_precision
from nnunet_synthtumour.trainers.validation_references import ReferenceWriter

SAVES = 20  # a kill costs no more than a twentieth of a training, or one epoch


class AveragingTrainer(nnUNetTrainer):
    """Validates, saves and predicts with a running average of the weights that are trained."""

    MIRRORING = True
    ADAMW_LR = 2e-3

    settings: Settings
    num_epochs: int
    num_iterations_per_epoch: int
    initial_lr: float
    weight_decay: float
    save_every: int
    preprocessed_dataset_folder_base: str

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature, which it inspects
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        try:
            self.settings = settings_of(dataset_json)
        except UserError as error:
            raise Refusal(str(error)) from error
        training = self.settings.training
        self.num_epochs = number_in(os.environ, EPOCHS) or self.epochs_wanted() or self.num_epochs
        self.num_iterations_per_epoch = (
            number_in(os.environ, ITERATIONS) or training.iterations or self.num_iterations_per_epoch
        )
        self._lr_of = {"sgd": self.initial_lr, "adamw": self.ADAMW_LR}
        self._resumed_optimizer: str | None = None
        self._resumed_mirroring: bool | None = None
        self._first_epoch: int | None = None  # that was trained since the last checkpoint
        self.initial_lr = self._default_lr = self.default_lr()

    def initialize(self) -> None:
        initialized = self.was_initialized
        if len(self.configuration_manager.pool_op_kernel_sizes) < 2:
            raise Refusal(
                f"The images of {self.plans_manager.dataset_name} are too small for a network of more than one resolution "
                f"(patches of {' x '.join(map(str, self.configuration_manager.patch_size))} voxels); use larger images or a "
                "finer spacing, nnUNetv2_plan_experiment -overwrite_target_spacing."
            )
        super().initialize()
        if initialized:
            return
        if self.bfloat16():
            self.network.register_forward_hook(lambda network, inputs, output: in_float(output))
        elif self.device.type == "cpu":
            channels_innermost(self.network, len(self.configuration_manager.patch_size))

    def bfloat16(self) -> bool:
        """Whether a CPU computes convolutions in bfloat16: half the time where it has the instructions."""
        chosen = self.settings.training.bfloat16
        return self.device.type == "cpu" and (has_bfloat16(self.device) if chosen is None else chosen)

    def precision(self) -> AbstractContextManager[Any]:
        """What forward passes run in."""
        return mixed_precision(self.device, self.bfloat16())

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        with self.precision():
            return super().train_step(batch)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        with self.precision():
            return super().validation_step(batch)

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return dist.get_world_size() if self.is_ddp else 1

    def gathered(self, mine: list[Any]) -> list[Any]:
        """`mine` of every rank, joined."""
        if not self.is_ddp:
            return mine
        theirs: list[Any] = [None] * self.ranks
        dist.all_gather_object(theirs, mine)
        return [item for part in theirs for item in part]

    def write_splits(self, *groups: Sequence[str]) -> Path:
        """nnU-Net's file of splits; where there is none, each of the groups of cases (one per role) is split for it."""
        file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if self.fold != "all" and not file.is_file() and self.local_rank == 0:
            save_json(splits_by_role(groups), str(file))
        if self.is_ddp:
            dist.barrier()
        return file

    def reference_writer(self, folder: Path) -> ReferenceWriter:
        """What writes the references of the final validation to `folder`."""
        given = Path(self.preprocessed_dataset_folder_base) / "gt_segmentations"
        return ReferenceWriter(folder, given, self.configuration_manager, self.plans_manager, self.dataset_json)

    def is_short(self) -> bool:
        """Whether the training has too few iterations for what nnU-Net does in a quarter of a million."""
        return self.num_epochs * self.num_iterations_per_epoch <= SHORT

    def optimizer_name(self) -> str:
        """`sgd` or `adamw`; a training that goes on keeps the one that it began with."""
        wanted = self.settings.training.optimizer or ("adamw" if self.is_short() else "sgd")
        return self._resumed_optimizer or wanted

    def default_lr(self) -> float:
        return self.settings.training.initial_lr or self._lr_of[self.optimizer_name()]

    def epochs_wanted(self) -> int | None:
        return self.settings.training.epochs

    def mirrors_by_default(self) -> bool:
        """Whether images are mirrored, in training and in prediction, unless the settings say otherwise or a training goes
        on, which keeps what it began with."""
        return self.MIRRORING

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802 - nnU-Net's
        *others, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        known = (self.settings.training.mirroring, self._resumed_mirroring, self.mirrors_by_default())
        if not next(mirrored for mirrored in known if mirrored is not None):
            mirror_axes = self.inference_allowed_mirroring_axes = None
        return (*others, mirror_axes)

    def configure_optimizers(self) -> tuple[Any, Any]:
        if self.initial_lr == self._default_lr:  # a subclass that sets its own number of epochs has another optimiser
            self.initial_lr = self._default_lr = self.default_lr()
        optimizer, scheduler = super().configure_optimizers()
        if self.optimizer_name() == "adamw":
            optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
            scheduler = PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
        horizon = self.averaging_horizon()
        if horizon:
            optimizer = with_averages(optimizer, horizon)
            scheduler.optimizer = optimizer
        return optimizer, scheduler

    def averaging_horizon(self) -> int:
        """Iterations over which weights are averaged, 0 for none."""
        wanted = self.settings.training.averaging
        return horizon_of(self.num_epochs * self.num_iterations_per_epoch) if wanted is None else wanted

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        checkpoint = filename_or_checkpoint
        if isinstance(checkpoint, str):
            checkpoint = torch.load(checkpoint, map_location="cpu", weights_only=False)
        if "inference_allowed_mirroring_axes" in checkpoint:
            self._resumed_mirroring = checkpoint["inference_allowed_mirroring_axes"] is not None
        began_with = "adamw" if "betas" in checkpoint["optimizer_state"]["param_groups"][0] else "sgd"
        if began_with != self.optimizer_name():
            self._resumed_optimizer = began_with
            if self.was_initialized:
                self.optimizer, self.lr_scheduler = self.configure_optimizers()
        super().load_checkpoint(filename_or_checkpoint)

    def _average_as_wanted(self) -> None:
        """After a checkpoint of a training with another `training.averaging`."""
        for group in self.optimizer.param_groups:
            if isinstance(self.optimizer, Averaging):
                group["horizon"] = self.averaging_horizon()
                group.setdefault("steps", 0)
                group.setdefault("averaged", False)
            elif group.pop("averaged", False):  # what was trained goes on, not its average
                with torch.no_grad():
                    for p in group["params"]:
                        if "average" in self.optimizer.state.get(p, {}):
                            p.copy_(self.optimizer.state[p].pop("average"))

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint takes its name when it is complete: a kill or a full disk leaves the one before."""
        if self.local_rank or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        if self._first_epoch == 0:
            self._make_way(Path(filename), FINAL, LATEST, BEST)
        for left_by_a_kill in Path(filename).parent.glob(f".*.{Path(filename).name}"):
            left_by_a_kill.unlink()
        with complete(Path(filename)) as scratch:
            super().save_checkpoint(str(scratch))
            more = self.beside_in_checkpoint()
            if more:
                written = torch.load(scratch, map_location="cpu", weights_only=False)
                torch.save({**written, **more}, scratch)
        if self._first_epoch and Path(filename).name != FINAL:
            self._make_way(Path(filename), FINAL)
        self._first_epoch = None

    def _make_way(self, file: Path, *names: str) -> None:
        line = make_way(file.parent, names)
        if line:
            self.print_to_log_file(line)

    def beside_in_checkpoint(self) -> dict[str, Any]:
        """What a trainer adds to nnU-Net's checkpoint."""
        return {}

    def on_train_start(self) -> None:
        super().on_train_start()
        self.save_every = min(self.save_every, max(1, self.num_epochs // SAVES))
        if self.device.type == "cpu" and not self.is_short():
            self.print_to_log_file(
                f"WARNING: {self.num_epochs} epochs of {self.num_iterations_per_epoch} iterations are many for a CPU; "
                f"fewer: synthtumour settings -d {self.plans_manager.dataset_name} --set training.epochs=20 --set "
                "training.iterations=50"
            )

    def on_train_epoch_start(self) -> None:
        self._average_as_wanted()
        self._use_average(False)
        if self._first_epoch is None:
            self._first_epoch = self.current_epoch
        super().on_train_epoch_start()

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        super().on_train_epoch_end(train_outputs)
        self._use_average(True)

    def _use_average(self, averaged: bool) -> None:
        if isinstance(self.optimizer, Averaging):
            self.optimizer.exchange(averaged)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's, which writes predictions for the next stage of a cascade only where that stage is preprocessed:
        it would break off otherwise, with all training done."""
        configuration = self.configuration_manager.configuration
        names = self.configuration_manager.next_stage_names
        dataset = Path(str(nnUNet_preprocessed)) / self.plans_manager.dataset_name
        configuration["next_stage"] = [
            name for name in names or []
            if (dataset / self.plans_manager.get_configuration(name).data_identifier).is_dir()
        ] or None  # fmt: skip
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            configuration["next_stage"] = names

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """The moving average of the Dice remembers no more epochs than a short training can spare."""
        super().on_validation_epoch_end(val_outputs)
        curve, now = self.logger.get_value("ema_fg_dice", None), self.logger.get_value("mean_fg_dice", -1)
        curve[-1] = now if len(curve) < 2 else moved(curve[-2], now, self.num_epochs)
