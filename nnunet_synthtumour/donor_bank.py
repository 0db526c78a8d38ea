"""The donor bank: tumours cut out of patients, in one file that every worker maps into memory when it first needs it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.schema import parse

INDEX = "donors.json"
LEVEL_STEPS = 100  # of the margin: levels are kept in 8 bits


@dataclass(frozen=True)
class Slice:
    """One slice of a donor (first axis): what 2D patches receive."""

    index: int
    area_mm2: float
    anchor: tuple[int, ...]


@dataclass(frozen=True)
class Donor:
    """One tumour. Axes are those of the preprocessed case, voxels those of its grid.

    `corner` is the crop's first voxel in the case, `anchor` the tumour's voxel next to its middle, in the crop. `place` is
    that voxel relative to the box of the patient's host (0 to 1), `raw_mm` its distance from the raw image's first corner.
    Ring: the tissue around, one number per channel.
    """

    name: str
    case: str
    component: int
    held_out: bool
    ml: float
    radius_mm: float
    labels: tuple[int, ...]
    shape: tuple[int, ...]
    offset: int
    corner: tuple[int, ...]
    anchor: tuple[int, ...]
    place: tuple[float, ...]
    raw_mm: tuple[float, ...]
    host_box: tuple[tuple[float, float], ...]
    slice_mm: float
    ring_mean: tuple[float, ...]
    ring_spread: tuple[float, ...]
    slices: tuple[Slice, ...] = ()


@dataclass(frozen=True)
class Index:
    """`donors.json`. `inputs` is a digest of what the bank was built from, `data` the file with the voxels."""

    format: int
    inputs: str
    data: str
    spacing: tuple[float, ...]
    channels: int
    labels: tuple[int, ...]
    ignore_label: int
    margin_mm: float
    left_right: int
    donors: tuple[Donor, ...]


@dataclass(frozen=True)
class Crop:
    """The voxels of a donor: `image` (C, X, Y, Z) float16; `labels` (X, Y, Z) uint8, outside of the tumour those of its
    nearest voxel; `level` (X, Y, Z) int8, distance to the tumour's surface (inside positive) in steps of `level_mm`."""

    image: np.ndarray
    labels: np.ndarray
    level: np.ndarray
    level_mm: float


@dataclass(frozen=True)
class DonorBank:
    """Donors of one folder. Pickles as its index alone, so workers may be forked or spawned."""

    folder: Path
    index: Index
    donors: tuple[Donor, ...]

    @staticmethod
    def open(folder: Path | str) -> DonorBank:
        """The bank that `build_bank` wrote to `folder`."""
        folder = Path(folder)
        file = folder / INDEX
        if not file.is_file():
            raise UserError(f"There is no donor bank in {folder}; it is built from patients with pseudo-labels.")
        index = parse(Index, json.loads(file.read_text(encoding="utf-8")), str(file))
        return DonorBank(folder, index, index.donors)

    def of(self, cases: Collection[str]) -> DonorBank:
        """The same bank with donors of `cases` alone."""
        wanted = set(cases)
        kept = tuple(donor for donor in self.donors if donor.case in wanted)
        if not kept:
            raise UserError(
                f"{self.folder} has no donor of these cases: {_some(wanted)}; it has some of "
                f"{_some({donor.case for donor in self.donors})}."
            )
        return replace(self, donors=kept)

    def held_out(self, held_out: bool) -> DonorBank:
        """Those donors that were held out when the bank was built, or the others."""
        return self.of({donor.case for donor in self.donors if donor.held_out == held_out})

    def __len__(self) -> int:
        return len(self.donors)

    @cached_property
    def by_name(self) -> dict[str, Donor]:
        return {donor.name: donor for donor in self.index.donors}

    @cached_property
    def _voxels(self) -> np.memmap:
        return np.memmap(self.folder / self.index.data, dtype=np.uint8, mode="r")

    def crop(self, donor: Donor) -> Crop:
        """Views of the mapped file, nothing is read yet."""
        n = int(np.prod(donor.shape))
        image_bytes = 2 * n * self.index.channels
        part = self._voxels[donor.offset : donor.offset + image_bytes + 2 * n]
        return Crop(
            image=part[:image_bytes].view(np.float16).reshape(self.index.channels, *donor.shape),
            labels=part[image_bytes : image_bytes + n].reshape(donor.shape),
            level=part[image_bytes + n :].view(np.int8).reshape(donor.shape),
            level_mm=level_step(self.index.margin_mm, self.index.spacing),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "index": self.index, "donors": self.donors}


def reach_mm(margin_mm: float, spacing: tuple[float, ...]) -> float:
    """How much tissue is kept around a tumour: the margin, at least one voxel."""
    return max(margin_mm, *spacing)


def level_step(margin_mm: float, spacing: tuple[float, ...]) -> float:
    return reach_mm(margin_mm, spacing) / LEVEL_STEPS


def ring_limits(margin_mm: float, spacing: tuple[float, ...]) -> tuple[float, float]:
    """Levels (mm) between which the ring lies: its inner border keeps off what is partly tumour."""
    reach = reach_mm(margin_mm, spacing)
    return -reach, -min(1.5, reach / 2)


def robust_mean_and_spread(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of the middle four fifths; of few values, which may have none in the middle, of all."""
    low, high = np.percentile(values, [10, 90])
    middle = values[(values >= low) & (values <= high)]
    if not middle.size:
        middle = values
    return float(middle.mean()), float(middle.std())


def _some(names: Collection[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")
