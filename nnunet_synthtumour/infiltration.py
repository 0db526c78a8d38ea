"""Where a lesion spreads easily: through tissue, hardly through cortex, not across fluid or what lies outside the host.

What a lesion has to overcome is an effort per mm; the *detour* of a place is the least effort on any way to it from the
lesion's centre. Subtracted from a level field, it makes a lesion follow white matter between the sulci, in fingers, and
keeps it from jumping to the other bank of a ventricle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nnunet_synthtumour.lattice import Lattice
from nnunet_synthtumour.smoothing import gaussian

CORTEX_MM = 2.5
FLUID_EFFORT, CORTEX_EFFORT = 3.0, 1.6
FLUID_FROM = 2.0  # deviations from the middle; certain one deviation further
DENOISED = 0.7  # nodes
SAMPLE = 3_000
DETOUR_STEP = 2
UNREACHED = 1e4


@dataclass(frozen=True)
class TissueRange:
    """Middle and robust deviation of a host's intensities."""

    middle: float
    spread: float

    @staticmethod
    def of(values: torch.Tensor) -> TissueRange | None:
        """From a sample of the host's voxels; None where there is too little to tell."""
        if values.numel() < 8:
            return None
        at = [int(q * (values.numel() - 1)) for q in (0.16, 0.5, 0.84)]
        low, middle, high = np.partition(values.numpy(), at)[at].tolist()  # torch's sort takes fifteen times as long
        return TissueRange(middle, max((high - low) / 2, 1e-6))


def effort(intensity: torch.Tensor, host: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
    """Effort per mm, >= 0, on a lattice of `spacing` (mm): high in fluid and outside, less in the cortex next to them.

    Fluid is what is far from the host's middle, dark or bright: ventricles and sulci in any sequence.
    """
    step = max(1, intensity.numel() // SAMPLE)  # a sample is enough
    tissue = TissueRange.of(intensity.reshape(-1)[::step][host.reshape(-1)[::step]])
    outside = 1 - host.float()
    barrier = outside
    if tissue is not None:
        calmed = gaussian(intensity, [DENOISED] * intensity.ndim)  # noise is not fluid
        fluid = ((calmed - tissue.middle).abs_() / tissue.spread).sub_(FLUID_FROM).clamp_(0, 1)
        barrier = torch.maximum(outside, fluid)
    near = gaussian(barrier, [CORTEX_MM / mm for mm in spacing])
    return near.mul_(CORTEX_EFFORT).add_(barrier, alpha=FLUID_EFFORT)


def detour(effort_per_mm: torch.Tensor, centre: Sequence[float], spacing: Sequence[float]) -> torch.Tensor:
    """Least effort (mm) on a way from `centre` (nodes) to each node, along the axes of the lattice.

    In tissue without effort the result is 0 everywhere, so the lattice leaves no diamonds in a shape. Computed on every
    other node: it is the effort between two places that counts, and that is kept by averaging.
    """
    shape = tuple(effort_per_mm.shape)
    coarse = Lattice(shape, tuple(DETOUR_STEP if n > DETOUR_STEP else 1 for n in shape))
    cost = coarse.mean(effort_per_mm).numpy()
    least = np.full(cost.shape, UNREACHED, dtype=np.float32)
    start = [(c + 0.5) / k - 0.5 for c, k in zip(centre, coarse.steps, strict=True)]
    least[tuple(int(np.clip(round(c), 0, n - 1)) for c, n in zip(start, cost.shape, strict=True))] = 0
    along = [_cumulated(cost, axis, mm) for axis, mm in enumerate(coarse.spacing(spacing))]
    axes = [axis for axis in range(cost.ndim) if cost.shape[axis] > 1]
    for axis in axes + axes[-2::-1] + axes[1:]:  # ways that turn back once or twice around an obstacle are found
        _sweep(least, along[axis], axis)
    return coarse.to_voxels(torch.from_numpy(least))


def _cumulated(cost: np.ndarray, axis: int, mm: float) -> np.ndarray:
    """Effort from the first node of each line along `axis` to every node, by the trapezoidal rule."""
    total = np.cumsum(cost, axis=axis, dtype=np.float32)
    total -= 0.5 * cost
    total *= mm
    return total


def _sweep(least: np.ndarray, along: np.ndarray, axis: int) -> None:
    """least[i] <- min over j of least[j] + |along[i] - along[j]|, in place."""
    upward = np.minimum.accumulate(least - along, axis=axis)
    upward += along
    backward = (slice(None),) * axis + (slice(None, None, -1),)
    np.add(upward, along, out=least)
    flipped = np.minimum.accumulate(least[backward], axis=axis)[backward]
    np.subtract(flipped, along, out=least)
    np.minimum(least, upward, out=least)
