"""The model that writes pseudo-labels: where its checkpoints lie, what identifies it, and nnU-Net's predictor for it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_synthtumour.dataset_folders import RESULTS, dataset_name, nnunet_folder
from nnunet_synthtumour.errors import UserError

BEST, LAST = "checkpoint_best.pth", "checkpoint_final.pth"


def usual_checkpoint(trainer: str) -> str:
    """A junior is its epoch that was chosen, a senior its last one (docs/senior_trainer.md).

    What could choose a senior's epoch are tumours that its junior outlined, so the epochs that are most like the junior win.
    """
    return LAST if "Senior" in trainer else BEST


@dataclass(frozen=True)
class Junior:
    """A trained model: its folder in `nnUNet_results`, the folds that vote, and the digests of their checkpoints."""

    folder: Path
    folds: tuple[str, ...]
    checkpoint: str
    digests: dict[str, str]
    configuration: str

    @classmethod
    def find(
        cls, dataset: str, trainer: str, plans: str, configuration: str, folds: Sequence[str] | None, checkpoint: str
    ) -> Junior:
        """The trained model of these names; without `folds`, all that have the checkpoint."""
        name = dataset_name(dataset)
        folder = nnunet_folder(RESULTS) / name / f"{trainer}__{plans}__{configuration}"
        there = {file.parent.name[len("fold_") :]: file for file in sorted(folder.glob(f"fold_*/{checkpoint}"))}
        chosen = list(folds) if folds else [fold for fold in there if fold != "all"] or list(there)
        missing = [fold for fold in chosen if fold not in there]
        if not chosen or missing:
            fold = missing[0] if missing else "0"
            raise UserError(
                f"There is no {folder / f'fold_{fold}' / checkpoint}; train that model first: "
                f"nnUNetv2_train {name} {configuration} {fold} -tr {trainer} -p {plans}."
            )
        for file in ("dataset.json", "plans.json"):
            if not (folder / file).is_file():
                raise UserError(f"{folder} has no {file}, which nnU-Net's trainer writes; copy the folder completely.")
        digests = {fold: file_digest(there[fold]) for fold in sorted(chosen)}
        return cls(folder, tuple(sorted(chosen)), checkpoint, digests, configuration)

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def dataset_json(self) -> dict[str, Any]:
        return json.loads((self.folder / "dataset.json").read_text(encoding="utf-8"))

    def identity(self) -> dict[str, Any]:
        """What a prediction depends on beside the image."""
        return {"model": self.name, "checkpoints": self.digests, "plans": file_digest(self.folder / "plans.json")}

    def epochs(self) -> dict[str, int]:
        """Fold -> epoch of its checkpoint."""
        import torch

        return {
            fold: int(
                torch.load(
                    self.folder / f"fold_{fold}" / self.checkpoint, map_location="cpu", weights_only=False, mmap=True
                )["current_epoch"]
            )
            for fold in self.folds
        }

    def predictor(self, device: str) -> Any:
        """nnU-Net's predictor with the weights of all folds; it leaves mirroring to `confidence.mean_probabilities`."""
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        with contextlib.redirect_stdout(io.StringIO()):  # it announces on a CPU what it cannot do there
            predictor = nnUNetPredictor(use_mirroring=False, device=torch.device(device), allow_tqdm=False)
        folds = [fold if fold == "all" else int(fold) for fold in self.folds]
        try:
            predictor.initialize_from_trained_model_folder(str(self.folder), folds, self.checkpoint)
        except RuntimeError as error:
            if "nnunet trainer" not in str(error):
                raise
            raise UserError(
                f"nnU-Net does not find the trainer of {self.name}; 'synthtumour doctor' says why."
            ) from error
        if predictor.configuration_manager.previous_stage_name is not None:
            raise UserError(f"{self.name} is the second stage of a cascade; give a model that needs no other (-c).")
        return predictor


def file_digest(file: Path) -> str:
    """SHA-256 of a file, shortened to 16 signs."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:16]


def stamps_of(files: Iterable[Path]) -> list[list[Any]]:
    """Name, size and time of each file, as far as it is there."""
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]


def digest_of(value: Any) -> str:
    """The same for anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
