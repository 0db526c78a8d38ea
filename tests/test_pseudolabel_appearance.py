from __future__ import annotations

import numpy as np
import pytest

from nnunet_synthtumour.pseudolabel_appearance import REACH_MM, corrected

SPACING = (2.0, 2.0, 2.0)


def _patient(channels: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (C, Z, Y, X) of a bright tumour with a dark core, the tumour, and the host."""
    grid = np.stack(np.meshgrid(*[np.arange(40) - 19.5] * 3, indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    truth, host = radius < 8, radius < 19
    noise = np.random.default_rng(0).normal(0, 8, (channels, *radius.shape))
    image = np.where(radius < 3, 40.0, np.where(truth, 170.0, 100.0))
    return ((image + noise) * host).astype(np.float32), truth, host


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def _half_found(truth: np.ndarray) -> np.ndarray:
    """A junior that saw the upper half only, core included."""
    probability = np.where(truth, 0.9, 0.02).astype(np.float32)
    probability[:20][truth[:20]] = 0.15
    return probability


@pytest.mark.parametrize("channels", [1, 2])
def test_the_half_that_was_missed_is_found_by_its_looks(channels: int) -> None:
    images, truth, host = _patient(channels)
    junior = _half_found(truth)
    found = corrected(junior, images, host, SPACING, 0.5, 1.0) >= 0.5
    assert _dice(junior >= 0.5, truth) < 0.7
    assert _dice(found, truth) > 0.9


def test_without_weight_or_tumour_nothing_changes() -> None:
    images, truth, host = _patient()
    junior = _half_found(truth)
    assert corrected(junior, images, host, SPACING, 0.5, 0.0) is junior
    few = np.where(truth, 0.3, 0.0).astype(np.float32)
    few[20, 20, 20:25] = 0.9
    assert corrected(few, images, host, SPACING, 0.5, 1.0) is few


def test_far_away_and_outside_of_the_host_the_junior_is_right() -> None:
    images, truth, host = _patient()
    junior = _half_found(truth)
    host = host & (np.arange(40) > 6)[:, None, None]
    found = corrected(junior, images, host, (6.0, 6.0, 6.0), 0.5, 1.0)
    far = np.ones_like(truth)
    reach = int(np.ceil(REACH_MM / 6.0)) + 1
    far[20 - reach : 28 + reach, 11 - reach : 29 + reach, 11 - reach : 29 + reach] = False
    assert np.array_equal(found[far | ~host], junior[far | ~host])


def test_an_image_that_tells_nothing_leaves_the_junior_s_tumour() -> None:
    images, truth, host = _patient()
    junior = np.where(truth, 0.9, 0.02).astype(np.float32)
    flat = np.where(host, 100.0, 0.0)[None] + np.random.default_rng(1).normal(0, 5, images.shape)
    found = corrected(junior, flat.astype(np.float32), host, SPACING, 0.5, 1.0) >= 0.5
    assert _dice(found, truth) > 0.85


def test_a_2d_image() -> None:
    images, truth, host = _patient()
    middle = slice(19, 20)
    junior = np.where(truth, 0.9, 0.02).astype(np.float32)
    junior[:, :20][truth[:, :20]] = 0.15
    found = corrected(junior[middle], images[:, middle], host[middle], (1.0, 2.0, 2.0), 0.5, 1.0) >= 0.5
    assert _dice(found, truth[middle]) > 0.85
