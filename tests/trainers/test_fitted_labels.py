"""Labels that fitted fields carry, on balls that differ in place and size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nnunet_synthtumour.registration.metrics import dice
from nnunet_synthtumour.settings import RegistrationSettings
from nnunet_synthtumour.trainers.fitted_labels import WARPED, LabelFitter, dataset_with_fitted, write_warped
from nnunet_synthtumour.trainers.whole_grids import Whole


def _ball(radius: float, shift: float, noise: int) -> Whole:
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n) for n in (20, 24, 18)], indexing="ij"))
    distance = ((grid - shift) ** 2).sum(0, keepdim=True).sqrt()
    texture = 0.05 * torch.randn(distance.shape, generator=torch.Generator().manual_seed(noise))
    return Whole(1.5 * (distance < radius) + 0.5 * (distance < 0.9) + texture, (distance < radius).short())


CASES = {"a": _ball(0.5, 0.0, 0), "b": _ball(0.5, 0.12, 1), "far": _ball(0.3, -0.3, 2)}


def _fitter(iterations: int) -> LabelFitter:
    return LabelFitter(CASES, RegistrationSettings(), iterations, 2, (1, 1, 1), torch.device("cpu"))


def test_fitted_labels_lie_where_the_target_shows_them_and_warped_images_match_theirs() -> None:
    fitted = _fitter(30).fit("b", ["a"])
    truth = CASES["b"].seg[0].numpy() == 1
    before = dice(CASES["a"].seg[0].numpy() == 1, truth)
    assert dice(fitted.carried.labels.numpy() == 1, truth) > max(0.9, before + 0.05)
    assert fitted.image.shape == (1, 20, 24, 18) and fitted.labels.shape == (1, 20, 24, 18)
    inside = fitted.labels[0] == 1
    assert fitted.image[0][inside].mean() > fitted.image[0][~inside].mean() + 1


def test_the_likest_images_are_fitted() -> None:
    assert _fitter(1).most_alike("b", ["far", "a"], 1) == ["a"]
    assert _fitter(1).most_alike("b", ["far", "a"], 2) == ["far", "a"]


class _Stored:
    """Stands in for nnU-Net's dataset classes."""

    def __init__(self, folder: str, identifiers: list[str]) -> None:
        self.identifiers = identifiers

    def load_case(self, identifier: str) -> tuple:
        return np.zeros((1, 2, 2, 2)), np.zeros((1, 2, 2, 2)), None, {}


def test_a_warped_image_is_read_as_a_case(tmp_path: Path) -> None:
    fitted = _fitter(1).fit("b", ["a"])
    write_warped(tmp_path, "b", fitted, {1: [[0, 1, 2, 3]]})
    dataset = dataset_with_fitted(_Stored, tmp_path)("", [f"{WARPED}b", "a"])
    image, seg, _, properties = dataset.load_case(f"{WARPED}b")
    assert np.allclose(image, fitted.image, atol=1e-2) and np.array_equal(seg, fitted.labels)
    assert properties["class_locations"] == {1: [[0, 1, 2, 3]]}
    assert dataset.load_case("a")[0].shape == (1, 2, 2, 2)
