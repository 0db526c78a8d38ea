"""Measures of a registration, against values worked out by hand."""

import math

import numpy as np
import pytest
import torch

from nnunet_synthtumour.registration.metrics import (
    dice,
    folds_percent,
    hd95,
    overlap,
    sd_log_jacobian,
    target_registration_error,
)


def box(start: int, stop: int, shape: tuple[int, int, int] = (20, 20, 20)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[start:stop, 5:15, 5:15] = True
    return mask


def test_dice_counts_voxels() -> None:
    assert dice(box(4, 8), box(4, 8)) == 1
    assert dice(box(4, 8), box(6, 10)) == pytest.approx(0.5)
    assert dice(box(4, 8), box(10, 14)) == 0


def test_hd95_is_in_millimetres_along_the_axis_of_the_shift() -> None:
    first, second = np.zeros((2, 30, 9, 9), dtype=bool)
    first[5, 4, 4] = second[15, 4, 4] = True
    assert hd95(first, second, (3.0, 1.0, 1.0)) == pytest.approx(30)
    assert hd95(first, second, (1.0, 3.0, 3.0)) == pytest.approx(10)
    assert hd95(box(4, 8), box(4, 8), (1, 1, 1)) == 0


def test_hd95_does_not_depend_on_how_close_the_border_is() -> None:
    near = hd95(box(0, 3), box(1, 4), (1, 1, 1))
    far = hd95(box(8, 11), box(9, 12), (1, 1, 1))
    assert near == far == 1


def test_a_structure_missing_from_both_is_nan_and_from_one_is_lost() -> None:
    empty = np.zeros((20, 20, 20), dtype=bool)
    assert math.isnan(dice(empty, empty)) and math.isnan(hd95(empty, empty, (1, 1, 1)))
    assert dice(box(4, 8), empty) == 0 and hd95(empty, box(4, 8), (1, 1, 1)) == math.inf


def test_overlap_goes_through_the_labels_of_both_maps() -> None:
    first, second = box(4, 8) * 1, box(4, 8) * 1 + box(10, 12) * 3
    scores = overlap(first, second, (1, 1, 1))
    assert list(scores) == [1, 3]
    assert scores[1] == {"dice": 1.0, "hd95": 0.0} and scores[3]["dice"] == 0


def test_landmarks_move_with_the_field_and_are_measured_in_millimetres() -> None:
    displacement = torch.zeros(1, 3, 8, 8, 8)
    displacement[:, 0] = 2
    points = torch.tensor([[[3.0, 3.0, 3.0]]])
    there = points + torch.tensor([2.0, 0.0, 0.0])
    assert target_registration_error(points, there, displacement, (2.0, 1.0, 1.0)).item() == pytest.approx(0, abs=1e-5)
    assert target_registration_error(points, points, displacement, (2.0, 1.0, 1.0)).item() == pytest.approx(4)


def test_folds_are_a_share_of_the_voxels() -> None:
    displacement = torch.zeros(1, 2, 10, 10)
    assert folds_percent(displacement) == 0 and sd_log_jacobian(displacement) == 0
    # x + u = -x along the first axis everywhere
    displacement[:, 0] = -2 * torch.arange(10.0)[:, None]
    assert folds_percent(displacement) == 100
    displacement[:, 0, :, 5:] = 0
    mask = torch.zeros(1, 10, 10)
    mask[:, :, 7:] = 1
    assert folds_percent(displacement, mask) == 0 < folds_percent(displacement)


def test_sd_log_jacobian_of_two_halves() -> None:
    displacement = torch.zeros(1, 2, 40, 4)
    stretch = torch.where(torch.arange(40) < 20, 0.0, 1.0)  # determinant 1, then 2
    displacement[:, 0] = stretch.cumsum(0)[:, None]
    assert sd_log_jacobian(displacement) == pytest.approx(math.log(2) / 2, abs=0.02)
