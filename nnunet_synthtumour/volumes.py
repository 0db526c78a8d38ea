"""Volumes of what is marked in an image; in a single slice, those of the balls whose middle section it is."""

from __future__ import annotations

import math
from collections.abc import Sequence


def millilitres(voxels: int, shape: Sequence[int], spacing: Sequence[float]) -> float:
    """The volume of so many voxels of an image (Z, Y, X) of `spacing` (mm), z first.

    A single slice has no thickness that means anything, so an area A counts as the ball whose middle section it is, as
    synthesis has it: a lesion of 4 ml is a disc of 9.8 mm radius there.
    """
    if shape[0] > 1:
        return voxels * math.prod(spacing) / 1000
    area = voxels * math.prod(spacing[1:])
    return float(4 / 3 * math.pi * (area / math.pi) ** 1.5 / 1000)


def radius_of(ml: float) -> float:
    """Radius (mm) of the ball of this volume; of a single slice's area, that of the disc."""
    return float((750 * ml / math.pi) ** (1 / 3))
