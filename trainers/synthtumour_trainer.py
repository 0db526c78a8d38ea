"""Stage one of SynthTumour: a segmenter trained on lesions that are grown online in healthy images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_synthtumour.chosen_epoch import AS_GOOD, is_chosen
from nnunet_synthtumour.errors import Refusal, Unsupported, UserError
from nnunet_synthtumour.settings import HEALTHY, LABELLED, PSEUDO
from nnunet_synthtumour.trainers.averaging_trainer import AveragingTrainer
from nnunet_synthtumour.trainers.case_splits import Split, left_out, restrict
from nnunet_synthtumour.trainers.fixed_patches import (
    IN_DISTRIBUTION,
    SHIFTED,
    FixedPatch,
    FixedPatchLoader,
    batches_of_rank,
    digest_of_set,
    list_patches,
)
from nnunet_synthtumour.trainers.grown_volumes import dataset_with_lesions
from nnunet_synthtumour.trainers.lesion_loader import LesionLoader, Sample, sampling_probabilities
from nnunet_synthtumour.trainers.lesions import Lesions
from nnunet_synthtumour.trainers.patch_reuse import PatchReuse
from nnunet_synthtumour.trainers.progress import CurvesLogger
from nnunet_synthtumour.trainers.random_streams import seeded, worker_seeds
from nnunet_synthtumour.trainers.rank_loss import of_this_rank_alone
from nnunet_synthtumour.volumes import millilitres

LOOKED_AT = 9  # hosts whose volume is compared with the lesions'


class _PatienceExhausted(Exception):
    """Leaves nnU-Net's epoch loop, which has no other early exit."""


