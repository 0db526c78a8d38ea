from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_synthtumour.confidence import (
    labels_inside,
    logits_of,
    mean_probabilities,
    mirrorings,
    tumour_probability,
)

CLASSES = LabelManager({"background": 0, "edema": 1, "core": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, [1, 2])


def _predictor(manager: LabelManager, axes: tuple[int, ...] | None, gains: list[float], dims: int = 3) -> Any:
    """Stands in for nnU-Net's: the "network" multiplies by a ramp that does not commute with mirroring."""
    predictor = SimpleNamespace(
        label_manager=manager, allowed_mirroring_axes=axes, list_of_parameters=[{"gain": g} for g in gains],
        configuration_manager=SimpleNamespace(patch_size=(4,) * dims),
    )  # fmt: skip

    def logits(data: torch.Tensor) -> torch.Tensor:
        (parameters,) = predictor.list_of_parameters
        ramp = torch.linspace(0, 1, data.shape[-1])
        return torch.stack([torch.zeros_like(data[0]), parameters["gain"] * data[0] * ramp, data[0] - ramp])

    predictor.predict_logits_from_preprocessed_data = logits
    return predictor


def test_every_combination_of_axes_once() -> None:
    assert mirrorings((0, 1, 2), 4, 3) == [(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)]
    assert mirrorings((0, 1), 4, 2) == [(), (2,), (3,), (2, 3)]
    assert mirrorings(None, 4, 3) == [()]


def test_members_are_averaged_as_probabilities() -> None:
    data = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(np.float32))
    predictor = _predictor(CLASSES, (0, 2), [1.0, -3.0])
    mean = mean_probabilities(predictor, data)
    assert len(predictor.list_of_parameters) == 2
    torch.testing.assert_close(mean.sum(0), torch.ones(3, 4, 5))
    members = []
    for gain in (1.0, -3.0):
        for axes in ((), (1,), (3,), (1, 3)):
            one = _predictor(CLASSES, None, [gain])
            members.append(torch.flip(mean_probabilities(one, torch.flip(data, axes)), axes))
    torch.testing.assert_close(mean, torch.stack(members).mean(0))


def test_disagreement_shows_where_an_average_of_logits_hides_it() -> None:
    data = torch.full((1, 2, 2, 2), 4.0)
    predictor = _predictor(LabelManager({"background": 0, "a": 1, "b": 2}, None), None, [20.0, -4.0])
    assert abs(float(mean_probabilities(predictor, data)[1, 0, 0, 1]) - 0.5) < 0.05


def test_logits_give_the_probabilities_back() -> None:
    probabilities = torch.softmax(torch.randn(3, 2, 3, 4, generator=torch.manual_seed(0)) * 3, 0)
    torch.testing.assert_close(CLASSES.apply_inference_nonlin(logits_of(probabilities, False)), probabilities)
    torch.testing.assert_close(REGIONS.apply_inference_nonlin(logits_of(probabilities[:2], True)), probabilities[:2])


def test_union_and_labels_of_classes_and_regions() -> None:
    classes = np.array([[0.6, 0.2, 0.1], [0.1, 0.5, 0.3], [0.3, 0.3, 0.6]])[:, :, None, None]
    assert np.allclose(tumour_probability(classes, False).ravel(), [0.4, 0.8, 0.9])
    assert labels_inside(classes, CLASSES).ravel().tolist() == [2, 1, 2]
    regions = np.array([[0.9, 0.9, 0.3], [0.8, 0.2, 0.4]])[:, :, None, None]
    assert np.allclose(tumour_probability(regions, True).ravel(), [0.9, 0.9, 0.4])
    assert labels_inside(regions, REGIONS).ravel().tolist() == [2, 1, 2]
