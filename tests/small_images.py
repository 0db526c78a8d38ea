"""Images small enough for a test: a ball of noisy tissue, stripped or in a noisy background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk


def ball_image(
    seed: int, stripped: bool = True, shape: tuple[int, ...] = (20, 24, 22), scale: float = 100.0
) -> np.ndarray:
    generator = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in shape], indexing="ij"))
    ball = (grid**2).sum(0) < 1
    noise = generator.normal(1, 0.3, shape).clip(0.1)
    return (np.where(ball, generator.normal(10, 2, shape).clip(1), 0 if stripped else noise) * scale).astype(np.float32)


def write(array: np.ndarray, file: Path, spacing: tuple[float, ...] = (3.0, 3.0, 3.0)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array, isVector=False)
    image.SetSpacing(spacing[: image.GetDimension()] if image.GetDimension() <= 3 else (*spacing, 1.0))
    sitk.WriteImage(image, str(file))
