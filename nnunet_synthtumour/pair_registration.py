"""`synthtumour register`: two images in files to a registration in files."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_files import write_image, write_transform
from nnunet_synthtumour.pair_images import Pair, on_one_grid, read_image
from nnunet_synthtumour.pair_network import PairNetwork, network_for
from nnunet_synthtumour.registration.affine_alignment import affine_transform
from nnunet_synthtumour.registration.anatomy import soft_dice_loss
from nnunet_synthtumour.registration.fields import jacobian_determinant, warp
from nnunet_synthtumour.registration.instance import (
    InstanceSettings,
    displacements_on,
    image_cost,
    optimise,
)
from nnunet_synthtumour.registration.metrics import folds_percent, overlap, sd_log_jacobian
from nnunet_synthtumour.registration.pair_files import (
    affine_matrix,
    affine_transform_of,
    displacement_image,
    labels_on,
    load_field,
    total_displacement,
    total_inverse,
)
from nnunet_synthtumour.registration.physical import Geometry, affine_displacement, voxel_map
from nnunet_synthtumour.registration_picture import save_picture
from nnunet_synthtumour.resampling import resampled

CROSS_MODALITY = ("mind", "nmi")
OPTIMISED, PREDICTED, NONE = "optimised", "the network's", "none was asked for"
LEFT_OUT = "left out, it made the fit worse"
BACK_TO_PREDICTED = "the network's, optimising it made the fit worse"

WRITTEN = ("field.nii.gz", "inverse_field.nii.gz", "affine.tfm", "warped.nii.gz", "warped_labels.nii.gz", "report.json",
           "check.png")  # fmt: skip
WARPED_CHANNEL = re.compile(r"warped_\d{4}\.nii\.gz")


@dataclass(frozen=True)
class Request:
    """What is to be registered and how; the files of a registration go into the folder `out`.

    `fixed_channels` and `moving_channels` are those after the first, which alone is compared.
    """

    fixed: Path
    moving: Path
    out: Path
    labels: Path | None = None
    fixed_labels: Path | None = None
    model: Path | None = None
    settings: InstanceSettings = InstanceSettings()
    affine: str = "affine"
    device: str = "cpu"
    fixed_channels: tuple[Path, ...] = ()
    moving_channels: tuple[Path, ...] = ()

    def inputs(self) -> list[Path]:
        """Every file that is read."""
        channels = (self.fixed, *self.fixed_channels, self.moving, *self.moving_channels)
        return [*channels, *(path for path in (self.labels, self.fixed_labels) if path is not None)]


def register(request: Request) -> dict[str, Any]:
    """Register two files and write everything into `request.out`; returns what report.json says."""
    started = time.perf_counter()
    pair = Pair.read(
        (request.fixed, *request.fixed_channels), (request.moving, *request.moving_channels), request.device
    )
    labels = _labels(request.labels, request.moving, pair.moving_image)
    fixed_labels = _labels(request.fixed_labels, request.fixed, pair.fixed_image)
    network = None if request.model is None else network_for(request.model, pair)
    _refuse_what_would_be_replaced(request)
    cross_modality = request.settings.similarity in CROSS_MODALITY
    if request.affine == "none":
        matrix = torch.eye(pair.fixed.ndim - 1, dtype=torch.float64)
    else:
        try:
            transform = affine_transform(pair.fixed_image, pair.moving_image, request.affine, cross_modality)
        except ValueError as error:
            raise UserError(str(error)) from error
        matrix = affine_matrix(transform)
    if not _overlap(pair, matrix):
        raise UserError(
            f"{request.fixed} and {request.moving} do not overlap; mend the header of one, or align them (--affine affine)."
        )
    request.out.mkdir(parents=True, exist_ok=True)
    for file in _written_in(request.out):  # of an earlier registration, which this one may not replace
        file.unlink()
    after_affine = time.perf_counter()
    forward, backward, fit, deformation = _deform(pair, matrix, request.settings, network)
    after_deformation = time.perf_counter()
    report = {
        "fixed": str(request.fixed),
        "moving": str(request.moving),
        "similarity": {"name": request.settings.similarity, "unit": "cost, lower is better", **fit["similarity"]},
        "deformation": deformation,
        "folds_percent": folds_percent(forward),
        "inverse_folds_percent": folds_percent(backward),
        "sd_log_jacobian": sd_log_jacobian(forward),
        "smallest_jacobian": float(jacobian_determinant(forward).min()),
        "largest_displacement_mm": _largest_shift(forward, pair.fixed_grid),
        "seconds": {
            "affine": round(after_affine - started, 2),
            "deformation": round(after_deformation - after_affine, 2),
        },
    }
    if network is not None:
        report["network"] = {"looks": network.network.passes, "structure_steps": fit["steps"]}
    if "structures" in fit:
        report["structures"] = {"unit": "soft Dice of what the model finds", **fit["structures"]}
    warped, warped_labels = _write_files(request, pair, matrix, forward, backward, labels)
    if fixed_labels is not None and labels is not None and warped_labels is not None:
        report["labels"] = _scores(pair, matrix, labels, warped_labels, fixed_labels)
    (request.out / "report.json").write_text(json.dumps(_plain(report), indent=2) + "\n", encoding="utf-8")
    save_picture(
        request.out / "check.png",
        sitk.GetArrayFromImage(pair.fixed_image),
        sitk.GetArrayFromImage(warped),
        pair.fixed_grid.spacing[::-1],
        None if warped_labels is None else sitk.GetArrayFromImage(warped_labels),
        None if fixed_labels is None else sitk.GetArrayFromImage(fixed_labels),
    )
    return report


def _refuse_what_would_be_replaced(request: Request) -> None:
    if request.out.exists() and not request.out.is_dir():
        raise UserError(f"{request.out} is a file; give a folder with -o.")
    replaced = {file.resolve() for file in _written_in(request.out)}
    for path in request.inputs():
        if path.resolve() in replaced:
            raise UserError(f"{path} is an input, and the results would replace it; give another folder with -o.")


def _overlap(pair: Pair, matrix: Tensor) -> bool:
    """Whether any voxel of the fixed image lies in the moving one."""
    field = affine_displacement(voxel_map(pair.fixed_grid, pair.moving_grid, matrix), pair.fixed.shape[2:]).float()
    return bool((warp(torch.ones_like(pair.moving), field.to(pair.fixed.device), padding="zeros") > 0).any())


def _written_in(folder: Path) -> list[Path]:
    """Files with the names of results."""
    found = folder.iterdir() if folder.is_dir() else ()
    return [file for file in found if file.name in WRITTEN or WARPED_CHANNEL.fullmatch(file.name)]


def _deform(
    pair: Pair, matrix: Tensor, settings: InstanceSettings, network: PairNetwork | None
) -> tuple[Tensor, Tensor, dict[str, Any], str]:
    """u and its inverse on the fixed grid, how well images (and structures that the network finds) fit as they came, after
    affine and deformation, with the steps that the network took, and where the deformation comes from.

    What was optimised is kept only if they fit better for it. A network's prediction that is asked for alone stays what it
    is: a network may have learned from labels.
    """
    shape, device = pair.fixed.shape[2:], pair.fixed.device

    def brought(transform: Tensor | None) -> tuple[Tensor, Tensor]:
        field = affine_displacement(voxel_map(pair.fixed_grid, pair.moving_grid, transform), shape).float().to(device)
        return warp(pair.moving, field), warp(torch.ones_like(pair.moving), field, padding="zeros")

    (unaligned, seen), (moving, weight) = brought(None), brought(matrix)
    said = None if network is None else network.say(pair, matrix, settings.anatomy > 0)
    initial, structures, steps = (None, None, 0) if said is None else said
    none = torch.zeros(1, len(shape), *shape, device=device)
    fields, how = (none, none), NONE
    if settings.iterations > 0:
        spacing = pair.fixed_grid.spacing[::-1]
        found = optimise(moving, pair.fixed, settings, spacing, weight, initial, found=structures)
        fields, how = (found.displacement, found.inverse), OPTIMISED
    elif initial is not None:
        fields, how = displacements_on(initial, shape), PREDICTED

    def image(field: Tensor) -> float:
        return image_cost(settings.similarity, warp(moving, field), pair.fixed, warp(weight, field))

    def apart(field: Tensor) -> float:
        if structures is None:
            return 0.0
        return float(soft_dice_loss(warp(structures[0], field), structures[1], warp(weight, field)))

    def cost(field: Tensor) -> float:
        return image(field) + settings.anatomy * apart(field)

    # images that fit as they are: what the optimiser did is noise
    if how == OPTIMISED and cost(fields[0]) > cost(none):
        fields, how = (none, none), LEFT_OUT
        predicted = None if initial is None else displacements_on(initial, shape)
        if predicted is not None and cost(predicted[0]) < cost(none):
            fields, how = predicted, BACK_TO_PREDICTED
    before = image_cost(settings.similarity, unaligned, pair.fixed, seen)
    fit: dict[str, Any] = {
        "steps": steps,
        "similarity": {"initial": before, "affine": image(none), "final": image(fields[0])},
    }
    if structures is not None:
        fit["structures"] = {"affine": 1 - apart(none), "final": 1 - apart(fields[0])}
    return *fields, fit, how


def _write_files(
    request: Request, pair: Pair, matrix: Tensor, forward: Tensor, backward: Tensor, labels: Any
) -> tuple[Any, Any]:
    """Everything but report and picture; returns the warped image (its first channel) and labels as they were
    written."""
    grids = pair.fixed_grid, pair.moving_grid
    there = displacement_image(total_displacement(forward, *grids, matrix), *grids)
    back = displacement_image(total_inverse(backward, *grids, matrix), *grids[::-1])
    write_image(there, request.out / "field.nii.gz")
    write_image(back, request.out / "inverse_field.nii.gz")
    write_transform(affine_transform_of(matrix), request.out / "affine.tfm")
    # through the file, so that the images are what anyone gets who applies it
    transform = load_field(request.out / "field.nii.gz")
    warped = [resampled(sitk.Cast(i, sitk.sitkFloat32), pair.fixed_image, transform) for i in pair.moving_images]
    for channel, image in enumerate(warped):
        write_image(image, request.out / (f"warped_{channel:04d}.nii.gz" if channel else "warped.nii.gz"))
    if labels is None:
        return warped[0], None
    warped_labels = labels_on(pair.fixed_image, labels, transform)
    write_image(warped_labels, request.out / "warped_labels.nii.gz")
    return warped[0], warped_labels


def _scores(pair: Pair, matrix: Tensor, labels: Any, warped_labels: Any, fixed_labels: Any) -> dict[str, Any]:
    """Dice and HD95 (mm) of every label, as the images came, after the affine map and after the deformation."""
    dims = len(matrix) - 1
    stages = {
        "initial": labels_on(pair.fixed_image, labels, sitk.Transform(dims, sitk.sitkIdentity)),
        "affine": labels_on(pair.fixed_image, labels, affine_transform_of(matrix)),
        "final": warped_labels,
    }
    truth = sitk.GetArrayFromImage(fixed_labels)
    spacing = pair.fixed_grid.spacing[::-1]
    return {name: overlap(sitk.GetArrayFromImage(stage), truth, spacing) for name, stage in stages.items()}


def _labels(path: Path | None, of: Path, image: Any) -> Any:
    """A label map that lies on its image's grid, as integers."""
    if path is None:
        return None
    labels = read_image(path)
    if not on_one_grid(labels, image):
        raise UserError(f"{path} does not lie on the grid of {of}: a label map has the size and geometry of its image.")
    values = sitk.GetArrayViewFromImage(labels)
    if values.dtype.kind == "f":
        if not (values == np.round(values)).all():
            raise UserError(f"{path} has values that are not whole numbers, so it is not a label map.")
        labels = sitk.Cast(labels, sitk.sitkInt32)
    return labels


def _largest_shift(displacement: Tensor, grid: Geometry) -> float:
    spacing = displacement.new_tensor(grid.spacing[::-1]).reshape(1, -1, *[1] * (displacement.ndim - 2))
    return float((displacement * spacing).norm(dim=1).max())


def _plain(value: Any) -> Any:
    """For JSON, which knows neither NaN nor infinity: null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
