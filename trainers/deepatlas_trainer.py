"""DeepAtlas: a segmentation and a registration network that teach each other, down to one labelled image."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunet_synthtumour.errors import Refusal, Unsupported
from nnunet_synthtumour.registration.fields import warp
from nnunet_synthtumour.registration.instance import REGULARITY_WEIGHTS
from nnunet_synthtumour.registration.model_files import save_model
from nnunet_synthtumour.settings import LABELLED, PSEUDO, UNLABELLED
from nnunet_synthtumour.trainers.averaging_trainer import AveragingTrainer
from nnunet_synthtumour.trainers.carried_labels import (
    is_complete,
    summary,
    to_case,
    write_case,
    write_report,
)
from nnunet_synthtumour.trainers.carried_run import carry_to_all
from nnunet_synthtumour.trainers.case_splits import restrict, splits_by_role
from nnunet_synthtumour.trainers.deepatlas_losses import manual_or_predicted, registration_terms
from nnunet_synthtumour.trainers.deepatlas_progress import REGISTRATION_CURVES, RegistrationLogger
from nnunet_synthtumour.trainers.fitted_labels import WARPED, LabelFitter, dataset_with_fitted, write_warped
from nnunet_synthtumour.trainers.image_pairs import KINDS, PairLoader
from nnunet_synthtumour.trainers.pair_patches import PairPatches
from nnunet_synthtumour.trainers.pair_validation import PairValidation
from nnunet_synthtumour.trainers.random_streams import worker_seeds
from nnunet_synthtumour.trainers.registration_network import RegistrationLearner
from nnunet_synthtumour.trainers.whole_grids import WholeCases

CARRIED = "carried_labels"
NO_LABEL = -2  # nothing that labels are fitted to is ignored
ALONE, TAUGHT, JOINT = "registration alone", "registration teaches", "both learn"
FEW_LABELS = 2  # up to here, the paper's order for one label: first registration, then segmentation, then both


class DeepAtlasTrainer(AveragingTrainer):
    """nnU-Net's trainer of labelled images, and beside it a registration network on pairs of all images.

    What differs from nnU-Net, and why, is listed in docs/deepatlas.md.
    """

    MIRRORING = False  # images that are registered all lie the same way, and what is left must not look like right
    OPTIMIZER_IF_SHORT = "adamw"  # SGD with nnU-Net's momentum of 0.99 has hardly told labels apart by then

    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    initial_lr: float
    dataset_class: Any
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
        self.labelled = self.settings.cases(LABELLED, PSEUDO)
        self.unlabelled = self.settings.cases(UNLABELLED)
        self._refuse_what_cannot_work()
        self.num_val_iterations_per_epoch = min(self.num_val_iterations_per_epoch, 10)
        self.logger.local_logger = RegistrationLogger(self.logger.local_logger.verbose)
        self.classes = len(self.label_manager.all_labels)
        self.registration: RegistrationLearner | None = None
        self.dataloader_pairs: Any = None
        self.taught_by: set[str] = set()  # cases whose labels pairs show
        self.fitted_to: list[str] = []  # cases that labels are fitted to before training

    def _refuse_what_cannot_work(self) -> None:
        name = type(self).__name__
        if self.is_cascaded:
            raise Unsupported(f"{name} cannot train {self.configuration_name}: a cascade's first stage sees no pairs.")
        if len(self.configuration_manager.patch_size) != 3:
            raise Unsupported(f"{name} cannot train {self.configuration_name}: registration needs volumes, not slices.")
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

    # ------------------------------------------------------------------------------------------------ set up

    def initialize(self) -> None:
        if self.was_initialized:
            return
        if self.settings.training.seed is not None:
            torch.manual_seed(self.settings.training.seed)
        super().initialize()
        self.registration = RegistrationLearner(
            self.configuration_manager, self.settings.registration, self.num_input_channels, self.device,
            compiled=self._do_i_compile(), rank=self.local_rank if self.is_ddp else None,
            structures=self.structures_seen(),
        )  # fmt: skip

    def structures_seen(self) -> int:
        """Labels that the registration network is told of, in either image."""
        return len(self.label_manager.foreground_labels) if self.settings.deepatlas.guided else 0

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split of the labelled cases; a handful is enough, and fold `all` uses every label."""
        splits_file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if self.fold == "all":
            return list(self.labelled), list(self.labelled)
        if not splits_file.is_file() and self.local_rank == 0:
            save_json(splits_by_role([self.labelled, self.unlabelled]), str(splits_file))
        if self.is_ddp:
            dist.barrier()
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
        held_out = set(val) - set(train)
        everything = self.dataset_class(self.preprocessed_dataset_folder, sorted({*self.labelled, *self.unlabelled}))
        cases = WholeCases(everything, self.configuration_manager.spacing, self.plans_manager.transpose_forward)
        *_, mirror_axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        settings = self.settings
        loader = PairLoader(
            cases, train, [case for case in self.unlabelled if case not in held_out], settings.registration.pairs,
            dict(zip(KINDS, settings.deepatlas.pairs, strict=True)), mirror_axes,
        )  # fmt: skip
        if not loader.kinds:
            raise Refusal("deepatlas.pairs leaves no kind of pairs that this data set has; raise one of its shares.")
        self.taught_by = set(train)
        self.dataloader_pairs = self._start_pairs(loader)
        self.patches = self.pair_patches()
        self.pair_validation = PairValidation(cases, val if len(val) > 1 else sorted({*train, *val}), self.classes)
        self.fitted_to = [case for case in self.unlabelled if case not in held_out] if settings.deepatlas.fitted else []
        if self.fitted_to:
            self.fit_labels(cases, train)
        return super().get_dataloaders()

    @property
    def carried_folder(self) -> Path:
        return Path(self.output_folder) / CARRIED

    def fit_labels(self, cases: WholeCases, labelled: list[str]) -> None:
        """Labels for all unlabelled cases, in `carried_folder`; those of an earlier run with the same settings are kept."""
        mark = {"labelled": labelled, "unlabelled": self.fitted_to, "plans": self.plans_manager.plans_name,
                "configuration": self.configuration_name, "iterations": self.settings.deepatlas.fitted,
                "sources": self.settings.deepatlas.sources,
                "registration": dataclasses.asdict(self.settings.registration)}  # fmt: skip
        if is_complete(self.carried_folder, mark):
            return
        self.print_to_log_file("Fitting labelled images to all others")
        fitter = LabelFitter(cases, self.settings.registration, self.settings.deepatlas.fitted, self.classes,
                             self.configuration_manager.spacing, self.device)  # fmt: skip
        carry_to_all(
            self.carried_folder, self.fitted_to, mark,
            lambda target, scratch: self._fit_to(target, scratch, fitter, labelled, cases),
            lambda scratch, rows: write_report(scratch, mark, rows),
            self.local_rank, dist.get_world_size() if self.is_ddp else 1,
        )  # fmt: skip

    def _fit_to(
        self, target: str, folder: Path, fitter: LabelFitter, labelled: list[str], cases: WholeCases
    ) -> dict[str, Any]:
        sources = fitter.most_alike(target, labelled, self.settings.deepatlas.sources)
        fitted = fitter.fit(target, sources)
        carried = fitted.carried
        _, seg, _, properties = cases.dataset.load_case(target)
        on_case = to_case(carried.labels.numpy(), np.asarray(seg[:]), properties, cases.grid)
        write_case(folder, target, on_case, self._locations(on_case))
        write_warped(folder, target, fitted, self._locations(fitted.labels.numpy()))
        names = {int(v): k for k, v in self.dataset_json["labels"].items() if k not in ("background", "ignore")}
        return summary(target, sources, carried.labels, carried, names, NO_LABEL, self.configuration_manager.spacing)

    def _locations(self, seg: np.ndarray) -> dict[Any, Any]:
        classes = [*self.label_manager.foreground_labels, (-1, *self.label_manager.all_labels)]
        return dict(DefaultPreprocessor._sample_foreground_locations(seg, classes))

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's patches come from labelled images and, with fitted labels, from all others and from labelled images
        warped to them."""
        train, val = super().get_tr_and_val_datasets()
        settings = self.settings.deepatlas
        more = [*(self.fitted_to if settings.carried else []),
                *(WARPED + case for case in (self.fitted_to if settings.warped else []))]  # fmt: skip
        if not more:
            return train, val
        copies = max(1, round(settings.manual / (1 - settings.manual) * len(more) / len(train.identifiers)))
        kind = dataset_with_fitted(self.dataset_class, self.carried_folder)
        return kind(self.preprocessed_dataset_folder, [*train.identifiers * copies, *more]), val

    def pair_patches(self) -> PairPatches:
        """Whole grids as patches, labels in all resolutions of deep supervision."""
        transforms = self.get_validation_transforms(
            self._get_deep_supervision_scales(), foreground_labels=self.label_manager.foreground_labels,
            regions=None, ignore_label=self.label_manager.ignore_label,
        )  # fmt: skip
        return PairPatches(self.configuration_manager.patch_size, transforms)

    def _start_pairs(self, loader: PairLoader) -> Any:
        workers = get_allowed_n_proc_DA()
        seeds = worker_seeds(self.settings.training.seed, self.local_rank, self.current_epoch, max(1, workers))
        if workers == 0:
            return SingleThreadedAugmenter(loader, None)
        pairs = NonDetMultiThreadedAugmenter(
            loader, None, max(1, workers // 4), num_cached=4, seeds=[s ^ 1 for s in seeds[: max(1, workers // 4)]],
            pin_memory=self.device.type == "cuda", wait_time=0.002,
        )  # fmt: skip
        _ = next(pairs)
        return pairs

    # ------------------------------------------------------------------------------------------------- train

    def stage(self, epoch: int) -> str:
        """What is learnt in an epoch."""
        settings = self.settings.deepatlas
        if settings.fitted:  # those teach, so registration can wait for a segmenter that tells it something
            alone, taught = 0.0, 0.5
        else:
            alone, taught = (0.3, 0.2) if len(self.labelled) <= FEW_LABELS else (0.2, 0.0)
        alone = settings.alone if settings.alone is not None else alone
        taught = settings.taught if settings.taught is not None else taught
        first, second = round(alone * self.num_epochs), round((alone + taught) * self.num_epochs)
        return ALONE if epoch < first else TAUGHT if epoch < second else JOINT

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        assert self.registration is not None
        active = [epoch for epoch in range(self.num_epochs) if self.stage(epoch) != TAUGHT]
        self.registration.begin_epoch(sum(epoch < self.current_epoch for epoch in active), max(1, len(active)))
        self.print_to_log_file(f"Stage: {self.stage(self.current_epoch)}")

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A segmentation step on nnU-Net's batch, on pairs once registration can teach, and registration steps."""
        stage = self.stage(self.current_epoch)
        nan = np.array(np.nan)
        losses: dict[str, Any] = {"similarity": nan, "regularity": nan, "anatomy": nan, "carried": nan, "loss": nan}
        if stage != TAUGHT:
            for _ in range(self.registration_steps() if stage == JOINT else 1):
                losses |= self.registration_step(self._on_device(next(self.dataloader_pairs)), joint=stage == JOINT)
        # a registration network that has learnt nothing yet has nothing to teach
        teaches = stage == JOINT or (stage == TAUGHT and not self.fitted_to)
        pair = self._on_device(next(self.dataloader_pairs)) if teaches else None
        return losses | self.segmentation_step(batch, pair)

    def registration_steps(self) -> int:
        """Per segmentation step when both learn: as many in all as there are segmentation steps, unless set otherwise."""
        chosen = self.settings.deepatlas.registration_steps
        return chosen or (2 if self.settings.deepatlas.fitted and self.settings.deepatlas.taught is None else 1)

    def registration_step(self, pair: dict[str, Any], joint: bool) -> dict[str, Any]:
        """Both directions of a pair; once segmentation is of use, its predictions stand in where labels are missing."""
        assert self.registration is not None
        learner, settings = self.registration, self.settings.registration
        moving, fixed = pair["moving"], pair["fixed"]
        found = self.found_in(moving, fixed)
        with self.precision():
            output = learner.network(moving["match"], fixed["match"], found)
        wanting = [joint and not set(side["case"]) <= self.taught_by for side in (moving, fixed)]
        predicted = [self.predicted(side, at, found) if w else None
                     for at, (w, side) in enumerate(zip(wanting, (moving, fixed), strict=True))]  # fmt: skip
        velocities, extra = learner.velocities_and_graph_loss(output)
        terms = []
        for velocity in velocities:
            forward, backward = learner.displacements(velocity, moving["match"].shape[2:])
            anatomies = tuple(
                manual_or_predicted(side, self.classes, p) for side, p in zip((moving, fixed), predicted, strict=True)
            )
            terms.append(registration_terms(moving, fixed, forward, backward, velocity, (anatomies[0], anatomies[1]),
                                            settings.similarity, settings.regularity_kind))  # fmt: skip
        smooth = settings.regularity * REGULARITY_WEIGHTS[settings.similarity]
        loss = moving["match"].new_zeros(()) + extra
        for weight, t in zip((1.0, 0.5), terms, strict=False):
            loss = loss + weight * (t.similarity + smooth * t.regularity + settings.anatomy * t.anatomy)
        learner.step(loss)
        return {key: getattr(terms[0], key).detach().cpu().numpy() for key in ("similarity", "regularity", "anatomy")}

    def segmentation_step(self, batch: dict[str, Any], pair: dict[str, Any] | None) -> dict[str, Any]:
        """nnU-Net's loss on its own batch, and on labels carried over and images warped by the registration network."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = _to(batch["target"], self.device)
        samples, weights = ([], []) if pair is None else self.taught_samples(pair)
        with self.precision():
            supervised = self.loss(self.network(data), target)
            total, carried = supervised, supervised.detach() * np.nan
            if samples:
                image, labels = self.patches.batch(samples)
                carried = self.loss(self.network(image), labels)
                total = supervised + float(np.mean(weights)) * carried
        self.update(total)
        return {"loss": supervised.detach().cpu().numpy(), "carried": carried.detach().cpu().numpy()}

    def update(self, loss: Tensor) -> None:
        """A step of the segmentation network, as nnU-Net takes it."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.grad_scaler is not None:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
        else:
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()

    def taught_samples(self, pair: dict[str, Any]) -> tuple[list[tuple[Tensor, Tensor]], list[float]]:
        """(image, labels) of whole grids with their weights: labels carried to the other image, and warped images."""
        assert self.registration is not None
        settings = self.settings.deepatlas
        samples: list[tuple[Tensor, Tensor]] = []
        weights: list[float] = []
        if not (pair["moving"]["labelled"].any() or pair["fixed"]["labelled"].any()):
            return samples, weights
        forward, backward = self.registration.register(
            pair["moving"]["match"], pair["fixed"]["match"], self.precision()
        )
        for source, other, field in (("moving", "fixed", forward), ("fixed", "moving", backward)):
            for i in torch.nonzero(pair[source]["labelled"]).flatten().tolist():
                u = field[i : i + 1]
                labels = warp(pair[source]["seg"][i : i + 1].float(), u, "nearest").short()[0]
                if settings.carried and not self.fitted_to and not pair[other]["labelled"][i]:
                    samples.append((pair[other]["image"][i], labels))
                    weights.append(settings.carried)
                if settings.warped:
                    samples.append((warp(pair[source]["image"][i : i + 1], u)[0], labels))
                    weights.append(settings.warped)
        return samples, weights

    def found_in(self, moving: dict[str, Any], fixed: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """What the guide, if it speaks, says about both images."""
        assert self.registration is not None
        guide = self.registration.guide
        if guide is None:
            return None
        with self.precision():
            return guide(moving["match"]), guide(fixed["match"])

    def predicted(self, side: dict[str, Any], at: int, found: tuple[Tensor, Tensor] | None) -> Tensor | None:
        """Probabilities that stand in for manual labels, (B, classes, X, Y, Z): the guide's, if there is to be one."""
        if found is not None:
            return found[at]
        return None if self.settings.deepatlas.guided else self.predict(side["image"])

    def predict(self, image: Tensor) -> Tensor:
        """Probabilities of all labels on whole grids, (B, classes, X, Y, Z), without gradient."""
        network = self.network
        network.eval()
        with torch.no_grad(), self.precision():
            padded, shape = self.patches.padded(image), image.shape[2:]
            logits = network(padded)
        network.train()
        logits = logits[0] if isinstance(logits, (list, tuple)) else logits
        return torch.softmax(logits[(..., *(slice(n) for n in shape))].float(), 1)

    def _on_device(self, pair: dict[str, Any]) -> dict[str, Any]:
        return {side: {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in part.items()}
                for side, part in pair.items()}  # fmt: skip

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        outputs = collate_outputs(train_outputs)
        means = {key: _nanmean(self._gathered(list(np.ravel(outputs[key])))) for key in outputs}
        self.logger.log("train_losses", means["loss"], self.current_epoch)
        for key in ("similarity", "regularity", "anatomy", "carried"):
            self.logger.log(f"{key}_loss", means[key], self.current_epoch)
        self._use_average(True)
        self._guide_registration()

    def _guide_registration(self) -> None:
        """From the end of the epoch before both learn, registration sees what the averaged segmenter finds."""
        assert self.registration is not None
        bare: Any = self.registration.bare
        if bare.guide is not None and self.stage(self.current_epoch + 1) == JOINT:
            network: Any = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
            bare.guide.take(getattr(network, "_orig_mod", network).state_dict())

    def _gathered(self, mine: list[Any]) -> list[Any]:
        if not self.is_ddp:
            return mine
        theirs: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(theirs, mine)
        return [item for part in theirs for item in part]

    # -------------------------------------------------------------------------------------------- validation

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        super().on_validation_epoch_end(val_outputs)
        assert self.registration is not None
        found = self.pair_validation.summary(self.registration, self.device)
        for key in REGISTRATION_CURVES:
            self.logger.log(key, found[key], self.current_epoch)
        self.print_to_log_file(
            f"Registration of validation pairs: Dice {found['dice_before']:.4f} before, {found['dice_after']:.4f} after, "
            f"{found['folds_percent']:.4f} % folds"
        )

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's, then the registration of validation pairs, and the network as `synthtumour register` takes it."""
        super().perform_actual_validation(save_probabilities)
        assert self.registration is not None
        if self.local_rank == 0:
            if not hasattr(self, "pair_validation"):
                self.get_dataloaders_for_pairs()
            folder = Path(self.output_folder)
            self.pair_validation.write(self.registration, self.device, folder / "validation")
            save_model(folder, self.registration.architecture, self.registration.bare)

    def get_dataloaders_for_pairs(self) -> None:
        """Only what validation needs of `get_dataloaders`."""
        train, val = self.do_split()
        everything = self.dataset_class(self.preprocessed_dataset_folder, sorted({*train, *val}))
        cases = WholeCases(everything, self.configuration_manager.spacing, self.plans_manager.transpose_forward)
        self.pair_validation = PairValidation(cases, val if len(val) > 1 else sorted({*train, *val}), self.classes)

    # ------------------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint with the registration network, its optimiser and its scaler beside."""
        super().save_checkpoint(filename)
        assert self.registration is not None
        if self.local_rank == 0 and not self.disable_checkpointing:
            checkpoint = torch.load(filename, map_location="cpu", weights_only=False)
            unfinished = f"{filename}.unfinished"
            torch.save({**checkpoint, "registration": self.registration.state()}, unfinished)
            Path(unfinished).replace(filename)

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        checkpoint = filename_or_checkpoint
        if isinstance(checkpoint, str):
            checkpoint = torch.load(checkpoint, map_location=self.device, weights_only=False)
        assert self.registration is not None and isinstance(checkpoint, dict)
        if "registration" not in checkpoint:
            raise Refusal("This checkpoint holds no registration network; it was not written by DeepAtlasTrainer.")
        self.registration.load_state(checkpoint["registration"])

    def on_train_end(self) -> None:
        super().on_train_end()
        if hasattr(self.dataloader_pairs, "_finish"):
            self.dataloader_pairs._finish()


def _to(target: Any, device: torch.device) -> Any:
    if isinstance(target, list):
        return [t.to(device, non_blocking=True) for t in target]
    return target.to(device, non_blocking=True)


def _nanmean(values: list[Any]) -> float:
    known = [float(v) for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")
