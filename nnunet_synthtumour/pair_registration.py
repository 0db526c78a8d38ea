"""`synthtumour register`: two images in files to a registration in files."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_files import read_or_refuse, write_image
from nnunet_synthtumour.registration.affine_alignment import affine_transform
from nnunet_synthtumour.registration.fields import jacobian_determinant, warp
from nnunet_synthtumour.registration.instance import (
    InstanceSettings,
    displacements_on,
    image_cost,
    normalised,
    optimise,
)
from nnunet_synthtumour.registration.metrics import folds_percent, overlap, sd_log_jacobian
from nnunet_synthtumour.registration.model_files import load_model
from nnunet_synthtumour.registration.networks import on_image
from nnunet_synthtumour.registration.pair_files import (
    affine_matrix,
    displacement_image,
    load_field,
    resample,
    save_affine,
    save_field,
    total_displacement,
    total_inverse,
)
from nnunet_synthtumour.registration.physical import Geometry, affine_displacement, voxel_map
from nnunet_synthtumour.registration_picture import save_picture

CROSS_MODALITY = ("mind", "nmi")
OPTIMISED, PREDICTED, NONE = "optimised", "the network's", "none was asked for"
LEFT_OUT = "left out, it made the similarity worse"
BACK_TO_PREDICTED = "the network's, optimising it made the similarity worse"

WRITTEN = ("field.nii.gz", "inverse_field.nii.gz", "affine.tfm", "warped.nii.gz", "warped_labels.nii.gz", "report.json",
           "check.png")  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What is to be registered and how; the files of a registration go into the folder `out`."""

    fixed: Path
    moving: Path
    out: Path
    labels: Path | None = None
    fixed_labels: Path | None = None
    model: Path | None = None
    settings: InstanceSettings = InstanceSettings()
    affine: str = "affine"
    device: str = "cpu"


@dataclass(frozen=True)
class Pair:
    """Both images: as SimpleITK has them, as normalised tensors (1, 1, ...), and where in space they lie."""

    fixed_image: Any
    moving_image: Any
    fixed: Tensor
    moving: Tensor
    fixed_grid: Geometry
    moving_grid: Geometry

    @classmethod
    def read(cls, request: Request) -> Pair:
        fixed_image, moving_image = read_image(request.fixed), read_image(request.moving)
        if fixed_image.GetDimension() != moving_image.GetDimension():
            raise UserError(
                f"{request.fixed} has {fixed_image.GetDimension()} dimensions and {request.moving} has "
                f"{moving_image.GetDimension()}: give two images of the same number of dimensions."
            )
        for path, image in ((request.fixed, fixed_image), (request.moving, moving_image)):
            if min(image.GetSize()) < 2:  # as NIfTI, its field would be one of two dimensions
                raise UserError(f"{path} has a single slice; give it as a 2D image, or more slices.")
        device = torch.device(request.device)
        return cls(
            fixed_image,
            moving_image,
            normalised(_tensor(fixed_image)).to(device),
            normalised(_tensor(moving_image)).to(device),
            Geometry.of(fixed_image),
            Geometry.of(moving_image),
        )


def register(request: Request) -> dict[str, Any]:
    """Register two files and write everything into `request.out`; returns what report.json says."""
    started = time.perf_counter()
    pair = Pair.read(request)
    labels = _labels(request.labels, request.moving, pair.moving_image)
    fixed_labels = _labels(request.fixed_labels, request.fixed, pair.fixed_image)
    model = None if request.model is None else _model(request.model, request.device, pair.fixed.ndim - 2)
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
    for name in WRITTEN:  # of an earlier registration, which this one may not replace
        (request.out / name).unlink(missing_ok=True)
    after_affine = time.perf_counter()
    forward, backward, similarity, deformation = _deform(pair, matrix, request.settings, model)
    after_deformation = time.perf_counter()
    report = {
        "fixed": str(request.fixed),
        "moving": str(request.moving),
        "similarity": {"name": request.settings.similarity, "unit": "cost, lower is better", **similarity},
        "deformation": deformation,
        "folds_percent": folds_percent(forward),
        "sd_log_jacobian": sd_log_jacobian(forward),
        "smallest_jacobian": float(jacobian_determinant(forward).min()),
        "largest_displacement_mm": _largest_shift(forward, pair.fixed_grid),
        "seconds": {
            "affine": round(after_affine - started, 2),
            "deformation": round(after_deformation - after_affine, 2),
        },
    }
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
    for path in (request.fixed, request.moving, request.labels, request.fixed_labels):
        if path is not None and path.resolve() in {(request.out / name).resolve() for name in WRITTEN}:
            raise UserError(f"{path} is an input, and the results would replace it; give another folder with -o.")


def _overlap(pair: Pair, matrix: Tensor) -> bool:
    """Whether any voxel of the fixed image lies in the moving one."""
    field = affine_displacement(voxel_map(pair.fixed_grid, pair.moving_grid, matrix), pair.fixed.shape[2:]).float()
    return bool((warp(torch.ones_like(pair.moving), field.to(pair.fixed.device), padding="zeros") > 0).any())


def read_image(path: Path) -> Any:
    """A scalar 2D or 3D image; a `UserError` names the file that is not one."""
    if not path.is_file():
        raise UserError(f"There is no image {path}.")
    return read_or_refuse(path)


