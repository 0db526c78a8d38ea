"""Drawing which donor goes where in a patch, and how it is turned, scaled and bent: all randomness of a paste."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_synthtumour import drawing
from nnunet_synthtumour.donor_bank import Donor, DonorBank, Slice
from nnunet_synthtumour.placement import Places, box_of_label
from nnunet_synthtumour.schema import parse, to_json
from nnunet_synthtumour.settings import DonorSettings

CANDIDATES = 24
PAPER_CANDIDATES = 200
LANDING_VOXELS = 8
ROOM_TRIES = 4
BEND_OF_RADIUS = 0.12  # a small tumour is bent less


@dataclass(frozen=True)
class Paste:
    """A drawn paste. The donor's anchor comes to lie on voxel `centre` of the patch, and
    donor_mm = matrix @ patch_mm + bend, both relative to that point. `slice` is the donor's slice in 2D.
    """

    donor: str
    slice: int | None
    centre: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    elastic_mm: float
    seam_mm: float
    match: bool
    paper: bool
    seed: int


@dataclass(frozen=True)
class PasteParameters:
    """All that was drawn for one patch; prints, pickles, and goes to JSON and back."""

    pastes: tuple[Paste, ...] = ()

    def to_json(self) -> str:
        return json.dumps(to_json(self))

    @staticmethod
    def from_json(text: str) -> PasteParameters:
        return parse(PasteParameters, json.loads(text))


@dataclass(frozen=True)
class _Candidate:
    donor: Donor
    part: Slice | None
    flips: np.ndarray
    centre: np.ndarray  # voxels of the patch


class Landing:
    """Where donors may land in one patch.

    `host_box` ((low, high) per axis of the volume) is the box of the whole host and `raw_corner` the raw image's first
    corner, both in voxels of the patch; for 2D patches the first axis counts slices from this one. What is unknown is
    taken from the part of the host that the patch shows.
    """

    def __init__(self, places: Places, spacing: Sequence[float], host_box: Any = None, raw_corner: Any = None) -> None:
        self.places = places
        self.spacing = np.array(spacing)
        self.dims = len(spacing)
        self.raw_corner = None if raw_corner is None else np.asarray(raw_corner, dtype=float)
        box = (
            box_of_label(places.seg.numpy(), places.ignore_label)
            if host_box is None
            else np.asarray(host_box, dtype=float)
        )
        self.slice_low_high = box[0] if len(box) > self.dims else None
        self.low, self.high = box[-self.dims :].T

    def draw(self, bank: DonorBank, settings: DonorSettings, in_region: bool = True) -> Paste | None:
        """A donor and all about it; None where there is no host, or (paper) where nothing has its place in this patch."""
        if settings.placement == "paper":
            return self._draw_paper(bank, in_region)
        found = self._anywhere(bank, settings, in_region) if settings.placement == "anywhere" else None
        found = found or self._relative(bank, settings, in_region)
        return None if found is None else _deformed(found, settings, self.dims)

    def _relative(self, bank: DonorBank, settings: DonorSettings, in_region: bool) -> _Candidate | None:
        """Of a few donors one whose place in its own host lies in this patch; else the one that has to move least."""
        candidates = []
        for _ in range(CANDIDATES):
            candidates.append(self._candidate(bank, settings))
            if self._allows(candidates[-1].centre, in_region):
                return candidates[-1]
        landings = [self.places.in_host(in_region=in_region) for _ in range(LANDING_VOXELS)]
        landings = [at for at in landings if at is not None]
        if not landings:
            return None
        away = [[float((((np.array(at) - c.centre) * self.spacing) ** 2).sum()) for at in landings] for c in candidates]
        which, at = np.unravel_index(int(np.argmin(away)), (len(candidates), len(landings)))
        nearest = candidates[int(which)]
        return _Candidate(nearest.donor, nearest.part, nearest.flips, np.array(landings[int(at)], dtype=float))

    def _candidate(self, bank: DonorBank, settings: DonorSettings) -> _Candidate:
        donor = bank.donors[np.random.randint(len(bank))]
        flips = _draw_flips(settings.flips, bank.index.left_right, self.dims)
        part = self._draw_slice(donor, settings.jitter_mm) if self.dims == 2 else None
        place = np.array(_place_of(donor, part)[-self.dims :])
        place = np.where(flips, 1 - place, place)
        jitter = np.random.uniform(-1, 1, self.dims) * settings.jitter_mm / self.spacing
        centre = np.rint(self.low + place * (self.high - self.low) - 0.5 + jitter)
        return _Candidate(donor, part, flips, centre)

    def _anywhere(self, bank: DonorBank, settings: DonorSettings, in_region: bool) -> _Candidate | None:
        """Any donor, at that of a few voxels of the host around which it has most room."""
        drawn = self._candidate(bank, settings)
        tries = [self.places.in_host(in_region=in_region) for _ in range(ROOM_TRIES)]
        voxels = [at for at in tries if at is not None]
        if not voxels:
            return None
        part = drawn.part
        if self.dims == 2:
            part = drawn.donor.slices[_weighted([s.area_mm2 for s in drawn.donor.slices])]
        centre = max(voxels, key=lambda at: self._room(at, drawn.donor.radius_mm))
        return _Candidate(drawn.donor, part, drawn.flips, np.array(centre, dtype=float))

    def _draw_paper(self, bank: DonorBank, in_region: bool) -> Paste | None:
        for which in np.random.permutation(len(bank))[:PAPER_CANDIDATES]:
            donor = bank.donors[which]
            part = self._draw_slice(donor, 0.0) if self.dims == 2 else None
            if self.raw_corner is not None:
                centre = np.array(_raw_of(donor, part, self.spacing)[-self.dims :]) / self.spacing
                centre = centre + self.raw_corner[-self.dims :]
            else:
                centre = self.low + np.array(_place_of(donor, part)[-self.dims :]) * (self.high - self.low)
            centre = np.rint(centre - 0.5)
            if self._allows(centre, in_region):
                same = tuple(tuple(float(i == j) for j in range(self.dims)) for i in range(self.dims))
                at = tuple(float(c) for c in centre)
                return Paste(donor.name, part.index if part else None, at, same, 0.0, 0.0, False, True, 0)
        return None

    def _draw_slice(self, donor: Donor, jitter_mm: float) -> Slice:
        """The slice at this patch's height in the host, or near it; by area where the height is unknown or passes by."""
        if self.slice_low_high is not None:
            low, high = self.slice_low_high
            its_low, its_high = donor.host_box[0]
            height = its_low + (0.5 - low) / max(1.0, high - low) * (its_high - its_low) - donor.corner[0] - 0.5
            height += np.random.uniform(-1, 1) * jitter_mm / donor.slice_mm
            near = [s for s in donor.slices if abs(s.index - height) <= 0.5]
            if near:
                return near[0]
        return donor.slices[_weighted([s.area_mm2 for s in donor.slices])]

    def _allows(self, centre: np.ndarray, in_region: bool) -> bool:
        bounds = self.places.region if in_region else self.places.whole
        if not all(low <= c < high for c, (low, high) in zip(centre, bounds, strict=True)):
            return False
        return bool(self.places.seg[tuple(int(c) for c in centre)] == self.places.ignore_label)

    def _room(self, at: Sequence[int], radius_mm: float) -> int:
        """How many of the ends of a cross of the donor's size lie in the host."""
        ends = []
        for axis, mm in enumerate(self.spacing):
            for sign in (-1, 1):
                end = list(at)
                end[axis] += round(sign * 0.7 * radius_mm / mm)
                ends.append(end)
        seg = self.places.seg
        return sum(
            all(0 <= e < n for e, n in zip(end, seg.shape, strict=True))
            and bool(seg[tuple(end)] == self.places.ignore_label)
            for end in ends
        )


