"""Building a donor bank: tumours are cut out of nnU-Net's preprocessed patients by their labels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from scipy import ndimage

from nnunet_synthtumour.atomic_files import complete, read_json, write_json
from nnunet_synthtumour.donor_bank import (
    INDEX,
    Donor,
    DonorBank,
    Index,
    Slice,
    level_step,
    reach_mm,
    ring_limits,
    robust_mean_and_spread,
)
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.hosts import find_host
from nnunet_synthtumour.schema import to_json
from nnunet_synthtumour.settings import DonorSettings
from nnunet_synthtumour.volumes import millilitres, radius_of

FORMAT = 1
OUTSIDE = -1  # what nnU-Net writes outside of the image
MARKED_SHARE = 0.02


def build_bank(
    folder: Path,
    cases: Sequence[str],
    out: Path,
    settings: DonorSettings,
    *,
    labels: Sequence[int],
    ignore_label: int,
    spacing: Sequence[float],
    transpose_forward: Sequence[int] = (0, 1, 2),
    held_out: Collection[str] = (),
) -> DonorBank:
    """Cut the tumours of `cases` out of nnU-Net's preprocessed `folder` into the bank `out`, or find that it is there.

    `labels` are the foreground values, `spacing` is the configuration's (two numbers for 2d), `transpose_forward` that of
    the plans. Every connected piece of the tumour, all labels together, of at least `smallest_ml` is one donor.
    """
    cases = sorted(cases)
    spacing = tuple(float(mm) for mm in spacing)
    stated: dict[str, Any] = {
        "format": FORMAT,
        "labels": sorted(int(v) for v in labels),
        "ignore_label": int(ignore_label),
        "spacing": spacing,
        "margin_mm": settings.margin_mm,
        "smallest_ml": settings.smallest_ml,
        "transpose_forward": [int(i) for i in transpose_forward],
        "held_out": sorted(held_out),
    }
    if len(spacing) == 2:
        stated["volumes"] = "of balls"  # banks of 2D images that an older version made are built anew
    inputs = _digest_of_inputs(folder, cases, stated)
    if _is_built(out, inputs):
        with suppress(UserError):  # a damaged one is built anew
            return DonorBank.open(out)
    cutter = _Cutter(folder, stated)
    data = f"donors-{inputs[:12]}.bin"
    donors: list[Donor] = []
    with complete(out / data) as unfinished, unfinished.open("wb") as file:
        for case in cases:
            donors += cutter.cut(case, file, case in held_out)
        if not donors:
            raise UserError(
                f"None of the {len(cases)} patients in {folder} has a tumour of at least {settings.smallest_ml:g} ml in "
                "its labels, so there is no donor; loosen the thresholds of the pseudo-labels or donors.smallest_ml."
            )
    index = Index(
        FORMAT, inputs, data, spacing, len(donors[0].ring_mean), tuple(stated["labels"]), int(ignore_label),
        settings.margin_mm, list(transpose_forward).index(2), tuple(donors),
    )  # fmt: skip
    write_json(to_json(index), out / INDEX)
    for older in set(out.glob("donors-*.bin")) - {out / data}:
        older.unlink()
    return DonorBank.open(out)


def _digest_of_inputs(folder: Path, cases: Sequence[str], stated: dict[str, Any]) -> str:
    files = sorted(f for case in cases for f in (*folder.glob(f"{case}.*"), *folder.glob(f"{case}_seg.*")))
    seen = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(json.dumps([stated, seen]).encode()).hexdigest()


def _is_built(out: Path, inputs: str) -> bool:
    index = read_json(out / INDEX)
    return bool(index and index.get("inputs") == inputs and (out / index["data"]).is_file())


class _Cutter:
    """Cuts the donors of one case after the other, and writes their voxels to a file."""

    def __init__(self, folder: Path, stated: dict[str, Any]) -> None:
        from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

        self.data = infer_dataset_class(str(folder))(str(folder))
        self.folder = folder
        self.labels, self.ignore_label = stated["labels"], stated["ignore_label"]
        self.spacing, self.transpose = stated["spacing"], stated["transpose_forward"]
        self.margin_mm, self.smallest_ml = stated["margin_mm"], stated["smallest_ml"]

    def cut(self, case: str, file: BinaryIO, held_out: bool) -> Iterator[Donor]:
        if case not in self.data.identifiers:
            raise UserError(f"{self.folder} has no case {case}; preprocess the data set again.")
        image, seg, _, properties = self.data.load_case(case)
        image, seg = np.asarray(image[:], dtype=np.float32), np.asarray(seg[:])[0]
        raw_mm = [float(properties["spacing"][i]) for i in self.transpose]
        voxel = raw_mm[:1] + list(self.spacing) if len(self.spacing) == 2 else list(self.spacing)
        tumour, unsure = np.isin(seg, self.labels), seg == self.ignore_label
        pieces, n = ndimage.label(tumour, np.ones((3,) * seg.ndim))
        ml = [millilitres(int(size), seg.shape, voxel) for size in np.bincount(pieces.ravel(), minlength=n + 1)[1:]]
        wanted = [i + 1 for i in range(n) if ml[i] >= self.smallest_ml]
        if not wanted:
            return
        head = _head_of(image, seg)
        at = np.argwhere(head)
        host_box = np.stack([at.min(0), at.max(0) + 1], 1)
        raw_corner = [mm * b[0] for mm, b in zip(raw_mm, properties["bbox_used_for_cropping"], strict=True)]
        reach = self._reach(voxel)
        for component in wanted:
            mine = pieces == component
            body, corner = self._with_unsure(mine, unsure, reach)
            window = _Window(corner, [n + 2 * r for n, r in zip(body.shape, reach, strict=True)], reach, seg.shape)
            body = np.pad(body, [(r, r) for r in reach])
            mine = window.of(mine) & body
            level = self._level(body, voxel)
            head_here = (window.of(head) & window.inside) | body
            values = window.of(seg)
            labels = np.where(body, values, 0)
            donor_image = np.stack([window.of(channel) for channel in image])
            ring_low, ring_high = ring_limits(self.margin_mm, self.spacing)
            ring = (level > ring_low) & (level < ring_high) & head_here
            ring &= ~np.isin(values, [*self.labels, self.ignore_label])
            if not ring.any():  # nothing but tumour, doubt and background around it
                ring = head_here & ~mine if (head_here & ~mine).any() else mine
            stats = [robust_mean_and_spread(channel[ring]) for channel in donor_image]
            nearest = ndimage.distance_transform_edt(~head_here, voxel, return_distances=False, return_indices=True)
            donor_image = donor_image[(slice(None), *nearest)]  # so that no background bleeds into what is pasted
            nearest = ndimage.distance_transform_edt(~body, voxel, return_distances=False, return_indices=True)
            anchor = _middle(mine)
            absolute = np.array(window.corner) + anchor
            yield Donor(
                name=f"{case}_{component}",
                case=case,
                component=component,
                held_out=held_out,
                ml=ml[component - 1],
                radius_mm=radius_of(ml[component - 1]),
                labels=tuple(int(v) for v in np.unique(labels[body])),
                shape=tuple(int(n) for n in body.shape),
                offset=file.tell(),
                corner=tuple(int(v) for v in window.corner),
                anchor=tuple(int(v) for v in anchor),
                place=tuple(map(float, (absolute + 0.5 - host_box[:, 0]) / (host_box[:, 1] - host_box[:, 0]))),
                raw_mm=tuple(float(c + (v + 0.5) * mm) for c, v, mm in zip(raw_corner, absolute, voxel, strict=True)),
                host_box=tuple((float(a), float(b)) for a, b in host_box),
                slice_mm=voxel[0],
                ring_mean=tuple(mean for mean, _ in stats),
                ring_spread=tuple(spread for _, spread in stats),
                slices=_slices(mine, voxel) if len(self.spacing) == 2 else (),
            )
            file.write(donor_image.astype(np.float16).tobytes())
            file.write(labels[tuple(nearest)].astype(np.uint8).tobytes())
            steps = np.rint(level / level_step(self.margin_mm, self.spacing))
            file.write(steps.clip(-127, 127).astype(np.int8).tobytes())

    def _reach(self, voxel: Sequence[float]) -> list[int]:
        """Voxels around the tumour; none across the slices of a 2d configuration."""
        mm = reach_mm(self.margin_mm, self.spacing)
        reach = [int(np.ceil(mm / v)) + 1 for v in voxel]
        return [0, *reach[1:]] if len(self.spacing) == 2 else reach

    def _with_unsure(self, mine: np.ndarray, unsure: np.ndarray, reach: Sequence[int]) -> tuple[np.ndarray, list[int]]:
        """The tumour with the voxels of doubt that are joined to it within the margin, in their box, and its corner."""
        (box,) = ndimage.find_objects(mine.astype(np.uint8))
        wide = tuple(
            slice(max(0, s.start - r), min(n, s.stop + r)) for s, r, n in zip(box, reach, mine.shape, strict=True)
        )
        joined, _ = ndimage.label(mine[wide] | unsure[wide])
        body = np.isin(joined, np.unique(joined[mine[wide]]))
        (tight,) = ndimage.find_objects(body.astype(np.uint8))
        return body[tight], [w.start + t.start for w, t in zip(wide, tight, strict=True)]

    def _level(self, body: np.ndarray, voxel: Sequence[float]) -> np.ndarray:
        """Signed distance to the surface in mm, positive inside; within the slice in a 2d configuration."""
        if len(self.spacing) == 2:
            return np.stack([_signed_distance(part, voxel[1:]) for part in body])
        return _signed_distance(body, voxel)


class _Window:
    """A box of a volume that may reach beyond it, where the nearest voxel's value is taken."""

    def __init__(
        self, body_corner: Sequence[int], shape: Sequence[int], reach: Sequence[int], of: Sequence[int]
    ) -> None:
        self.corner = [c - r for c, r in zip(body_corner, reach, strict=True)]
        at = [np.arange(c, c + n) for c, n in zip(self.corner, shape, strict=True)]
        self.index = np.ix_(*[a.clip(0, n - 1) for a, n in zip(at, of, strict=True)])
        inside = [(a >= 0) & (a < n) for a, n in zip(at, of, strict=True)]
        self.inside = np.logical_and.outer(np.logical_and.outer(inside[0], inside[1]), inside[2])

    def of(self, volume: np.ndarray) -> np.ndarray:
        return volume[self.index]


