"""A registration network beside nnU-Net's: what it is built from, how it is saved, resumed and validated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json

from nnunet_synthtumour.errors import Refusal, Unsupported
from nnunet_synthtumour.registration.model_files import FILE_NAME, load_model, save_model
from nnunet_synthtumour.settings import LABELLED, PSEUDO, UNLABELLED
from nnunet_synthtumour.trainers.averaging_trainer import AveragingTrainer
from nnunet_synthtumour.trainers.case_splits import left_out
from nnunet_synthtumour.trainers.deepatlas_progress import REGISTRATION_CURVES, RegistrationLogger
from nnunet_synthtumour.trainers.grid_memory import refuse_grids_beyond
from nnunet_synthtumour.trainers.image_pairs import PairLoader, started
from nnunet_synthtumour.trainers.on_device import on_device
from nnunet_synthtumour.trainers.pair_patches import PairPatches
from nnunet_synthtumour.trainers.pair_validation import PairValidation, validation_pairs
from nnunet_synthtumour.trainers.registration_network import RegistrationLearner, kind_of
from nnunet_synthtumour.trainers.seen_images import SeenImages
from nnunet_synthtumour.trainers.whole_grids import WholeCases


class PairTrainer(AveragingTrainer):
    """nnU-Net's trainer of single images, and beside it a registration network on pairs of whole images.

    What the two learn from each other is said by `DeepAtlasTrainer`, which this one is the frame of.
    """

    ANATOMY: float  # unless registration.anatomy says otherwise
    PASSES: int
    STRUCTURE_STEPS: int

    num_val_iterations_per_epoch: int
    dataset_class: Any

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's own signature, which it inspects
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self._wanted = self.settings.registration
        complete = self._wanted.completed(self.ANATOMY, self.PASSES, self.STRUCTURE_STEPS)
        self.settings = dataclasses.replace(self.settings, registration=complete)
        self.labelled = self.settings.cases(LABELLED, PSEUDO)
        self.unlabelled = self.settings.cases(UNLABELLED)
        self._refuse_what_cannot_work()
        self.num_val_iterations_per_epoch = min(self.num_val_iterations_per_epoch, 10)
        self.logger.local_logger = RegistrationLogger(self.logger.local_logger.verbose)
        self.classes = len(self.label_manager.all_labels)
        self.registration: RegistrationLearner | None = None
        self.dataloader_pairs: Any = None

    def _refuse_what_cannot_work(self) -> None:
        """Before anything is trained."""
        self._refuse_configurations_without_pairs()

    def _refuse_configurations_without_pairs(self) -> None:
        name = type(self).__name__
        if self.is_cascaded:
            raise Unsupported(f"{name} cannot train {self.configuration_name}: a cascade's first stage sees no pairs.")
        if len(self.configuration_manager.patch_size) != 3:
            raise Unsupported(f"{name} cannot train {self.configuration_name}: registration needs volumes, not slices.")

    # ---------------------------------------------------------------------------------------------------------- set up

    def initialize(self) -> None:
        if self.was_initialized:
            return
        if self.settings.training.seed is not None:
            torch.manual_seed(self.settings.training.seed)
        super().initialize()
        self.registration = self._new_registration()

    def _new_registration(self) -> RegistrationLearner:
        return RegistrationLearner(
            self.configuration_manager, self.settings.registration, self.num_input_channels, self.device,
            compiled=self._do_i_compile(), rank=self.local_rank if self.is_ddp else None,
            structures=self.structures_seen(), images=self.images_seen(),
        )  # fmt: skip

    def images_seen(self) -> SeenImages:
        """How the images lie that registration learns from."""
        plans, configuration = self.plans_manager.plans, self.configuration_manager.configuration
        cases = [*self.labelled, *self.unlabelled]
        return SeenImages.of(plans, configuration, Path(self.preprocessed_dataset_folder), cases)

    def structures_seen(self) -> int:
        """Labels that the registration network is told of, in either image."""
        return len(self.label_manager.foreground_labels) if self.settings.deepatlas.guided else 0

    def _whole_cases(self, cases: list[str]) -> WholeCases:
        folder = self.preprocessed_dataset_folder
        gone = sorted(set(cases) - set(self.dataset_class.get_identifiers(folder)))
        if gone:
            raise Refusal(
                f"{len(gone)} cases of synthtumour.roles are not in {folder} ({gone[0]}, for one); preprocess the data set "
                "again, or take them out of roles in its dataset.json."
            )
        preprocessed = self.dataset_class(folder, sorted(set(cases)))
        return WholeCases(preprocessed, self.configuration_manager.spacing, self.plans_manager.transpose_forward)

    def _validation_of(self, cases: WholeCases, train: list[str], val: list[str]) -> PairValidation:
        return PairValidation(cases, validation_pairs(train, val, self.unlabelled), self.labelled, self.classes)

    def _start_pairs(self, loader: PairLoader) -> Any:
        refuse_grids_beyond(self.device, loader, self.configuration_manager)
        seed, pin_memory = self.settings.training.seed, self.device.type == "cuda"
        return started(loader, seed, self.local_rank, self.current_epoch, pin_memory)

    def say_what_is_left_out(self, usable: Sequence[str], train: list[str], val: list[str]) -> None:
        """In the log, the cases that no fold of the split has."""
        file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        folds = load_json(str(file)) if self.fold != "all" else []
        here = set(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        for line in left_out(set(usable), here, self.settings.roles, [{"train": train, "val": val}, *folds]):
            self.print_to_log_file(line)

    def pair_patches(self) -> PairPatches:
        """Whole grids as patches, labels in all resolutions of deep supervision."""
        transforms = self.get_validation_transforms(
            self._get_deep_supervision_scales(), foreground_labels=self.label_manager.foreground_labels,
            regions=None, ignore_label=self.label_manager.ignore_label,
        )  # fmt: skip
        stride = np.prod(self.configuration_manager.pool_op_kernel_sizes, axis=0)
        return PairPatches(self.configuration_manager.patch_size, transforms, stride)

    def next_pair(self) -> dict[str, Any]:
        """Pairs of whole images on the device."""
        return dict(on_device(next(self.dataloader_pairs), self.device))

    # ------------------------------------------------------------------------------------------------------ validation

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        super().on_validation_epoch_end(val_outputs)
        assert self.registration is not None
        found = self.pair_validation.summary(self.registration, self.device)
        for key in REGISTRATION_CURVES:
            self.logger.log(key, found[key], self.current_epoch)
        if not self.pair_validation.pairs:
            return
        measure, name = ("image_cost", "image cost") if np.isnan(found["dice_after"]) else ("dice", "Dice")
        before, after = (found[f"{measure}_{when}"] for when in ("before", "after"))
        self.print_to_log_file(
            f"Registration of validation pairs ({self.pair_validation.kind}): {name} {before:.4f} before, {after:.4f} after, "
            f"{found['folds_percent']:.4f} % folds"
        )

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's, then the registration of validation pairs, and the network as `synthtumour register` takes it."""
        super().perform_actual_validation(save_probabilities)
        assert self.registration is not None
        if not hasattr(self, "pair_validation"):
            self.get_dataloaders_for_pairs()  # on all ranks, which meet where the split is written
        if self.local_rank == 0:
            folder = Path(self.output_folder)
            self.pair_validation.write(self.registration, self.device, folder / "validation")
            if not (folder / FILE_NAME).is_file():
                self._save_registration()
            self._write_how_it_registers(folder)

    def get_dataloaders_for_pairs(self) -> None:
        """Only what validation needs of `get_dataloaders`."""
        train, val = self.do_split()
        self.pair_validation = self._validation_of(self._whole_cases([*self.labelled, *self.unlabelled]), train, val)

    # ----------------------------------------------------------------------------------------------------- checkpoints

    def beside_in_checkpoint(self) -> dict[str, Any]:
        """The registration network, its optimiser and its scaler."""
        assert self.registration is not None
        return {**super().beside_in_checkpoint(), "registration": self.registration.state()}

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        checkpoint = filename_or_checkpoint
        if isinstance(checkpoint, str):
            checkpoint = torch.load(checkpoint, map_location=self.device, weights_only=False)
        assert self.registration is not None and isinstance(checkpoint, dict)
        if "registration" not in checkpoint:
            raise Refusal(f"This checkpoint holds no registration network; {type(self).__name__} did not write it.")
        self._go_on_as_begun(checkpoint["registration"])
        self.registration.load_state(checkpoint["registration"])

    def _go_on_as_begun(self, state: Mapping[str, Any]) -> None:
        """A training keeps the kind of registration network that it began with and, where the user has not said otherwise,
        its weight of anatomy, its passes (both 1 before they were chosen by the trainer) and its steps (none before)."""
        network, guided = kind_of(state["weights"])
        mine = self.settings.registration
        begun = self._wanted.completed(
            state.get("anatomy", 1.0), state.get("passes", 1), state.get("structure_steps", 0)
        )
        other = (network, guided) != (mine.network, self.structures_seen() > 0)
        begun = dataclasses.replace(begun, network=network, similarity=mine.similarity)
        if not other and begun == mine:
            return
        if other:
            self.print_to_log_file(
                f"WARNING: this training goes on with the registration network that it began with (network={network}, "
                f"guided={str(guided).lower()}); the settings ask for another one now"
            )
        self.settings = dataclasses.replace(
            self.settings, registration=begun, deepatlas=dataclasses.replace(self.settings.deepatlas, guided=guided)
        )
        self.registration = self._new_registration()

    def _save_registration(self) -> None:
        """As `synthtumour register` takes it: of the end of the training, whichever checkpoint is validated later."""
        assert self.registration is not None
        save_model(Path(self.output_folder), self.registration.architecture, self.registration.bare)

    def _write_how_it_registers(self, folder: Path) -> None:
        """Looks and steps that the settings ask for now, as validation has taken them; the weights stay those of the end."""
        assert self.registration is not None
        how = ("passes", "structure_steps")
        wanted = {key: value for key, value in self.registration.architecture.options.items() if key in how}
        try:
            network, stored = load_model(folder)
            options = {key: value for key, value in stored.options.items() if key not in how} | wanted
            if options == stored.options:
                return
            save_model(folder, dataclasses.replace(stored, options=options), network)
        except (ValueError, OSError) as error:  # validation is done: nothing of it may be lost now
            self.print_to_log_file(f"WARNING: {folder / FILE_NAME} stays as it is: {error}")
        else:
            self.print_to_log_file(f"{folder / FILE_NAME} registers with {wanted} from now on, as the settings say")

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.local_rank == 0:
            self._save_registration()
        if hasattr(self.dataloader_pairs, "_finish"):
            self.dataloader_pairs._finish()
