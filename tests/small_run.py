"""A `synthtumour run` of a few small images that trains for one iteration, and what it has noted of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_synthtumour.stages import RECORD

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
# A junior of one iteration knows nothing: with these rules something is kept of whatever it says.
SETTINGS = ("training.epochs=1", "training.iterations=1", "training.seed=1", "validation.patches=2",
            "pseudolabels.lower=0.0", "pseudolabels.upper=0.02", "pseudolabels.min_ml=0.01",
            "pseudolabels.min_confidence=0.0", "pseudolabels.rim_mm=0.0", "pseudolabels.max_host_share=1.0",
            "pseudolabels.max_rim_share=1.0", "pseudolabels.max_doubt=1000",
            "donors.smallest_ml=0.01")  # fmt: skip


def ball_of(seed: int, tumour: bool) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1.1, 1.1, n) for n in (22, 24, 20)], indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    image = np.where(radius < 1, 100 + 40 * (radius < 0.7) + generator.normal(0, 6, radius.shape), 0)
    lesion = np.sqrt(((grid - generator.uniform(-0.3, 0.3, (3, 1, 1, 1))) ** 2).sum(0)) < 0.3 * tumour
    return np.where(lesion, image * 1.8, image).astype(np.float32), lesion.astype(np.uint8)


def write_image(array: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((3.0, 3.0, 3.0))
    sitk.WriteImage(image, str(file))


def options_of(folder: Path) -> list[str]:
    for i in range(4):
        write_image(ball_of(i, False)[0], folder / "healthy" / f"healthy_{i}.nii.gz")
        write_image(ball_of(10 + i, True)[0], folder / "unlabelled" / f"patient_{i}.nii.gz")
    for i in range(2):
        image, label = ball_of(20 + i, True)
        write_image(image, folder / "test" / f"new_{i}.nii.gz")
        write_image(label, folder / "truth" / f"new_{i}.nii.gz")
    given = {"--healthy": "healthy", "--unlabelled": "unlabelled", "--test": "test", "--test-labels": "truth"}
    words = [word for option, name in given.items() for word in (option, str(folder / name))]
    return [*words, "-d", "301", "-n", "Run", "-o", str(folder / "out"), "-device", "cpu", "-np", "1", "-pl", "TinyPlanner",
            *(word for text in SETTINGS for word in ("--set", text))]  # fmt: skip


def record_of(out: Path) -> dict[str, Any]:
    return json.loads((out / RECORD).read_text(encoding="utf-8"))["stages"] if (out / RECORD).exists() else {}
