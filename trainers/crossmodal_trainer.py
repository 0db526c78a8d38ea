"""Labels of one modality carried by registration to another that has none, and a segmenter trained on them."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_synthtumour.dataset_labels import structures
from nnunet_synthtumour.registration.fields import warp
from nnunet_synthtumour.registration.instance import InstanceSettings
from nnunet_synthtumour.settings import LABELLED, UNLABELLED
from nnunet_synthtumour.trainers.carried_labels import dataset_with_carried_labels, is_complete
from nnunet_synthtumour.trainers.carried_report import write_page
from nnunet_synthtumour.trainers.carried_run import carry_to_all, digest, digest_of
from nnunet_synthtumour.trainers.carrying import LabelCarrier
from nnunet_synthtumour.trainers.crossmodal_cases import SOURCE, SourceData, TwoModalities, paired_or_drawn
from nnunet_synthtumour.trainers.crossmodal_checks import (
    elsewhere,
    refuse_pairs_without_partners,
    refuse_source,
    refuse_target,
    refuse_too_few_epochs,
)
from nnunet_synthtumour.trainers.crossmodal_labels import Crossing
from nnunet_synthtumour.trainers.crossmodal_visibility import frame_of, seen_in
from nnunet_synthtumour.trainers.deepatlas_progress import measured, unmeasured
from nnunet_synthtumour.trainers.deepatlas_stages import ALONE
from nnunet_synthtumour.trainers.deepatlas_trainer import DeepAtlasTrainer
from nnunet_synthtumour.trainers.image_pairs import PairLoader
from nnunet_synthtumour.trainers.on_device import on_device
from nnunet_synthtumour.trainers.pair_validation import PairValidation, ValidationPairs
from nnunet_synthtumour.trainers.registration_objective import RegistrationObjective
from nnunet_synthtumour.trainers.seen_images import SeenImages, across
from nnunet_synthtumour.visibility import no_verdict, visibility

SEGMENTATION, TOGETHER = "segmentation on carried labels", "both learn"
VERDICT_CASES = 6  # targets that the verdict before training looks at


class CrossModalTrainer(DeepAtlasTrainer):
    """Registration of a labelled modality to an unlabelled one, then nnU-Net's own training on the labels it carries.

    `self.labelled` are the sources and `self.unlabelled` the targets. docs/crossmodal.md lists what differs from nnU-Net.
    """

    ANATOMY, PASSES, STRUCTURE_STEPS = 1.0, 1, 0
    RESTS = (SEGMENTATION,)

    dataloader_train: Any
    dataloader_val: Any

    def _refuse_what_cannot_work(self) -> None:
        self._refuse_configurations_without_pairs()
        name, settings = type(self).__name__, self.settings
        dataset = self.plans_manager.dataset_name
        refuse_target(name, dataset, self.label_manager, settings)
        assert settings.source is not None
        self.source = SourceData(
            settings.source.dataset, self.plans_manager.plans_name, self.configuration_name, self.dataset_json["labels"]
        )
        refuse_source(name, dataset, self.dataset_json, self.source, settings)
        self.labelled = [SOURCE + case for case in self.source.cases()]
        self.unlabelled = settings.cases(UNLABELLED, LABELLED)
        refuse_pairs_without_partners(dataset, self.source, self._without_partner(), settings)
        mine = settings.crossmodal
        refuse_too_few_epochs(mine.alone, mine.pretrain, self.num_epochs)
        self.settings = dataclasses.replace(
            settings,
            registration=dataclasses.replace(settings.registration, network=mine.network, similarity=mine.similarity),
            # the segmenter of targets knows nothing of sources
            deepatlas=dataclasses.replace(settings.deepatlas, guided=False),
        )

    @property
    def _without_pairs(self) -> bool:
        return self.settings.source is None or self.settings.source.pairing != "paired"

    def _without_partner(self) -> list[str]:
        """Targets that get labels of other patients although cases are paired."""
        if self._without_pairs:
            return []
        return [case for case in self.settings.cases(UNLABELLED) if SOURCE + case not in self.labelled]

    def images_seen(self) -> SeenImages:
        """Sources are moved, targets are fixed."""
        plans, configuration = self.plans_manager.plans, self.configuration_manager.configuration
        targets = SeenImages.of(plans, configuration, Path(self.preprocessed_dataset_folder), self.unlabelled)
        return across(self.source.seen([case.removeprefix(SOURCE) for case in self.labelled]), targets)

    # ------------------------------------------------------------------------------------------------ data

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split of the targets."""
        if self.fold == "all":
            return list(self.unlabelled), list(self.unlabelled)
        self.write_splits(self.unlabelled)
        return nnUNetTrainer.do_split(self)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Pairs while registration learns alone; nnU-Net's own loaders of the targets once labels are there."""
        self._open_cases()
        train, val = self.do_split()
        *_, mirror_axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.dataloader_pairs is None:
            loader = PairLoader(
                self.pairs_of, self.labelled, train, self.settings.registration.pairs,
                {"labelled-unlabelled": 1.0}, mirror_axes,
            )  # fmt: skip
            self.say_what_is_left_out(self.unlabelled, train, val)
            if alone := self._without_partner():
                self.print_to_log_file(
                    f"No source is called like {', '.join(alone)}: their labels are those of other patients."
                )
            self.taught_by = set(self.labelled)
            self.dataloader_pairs = self._start_pairs(loader)
        # labels that an earlier training left in this folder are not this one's
        if self.stage(self.current_epoch) == ALONE or not is_complete(self.carried_folder):
            return self.dataloader_pairs, itertools.repeat({})
        return self._target_loaders()

    def _open_cases(self) -> None:
        if hasattr(self, "pairs_of"):
            return
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        targets = self._whole_cases(self.unlabelled)
        sources = self.source.whole([case.removeprefix(SOURCE) for case in self.labelled])
        self.pairs_of: Any = TwoModalities(targets, sources, self.source.values)
        self.patches = self.pair_patches()
        known = [case for case in self.unlabelled if self.settings.roles[case] == LABELLED]
        pairs = [(source, target) for target in known for source in self._sources_of(target)]
        wanted = ValidationPairs("onto targets with labels of their own", pairs)
        self.pair_validation = PairValidation(self.pairs_of, wanted, [*self.labelled, *known], self.classes)

    def _target_loaders(self) -> tuple[Any, Any]:
        base = infer_dataset_class(self.preprocessed_dataset_folder)
        self.dataset_class = dataset_with_carried_labels(base, self.carried_folder)
        return nnUNetTrainer.get_dataloaders(self)

    def _sources_of(self, target: str) -> list[str]:
        names = [case.removeprefix(SOURCE) for case in self.labelled]
        settings, source = self.settings.crossmodal, self.settings.source
        assert source is not None
        seed = self.settings.training.seed or 0
        drawn = paired_or_drawn(target, names, source.pairing == "paired", settings.sources, seed)
        return [SOURCE + case for case in drawn]

    # ------------------------------------------------------------------------------------------------- train

    def stage(self, epoch: int) -> str:
        if epoch < round(self.settings.crossmodal.alone * self.num_epochs):
            return ALONE
        return SEGMENTATION if self.settings.crossmodal.mode == "sequential" else TOGETHER

    def refresh_epochs(self) -> set[int]:
        """Epochs that begin with labels carried anew."""
        first = round(self.settings.crossmodal.alone * self.num_epochs)
        times = 1 + (self.settings.crossmodal.refreshes if self.settings.crossmodal.mode == "unified" else 0)
        return {int(e) for e in np.linspace(first, self.num_epochs, times, endpoint=False)}

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.local_rank == 0:
            self._open_cases()
            mine, spacing = self.plans_manager.dataset_name, self.configuration_manager.spacing
            moved = elsewhere(mine, self.source.folder.name, self.pairs_of, max(spacing))
            for warning in (self.source.unmatched(mine), moved):
                if warning:
                    self.print_to_log_file(f"WARNING: {warning}")
            verdicts = self.verdicts()
            for verdict in verdicts:
                self.print_to_log_file(f"Visibility of {verdict.sentence()}")
            if missing := no_verdict(verdicts, structures(self.dataset_json["labels"])):
                self.print_to_log_file(missing)

    def verdicts(self) -> list[Any]:
        """What the target shows of each structure, from the labels of sources that are quickly registered to it."""
        self._open_cases()
        cases = []
        for i, target in enumerate(self.unlabelled[:VERDICT_CASES]):
            sources = self._sources_of(target)
            source = sources[i % len(sources)]  # not always the same: it may lack a structure
            cases.append(
                seen_in(target, self.pairs_of[target], self.pairs_of[source], self.settings.roles[target] == LABELLED,
                        self.configuration_manager.spacing, self.device,
                        frame_of(self.pairs_of.targets.dataset.load_case(target)[3]),
                        of_another=source != SOURCE + target or self._without_pairs)
            )  # fmt: skip
        return visibility(cases, structures(self.dataset_json["labels"]))

    def on_train_epoch_start(self) -> None:
        stage = self.stage(self.current_epoch)
        if stage != ALONE and (self.current_epoch in self.refresh_epochs() or not is_complete(self.carried_folder)):
            self._begin_with_carried_labels()
        super().on_train_epoch_start()

    def _begin_with_carried_labels(self) -> None:
        self._save_before_carrying()
        self.carry_labels()
        for loader in (self.dataloader_train, self.dataloader_val):
            if loader is not self.dataloader_pairs and hasattr(loader, "_finish"):
                loader._finish()
        self.dataloader_train, self.dataloader_val = self._target_loaders()
        if self.stage(self.current_epoch - 1) == ALONE:
            self._best_ema = None  # what was before had nothing to be measured by

    def _save_before_carrying(self) -> None:
        """A run that is killed while it carries goes on with this network, for which the labels so far were carried."""
        if self.current_epoch:
            begun = self.logger.local_logger.my_fantastic_logging["epoch_start_timestamps"]
            now = begun[self.current_epoch :]  # of this epoch, which a training that goes on begins again
            del begun[self.current_epoch :]
            self.current_epoch -= 1  # nnU-Net goes on with the epoch after that of a checkpoint
            try:
                self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
            finally:
                self.current_epoch += 1
                begun.extend(now)

    def carry_labels(self) -> None:
        """Register sources to every target, fuse their labels, ignore what is not trusted; with a report."""
        assert self.registration is not None
        self.print_to_log_file("Carrying labels over to the targets")
        targets = [target for target in self.unlabelled if self.settings.roles[target] != LABELLED]
        base = infer_dataset_class(self.preprocessed_dataset_folder)(self.preprocessed_dataset_folder, self.unlabelled)
        writer = self.carried_writer(base, self.pairs_of.grid, int(self.label_manager.ignore_label))
        crossing = Crossing(self.carrier(), writer, self._sources_of, self.settings.crossmodal)
        carry_to_all(
            self.carried_folder, targets, self._mark_of_carrying(targets), crossing.to_target, self.local_rank, self.ranks,
            draw=lambda scratch, rows: write_page(scratch, rows, writer.names),
        )  # fmt: skip

    def _mark_of_carrying(self, targets: Sequence[str]) -> dict[str, Any]:
        """All that carried labels depend on: those that were made with another mark are carried anew."""
        assert self.registration is not None and self.settings.source is not None
        return {"epoch": self.current_epoch, "seed": self.settings.training.seed or 0,
                "settings": dataclasses.asdict(self.settings.crossmodal),
                "registration": dataclasses.asdict(self.settings.registration), "pairing": self.settings.source.pairing,
                "fields": [InstanceSettings.smoothing, InstanceSettings.max_gradient],
                "network": digest(self.registration.bare.state_dict()),
                "images": digest_of(self.pairs_of, [*self.labelled, *targets])}  # fmt: skip

    def carrier(self) -> LabelCarrier:
        """What registers sources to targets, with the registration network as it is now."""
        assert self.registration is not None
        return LabelCarrier(
            self.pairs_of, self.registration, self.settings.crossmodal, self.settings.registration, self.classes,
            self.configuration_manager.spacing, self.device,
        )  # fmt: skip

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        stage = self.stage(self.current_epoch)
        losses = unmeasured()
        if stage == ALONE:
            pair = on_device(batch, self.device)
            losses |= self.registration_step(pair, joint=False)
            return measured(losses | (self.pretraining_step(pair) if self.settings.crossmodal.pretrain else {}))
        if stage == TOGETHER:
            losses |= self.registration_step(self.next_pair(), joint=True)
        return measured(losses | self.segmentation_step(batch, None))

    def pretraining_step(self, pair: dict[str, Any]) -> dict[str, Any]:
        """The segmenter learns shapes from source images warped to their targets, before any target has labels."""
        assert self.registration is not None
        moving = pair["moving"]
        forward, _ = self.registration.register(moving["match"], pair["fixed"]["match"])
        images, labels = warp(moving["image"], forward), warp(moving["seg"].float(), forward, "nearest").short()
        image, target = self.patches.batch(list(zip(images, labels, strict=True)))
        with self.precision():
            loss = self.loss(self.network(image), target)
        self.update(loss)
        return {"loss": loss.detach()}

    def objective(self) -> RegistrationObjective:
        """At full and half resolution, and both directions undo each other."""
        mine = self.settings.crossmodal
        return RegistrationObjective(
            self.settings.registration, self.classes, mine.half, half_images=True, consistency=mine.consistency
        )

    # -------------------------------------------------------------------------------------------- validation

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.stage(self.current_epoch) != ALONE:
            return super().validation_step(batch)
        nothing = np.zeros(len(self.label_manager.foreground_labels))
        return {"loss": np.array(np.nan), "tp_hard": nothing, "fp_hard": nothing, "fn_hard": nothing}

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)  # nothing is segmented yet
            super().on_validation_epoch_end(val_outputs)
        mean, moving = (self.logger.get_value(key, None) for key in ("mean_fg_dice", "ema_fg_dice"))
        if self.stage(self.current_epoch) == ALONE:
            mean[-1] = moving[-1] = 0.0
        elif self.stage(self.current_epoch - 1) == ALONE:
            moving[-1] = mean[-1]

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's, against the labels that were carried over, or a target's own where it has them."""
        self._open_cases()
        if not is_complete(self.carried_folder):
            self.carry_labels()
        _, val = self.do_split()
        base = infer_dataset_class(self.preprocessed_dataset_folder)
        self.dataset_class = dataset_with_carried_labels(base, self.carried_folder)
        lent = Path(self.output_folder) / "validation_references"
        if self.local_rank == 0:
            writer = self.reference_writer(lent / "gt_segmentations")
            cases = self.dataset_class(self.preprocessed_dataset_folder, list(val))
            writer.write(cases, lambda case: self.settings.roles[case] == LABELLED)
        if self.is_ddp:
            dist.barrier()
        mine, self.preprocessed_dataset_folder_base = self.preprocessed_dataset_folder_base, str(lent)
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            self.preprocessed_dataset_folder_base = mine
