from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_synthtumour.chosen_epoch import AS_GOOD, chosen_epoch, moved

CURVES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(CURVES)
def test_the_last_of_the_epochs_that_are_as_good_as_the_best(averages: list[float]) -> None:
    epoch, best = chosen_epoch(averages), max(averages)
    assert averages[epoch] >= best - AS_GOOD
    assert all(later <= best - AS_GOOD for later in averages[epoch + 1 :])


@pytest.mark.parametrize(
    ("averages", "epoch"),
    [([0.5], 0), ([0.5, 0.6], 1), ([0.6, 0.595, 0.5], 1), ([0.6, 0.5, 0.595, 0.5], 2), ([0.6, 0.595, 0.589, 0.2], 1)],
)
def test_a_turning_point_is_found_and_ripples_are_not(averages: list[float], epoch: int) -> None:
    assert chosen_epoch(averages) == epoch


@pytest.mark.parametrize(("epochs", "share"), [(10, 1.0), (50, 0.5), (250, 0.1), (1000, 0.1)])
def test_the_average_remembers_a_25th_of_the_epochs_at_most_ten(epochs: int, share: float) -> None:
    assert moved(0.2, 0.7, epochs) == pytest.approx(0.2 + share * 0.5)
