from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_synthtumour.trainers.gradient_step import LARGEST_NORM, descend


@pytest.mark.parametrize(("slope", "step"), [(3.0, 3.0), (100.0, LARGEST_NORM)])
@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", init_scale=8.0)])
def test_a_step_follows_the_gradient_no_further_than_its_largest_norm(
    slope: float, step: float, scaler: torch.amp.GradScaler | None
) -> None:
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.full((1,), 50.0)  # of a step before
    descend(slope * weight.sum(), [weight], torch.optim.SGD([weight], lr=1.0), scaler)
    assert weight.item() == pytest.approx(-step, rel=1e-5)


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", init_scale=8.0)])
def test_a_gradient_that_is_not_finite_changes_nothing(scaler: torch.amp.GradScaler | None) -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([weight], lr=1.0)
    descend(float("nan") * weight.sum(), [weight], optimizer, scaler)
    assert weight.item() == 1
    descend(weight.sum(), [weight], optimizer, scaler)
    assert weight.item() == pytest.approx(0, abs=1e-5)