def _deform(
    pair: Pair, matrix: Tensor, settings: InstanceSettings, model: Any
) -> tuple[Tensor, Tensor, dict[str, float], str]:
    """u and its inverse on the fixed grid, the similarity of the image as it came, after affine and deformation, and
    where the deformation comes from.

    What was optimised is kept only if the images fit better for it. A network's prediction that is asked for alone
    stays what it is: a network may have learned from labels.
    """
    shape, device = pair.fixed.shape[2:], pair.fixed.device

    def brought(transform: Tensor | None) -> tuple[Tensor, Tensor]:
        field = affine_displacement(voxel_map(pair.fixed_grid, pair.moving_grid, transform), shape).float().to(device)
        return warp(pair.moving, field), warp(torch.ones_like(pair.moving), field, padding="zeros")

    (unaligned, seen), (moving, weight) = brought(None), brought(matrix)
    initial = None
    if model is not None:
        with torch.no_grad():
            initial = _predicted(model, moving, pair.fixed)
    none = torch.zeros(1, len(shape), *shape, device=device)
    fields, how = (none, none), NONE
    if settings.iterations > 0:
        found = optimise(moving, pair.fixed, settings, pair.fixed_grid.spacing[::-1], weight, initial)
        fields, how = (found.displacement, found.inverse), OPTIMISED
    elif initial is not None:
        fields, how = displacements_on(initial, shape), PREDICTED

    def cost(field: Tensor) -> float:
        return image_cost(settings.similarity, warp(moving, field), pair.fixed, warp(weight, field))

    without = image_cost(settings.similarity, moving, pair.fixed, weight)
    if how == OPTIMISED and cost(fields[0]) > without:  # images that fit as they are: what the optimiser did is noise
        fields, how = (none, none), LEFT_OUT
        predicted = None if initial is None else displacements_on(initial, shape)
        if predicted is not None and cost(predicted[0]) < without:
            fields, how = predicted, BACK_TO_PREDICTED
    before = image_cost(settings.similarity, unaligned, pair.fixed, seen)
    return *fields, {"initial": before, "affine": without, "final": cost(fields[0])}, how


def _predicted(model: Any, moving: Tensor, fixed: Tensor) -> Tensor:
    """The network's velocity on the image's grid, without the padding that the network works with."""
    output = model(moving, fixed)
    velocity = output if isinstance(output, Tensor) else output.velocity
    return on_image(velocity, fixed.shape[2:], model.total_stride)


def _write_files(
    request: Request, pair: Pair, matrix: Tensor, forward: Tensor, backward: Tensor, labels: Any
) -> tuple[Any, Any]:
    """Everything but report and picture; returns the warped image and labels as they were written."""
    grids = pair.fixed_grid, pair.moving_grid
    there = displacement_image(total_displacement(forward, *grids, matrix), *grids)
    back = displacement_image(total_inverse(backward, *grids, matrix), *grids[::-1])
    try:
        save_field(there, request.out / "field.nii.gz")
        save_field(back, request.out / "inverse_field.nii.gz")
        save_affine(matrix, request.out / "affine.tfm")
    except RuntimeError as error:
        raise UserError(f"{request.out} cannot be written to; is the disk full, or the folder not yours?") from error
    # through the file, so that the images are what anyone gets who applies it
    transform = load_field(request.out / "field.nii.gz")
    warped = resample(pair.moving_image, pair.fixed_image, transform)
    write_image(warped, request.out / "warped.nii.gz")
    if labels is None:
        return warped, None
    warped_labels = resample(labels, pair.fixed_image, transform, nearest=True)
    write_image(warped_labels, request.out / "warped_labels.nii.gz")
    return warped, warped_labels


def _scores(pair: Pair, matrix: Tensor, labels: Any, warped_labels: Any, fixed_labels: Any) -> dict[str, Any]:
    """Dice and HD95 (mm) of every label, as the images came, after the affine map and after the deformation."""
    dims = len(matrix) - 1
    affine = sitk.AffineTransform(matrix[:dims, :dims].flatten().tolist(), matrix[:dims, dims].tolist())
    stages = {
        "initial": resample(labels, pair.fixed_image, sitk.Transform(dims, sitk.sitkIdentity), nearest=True),
        "affine": resample(labels, pair.fixed_image, affine, nearest=True),
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
    ours, theirs = Geometry.of(labels), Geometry.of(image)
    same = ours.shape == theirs.shape and bool(torch.allclose(ours.matrix(), theirs.matrix(), rtol=0, atol=1e-2))
    if not same:
        raise UserError(f"{path} does not lie on the grid of {of}: a label map has the size and geometry of its image.")
    values = sitk.GetArrayViewFromImage(labels)
    if values.dtype.kind == "f":
        if not (values == np.round(values)).all():
            raise UserError(f"{path} has values that are not whole numbers, so it is not a label map.")
        labels = sitk.Cast(labels, sitk.sitkInt32)
    return labels


def _model(folder: Path, device: str, dims: int) -> Any:
    try:
        network, architecture = load_model(folder, device)
    except ValueError as error:
        raise UserError(str(error)) from error
    if network.dims != dims or architecture.image_channels != 1:
        raise UserError(
            f"The model in {folder} registers {network.dims}D images with {architecture.image_channels} channels, and "
            f"these are {dims}D images with one."
        )
    return network


def _tensor(image: Any) -> Tensor:
    return torch.from_numpy(sitk.GetArrayFromImage(image).astype(np.float32))[None, None]


def _largest_shift(displacement: Tensor, grid: Geometry) -> float:
    spacing = displacement.new_tensor(grid.spacing[::-1]).reshape(1, -1, *[1] * (displacement.ndim - 2))
    return float((displacement * spacing).norm(dim=1).max())


def _plain(value: Any) -> Any:
    """For JSON, which knows neither NaN nor infinity: null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
