"""`synthtumour register`: two images in files to a registration in files."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.registration.affine_alignment import affine_transform
from nnunet_synthtumour.registration.fields import jacobian_determinant, resize, warp
from nnunet_synthtumour.registration.instance import InstanceSettings, displacements_on, normalised, optimise
from nnunet_synthtumour.registration.metrics import folds_percent, overlap, sd_log_jacobian
from nnunet_synthtumour.registration.model_files import load_model
from nnunet_synthtumour.registration.mutual_information import nmi_loss
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
from nnunet_synthtumour.registration.similarity import global_ncc_loss, lncc_loss

CROSS_MODALITY = ("mind", "nmi")


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
    request.out.mkdir(parents=True, exist_ok=True)
    cross_modality = request.settings.similarity in CROSS_MODALITY
    if request.affine == "none":
        matrix = torch.eye(pair.fixed.ndim - 1, dtype=torch.float64)
    else:
        try:
            transform = affine_transform(pair.fixed_image, pair.moving_image, request.affine, cross_modality)
        except ValueError as error:
            raise UserError(str(error)) from error
        matrix = affine_matrix(transform)
    after_affine = time.perf_counter()
    forward, backward, similarity = _deform(pair, matrix, request.settings, model)
    after_deformation = time.perf_counter()
    report = {
        "fixed": str(request.fixed),
        "moving": str(request.moving),
        "similarity": {"name": request.settings.similarity, "unit": "cost, lower is better", **similarity},
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
    (request.out / "report.json").write_text(json.dumps(_plain(report), indent=2) + "\n")
    from nnunet_synthtumour.registration_picture import save_picture

    save_picture(
        request.out / "check.png",
        sitk.GetArrayFromImage(pair.fixed_image),
        sitk.GetArrayFromImage(warped),
        pair.fixed_grid.spacing[::-1],
        None if warped_labels is None else sitk.GetArrayFromImage(warped_labels),
        None if fixed_labels is None else sitk.GetArrayFromImage(fixed_labels),
    )
    return report


def read_image(path: Path) -> Any:
    """A scalar 2D or 3D image; a `UserError` names the file that is not one."""
    if not path.is_file():
        raise UserError(f"There is no image {path}.")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise UserError(f"{path} is not an image that SimpleITK can read.") from error
    if image.GetDimension() not in (2, 3) or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path} is not a 2D or 3D image with one value per voxel; give one channel of one time point.")
    if not np.isfinite(sitk.GetArrayViewFromImage(image)).all():
        raise UserError(f"{path} contains NaN or infinite values; replace them first.")
    return image


def _deform(
    pair: Pair, matrix: Tensor, settings: InstanceSettings, model: Any
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """u and its inverse on the fixed grid, and the similarity of the image as it came, after affine and deformation."""
    shape, device = pair.fixed.shape[2:], pair.fixed.device

    def brought(transform: Tensor | None) -> tuple[Tensor, Tensor]:
        field = affine_displacement(voxel_map(pair.fixed_grid, pair.moving_grid, transform), shape).float().to(device)
        return warp(pair.moving, field), warp(torch.ones_like(pair.moving), field, padding="zeros")

    (unaligned, seen), (moving, weight) = brought(None), brought(matrix)
    initial = None
    if model is not None:
        with torch.no_grad():
            initial = _predicted(model, moving, pair.fixed)
    if settings.iterations > 0:
        found = optimise(moving, pair.fixed, settings, pair.fixed_grid.spacing[::-1], weight, initial)
        forward, backward = found.displacement, found.inverse
    elif initial is not None:
        forward, backward = displacements_on(initial, shape)
    else:
        forward = backward = torch.zeros(1, len(shape), *shape, device=device)
    registered = warp(moving, forward)
    return (
        forward,
        backward,
        {
            "initial": _cost(unaligned, pair.fixed, seen, settings.similarity),
            "affine": _cost(moving, pair.fixed, weight, settings.similarity),
            "final": _cost(registered, pair.fixed, warp(weight, forward), settings.similarity),
        },
    )


def _predicted(model: Any, moving: Tensor, fixed: Tensor) -> Tensor:
    """The network's velocity on the image's grid, without the padding that the network works with."""
    output = model(moving, fixed)
    velocity = output if isinstance(output, Tensor) else output.velocity
    shape = fixed.shape[2:]
    padded = tuple(-(-size // stride) * stride for size, stride in zip(shape, model.total_stride, strict=True))
    return resize(velocity, padded)[(slice(None), slice(None), *[slice(size) for size in shape])]


def _cost(moving: Tensor, fixed: Tensor, weight: Tensor, similarity: str) -> float:
    from nnunet_synthtumour.registration.mind import mind_loss
    from nnunet_synthtumour.registration.similarity import mse_loss

    costs: dict[str, Any] = {
        "mind": mind_loss,
        "lncc": lambda m, f, w: lncc_loss(m, f, weight=w),
        "nmi": lambda m, f, w: nmi_loss(m, f, weight=w),
        "ncc": global_ncc_loss,
        "mse": mse_loss,
    }
    if not bool(weight.any()):
        return math.nan
    return float(costs[similarity](moving, fixed, weight))
