"""DeepAtlas: a segmentation and a registration network that teach each other, down to one labelled image."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.collate_outputs import collate_outputs
from torch import Tensor

from nnunet_synthtumour.dataset_labels import structures
from nnunet_synthtumour.errors import Refusal, Unsupported
from nnunet_synthtumour.settings import DeepAtlasSettings
from nnunet_synthtumour.trainers.carried_labels import REPORT, is_complete
from nnunet_synthtumour.trainers.carried_run import carry_to_all
from nnunet_synthtumour.trainers.carried_writer import CarriedWriter
from nnunet_synthtumour.trainers.case_splits import restrict
from nnunet_synthtumour.trainers.deepatlas_labels import NO_LABEL, Fitting, mark_of_fits, relays_for, with_fitted
from nnunet_synthtumour.trainers.deepatlas_progress import LOSSES, mean_of_measured, measured, said_of, unmeasured
from nnunet_synthtumour.trainers.deepatlas_samples import taught_samples
from nnunet_synthtumour.trainers.deepatlas_stages import JOINT, TAUGHT, registration_steps, stage_of
from nnunet_synthtumour.trainers.fitted_labels import LabelFitter, dataset_with_fitted, files_of
from nnunet_synthtumour.trainers.found_structures import bare_weights, probabilities
from nnunet_synthtumour.trainers.gradient_step import descend
from nnunet_synthtumour.trainers.image_pairs import PairLoader, shares_of_kinds
from nnunet_synthtumour.trainers.on_device import on_device
from nnunet_synthtumour.trainers.pair_trainer import PairTrainer
from nnunet_synthtumour.trainers.patches_within import CentresWithin
from nnunet_synthtumour.trainers.rank_loss import of_this_rank_alone
from nnunet_synthtumour.trainers.registration_objective import RegistrationObjective
from nnunet_synthtumour.trainers.whole_grids import Grid, WholeCases

CARRIED = "carried_labels"


class DeepAtlasTrainer(PairTrainer):
    """nnU-Net's trainer of labelled images, and beside it a registration network on pairs of all images.

    What differs from nnU-Net, and why, is listed in docs/deepatlas.md.
    """

    ADAMW_LR = 1e-3
    ANATOMY, PASSES, STRUCTURE_STEPS = 4.0, 2, 8
    RESTS: tuple[str, ...] = (TAUGHT,)  # stages in which registration learns nothing
    MIRRORING = False  # images that are registered all lie the same way, and what is left must not look like right

    num_epochs: int
    num_iterations_per_epoch: int
    initial_lr: float

    taught_by: Set[str] = frozenset()  # cases whose labels pairs show
    fitted_to: Sequence[str] = ()  # cases that labels are fitted to before training

    def _refuse_what_cannot_work(self) -> None:
        self._refuse_configurations_without_pairs()
        name = type(self).__name__
        if self.label_manager.has_regions:
            raise Unsupported(
                f"{name} cannot train regions: registration compares labels that exclude each other; declare plain labels."
            )
        if not self.labelled:
            raise Refusal(
                f"{self.plans_manager.dataset_name} has no labelled case; build it with 'synthtumour prepare --labelled "
                "FOLDER --labels FOLDER --unlabelled FOLDER'."
            )
        if len(self.labelled) + len(self.unlabelled) < 2:
            raise Refusal(f"{self.plans_manager.dataset_name} has one image, but registration needs at least two.")

    # ---------------------------------------------------------------------------------------------------------- set up

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split of the labelled cases; a handful is enough, and fold `all` uses every label."""
        if self.fold == "all":
            return list(self.labelled), list(self.labelled)
        splits_file = self.write_splits(self.labelled, self.unlabelled)
        train, val = super().do_split()
        split = restrict({"train": list(train), "val": list(val)}, set(self.labelled))
        if not split["train"] or not split["val"]:
            raise Refusal(f"Fold {self.fold} has no labelled case on one side; mend {splits_file} or use fold all.")
        return split["train"], split["val"]

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders of labelled patches; beside them, pairs of whole images start to load."""
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        train, val = self.do_split()
        unlabelled = [case for case in self.unlabelled if case not in set(val) - set(train)]
        cases = self._whole_cases([*self.labelled, *self.unlabelled])
        *_, mirror_axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        settings = self.settings
        loader = PairLoader(
            cases, train, unlabelled, settings.registration.pairs,
            shares_of_kinds(settings.deepatlas, len(train), len(unlabelled)), mirror_axes,
        )  # fmt: skip
        if len({*train, *unlabelled}) < 2:
            raise Refusal(
                f"Fold {self.fold} trains on one image alone, but registration needs two; use fold all, or add images."
            )
        if not loader.kinds:
            raise Refusal("deepatlas.pairs leaves no kind of pairs that this data set has; raise one of its shares.")
        self.say_what_is_left_out(self.labelled, train, val)
        self.say_what_cannot_be_known(train, val)
        self.taught_by = set(train)
        self.dataloader_pairs = self._start_pairs(loader)
        self.patches = self.pair_patches()
        self.pair_validation = self._validation_of(cases, train, val)
        self.fitted_to = unlabelled if settings.deepatlas.fitted else []
        if self.fitted_to:
            self.fit_labels(cases, train)
        return super().get_dataloaders()

    def say_what_cannot_be_known(self, train: list[str], val: list[str]) -> None:
        """In the log, structures that no image teaches, and a validation that tells nothing."""
        dataset = self.dataset_class(self.preprocessed_dataset_folder, train)
        locations = [dataset.load_case(case)[3]["class_locations"] for case in train]
        taught = {label for of_case in locations for label, voxels in of_case.items() if len(voxels)}
        lacking = [name for name, value in structures(self.dataset_json["labels"]).items() if value not in taught]
        if lacking:
            self.print_to_log_file(
                f"WARNING: no labelled image of this training holds {', '.join(lacking)}: taught as background; "
                "add an image that has it, or leave the label out."
            )
        if self.fold != "all" and set(val) <= set(train):
            self.print_to_log_file(
                f"WARNING: fold {self.fold} is validated on the labelled images that it is trained on, so its Dice says "
                "nothing of new ones, and leaves unlabelled images out; use fold all."
            )

    @property
    def carried_folder(self) -> Path:
        return Path(self.output_folder) / CARRIED

    def fit_labels(self, cases: WholeCases, labelled: list[str]) -> None:
        """Labels for all unlabelled cases, in `carried_folder`; those of an earlier run with the same settings are kept."""
        if self.current_epoch >= self.num_epochs and is_complete(self.carried_folder):
            return  # nothing will be trained on them
        settings = self._as_begun(len(labelled))
        relays = relays_for(len(labelled), settings)
        mark = mark_of_fits(
            cases, labelled, self.fitted_to, self.plans_manager.plans_name, self.configuration_name,
            self.configuration_manager, settings, self.settings.registration,
        )  # fmt: skip
        if is_complete(self.carried_folder, mark):
            return
        self.print_to_log_file("Fitting labelled images to all others")
        fitter = LabelFitter(
            cases, self.settings.registration, settings.fitted, self.classes, self.configuration_manager.spacing,
            self.device, self.label_manager.ignore_label,
        )  # fmt: skip
        fitting = Fitting(
            fitter, self.carried_writer(cases.dataset, cases.grid, NO_LABEL), labelled, settings.sources,
            fitter.relays(labelled, self.fitted_to, relays),
        )  # fmt: skip
        carry_to_all(
            self.carried_folder, self.fitted_to, mark, fitting.to_target, self.local_rank, self.ranks, files=files_of
        )  # fmt: skip

    def _as_begun(self, labelled: int) -> DeepAtlasSettings:
        """A training that goes on keeps the number of relays that it began with, where the user has not set one."""
        settings = self.settings.deepatlas
        if settings.relays is None and self.current_epoch and is_complete(self.carried_folder):
            written = json.loads((self.carried_folder / REPORT).read_text(encoding="utf-8"))
            settings = replace(settings, relays=written.get("relays", relays_for(labelled, settings)))
        return settings

    def carried_writer(self, dataset: Any, grid: Grid, ignore: int) -> CarriedWriter:
        """What writes labels that come from other images; `ignore` is the value of what is not trusted of them."""
        return CarriedWriter(
            dataset, grid, self.label_manager, structures(self.dataset_json["labels"]), ignore,
            self.configuration_manager.spacing,
        )  # fmt: skip

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's patches come from labelled images and, with fitted labels, from all others and from labelled images
        warped to them; they lie within the image."""
        train, val = super().get_tr_and_val_datasets()
        cases = with_fitted(train.identifiers, self.fitted_to, self.settings.deepatlas)
        if cases != train.identifiers:
            kind = dataset_with_fitted(self.dataset_class, self.carried_folder)
            train = kind(self.preprocessed_dataset_folder, cases)
        *_, size, _ = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        patch = self.configuration_manager.patch_size
        return CentresWithin(train, size, patch), CentresWithin(val, patch, patch)

    # ----------------------------------------------------------------------------------------------------------- train

    def stage(self, epoch: int) -> str:
        """What is learnt in an epoch."""
        return stage_of(epoch, self.num_epochs, self.settings.deepatlas, len(self.taught_by))

    def on_train_epoch_start(self) -> None:
        if self.current_epoch:  # the averaged segmenter has learnt something, and is in place until the epoch begins
            self._guide_registration()
        super().on_train_epoch_start()
        assert self.registration is not None
        active = [epoch for epoch in range(self.num_epochs) if self.stage(epoch) not in self.RESTS]
        self.registration.begin_epoch(sum(epoch < self.current_epoch for epoch in active), max(1, len(active)))
        stage = self.stage(self.current_epoch)
        fitted = stage == TAUGHT and self.settings.deepatlas.fitted
        self.print_to_log_file(f"Stage: {'fitted labels teach, registration rests' if fitted else stage}")

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A segmentation step on nnU-Net's batch, on pairs once registration can teach, and registration steps."""
        stage = self.stage(self.current_epoch)
        losses = unmeasured()
        if stage != TAUGHT:
            for _ in range(registration_steps(self.settings.deepatlas) if stage == JOINT else 1):
                losses |= self.registration_step(self.next_pair(), joint=stage == JOINT)
        # a registration network that has learnt nothing yet has nothing to teach
        teaches = stage == JOINT or (stage == TAUGHT and not self.settings.deepatlas.fitted)
        pair = self.next_pair() if teaches else None
        return measured(losses | self.segmentation_step(batch, pair))

    def registration_step(self, pair: dict[str, Any], joint: bool) -> dict[str, Any]:
        """Both directions of a pair; once segmentation is of use, its predictions stand in where labels are missing."""
        assert self.registration is not None
        moving, fixed = pair["moving"]["match"], pair["fixed"]["match"]
        found = self.found_in(moving, fixed)
        with self.precision():
            output = self.registration.network(moving, fixed, found)
        sides = zip((pair["moving"], pair["fixed"]), found or (None, None), strict=True)
        predicted = [self.stand_in(side, seen) if joint else None for side, seen in sides]
        loss, terms = self.objective()(self.registration, output, pair, predicted)
        self.registration.step(loss)
        losses = {key: value.detach() for key, value in terms._asdict().items()}
        unknown = losses["anatomy"] == 0  # exactly: no pair had labels, or what stands in for them, on both sides
        return losses | {"anatomy": losses["anatomy"].masked_fill(unknown, np.nan)}

    def objective(self) -> RegistrationObjective:
        """What the registration network minimises."""
        return RegistrationObjective(self.settings.registration, self.classes)

    def segmentation_step(self, batch: dict[str, Any], pair: dict[str, Any] | None) -> dict[str, Any]:
        """nnU-Net's loss on its own batch, and on labels carried over and images warped by the registration network."""
        batch = on_device(batch, self.device)
        samples, weights = ([], []) if pair is None else self.taught_samples(pair)
        with self.precision():
            supervised = self.loss(self.network(batch["data"]), batch["target"])
            total, carried = supervised, supervised.detach() * (0 if samples else np.nan)
            for weight in sorted(set(weights)):
                image, labels = self.patches.batch(
                    [one for one, its in zip(samples, weights, strict=True) if its == weight]
                )
                logits = self.network(image)
                with of_this_rank_alone(self.loss):  # other ranks have more samples, or none
                    part = self.loss(logits, labels) * (weights.count(weight) / len(weights))
                total, carried = total + weight * part, carried + part.detach()
        self.update(total)
        return {"loss": supervised.detach(), "carried": carried.detach()}

    def update(self, loss: Tensor) -> None:
        """A step of the segmentation network, as nnU-Net takes it."""
        descend(loss, self.network.parameters(), self.optimizer, self.grad_scaler)

    def taught_samples(self, pair: dict[str, Any]) -> tuple[list[tuple[Tensor, Tensor]], list[float]]:
        """(image, labels) of whole grids with their weights: labels carried to the other image, and warped images."""
        assert self.registration is not None
        moving, fixed = pair["moving"], pair["fixed"]
        if not any([*moving["labelled"], *fixed["labelled"]]):
            return [], []
        fields = self.registration.register(moving["match"], fixed["match"], self.precision(), to_structures=False)
        settings = self.settings.deepatlas
        return taught_samples(pair, *fields, 0.0 if self.fitted_to else settings.carried, settings.warped)

    def found_in(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the guide, if it speaks, says about both images."""
        assert self.registration is not None
        with self.precision():
            return self.registration.found_in(moving, fixed)

    def stand_in(self, side: dict[str, Any], found: Tensor | None) -> Tensor | None:
        """Probabilities that stand in for manual labels, (B, classes, X, Y, Z), where images have none: the guide's, if
        there is to be one."""
        if set(side["case"]) <= self.taught_by:
            return None
        return found if found is not None or self.settings.deepatlas.guided else self.predict(side["image"])

    def predict(self, image: Tensor) -> Tensor:
        """Probabilities of all labels on whole grids, (B, classes, X, Y, Z), without gradient."""
        return probabilities(self.network, image, self.patches, self.precision())

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        outputs = collate_outputs(train_outputs)
        means = {key: mean_of_measured(self.gathered(list(np.ravel(outputs[key])))) for key in outputs}
        self.logger.log("train_losses", means["loss"], self.current_epoch)
        for key in LOSSES:
            self.logger.log(key, means[key.removesuffix("_loss")], self.current_epoch)
        said = said_of(means)
        if said:
            self.print_to_log_file(said)
        self._use_average(True)
        assert self.registration is not None
        if self.registration.guide is not None:
            self._guide_registration()

    def _guide_registration(self) -> None:
        """While both learn, registration sees what the averaged segmenter finds; before, a guide would only spoil it: it
        has not learnt what to make of one."""
        assert self.registration is not None
        bare: Any = self.registration.bare
        if bare.guide is not None and self.stage(self.current_epoch) == JOINT:
            bare.guide.take(bare_weights(self.network))