class SynthTumourTrainer(AveragingTrainer):
    """nnU-Net's trainer on healthy images in which lesions grow, selected on lesions of another kind.

    What differs from nnU-Net, and why, is listed in docs/synthtumour_trainer.md.
    """

    # Kinds of fixed patches whose Dice, together, chooses the epoch; kinds with a curve of their own, and its key.
    CHOOSING: tuple[str, ...] = (SHIFTED,)
    BESIDE: ClassVar[dict[str, str]] = {IN_DISTRIBUTION: "in_distribution_dice"}

    num_epochs: int
    num_iterations_per_epoch: int
    initial_lr: float
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
        self.healthy = set(self.settings.cases(HEALTHY))
        self._refuse_what_cannot_work()
        self.logger.local_logger = CurvesLogger(
            " and ".join(self.CHOOSING), {key: kind for kind, key in self.BESIDE.items()},
            self.logger.local_logger.verbose,
        )  # fmt: skip
        try:
            self.lesions = Lesions(self.settings, self.dataset_json, self.plans_manager, self.configuration_name)
        except UserError as error:
            raise Refusal(str(error)) from error
        self._split: Split | None = None

    def _refuse_what_cannot_work(self) -> None:
        if self.is_cascaded:
            raise Unsupported(
                f"{type(self).__name__} cannot train {self.configuration_name}: the first stage of a cascade has never "
                "seen the lesion that is grown in the second; train 3d_fullres or 3d_lowres."
            )
        if not self.healthy:
            raise Refusal(
                f"{self.plans_manager.dataset_name} has no healthy case for {type(self).__name__} to grow lesions in; "
                "build the data set with 'synthtumour prepare --healthy FOLDER' and plan it again."
            )

    def mirrors_by_default(self) -> bool:
        """Not in short trainings: as good without, on surrogate gliomas better, and an eighth of the time to predict."""
        return not self.is_short()

    def initialize(self) -> None:
        if self.settings.training.seed is not None:
            torch.manual_seed(self.settings.training.seed)
        super().initialize()

    def on_train_start(self) -> None:
        super().on_train_start()
        hosts = self.hosts_ml() if self.local_rank == 0 else {}
        empty = [case for case, volume in hosts.items() if not volume]
        if empty:
            raise Refusal(
                f"No voxel of {', '.join(empty)} is a host, so no lesion could grow there; give such cases a host mask "
                f"(synthtumour prepare --host-masks) or leave them out (synthtumour settings -d "
                f"{self.plans_manager.dataset_name} --set roles.{empty[0]}=unlabelled)."
            )
        for line in self.lesions.describe(list(hosts.values())):
            self.print_to_log_file(line)

    def hosts_ml(self) -> dict[str, float]:
        """Volumes of a few hosts, evenly spread over the healthy cases of the fold."""
        cases = sorted(self.healthy & {case for part in self.do_split() for case in part})
        dataset_class = self.dataset_class or infer_dataset_class(self.preprocessed_dataset_folder)
        dataset = dataset_class(self.preprocessed_dataset_folder, cases)
        found = {}
        for case in cases[:: -(-len(cases) // LOOKED_AT)]:
            _, seg, _, properties = dataset.load_case(case)
            voxels = int(np.count_nonzero(seg[:] == self.lesions.ignore_label))
            found[case] = millilitres(voxels, seg.shape[1:], self._spacing_of(properties))
        return found

    # ------------------------------------------------------------------------------------------------ data

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split, by role, of the cases that stage one can use; a handful of cases is enough."""
        if self._split is None:
            usable, files = set(self.settings.cases(HEALTHY, LABELLED, PSEUDO)), self._preprocessed_cases()
            here = usable & files
            if not self.healthy & here:
                raise Refusal(
                    f"No healthy case of {self.plans_manager.dataset_name} is in {self.preprocessed_dataset_folder}; "
                    "preprocess the data set again."
                )
            splits_file = self.write_splits(sorted(here & self.healthy), sorted(here - self.healthy))
            train, val = super().do_split()
            whole: Split = {"train": list(train), "val": list(val)}
            folds = [whole] if self.fold == "all" else [whole, *load_json(str(splits_file))]
            for line in left_out(usable, files, self.settings.roles, folds):
                self.print_to_log_file(line)
            self._split = restrict(whole, here)
            for part, cases in (("train", self._split["train"]), ("validate", self._split["val"])):
                if not self.healthy & set(cases):
                    raise Refusal(
                        f"Fold {self.fold} has no healthy case to {part} with; mend {splits_file} or use fold all."
                    )
            labelled = self.labelled_share() and not self.healthy.issuperset(self._split["train"])
            if self.settings.training.healthy_patches == 1 and not labelled:
                raise Refusal(
                    f"training.healthy_patches is 1 and fold {self.fold} trains on no labelled case, so no lesion would "
                    "ever be seen; lower it."
                )
        return self._split["train"], self._split["val"]

    def _preprocessed_cases(self) -> set[str]:
        dataset_class = self.dataset_class or infer_dataset_class(self.preprocessed_dataset_folder)
        return set(dataset_class.get_identifiers(self.preprocessed_dataset_folder))

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's two loaders: training grows lesions, validation yields the fixed set."""
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        patch_size = self.configuration_manager.patch_size
        scales = self._get_deep_supervision_scales()
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        regions = self.label_manager.foreground_regions if self.label_manager.has_regions else None
        labels = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": self.label_manager.foreground_labels,
            "regions": regions,
            "ignore_label": self.label_manager.ignore_label,
        }
        tr_transforms = self.get_training_transforms(
            patch_size, rotation, scales, mirror_axes, dummy_2d,
            use_mask_for_norm=self.configuration_manager.use_mask_for_norm, **labels,
        )  # fmt: skip
        dataset_tr, dataset_val = self.get_tr_and_val_datasets()
        for_both = {"healthy": self.healthy, "ignore_label": self.label_manager.ignore_label}
        training = self.settings.training
        dl_tr = LesionLoader(
            dataset_tr, self.batch_size, initial_patch_size, patch_size, self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent,
            sampling_probabilities=sampling_probabilities(
                dataset_tr.identifiers, self.healthy, self.labelled_share()),
            transforms=tr_transforms, probabilistic_oversampling=self.probabilistic_oversampling,
            grow=self.growth_for_training(patch_size), host_centred=training.host_centred,
            outside_counts=any(self.configuration_manager.use_mask_for_norm),
            reuse=PatchReuse.of_patches(
                initial_patch_size, len(self.lesions.channels), training.reuse or (1 if self.is_short() else None)),
            **for_both,
        )  # fmt: skip
        workers = get_allowed_n_proc_DA()
        val_workers = max(1, workers // 2) if workers else 0
        batches = self.validation_batches(dataset_val.identifiers)
        self.num_val_iterations_per_epoch = len(batches)
        dl_val = FixedPatchLoader(
            dataset_val, self.batch_size, patch_size, patch_size, self.label_manager,
            transforms=self.get_validation_transforms(scales, **labels),
            batches=batches, grow=self.growth_for_validation(patch_size), seed=self.settings.validation.seed,
            workers=val_workers, **for_both,
        )  # fmt: skip
        return self._start(dl_tr, dl_val, workers, val_workers)

    def validation_batches(self, cases: list[str]) -> list[list[Any]]:
        """This rank's batches of the fixed set."""
        healthy = [c for c in cases if c in self.healthy]
        real = [c for c in cases if c not in self.healthy]
        if self.settings.validation.shift == "real" and not real:
            raise Refusal(
                f"validation.shift is 'real', but fold {self.fold} has no labelled case to validate with; "
                "choose another shift or another fold."
            )
        patches = list_patches(
            self.validation_cases(healthy, real), self.settings.validation.patches, self.settings.validation.affected
        )
        of_ranks = [batches_of_rank(patches, self.batch_size, rank, self.ranks) for rank in range(self.ranks)]
        if not all(of_ranks):
            raise Refusal(
                f"The {len(patches)} fixed patches make too few batches for {self.ranks} GPUs; raise "
                "validation.patches or use fewer."
            )
        return of_ranks[self.local_rank]

    def validation_cases(self, healthy: list[str], real: list[str]) -> dict[str, list[str]]:
        """The cases of each kind of fixed patches."""
        return {IN_DISTRIBUTION: healthy, SHIFTED: real if self.settings.validation.shift == "real" else healthy}

    def labelled_share(self) -> float:
        """Share of training patches from cases that are not healthy."""
        return self.settings.training.labelled_share

    def growth_for_training(self, patch_size: Sequence[int]) -> Callable[[str, Sample], Sample]:
        """What is done to a training patch of a healthy case."""
        return self.lesions.for_training(patch_size)

    def growth_for_validation(self, patch_size: Sequence[int]) -> Callable[[FixedPatch, Sample], Sample]:
        """What is done to a patch of the fixed set."""
        return self.lesions.for_validation(patch_size)

    def _start(self, dl_tr: LesionLoader, dl_val: FixedPatchLoader, workers: int, val_workers: int) -> tuple[Any, Any]:
        seeds = worker_seeds(self.settings.training.seed, self.local_rank, self.current_epoch, workers)
        if workers == 0:
            np.random.seed(seeds[0])
            torch.manual_seed(seeds[0])
            return SingleThreadedAugmenter(dl_tr, None), SingleThreadedAugmenter(dl_val, None)
        pin_memory = self.device.type == "cuda"
        # Ordered, unlike nnU-Net's, is what must not depend on which worker is faster: the patches of a validation, and with
        # a seed those of a training.
        if self.settings.training.seed is None:
            train: Any = NonDetMultiThreadedAugmenter(
                dl_tr,
                None,
                workers,
                num_cached=max(6, workers // 2),
                seeds=seeds,
                pin_memory=pin_memory,
                wait_time=0.002,
            )
        else:
            train = MultiThreadedAugmenter(dl_tr, None, workers, seeds=seeds, pin_memory=pin_memory, wait_time=0.002)
        val = MultiThreadedAugmenter(dl_val, None, val_workers, num_cached_per_queue=2, pin_memory=pin_memory)
        # As in nnU-Net: workers start now, before training has threads that a fork would lose. The batch that is taken
        # from the fixed set comes round again: an epoch then runs from the second batch to the first.
        _ = next(train), next(val)
        return train, val

    # ------------------------------------------------------------------------------------------- validation

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        with of_this_rank_alone(self.loss):  # ranks have different numbers of batches
            found = super().validation_step(batch)
        return {**found, "kind": batch["kind"], "digests": batch["digests"]}

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Log the Dice that chooses the epoch as nnU-Net's own, and the other curves beside it."""
        extra = ("kind", "digests")
        by_kind: dict[str, list[dict[str, Any]]] = {kind: [] for kind in (*self.CHOOSING, *self.BESIDE)}
        for output in val_outputs:
            by_kind[output["kind"]].append({k: v for k, v in output.items() if k not in extra})
        super().on_validation_epoch_end([output for kind in self.CHOOSING for output in by_kind[kind]])
        for kind, key in self.BESIDE.items():
            self.logger.log(key, self._mean_dice(by_kind[kind]), self.current_epoch)
        fingerprint = digest_of_set(self.gathered([output["digests"] for output in val_outputs]))
        self.print_to_log_file(f"Fixed validation set {fingerprint}")

    def _mean_dice(self, outputs: list[dict[str, Any]]) -> float:
        """Mean over classes of the Dice of all patches together, on all ranks: nnU-Net's pseudo Dice."""
        counts = np.stack([np.sum([o[k] for o in outputs], axis=0) for k in ("tp_hard", "fp_hard", "fn_hard")])
        tp, fp, fn = np.sum(self.gathered([counts]), axis=0)
        with np.errstate(invalid="ignore"):
            return float(np.nanmean(2 * tp / (2 * tp + fp + fn)))

    def on_epoch_end(self) -> None:
        epoch = self.current_epoch
        beside = [f"{kind} {self.logger.get_value(key, -1):.4f}" for kind, key in self.BESIDE.items()]
        self.print_to_log_file(
            f"Dice on fixed patches: {' and '.join(self.CHOOSING)} {self.logger.get_value('mean_fg_dice', -1):.4f} "
            f"(chooses the epoch), {', '.join(beside)}"
        )
        curve = self.logger.get_value("ema_fg_dice", None)
        if len(curve) > 1:  # nnU-Net writes checkpoint_best where the moving average exceeds this
            self._best_ema = max(curve[:-1]) - AS_GOOD
            if is_chosen(curve) and curve[-1] <= max(curve[:-1]):
                self.print_to_log_file(
                    f"The moving average is within {AS_GOOD} of the best, {max(curve):.4f}: the later epoch is kept."
                )
        super().on_epoch_end()
        if epoch + 1 < self.num_epochs and self.patience_is_exhausted():
            raise _PatienceExhausted

    def patience_is_exhausted(self) -> bool:
        """Whether the shifted Dice (moving average) has not improved for `training.patience` epochs."""
        curve = self.logger.get_value("ema_fg_dice", None)
        patience = self.settings.training.patience
        return patience is not None and bool(curve) and len(curve) - 1 - int(np.argmax(curve)) >= patience

    def run_training(self) -> None:
        if self.current_epoch and self.patience_is_exhausted():  # ended before; --c only does its validation again
            self.print_to_log_file("Patience was exhausted before: nothing is trained.")
            if not (Path(self.output_folder) / "checkpoint_final.pth").is_file():
                self.on_train_end()
            return
        try:
            super().run_training()
        except _PatienceExhausted:
            self.print_to_log_file(
                f"No better {' and '.join(self.CHOOSING)} Dice for {self.settings.training.patience} epochs: "
                "training ends here. Raise training.patience and use --c to go on."
            )
            self.on_train_end()

    # ------------------------------------------------------------------------------------- final validation

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's validation of the held-out cases, the healthy ones with a fixed shifted lesion each."""
        with self._held_out_cases_with_lesions():
            super().perform_actual_validation(save_probabilities)
        self.print_to_log_file(
            "Compare folds and configurations by this validation/summary.json: nnUNetv2_find_best_configuration takes the "
            "data set's own labels for the references, which have no lesion in healthy cases."
        )

    @contextmanager
    def _held_out_cases_with_lesions(self) -> Iterator[None]:
        """Meanwhile, nnU-Net loads and compares the cases with their lesions.

        nnU-Net's method takes the cases from `self.dataset_class` and the references from the folder of the
        preprocessed data set: these two are lent to it.
        """
        _, val_cases = self.do_split()
        dataset_class = self.dataset_class or infer_dataset_class(self.preprocessed_dataset_folder)
        with_lesions = dataset_with_lesions(dataset_class, self.healthy, self.grow_volume)
        lent = Path(self.output_folder) / "validation_references"
        self._write_references(val_cases, with_lesions, lent / "gt_segmentations")
        mine = self.dataset_class, self.preprocessed_dataset_folder_base
        self.dataset_class, self.preprocessed_dataset_folder_base = with_lesions, str(lent)
        try:
            yield
        finally:
            self.dataset_class, self.preprocessed_dataset_folder_base = mine

    def grow_volume(
        self, case: str, data: np.ndarray, seg: np.ndarray, properties: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """`data` (C, X, Y, Z) and `seg` (1, X, Y, Z) of a healthy case with its fixed shifted lesion."""
        with seeded(self.settings.validation.seed, *case.encode()):
            return self.lesions.in_volume(case, data, seg, self._spacing_of(properties))

    def _spacing_of(self, properties: dict[str, Any]) -> list[float]:
        spacing = list(self.configuration_manager.spacing)
        if len(spacing) == 2:  # a 2d configuration leaves the spacing between slices as it was
            spacing = [properties["spacing"][self.plans_manager.transpose_forward[0]], *spacing]
        return spacing

    def _write_references(self, cases: list[str], dataset_class: Any, folder: Path) -> None:
        dataset = dataset_class(self.preprocessed_dataset_folder, list(cases[self.local_rank :: self.ranks]))
        self.reference_writer(folder).write(dataset, lambda case: case not in self.healthy)
