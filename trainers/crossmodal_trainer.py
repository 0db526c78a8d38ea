"""Labels of one modality carried by registration to another that has none, and a segmenter trained on them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnunet_synthtumour.errors import Refusal, Unsupported
from nnunet_synthtumour.registration.fields import resize, warp
from nnunet_synthtumour.registration.instance import REGULARITY_WEIGHTS
from nnunet_synthtumour.registration.regularity import inverse_consistency
from nnunet_synthtumour.settings import LABELLED, UNLABELLED
from nnunet_synthtumour.trainers.carried_labels import (
    dataset_with_carried_labels,
    is_complete,
    summary,
    to_case,
    trusted,
    write_case,
    write_report,
)
from nnunet_synthtumour.trainers.carried_report import draw_case, write_page
from nnunet_synthtumour.trainers.carried_run import carry_to_all, digest
from nnunet_synthtumour.trainers.carrying import LabelCarrier
from nnunet_synthtumour.trainers.case_splits import splits_by_role
from nnunet_synthtumour.trainers.crossmodal_cases import SOURCE, SourceData, TwoModalities, paired_or_drawn
from nnunet_synthtumour.trainers.deepatlas_losses import manual_or_predicted, registration_terms
from nnunet_synthtumour.trainers.deepatlas_stages import ALONE
from nnunet_synthtumour.trainers.deepatlas_trainer import DeepAtlasTrainer
from nnunet_synthtumour.trainers.image_pairs import PairLoader
from nnunet_synthtumour.trainers.on_device import on_device
from nnunet_synthtumour.trainers.pair_validation import PairValidation
from nnunet_synthtumour.trainers.validation_references import write_reference
from nnunet_synthtumour.trainers.whole_grids import WholeCases

SEGMENTATION, TOGETHER = "segmentation on carried labels", "both learn"
CARRIED = "carried_labels"
VERDICT_CASES = 6  # targets that the verdict before training looks at


class CrossModalTrainer(DeepAtlasTrainer):
    """Registration of a labelled modality to an unlabelled one, then nnU-Net's own training on the labels it carries.

    `self.labelled` are the sources and `self.unlabelled` the targets. docs/crossmodal.md lists what differs from nnU-Net.
    """

    dataloader_train: Any
    dataloader_val: Any

    def _refuse_what_cannot_work(self) -> None:
        name, settings = type(self).__name__, self.settings
        if self.is_cascaded:
            raise Unsupported(f"{name} cannot train {self.configuration_name}: a cascade's first stage sees no pairs.")
        if len(self.configuration_manager.patch_size) != 3:
            raise Unsupported(f"{name} cannot train {self.configuration_name}: registration needs volumes, not slices.")
        if self.label_manager.has_regions:
            raise Unsupported(f"{name} cannot train regions: carried labels exclude each other; declare plain labels.")
        if self.label_manager.ignore_label is None:
            raise Refusal(
                f"{self.plans_manager.dataset_name} declares no ignore label, which untrusted voxels get; build it with "
                "'synthtumour prepare --unlabelled FOLDER'."
            )
        if settings.source is None:
            raise Refusal(
                f"{self.plans_manager.dataset_name} does not say where labels come from; set it with 'synthtumour "
                "settings -d ID --set source.dataset=ID_OF_THE_LABELLED_MODALITY'."
            )
        self.source = SourceData(
            settings.source.dataset, self.plans_manager.plans_name, self.configuration_name, self.dataset_json["labels"]
        )
        self.labelled = [SOURCE + case for case in self.source.cases()]
        self.unlabelled = settings.cases(UNLABELLED, LABELLED)
        if not self.labelled or not self.unlabelled:
            which = "source" if not self.labelled else "target"
            raise Refusal(f"The {which} data set has no usable case; preprocess it, and give the source labels.")
        if len(self.dataset_json["channel_names"]) != len(self.source.dataset_json["channel_names"]):
            raise Unsupported(
                f"{name} compares images channel by channel, but source and target have different numbers of channels."
            )
        mine = settings.crossmodal
        registration = dataclasses.replace(settings.registration, network=mine.network, similarity=mine.similarity)
        self.settings = dataclasses.replace(settings, registration=registration)

    def structures_seen(self) -> int:
        return 0  # the segmenter of targets knows nothing of sources

    # ------------------------------------------------------------------------------------------------ data

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split of the targets."""
        if self.fold == "all":
            return list(self.unlabelled), list(self.unlabelled)
        splits_file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if not splits_file.is_file() and self.local_rank == 0:
            splits_file.write_text(json.dumps(splits_by_role([self.unlabelled])), encoding="utf-8")
        if self.is_ddp:
            dist.barrier()
        return nnUNetTrainer.do_split(self)

    @property
    def carried_folder(self) -> Path:
        return Path(self.output_folder) / CARRIED

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Pairs while registration learns alone; nnU-Net's own loaders of the targets once labels are there."""
        self._open_cases()
        train, _ = self.do_split()
        *_, mirror_axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.dataloader_pairs is None:
            loader = PairLoader(
                self.pairs_of, self.labelled, train, self.settings.registration.pairs,
                {"labelled-unlabelled": 1.0}, mirror_axes,
            )  # fmt: skip
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
        targets = WholeCases(
            self.dataset_class(self.preprocessed_dataset_folder, self.unlabelled),
            self.configuration_manager.spacing, self.plans_manager.transpose_forward,
        )  # fmt: skip
        sources = self.source.whole([case.removeprefix(SOURCE) for case in self.labelled])
        self.pairs_of: Any = TwoModalities(targets, sources, self.source.values)
        self.patches = self.pair_patches()
        known = [case for case in self.unlabelled if self.settings.roles[case] == LABELLED]
        pairs = [(source, target) for target in known for source in self._sources_of(target)]
        self.pair_validation = PairValidation(self.pairs_of, [], self.classes)
        self.pair_validation.pairs = pairs

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
            for verdict in self.verdicts():
                self.print_to_log_file(f"Visibility of {verdict.sentence()}")

    def verdicts(self) -> list[Any]:
        """What the target shows of each structure, from the labels of sources that are quickly registered to it."""
        from nnunet_synthtumour.visibility import VisibilityCase, visibility
        from nnunet_synthtumour.visibility_dataset import quick_field

        self._open_cases()
        cases, spacing = [], tuple(float(mm) for mm in self.configuration_manager.spacing)
        for target in self.unlabelled[:VERDICT_CASES]:
            shown, source = self.pairs_of[target], self.pairs_of[self._sources_of(target)[0]]
            moving, fixed = source.match()[None].to(self.device), shown.match()[None].to(self.device)
            u = quick_field(moving, fixed, spacing).cpu()
            own = self.settings.roles[target] == LABELLED
            labels = shown.seg if own else warp(source.seg[None].clamp(min=0).float(), u, "nearest")[0].short()
            image = warp(source.image[None], u)[0]
            cases.append(VisibilityCase(target, shown.image.numpy(), labels[0].clamp(min=0).numpy(), spacing,
                                        image.numpy(), carried=not own))  # fmt: skip
        names = {k: int(v) for k, v in self.dataset_json["labels"].items() if k not in ("background", "ignore")}
        return visibility(cases, names)

    def on_train_epoch_start(self) -> None:
        stage = self.stage(self.current_epoch)
        if stage != ALONE and (self.current_epoch in self.refresh_epochs() or not is_complete(self.carried_folder)):
            self._begin_with_carried_labels()
        super().on_train_epoch_start()

    def _begin_with_carried_labels(self) -> None:
        first = not is_complete(self.carried_folder)
        self.carry_labels()
        if self.dataloader_train is not self.dataloader_pairs:
            self.dataloader_train._finish() if hasattr(self.dataloader_train, "_finish") else None
            self.dataloader_val._finish() if hasattr(self.dataloader_val, "_finish") else None
        self.dataloader_train, self.dataloader_val = self._target_loaders()
        if first:
            self._best_ema = None  # what was before had nothing to be measured by

    def carry_labels(self) -> None:
        """Register sources to every target, fuse their labels, ignore what is not trusted; with a report."""
        assert self.registration is not None
        self.print_to_log_file("Carrying labels over to the targets")
        about = {"epoch": self.current_epoch, "settings": dataclasses.asdict(self.settings.crossmodal)}
        names = {int(v): k for k, v in self.dataset_json["labels"].items() if k not in ("background", "ignore")}
        base = infer_dataset_class(self.preprocessed_dataset_folder)(self.preprocessed_dataset_folder, self.unlabelled)
        carrier = self.carrier()

        def finish(scratch: Path, rows: list[dict[str, Any]]) -> None:
            write_report(scratch, about, rows)
            write_page(scratch, rows, list(names.values()))

        carry_to_all(
            self.carried_folder,
            [target for target in self.unlabelled if self.settings.roles[target] != LABELLED],
            {**about, "network": digest(self.registration.bare.state_dict())},
            lambda target, scratch: self._carry_to(target, scratch, carrier, base, names),
            finish,
            self.local_rank,
            dist.get_world_size() if self.is_ddp else 1,
        )

    def _carry_to(
        self, target: str, folder: Path, carrier: LabelCarrier, base: Any, names: dict[int, str]
    ) -> dict[str, Any]:
        """Write a target's labels and its picture to `folder`; its row of the report."""
        settings, ignore = self.settings.crossmodal, int(self.label_manager.ignore_label)
        sources = self._sources_of(target)
        carried = carrier.carry(target, sources)
        kept = trusted(carried, settings.trusted, settings.doubtful, ignore)
        _, seg, _, properties = base.load_case(target)
        on_case = to_case(kept.numpy(), np.asarray(seg[:]), properties, self.pairs_of.grid)
        classes = [*self.label_manager.foreground_labels, (-1, *self.label_manager.all_labels)]
        write_case(folder, target, on_case, DefaultPreprocessor._sample_foreground_locations(on_case, classes))
        draw_case(folder, target, self.pairs_of[target].image[0].numpy(), kept.numpy(), ignore)
        return summary(target, [s.removeprefix(SOURCE) for s in sources], kept, carried, names, ignore,
                       self.configuration_manager.spacing)  # fmt: skip

    def carrier(self) -> LabelCarrier:
        """What registers sources to targets, with the registration network as it is now."""
        assert self.registration is not None
        return LabelCarrier(
            self.pairs_of, self.registration, self.settings.crossmodal, self.settings.registration, self.classes,
            self.configuration_manager.spacing, self.device,
        )  # fmt: skip

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        stage = self.stage(self.current_epoch)
        nan = np.array(np.nan)
        losses: dict[str, Any] = {"similarity": nan, "regularity": nan, "anatomy": nan, "carried": nan, "loss": nan}
        if stage == ALONE:
            pair = on_device(batch, self.device)
            losses |= self.registration_step(pair, joint=False)
            return losses | (self.pretraining_step(pair) if self.settings.crossmodal.pretrain else {})
        if stage == TOGETHER:
            losses |= self.registration_step(self.next_pair(), joint=True)
        return losses | self.segmentation_step(batch, None)

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
        return {"loss": loss.detach().cpu().numpy()}

    def registration_step(self, pair: dict[str, Any], joint: bool) -> dict[str, Any]:
        """Both directions at full and half resolution; with segmentation, the overlap of carried and predicted labels."""
        assert self.registration is not None
        learner, settings, mine = self.registration, self.settings.registration, self.settings.crossmodal
        moving, fixed = pair["moving"], pair["fixed"]
        predicted = self.predict(fixed["image"]) if joint else None
        with self.precision():
            output = learner.network(moving["match"], fixed["match"])
        velocities, extra = learner.velocities_and_graph_loss(output)
        anatomies = (
            manual_or_predicted(moving, self.classes, None),
            manual_or_predicted(fixed, self.classes, predicted),
        )
        smooth = settings.regularity * REGULARITY_WEIGHTS[settings.similarity]
        terms: list[Any] = []
        loss = moving["match"].new_zeros(()) + extra
        for velocity in velocities:
            forward, backward = learner.displacements(velocity, moving["match"].shape[2:])
            found = registration_terms(moving, fixed, forward, backward, velocity, anatomies, settings.similarity,
                                       settings.regularity_kind)  # fmt: skip
            weight = 1.0 if not terms else mine.half
            loss = loss + weight * (found.similarity + smooth * found.regularity + settings.anatomy * found.anatomy)
            if not terms and mine.consistency:
                loss = loss + mine.consistency * inverse_consistency(forward, backward)
            terms.append(found)
            if len(velocities) == 1 and mine.half:
                loss = loss + mine.half * self._half_similarity(moving, fixed, forward, backward)
        learner.step(loss)
        return {key: getattr(terms[0], key).detach().cpu().numpy() for key in ("similarity", "regularity", "anatomy")}

    def _half_similarity(
        self, moving: dict[str, Any], fixed: dict[str, Any], forward: Tensor, backward: Tensor
    ) -> Tensor:
        """Similarity of images at half resolution, for networks that have no coarse output of their own."""
        from nnunet_synthtumour.registration.instance import SIMILARITY
        from nnunet_synthtumour.registration.mind import mind_ssc

        size = tuple(max(8, n // 2) for n in moving["match"].shape[2:])
        m, f = (torch.nn.functional.interpolate(side["match"], size, mode="trilinear") for side in (moving, fixed))
        if self.settings.registration.similarity == "mind":
            m, f = (torch.cat([mind_ssc(c) for c in image.split(1, 1)], 1) for image in (m, f))
        compared = SIMILARITY[self.settings.registration.similarity]
        there, back = resize(forward, size), resize(backward, size)
        return (compared(warp(m, there), f, None) + compared(warp(f, back), m, None)) / 2

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
            self._write_references(val, lent / "gt_segmentations")
        if self.is_ddp:
            dist.barrier()
        mine, self.preprocessed_dataset_folder_base = self.preprocessed_dataset_folder_base, str(lent)
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            self.preprocessed_dataset_folder_base = mine

    def _write_references(self, cases: list[str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        dataset = self.dataset_class(self.preprocessed_dataset_folder, list(cases))
        given = Path(self.preprocessed_dataset_folder_base) / "gt_segmentations"
        for case in cases:
            if self.settings.roles[case] == LABELLED:
                shutil.copy(given / (case + self.dataset_json["file_ending"]), folder)
                continue
            _, seg, _, properties = dataset.load_case(case)
            ignored = np.where(np.asarray(seg) == self.label_manager.ignore_label, 0, np.asarray(seg))
            write_reference(ignored, properties, folder / case, self.configuration_manager, self.plans_manager,
                            self.dataset_json)  # fmt: skip
