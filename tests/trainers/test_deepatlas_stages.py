from __future__ import annotations

import pytest

from nnunet_synthtumour.settings import DeepAtlasSettings
from nnunet_synthtumour.trainers.deepatlas_stages import ALONE, JOINT, TAUGHT, registration_steps, stage_of


@pytest.mark.parametrize(
    ("labels", "settings", "stages"),
    [
        (1, {"fitted": 0}, [*[ALONE] * 3, *[TAUGHT] * 2, *[JOINT] * 5]),
        (1, {"fitted": 60}, [*[TAUGHT] * 5, *[JOINT] * 5]),
        (3, {"fitted": 0}, [*[ALONE] * 2, *[JOINT] * 8]),
        (3, {"fitted": 60, "alone": 0.1, "taught": 0.2}, [ALONE, *[TAUGHT] * 2, *[JOINT] * 7]),
    ],
)
def test_labels_decide_the_order(labels: int, settings: dict, stages: list[str]) -> None:
    assert [stage_of(epoch, 10, DeepAtlasSettings(**settings), labels) for epoch in range(10)] == stages


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 2),
        ({"fitted": 0}, 1),
        ({"taught": 0.5}, 2),
        ({"taught": 0.5, "fitted": 0}, 1),
        ({"registration_steps": 3}, 3),
    ],
)
def test_registration_makes_up_for_what_it_rested(settings: dict, steps: int) -> None:
    assert registration_steps(DeepAtlasSettings(**settings)) == steps
