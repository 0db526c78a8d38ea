"""A trained model as a zip that stock nnU-Net installs and predicts with, on machines that do not have this package.

Our trainers change how a network is trained, not what it is, so nnU-Net's own trainer can stand for them. What only
training needs, and the names of the cases that were trained with, stay at home.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

from nnunet_synthtumour.atomic_files import complete
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.junior_model import Junior

STANDS_FOR = "nnUNetTrainer"
CHECKPOINT = "checkpoint_final.pth"  # what nnUNetv2_predict takes unless told otherwise
NEEDED = ("network_weights", "init_args", "inference_allowed_mirroring_axes", "current_epoch")
NEEDED_OF_DATASET = (
    "channel_names", "modality", "labels", "regions_class_order", "file_ending", "overwrite_image_reader_writer",
    "numTraining",
)  # fmt: skip


def export(model: Junior, file: Path) -> str:
    """Write `file`, complete or not at all; the folder of the model inside, below nnU-Net's results folder."""
    if file.suffix != ".zip":
        raise UserError(f"{file} does not end with .zip, which 'nnUNetv2_install_pretrained_model_from_zip' expects.")
    _, plans, configuration = model.folder.name.split("__")
    inside = f"{model.folder.parent.name}/{STANDS_FOR}__{plans}__{configuration}"
    with complete(file) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{inside}/dataset.json", json.dumps(what_inference_reads(model.dataset_json), indent=1))
        for name in ("plans.json", "dataset_fingerprint.json"):
            if (model.folder / name).is_file():
                archive.write(model.folder / name, f"{inside}/{name}")
        for fold in model.folds:
            archive.writestr(f"{inside}/fold_{fold}/{CHECKPOINT}", _checkpoint(model, fold))
    return inside


def what_inference_reads(dataset_json: dict[str, Any]) -> dict[str, Any]:
    """`dataset.json` without what else may stand there, such as paths, the names of cases or our settings."""
    return {key: dataset_json[key] for key in NEEDED_OF_DATASET if key in dataset_json}


def _checkpoint(model: Junior, fold: str) -> bytes:
    import torch

    whole = torch.load(model.folder / f"fold_{fold}" / model.checkpoint, map_location="cpu", weights_only=False)
    kept = {key: whole[key] for key in NEEDED}
    kept["trainer_name"] = STANDS_FOR
    kept["init_args"] = {**kept["init_args"], "dataset_json": what_inference_reads(whole["init_args"]["dataset_json"])}
    stream = io.BytesIO()
    torch.save(kept, stream)
    return stream.getvalue()
