from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from nnunet_synthtumour.donor_placement import Paste
from nnunet_synthtumour.donor_sampling import WAVELENGTHS_MM, Linear, Mapping, grid

MM = (1.0, 2.0, 0.5)
ANCHOR = (7, 3, 11)


def _paste(seed: int = 0, **changes: Any) -> Paste:
    turn = ((0.0, -1.25, 0.0), (1.25, 0.0, 0.0), (0.0, 0.0, 1.25))
    return replace(
        Paste(donor="a", slice=None, centre=(5.0, 6.0, 7.0), matrix=turn, elastic_mm=0.0, seam_mm=1.0, match=True,
              paper=False, seed=seed),
        **changes,
    )  # fmt: skip


def _at(mapping: Mapping, voxels: np.ndarray) -> np.ndarray:
    """Where voxels (n, dims) from the centre go."""
    return np.array([
        [float(grid(parts)) for parts in mapping.parts([np.array([v], dtype=float) for v in voxel])] for voxel in voxels
    ])  # fmt: skip


def test_unbent_voxels_go_where_the_matrix_takes_their_mm() -> None:
    voxels = np.array([[0, 0, 0], [4, 0, 0], [0, -2, 0], [1, 2, 6]])
    expected = (voxels * MM) @ np.array(_paste().matrix).T / MM + ANCHOR
    np.testing.assert_allclose(_at(Mapping(_paste(), ANCHOR, MM), voxels), expected, atol=1e-4)


def test_the_bend_keeps_the_anchor_and_has_the_deviation_that_was_asked_for() -> None:
    lines = [np.arange(-30.0, 30.0, 5.0)] * 3
    offs = []
    for seed in range(60):
        bent, plain = (Mapping(_paste(seed, elastic_mm=mm), ANCHOR, MM) for mm in (2.0, 0.0))
        np.testing.assert_allclose(_at(bent, np.zeros((1, 3)))[0], ANCHOR, atol=1e-4)
        both = [torch.stack([grid(parts) for parts in m.parts(lines)]).numpy() for m in (bent, plain)]
        offs.append((both[0] - both[1]) * np.reshape(MM, (3, 1, 1, 1)))
    # waves that all pass through zero at the anchor: theirs and the anchor's own deviation, each of 2 mm
    assert np.std(offs) == pytest.approx(2.0 * np.sqrt(2), rel=0.15)
    assert np.abs(np.mean(offs)) < 0.3


def test_the_usual_bend_folds_nothing() -> None:
    lines = [np.arange(-25.0, 25.0)] * 3
    for seed in range(20):
        same = tuple(tuple(float(i == j) for j in range(3)) for i in range(3))
        mapping = Mapping(_paste(seed, elastic_mm=2.0, matrix=same), (0, 0, 0), (1.0, 1.0, 1.0))
        field = [grid(parts).numpy() for parts in mapping.parts(lines)]
        jacobian = np.stack([np.stack(np.gradient(f), -1) for f in field], -2)
        assert np.mean(np.linalg.det(jacobian) <= 0) < 0.01
    assert WAVELENGTHS_MM[0] > 2 * np.pi * 2.0  # the steepest wave alone cannot


@hypothesis_settings(max_examples=40)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=3), st.integers(0, 1000))
def test_linear_and_nearest_are_those_of_scipy(shape: list[int], seed: int) -> None:
    drawn = np.random.default_rng(seed)
    values = drawn.normal(size=shape).astype(np.float32)
    points = [drawn.uniform(-2, n + 1, 50).astype(np.float32) for n in shape]
    linear = Linear(shape, [torch.from_numpy(p.copy()) for p in points])
    inside = np.stack([np.clip(p, 0, n - 1) for p, n in zip(points, shape, strict=True)])
    np.testing.assert_allclose(linear(values).numpy(), map_coordinates(values, inside, order=1), atol=1e-5)
    np.testing.assert_array_equal(linear.nearest(values), values[tuple(np.rint(inside).astype(int))])
    linear.keep(torch.tensor([3, 40]))
    np.testing.assert_allclose(linear(values).numpy(), map_coordinates(values, inside[:, [3, 40]], order=1), atol=1e-5)
