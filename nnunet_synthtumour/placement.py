"""Where things are put in a patch, by probing: a look at a few thousand voxels, whatever the size of the patch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from nnunet_synthtumour.infiltration import TissueRange

PROBES = (64, 4000)
TISSUE_PROBES = 300
CANDIDATES = 6
CALM_MM = 4.0
GAP, APART = (0.3, 0.95), (2.4, 5.5)  # between the border and a ball's centre, between two centres, in radii


class Places:
    """Draws voxels of the host of one patch; `region_shape` is its middle part, what a later crop keeps."""

    def __init__(
        self,
        image: torch.Tensor | None,
        seg: torch.Tensor,
        ignore_label: int,
        spacing: Sequence[float],
        region_shape: Sequence[int] | None = None,
    ) -> None:
        self.intensity = None if image is None else image[0]
        self.seg, self.ignore_label, self.spacing = seg, ignore_label, spacing
        self.whole = tuple((0, n) for n in seg.shape)
        wanted = seg.shape if region_shape is None else region_shape
        self.region = tuple(
            (max(0, (n - r) // 2), min(n, max(0, (n - r) // 2) + r)) for n, r in zip(seg.shape, wanted, strict=True)
        )
        self._tissue: TissueRange | None = None

    def in_host(self, prefer: str = "", in_region: bool = True) -> tuple[int, ...] | None:
        """A voxel of the host, None if there is none. Of a few candidates, `prefer` takes the one in the calmest `tissue`,
        or in tissue that lies next to `fluid` (ventricles, sulci)."""
        bounds = self.region if in_region else self.whole
        for probes in PROBES:
            voxels = self._probe(bounds, probes)
            if len(voxels):
                break
        else:  # a tiny host: look at every voxel
            voxels = torch.nonzero(self.seg[tuple(slice(*b) for b in bounds)] == self.ignore_label).numpy()
            if not len(voxels):
                return None
            voxels = voxels[np.random.randint(len(voxels), size=CANDIDATES)] + [b[0] for b in bounds]
        if prefer and self.intensity is not None and len(voxels) > 1:
            candidates = voxels[:CANDIDATES]
            score = self._unrest(candidates) if prefer == "tissue" else self._away_from_fluid(candidates)
            return _voxel(candidates[int(np.argmin(score))])
        return _voxel(voxels[0])

    def at_border(self) -> tuple[int, ...] | None:
        """The last voxel of the host on a way along a random axis; None if there is no host."""
        start = self.in_host(in_region=False)
        if start is None:
            return None
        axis, upward = int(np.random.randint(self.seg.ndim)), bool(np.random.randint(2))
        line = self.seg[tuple(slice(None) if i == axis else v for i, v in enumerate(start))].numpy()
        line = line[start[axis] :] if upward else line[start[axis] :: -1]
        steps = int(np.argmax(line != self.ignore_label)) or len(line)
        at = start[axis] + (steps - 1 if upward else 1 - steps)
        return (*start[:axis], at, *start[axis + 1 :])

    def beside_host(self, radius_mm: float) -> list[tuple[float, ...]]:
        """The centre of a ball that touches the host from outside, or those of two side by side, as eyes are; what the patch
        has no room for is left out."""
        probed, mm = self._probe(self.whole, TISSUE_PROBES), np.array(self.spacing)
        if not len(probed):
            return []
        middle = probed.mean(0)
        way, across = _unit((probed[0] - middle) * mm), np.random.normal(size=len(mm))
        border_mm = self._border_mm(middle, way)
        gap, apart_mm = radius_mm * np.random.uniform(*GAP), radius_mm * np.random.uniform(*APART)
        pair = np.random.uniform() < 0.5
        turn = min(apart_mm / max(border_mm, radius_mm), 1.0)
        beside = np.cos(turn) * way + np.sin(turn) * _unit(across - (across @ way) * way)
        ways = [way, beside] if pair else [way]
        centres = [middle + (self._border_mm(middle, w) + gap) * w / mm for w in ways]
        return [tuple(map(float, c)) for c in centres if ((c >= 0) & (c < self.seg.shape)).all()]

    def _border_mm(self, start: np.ndarray, way: np.ndarray) -> float:
        """How far from `start` (voxels) along `way` (unit, mm) the last voxel of the host lies; 0 where there is none."""
        at = np.arange(0, float(np.dot(self.seg.shape, self.spacing)), min(self.spacing))
        voxels = np.rint(start + at[:, None] * way / self.spacing).astype(int)
        seen = ((voxels >= 0) & (voxels < self.seg.shape)).all(1)
        host = self.seg.numpy()[tuple(voxels[seen].T)] == self.ignore_label
        return float(at[seen][host].max(initial=0))

    def _probe(self, bounds: Sequence[tuple[int, int]], n: int) -> np.ndarray:
        """Those of `n` random voxels that lie in the host, (k, dims)."""
        at = [np.random.randint(low, max(low + 1, high), n) for low, high in bounds]
        inside = self.seg.numpy()[tuple(at)] == self.ignore_label
        return np.stack(at, 1)[inside]

    def _away_from_fluid(self, voxels: np.ndarray) -> np.ndarray:
        return self._unrest(voxels, CALM_MM / 2) - 0.5 * self._unrest(voxels, 2 * CALM_MM)

    def _unrest(self, voxels: np.ndarray, reach_mm: float = CALM_MM) -> np.ndarray:
        """How far the surroundings of voxels (k, dims) are from the middle of the host's intensities, in its deviations."""
        assert self.intensity is not None
        if self._tissue is None:
            sample = self._probe(self.whole, TISSUE_PROBES)
            values = torch.from_numpy(self.intensity.numpy()[tuple(sample.T)])
            self._tissue = TissueRange.of(values) or TissueRange(0.0, 1.0)
        dims = self.seg.ndim
        at = []
        for axis, (n, mm) in enumerate(zip(self.seg.shape, self.spacing, strict=True)):
            # five voxels along each axis: few looks at cold memory
            along = np.clip(voxels[:, axis, None] + np.arange(-2, 3) * max(1, round(reach_mm / 2 / mm)), 0, n - 1)
            at.append(along.reshape([-1, *(5 if i == axis else 1 for i in range(dims))]))
        off = np.abs(self.intensity.numpy()[tuple(at)] - self._tissue.middle) / self._tissue.spread
        off[self.seg.numpy()[tuple(at)] != self.ignore_label] = 3
        return np.asarray(np.minimum(off, 3).reshape(len(voxels), -1).mean(1))


def _unit(way: np.ndarray) -> np.ndarray:
    return np.asarray(way / max(1e-9, float(np.linalg.norm(way))))


def _voxel(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def box_of_label(seg: np.ndarray, label: int) -> np.ndarray:
    """(low, high) per axis, float, of the voxels that carry `label`; the whole of `seg` where none does."""
    here = seg == label
    box = []
    for axis in range(here.ndim):
        hit = np.flatnonzero(here.any(axis=tuple(i for i in range(here.ndim) if i != axis)))
        box.append((hit[0], hit[-1] + 1) if len(hit) else (0, here.shape[axis]))
    return np.array(box, dtype=float)
