"""Labels that fitted fields carry, on balls that differ in place and size."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.registration.metrics import dice
from nnunet_synthtumour.settings import RegistrationSettings
from nnunet_synthtumour.trainers.carried_labels import Carried, write_case
from nnunet_synthtumour.trainers.fitted_labels import (
    WARPED,
    LabelFitter,
    dataset_with_fitted,
    files_of,
    steepness,
    write_warped,
)
from nnunet_synthtumour.trainers.whole_grids import Whole


def _ball(radius: float, shift: float, noise: int) -> Whole:
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n) for n in (20, 24, 18)], indexing="ij"))
    distance = ((grid - shift) ** 2).sum(0, keepdim=True).sqrt()
    texture = 0.05 * torch.randn(distance.shape, generator=torch.Generator().manual_seed(noise))
    return Whole(1.5 * (distance < radius) + 0.5 * (distance < 0.9) + texture, (distance < radius).short())


CASES = {"a": _ball(0.5, 0.0, 0), "b": _ball(0.5, 0.12, 1), "far": _ball(0.3, -0.3, 2), "again": _ball(0.48, 0.06, 3)}


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
    assert _fitter(1).most_alike("b", ["far", "a"], 2) == ["a", "far"], "the first is warped, too"


def test_what_is_compared_is_the_image_and_how_steep_it_is() -> None:
    ramp = torch.arange(6.0)[None, None, :, None, None].expand(1, 1, 6, 5, 1) * 2
    found = steepness(torch.cat((ramp, -ramp), 1), (4.0, 1.0, 1.0))
    assert torch.equal(found, torch.full((1, 2, 6, 5, 1), 0.5)), "per mm, and a single slice has no slope across"
    assert steepness(torch.ones(1, 1, 4, 4), (1.0, 1.0)).abs().max() == 0


def test_labels_on_their_way_through_other_images_outvote_a_wrong_direct_one() -> None:
    fitter, truth = _fitter(90), CASES["b"].seg[0]
    wrong = torch.roll(truth, 4, 0)  # as from a field that went astray
    direct = Carried(wrong, torch.ones(truth.shape), torch.zeros(truth.shape))
    relays = {"a": CASES["a"].seg[0], "again": CASES["again"].seg[0]}
    found = fitter.by_way_of(relays, "b", direct)
    assert dice(found.labels.numpy() == 1, truth.numpy() == 1) > max(
        0.9, dice(wrong.numpy() == 1, truth.numpy() == 1) + 0.2
    )
    assert found.agreement[wrong != truth].mean() < 0.8 < found.agreement[wrong == truth].mean()


def test_the_direct_way_decides_a_tie() -> None:
    truth = CASES["b"].seg[0]
    direct = Carried(truth, torch.ones(truth.shape), torch.zeros(truth.shape))
    assert torch.equal(_fitter(3).by_way_of({"far": torch.zeros_like(truth)}, "b", direct).labels, truth)


def test_what_was_ignored_on_most_ways_stays_ignored() -> None:
    fitter = LabelFitter(CASES, RegistrationSettings(), 1, 2, (1, 1, 1), torch.device("cpu"), ignore=2)
    nobody = torch.full((20, 24, 18), 2, dtype=torch.int16)
    direct = Carried(nobody, torch.ones(nobody.shape), torch.zeros(nobody.shape))
    assert (fitter.by_way_of({"a": nobody, "again": nobody}, "b", direct).labels == 2).all()
    found = fitter.by_way_of({"a": torch.zeros_like(nobody), "again": torch.zeros_like(nobody)}, "b", direct)
    assert (found.labels == 0).all(), "two of three ways know"


def test_relays_are_the_likest_to_each_labelled_case_in_turn() -> None:
    assert _fitter(1).relays(["a"], ["far", "b"], 1) == ["b"]
    assert _fitter(1).relays(["a", "far"], ["again", "b"], 5) == ["again", "b"]
    assert _fitter(1).relays(["a", "b"], ["far", "again"], 1) == ["again"]
    assert _fitter(1).relays(["a"], ["b"], 0) == []


class _Stored:
    """Stands in for nnU-Net's dataset classes."""

    def __init__(self, folder: str, identifiers: list[str]) -> None:
        self.identifiers = identifiers

    def load_case(self, identifier: str) -> tuple:
        return np.zeros((1, 2, 2, 2)), np.zeros((1, 2, 2, 2)), None, {}


def test_a_warped_image_is_read_as_a_case(tmp_path: Path) -> None:
    fitted = _fitter(1).fit("b", ["a"])
    write_warped(tmp_path, "b", fitted, {1: [[0, 1, 2, 3]]})
    write_case(tmp_path, "b", fitted.carried.labels.numpy(), {})
    assert sorted(files_of("b")) == sorted(file.name for file in tmp_path.iterdir())
    dataset = dataset_with_fitted(_Stored, tmp_path)("", [f"{WARPED}b", "a"])
    image, seg, _, properties = dataset.load_case(f"{WARPED}b")
    assert np.allclose(image, fitted.image, atol=1e-2) and np.array_equal(seg, fitted.labels)
    assert properties["class_locations"] == {1: [[0, 1, 2, 3]]}
    assert dataset.load_case("a")[0].shape == (1, 2, 2, 2)


def test_datasets_with_fitted_labels_reach_spawned_workers(tmp_path: Path) -> None:
    fitted = _fitter(1).fit("b", ["a"])
    write_warped(tmp_path, "b", fitted, {1: [[0, 1, 2, 3]]})
    dataset = pickle.loads(pickle.dumps(dataset_with_fitted(_Stored, tmp_path)("", [f"{WARPED}b", "a"])))
    assert dataset.identifiers == [f"{WARPED}b", "a"]
    assert dataset.load_case(f"{WARPED}b")[1].shape == (1, 20, 24, 18)


def test_what_an_annotator_ignored_is_not_carried_as_background() -> None:
    whole = CASES["a"]
    partly = whole.seg.clone()
    partly[:, :, :, 9:] = 2  # above both classes: the ignore label
    fitter = LabelFitter({"a": Whole(whole.image, partly), "b": whole}, RegistrationSettings(), 1, 2, (1, 1, 1),
                         torch.device("cpu"), ignore=2)  # fmt: skip
    labels = fitter.fit("b", ["a"]).carried.labels
    assert (labels[:, :, 11:] == 2).all() and set(labels[:, :, :7].unique().tolist()) == {0, 1}


def test_labels_of_another_preprocessing_are_refused(tmp_path: Path) -> None:
    write_case(tmp_path, "a", np.zeros((1, 3, 2, 2), np.int16), {})
    with pytest.raises(UserError, match="belongs to another preprocessing; remove"):
        dataset_with_fitted(_Stored, tmp_path)("", ["a"]).load_case("a")
