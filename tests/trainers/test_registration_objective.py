from __future__ import annotations

from typing import Any

import pytest
import torch

from nnunet_synthtumour.registration.instance import REGULARITY_WEIGHTS
from nnunet_synthtumour.settings import RegistrationSettings
from nnunet_synthtumour.trainers.registration_objective import RegistrationObjective

SHAPE = (16, 18, 20)


class _Learner:
    """Puts out a velocity for every output, all of them at full resolution; none moves anything."""

    def velocities_and_graph_loss(self, output: list[torch.Tensor]) -> tuple[list[torch.Tensor], float]:
        return output, 0.125

    def __init__(self, spacing: list[float] | None = None) -> None:
        self.spacing = spacing

    def displacements(self, velocity: torch.Tensor, shape: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return velocity, -velocity

    def spacing_of(self, velocity: torch.Tensor, shape: Any) -> list[float] | None:
        return self.spacing


def _pair() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    sides = {}
    for name in ("moving", "fixed"):
        match = torch.rand(1, 1, *SHAPE, generator=generator)
        sides[name] = {"match": match, "seg": (match > 0.5).short(), "labelled": torch.tensor([name == "moving"])}
    return sides


def _loss(outputs: int, predicted: tuple[Any, Any] = (None, None), **options: Any) -> tuple[float, Any]:
    output = [torch.full((1, 3, *SHAPE), 0.5)] * outputs
    objective = RegistrationObjective(RegistrationSettings(similarity="mse", anatomy=2.0), 2, **options)
    loss, terms = objective(_Learner(), output, _pair(), predicted)  # type: ignore[arg-type]
    return float(loss), terms


def test_a_coarser_output_counts_half() -> None:
    one, terms = _loss(1)
    full = terms.similarity + REGULARITY_WEIGHTS["mse"] * terms.regularity + 2 * terms.anatomy
    assert one == pytest.approx(float(full) + 0.125)
    assert _loss(2)[0] == pytest.approx(1.5 * float(full) + 0.125)
    assert _loss(2, half=0.25)[0] == pytest.approx(1.25 * float(full) + 0.125)


def test_anatomy_counts_once_both_images_have_labels_or_predictions() -> None:
    assert float(_loss(1)[1].anatomy) == 0
    everywhere = torch.full((1, 2, *SHAPE), 0.5)
    assert float(_loss(1, (None, everywhere))[1].anatomy) > 0


def test_images_at_half_resolution_stand_in_for_a_coarser_output() -> None:
    alone, two = _loss(1)[0], _loss(2)[0]
    assert _loss(1, half_images=True)[0] > alone
    assert _loss(2, half_images=True)[0] == two
    assert _loss(1, half_images=True, half=0.0)[0] == alone


def test_directions_that_undo_each_other_are_consistent() -> None:
    assert _loss(1, consistency=0.1)[0] == pytest.approx(_loss(1)[0], abs=1e-6)


@pytest.mark.parametrize(("along", "changing", "factor"), [(0, 1, 25.0), (1, 0, 1 / 25)])
def test_a_shear_between_thick_slices_costs_what_it_is_in_millimetres(along: int, changing: int, factor: float) -> None:
    velocity = torch.zeros(1, 3, *SHAPE)
    velocity[:, along] = torch.arange(SHAPE[changing]).reshape([-1 if i == changing else 1 for i in range(3)]) * 0.1
    objective = RegistrationObjective(RegistrationSettings(similarity="mse", anatomy=1.0), 2)
    costs = [
        float(objective(_Learner(spacing), [velocity], _pair(), (None, None))[1].regularity)  # type: ignore[arg-type]
        for spacing in (None, [5.0, 1.0, 1.0])
    ]
    assert costs[1] / costs[0] == pytest.approx(factor, rel=1e-3)
