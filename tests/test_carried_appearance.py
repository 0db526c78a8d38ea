"""Carried borders move to where the target shows one, and stay where it shows none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_synthtumour.carried_appearance import corrected

SHAPE, ISOTROPIC = (36, 36, 36), (1.0, 1.0, 1.0)


def organ_in_brain(shift: int = 0) -> np.ndarray:
    """An organ (2) within another (1), moved along the first axis."""
    grid = np.indices(SHAPE).astype(float)
    r = np.sqrt((grid[0] - 18 - shift) ** 2 + (grid[1] - 18) ** 2 + (grid[2] - 18) ** 2)
    return (r < 14).astype(np.int16) + (r < 7)


def picture(labels: np.ndarray, values: tuple[float, ...], noise: float = 0.3) -> np.ndarray:
    generator = np.random.default_rng(0)
    return (np.array(values)[labels] + generator.normal(scale=noise, size=SHAPE)).astype(np.float32)[None]


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_a_border_moves_to_where_the_image_shows_it() -> None:
    truth, carried = organ_in_brain(), organ_in_brain(2)
    found = corrected(carried, picture(truth, (0, 1, 2)), np.ones(SHAPE, bool), ISOTROPIC, 1.0)
    for label in (1, 2):
        assert dice(found.labels == label, truth == label) > dice(carried == label, truth == label) + 0.05


def test_a_structure_that_is_not_seen_keeps_its_border() -> None:
    truth, carried = organ_in_brain(), organ_in_brain(2)
    found = corrected(carried, picture(truth, (0, 2, 2)), np.ones(SHAPE, bool), ISOTROPIC, 1.0)
    assert dice(found.labels == 2, carried == 2) > 0.97
    assert dice(found.labels == 1, truth == 1) > dice(carried == 1, truth == 1)


def test_the_probability_is_low_only_near_borders() -> None:
    carried = organ_in_brain()
    found = corrected(carried, picture(carried, (0, 1, 2), noise=0.8), np.ones(SHAPE, bool), ISOTROPIC, 1.0)
    depth = ndimage.distance_transform_edt(ndimage.minimum_filter(carried, 3) == ndimage.maximum_filter(carried, 3))
    assert found.probability.min() >= 1 / 3 and found.probability.max() <= 1
    assert found.probability[depth > 9].min() == 1 and found.probability[depth == 0].mean() < 0.95


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_nothing_to_learn_from_changes_nothing(weight: float) -> None:
    noise = picture(organ_in_brain(), (0, 1, 2))
    empty = np.zeros(SHAPE, np.int16)
    assert (corrected(empty, noise, np.ones(SHAPE, bool), ISOTROPIC, weight).labels == empty).all()
    speck = empty.copy()
    speck[3, 3, 3] = 1
    constant = np.zeros((1, *SHAPE), np.float32)
    found = corrected(speck, constant, np.ones(SHAPE, bool), ISOTROPIC, weight)
    assert (found.labels == speck).all() and np.isfinite(found.probability).all()


@settings(max_examples=20, deadline=None)
@given(shift=st.integers(-3, 3), channels=st.integers(1, 2), side=st.sampled_from([0.7, 1.0, 3.0]))
def test_voxels_outside_of_the_image_stay(shift: int, channels: int, side: float) -> None:
    carried, inside = organ_in_brain(shift), np.ones(SHAPE, bool)
    inside[:12] = False
    image = np.repeat(picture(organ_in_brain(), (0, 1, 2)), channels, axis=0)
    found = corrected(carried, image, inside, (1.0, 1.0, side), 1.0)
    assert (found.labels[~inside] == carried[~inside]).all() and (found.probability[~inside] == 1).all()
    assert set(np.unique(found.labels)) <= set(np.unique(carried))
