"""Smooth random fields on small boxes, 2D or 3D."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from nnunet_synthtumour.smoothing import resize


def coherent_noise(
    shape: Sequence[int],
    spacing: Sequence[float],
    wavelength_mm: float,
    octaves: int,
    generator: torch.Generator,
    persistence: float = 0.5,
) -> torch.Tensor:
    """Multi-octave value noise (X, Y[, Z]), zero mean and unit deviation in expectation before interpolation.

    sum_k persistence^k n_k, n_k normal on a lattice of `wavelength_mm / 2^k`. Octaves are added on their own lattices and
    interpolated once, so four octaves cost little more than one.
    """
    extent = [n * s for n, s in zip(shape, spacing, strict=True)]
    total: torch.Tensor | None = None
    for octave in range(max(1, octaves)):
        step = wavelength_mm / 2**octave
        lattice = [max(2, min(n, math.ceil(e / step) + 1)) for n, e in zip(shape, extent, strict=True)]
        noise = torch.randn(lattice, generator=generator) * persistence**octave
        total = noise if total is None else resize(total, lattice).add_(noise)
        if octave and all(lattice[i] >= shape[i] for i in range(len(shape))):
            break
    assert total is not None
    power = sum(persistence ** (2 * k) for k in range(max(1, octaves)))
    return resize(total, shape).mul_(1 / math.sqrt(power))
