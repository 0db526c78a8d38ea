"""The size of what is marked in an image: a volume, in a single slice an area; and lesions of a slice as balls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """How sizes are stated: the name and the unit that keys have, the unit as it is shown, and what makes it up."""

    name: str
    unit: str
    shown: str
    axes: int
    per_unit: float  # mm^axes

    @property
    def key(self) -> str:
        return f"{self.name}_{self.unit}"

    def of(self, voxels: float, spacing: Sequence[float]) -> float:
        """The size of so many voxels of `spacing` (mm, slices first)."""
        return float(voxels) * math.prod(spacing[-self.axes :]) / self.per_unit


VOLUME = Measure("volume", "ml", "ml", 3, 1000.0)
AREA = Measure("area", "cm2", "cm²", 2, 100.0)


def measure_of(shape: Sequence[int]) -> Measure:
    """What an image (Z, Y, X) or (Y, X) is measured in: a single slice has no thickness that means anything."""
    return AREA if len(shape) == 2 or shape[0] == 1 else VOLUME


def measure_in(stated: Mapping[str, Any]) -> Measure:
    """What sizes were stated in, by the unit that keys end with."""
    return AREA if any(key.endswith(AREA.unit) for key in stated) else VOLUME


def millilitres(voxels: int, shape: Sequence[int], spacing: Sequence[float]) -> float:
    """The volume of a lesion of so many voxels of an image (Z, Y, X) of `spacing` (mm), z first.

    In a single slice an area A counts as the ball whose middle section it is, as synthesis has it: a lesion of 4 ml is a
    disc of 9.8 mm radius there. Such volumes do not add up; what is stated of a whole image is a `Measure`.
    """
    if shape[0] > 1:
        return voxels * math.prod(spacing) / 1000
    area = voxels * math.prod(spacing[1:])
    return float(4 / 3 * math.pi * (area / math.pi) ** 1.5 / 1000)


def radius_of(ml: float) -> float:
    """Radius (mm) of the ball of this volume; of a single slice's area, that of the disc."""
    return float((750 * ml / math.pi) ** (1 / 3))
