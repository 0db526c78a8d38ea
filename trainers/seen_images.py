"""How the images lie that a registration network learns from, and what nnU-Net cuts off their intensities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_pickle

from nnunet_synthtumour.registration.model_files import Windows
from nnunet_synthtumour.registration.trained_frame import lie_alike

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class SeenImages:
    """What `registration.pth` says of them; registration/model_files.py describes every entry."""

    transpose_forward: tuple[int, ...]
    direction: tuple[float, ...] | None
    moving_windows: Windows | None
    fixed_windows: Windows | None

    @classmethod
    def of(
        cls, plans: Mapping[str, Any], configuration: Mapping[str, Any], folder: Path, cases: Sequence[str]
    ) -> SeenImages:
        """From nnU-Net's plans and the properties that it kept of the preprocessed cases in the folder."""
        statistics = plans["foreground_intensity_properties_per_channel"]
        windows = clip_windows(configuration["normalization_schemes"], statistics)
        order = tuple(int(axis) for axis in plans["transpose_forward"])
        return cls(order, common_direction(folder, cases), windows, windows)


def across(moving: SeenImages, fixed: SeenImages) -> SeenImages:
    """Of pairs out of two data sets: each side keeps its windows, a direction is that of both."""
    one, other = moving.direction, fixed.direction
    alike = one is not None and other is not None and lie_alike(one, other)
    return replace(fixed, moving_windows=moving.moving_windows, direction=other if alike else None)


def clip_windows(schemes: Sequence[str], statistics: Mapping[str, Mapping[str, float]]) -> Windows | None:
    """What nnU-Net clips every channel to, (lower, upper); only its CT normalisation clips."""
    windows = tuple(
        (float(statistics[str(channel)]["percentile_00_5"]), float(statistics[str(channel)]["percentile_99_5"]))
        if scheme == "CTNormalization"
        else None
        for channel, scheme in enumerate(schemes)
    )
    return windows if any(windows) else None


def common_direction(folder: Path, cases: Sequence[str]) -> tuple[float, ...] | None:
    """ITK's direction cosines of preprocessed cases; None where they differ in more than a slight tilt."""
    files = [file for case in cases if (file := folder / f"{case}.pkl").is_file()]  # what is gone is told elsewhere
    found = [_direction(load_pickle(str(file))) for file in files]
    first = found[0] if found else None
    same = first is not None and all(other is not None and lie_alike(other, first) for other in found)
    return first if same else None


def _direction(properties: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Of the array that nnU-Net's reader returned."""
    if "sitk_stuff" in properties:
        return tuple(float(cosine) for cosine in properties["sitk_stuff"]["direction"])
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        axes = np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]))[:3, :3]
        return tuple(float(c) for c in (LPS_FROM_RAS @ (axes / np.linalg.norm(axes, axis=0))).ravel())
    return None
