"""The two images of a registration: read, checked, and as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_files import read_or_refuse
from nnunet_synthtumour.registration.instance import normalised
from nnunet_synthtumour.registration.physical import Geometry


@dataclass(frozen=True)
class Pair:
    """Both images, channel by channel, as SimpleITK has them; the first channels, which are compared, as normalised
    tensors (1, 1, ...); and where in space they lie."""

    fixed_images: tuple[Any, ...]
    moving_images: tuple[Any, ...]
    fixed: Tensor
    moving: Tensor
    fixed_grid: Geometry
    moving_grid: Geometry

    @classmethod
    def read(cls, fixed: Sequence[Path], moving: Sequence[Path], device: str) -> Pair:
        """From one file per channel each; a `UserError` names the file that does not fit."""
        fixed_images, moving_images = _channels(fixed), _channels(moving)
        dims, others = fixed_images[0].GetDimension(), moving_images[0].GetDimension()
        if dims != others:
            raise UserError(
                f"{fixed[0]} has {dims} dimensions and {moving[0]} has {others}: give two images of the same number of "
                "dimensions."
            )
        for path, image in ((fixed[0], fixed_images[0]), (moving[0], moving_images[0])):
            if min(image.GetSize()) < 2:  # as NIfTI, its field would be one of two dimensions
                raise UserError(f"{path} has a single slice; give it as a 2D image, or more slices.")
        return cls(
            fixed_images,
            moving_images,
            normalised(tensor(fixed_images[:1])).to(device),
            normalised(tensor(moving_images[:1])).to(device),
            Geometry.of(fixed_images[0]),
            Geometry.of(moving_images[0]),
        )

    @property
    def fixed_image(self) -> Any:
        return self.fixed_images[0]

    @property
    def moving_image(self) -> Any:
        return self.moving_images[0]


def read_image(path: Path) -> Any:
    """A scalar 2D or 3D image; a `UserError` names the file that is not one."""
    if not path.is_file():
        raise UserError(f"There is no image {path}.")
    return read_or_refuse(path)


def on_one_grid(one: Any, other: Any) -> bool:
    """Whether two SimpleITK images have the same size and lie on one another, to a hundredth of a mm."""
    ours, theirs = Geometry.of(one), Geometry.of(other)
    return ours.shape == theirs.shape and bool(torch.allclose(ours.matrix(), theirs.matrix(), rtol=0, atol=1e-2))


def tensor(images: Sequence[Any]) -> Tensor:
    """(1, C, ...) of C SimpleITK images."""
    return torch.from_numpy(np.stack([sitk.GetArrayFromImage(image).astype(np.float32) for image in images]))[None]


def _channels(paths: Sequence[Path]) -> tuple[Any, ...]:
    images = [read_image(path) for path in paths]
    for path, image in zip(paths[1:], images[1:], strict=True):
        if not on_one_grid(image, images[0]):
            raise UserError(f"{path} does not lie on the grid of {paths[0]}: channels of one image share it.")
    return tuple(images)