def _deformed(found: _Candidate, settings: DonorSettings, dims: int) -> Paste:
    scale = drawing.uniform(settings.scaling)
    turn = _rotation(dims, np.deg2rad(settings.rotation_degrees) * np.random.uniform(-1, 1))
    elastic_mm = min(drawing.uniform(settings.elastic_mm), BEND_OF_RADIUS * found.donor.radius_mm)
    if drawing.chance(settings.undeformed):
        scale, turn, elastic_mm = 1.0, np.eye(dims), 0.0
    matrix = np.where(found.flips, -1.0, 1.0)[:, None] * turn / scale
    return Paste(
        donor=found.donor.name,
        slice=found.part.index if found.part else None,
        centre=tuple(float(c) for c in found.centre),
        matrix=tuple(tuple(float(v) for v in row) for row in matrix),
        elastic_mm=elastic_mm,
        seam_mm=min(drawing.uniform(settings.seam_mm), settings.margin_mm),
        match=settings.match_intensities,
        paper=False,
        seed=drawing.draw_seed(),
    )


def _draw_flips(which: str, left_right: int, dims: int) -> np.ndarray:
    """Axes of the patch that are flipped (bool)."""
    drawn = np.random.uniform(size=3) < 0.5
    allowed = np.full(3, which == "all")
    allowed[left_right] |= which == "left-right"
    return (drawn & allowed)[-dims:]


def _rotation(dims: int, angle: float) -> np.ndarray:
    """By `angle`, in 3D about an axis drawn uniformly (Rodrigues)."""
    if dims == 2:
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    x, y, z = drawing.draw_direction(3)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _place_of(donor: Donor, part: Slice | None) -> tuple[float, ...]:
    if part is None:
        return donor.place
    return tuple(
        (corner + a + 0.5 - low) / (high - low)
        for corner, a, (low, high) in zip(donor.corner[1:], part.anchor, donor.host_box[1:], strict=True)
    )


def _raw_of(donor: Donor, part: Slice | None, spacing: np.ndarray) -> tuple[float, ...]:
    if part is None:
        return donor.raw_mm
    return tuple(
        mm + (a - b) * voxel
        for mm, a, b, voxel in zip(donor.raw_mm[1:], part.anchor, donor.anchor[1:], spacing, strict=True)
    )


def _weighted(weights: Sequence[float]) -> int:
    return int(np.random.choice(len(weights), p=np.array(weights) / np.sum(weights)))