def _signed_distance(body: np.ndarray, voxel: Sequence[float]) -> np.ndarray:
    half = min(voxel) / 2
    if not body.any():
        return np.full(body.shape, -np.inf)
    inside = ndimage.distance_transform_edt(np.pad(body, 1), voxel)[(slice(1, -1),) * body.ndim]
    outside = ndimage.distance_transform_edt(~body, voxel)
    return np.where(body, inside - half, half - outside)


def _head_of(image: np.ndarray, seg: np.ndarray) -> np.ndarray:
    """Where the patient is: what nnU-Net did not mark as outside, or where it marked nothing, the image's foreground."""
    outside = seg == OUTSIDE
    if outside.mean() >= MARKED_SHARE:
        return ~outside
    head, _ = find_host(list(image))
    return head if head.any() else ~outside


def _middle(mask: np.ndarray) -> np.ndarray:
    """The voxel of a mask that is next to its centroid."""
    at = np.argwhere(mask)
    return at[int(((at - at.mean(0)) ** 2).sum(1).argmin())]


def _slices(tumour: np.ndarray, voxel: Sequence[float]) -> tuple[Slice, ...]:
    area = float(np.prod(voxel[1:]))
    return tuple(
        Slice(int(i), area * int(tumour[i].sum()), tuple(int(v) for v in _middle(tumour[i])))
        for i in np.flatnonzero(tumour.any(axis=(1, 2)))
    )
