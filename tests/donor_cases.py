"""Preprocessed patients small enough for a test, written as nnU-Net writes them, and a donor bank cut out of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_synthtumour.donor_bank import DonorBank
from nnunet_synthtumour.donor_cutting import build_bank
from nnunet_synthtumour.settings import DonorSettings

IGNORE = 7
LABELS = (1, 2, 3)
SHAPE = (32, 36, 28)
MM = 3.0
PLAIN = DonorSettings(
    probability=1.0, jitter_mm=0.0, flips="none", rotation_degrees=0.0, scaling=(1.0, 1.0), elastic_mm=(0.0, 0.0),
    seam_mm=(0.0, 0.0), smallest_ml=0.2,
)  # fmt: skip
"""Nothing drawn: a donor goes where it was, as it was."""


def patient(seed: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Image (C, X, Y, Z) and labels (1, X, Y, Z): a ball of a head, a tumour of three parts, voxels of doubt beside it."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n) - n / 2 + 0.5 for n in SHAPE], indexing="ij"))
    head = (grid**2).sum(0) < 13.5**2
    middle = np.array([3.0, -4.0, 2.0]) * (-1) ** seed
    distance = np.sqrt(((grid - middle.reshape(3, 1, 1, 1)) ** 2).sum(0))
    seg = np.where(head, 0, -1)
    seg[(distance < 5.5) & head & (grid[2] > middle[2])] = IGNORE
    for radius, value in ((5, 1), (3.5, 2), (2, 3)):
        seg[(distance < radius) & head] = value
    image = generator.normal(0, 0.1, (channels, *SHAPE)) + np.where(distance < 5, 2.0, 0.5 * seed)
    return np.where(head, image, -5).astype(np.float32), seg[None].astype(np.int8)


def write_case(folder: Path, name: str, image: np.ndarray, seg: np.ndarray, slice_mm: float = MM) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    properties = {"spacing": [slice_mm, MM, MM], "bbox_used_for_cropping": [[2, 2 + n] for n in image.shape[1:]],
                  "shape_after_cropping_and_before_resampling": image.shape[1:]}  # fmt: skip
    chunks = image.shape
    nnUNetDatasetBlosc2.save_case(image, seg, properties, str(folder / name), chunks, chunks, chunks, chunks)


def write_patients(folder: Path, n: int = 2, channels: int = 1) -> list[str]:
    names = [f"patient_{i}" for i in range(n)]
    for i, name in enumerate(names):
        write_case(folder, name, *patient(i, channels))
    return names


def cut(folder: Path, cases: list[str], out: Path, dims: int = 3, **options: Any) -> DonorBank:
    held_out = options.pop("held_out", ())
    return build_bank(
        folder, cases, out, replace(PLAIN, **options), labels=LABELS, ignore_label=IGNORE, spacing=(MM,) * dims,
        held_out=held_out,
    )  # fmt: skip
