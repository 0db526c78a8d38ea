from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_synthtumour.registration.anatomy import one_hot
from nnunet_synthtumour.trainers.pair_validation import (
    HELD_OUT,
    TRAINING,
    WITH_TRAINING,
    WITHOUT_LABELS,
    PairValidation,
    ValidationPairs,
    validation_pairs,
)
from nnunet_synthtumour.trainers.whole_grids import Whole

SHAPE = (10, 12, 8)
IGNORE = 3


class _Still:
    """A registration network that moves nothing."""

    architecture = SimpleNamespace(spacing=(1.0, 1.0, 2.0))
    settings = SimpleNamespace(similarity="mse")
    passes, structure_steps = 2, 8
    guide: Any = None

    def found_in(self, moving: torch.Tensor, fixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        return None if self.guide is None else (self.guide(moving), self.guide(fixed))

    def velocity(self, moving: torch.Tensor, fixed: torch.Tensor, to_structures: bool = True) -> torch.Tensor:
        return torch.zeros(1, 3, *SHAPE)

    def register(
        self, moving: torch.Tensor, fixed: torch.Tensor, to_structures: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1, 3, *SHAPE), torch.zeros(1, 3, *SHAPE)


def _whole(labels: dict[int, slice], ignored: slice | None = None) -> Whole:
    seg = torch.zeros(1, *SHAPE, dtype=torch.int16)
    for label, planes in labels.items():
        seg[0, planes, 3:9, 2:6] = label
    image = seg.float() + torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    if ignored is not None:
        seg[0, ignored] = IGNORE
    return Whole(image, seg)


def _rows(cases: dict[str, Whole], labelled: list[str], tmp_path: Path) -> dict[str, Any]:
    pairs = ValidationPairs("some", [(one, other) for one in cases for other in cases if one != other])
    PairValidation(cases, pairs, labelled, IGNORE).write(_Still(), torch.device("cpu"), tmp_path)  # type: ignore[arg-type]
    return json.loads((tmp_path / "registration.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("train", "val", "kind", "pairs"),
    [
        ("ab", "cde", HELD_OUT, 6),
        ("ab", "c", WITH_TRAINING, 4),
        ("abc", "abc", TRAINING, 6),
        ("a", "a", WITHOUT_LABELS, 12),
        ("a", "b", WITH_TRAINING, 2),
    ],
)
def test_pairs_are_as_far_from_training_as_there_are_labels(train: str, val: str, kind: str, pairs: int) -> None:
    found = validation_pairs(list(train), list(val), ["u", "v", "w"])
    assert (found.kind, len(found.pairs)) == (kind, pairs)
    if kind == WITH_TRAINING:
        assert all((one in val) != (other in val) for one, other in found.pairs)


def test_what_is_ignored_is_no_disagreement(tmp_path: Path) -> None:
    cases = {"a": _whole({1: slice(2, 8)}), "b": _whole({1: slice(2, 8)}, ignored=slice(5, None))}
    assert [row["dice_after"] for row in _rows(cases, ["a", "b"], tmp_path)["per_pair"]] == [1.0, 1.0]


def test_a_structure_that_one_image_lacks_says_nothing(tmp_path: Path) -> None:
    cases = {name: _whole({1: slice(1, 4), 2: slice(5, 8)}) for name in "ab"} | {"c": _whole({1: slice(1, 4)})}
    found = _rows(cases, ["a", "b", "c"], tmp_path)
    assert found["mean"]["dice_before"] == found["mean"]["dice_after"] == 1.0
    assert {label: row["pairs"] for label, row in found["mean"]["labels"].items()} == {"1": 6, "2": 2}
    assert {row["fixed"]: sorted(row["labels"]) for row in found["per_pair"]}["c"] == ["1"]


def test_the_end_also_says_what_fitting_a_pair_to_found_structures_gives(tmp_path: Path) -> None:
    cases = {"a": _whole({1: slice(1, 6)}), "b": _whole({1: slice(3, 8)})}
    cases = {case: Whole(torch.rand(1, *SHAPE), whole.seg) for case, whole in cases.items()}  # which images do not show
    whole = {float(one.match().sum()): one.seg for one in cases.values()}

    class Guided(_Still):
        @staticmethod
        def guide(image: torch.Tensor) -> torch.Tensor:
            return one_hot(whole[float(image.sum())][None], 2)

        def looks(self, moving: torch.Tensor, fixed: torch.Tensor) -> tuple[torch.Tensor, bool]:
            return self.register(moving, fixed)[0], False

    pairs = ValidationPairs("some", [("a", "b"), ("b", "a")])
    PairValidation(cases, pairs, ["a", "b"], IGNORE).write(Guided(), torch.device("cpu"), tmp_path)  # type: ignore[arg-type]
    found = json.loads((tmp_path / "registration.json").read_text(encoding="utf-8"))["refined"]
    assert found["pairs"] == 2 and found["dice_after"] == found["dice_before"] < 0.7
    assert found["dice_refined"] > found["dice_after"] + 0.05 and found["folds_percent_refined"] == 0


class _Away(_Still):
    """A registration network that moves everything out of the image along the first axis."""

    def register(
        self, moving: torch.Tensor, fixed: torch.Tensor, to_structures: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        u = torch.zeros(1, 3, *SHAPE)
        u[:, 0] = 2.0 * SHAPE[0]
        return u, -u


def test_structures_that_registration_lost_are_counted(tmp_path: Path) -> None:
    cases = {name: _whole({1: slice(1, 4), 2: slice(5, 8)}) for name in "ab"}
    validation = PairValidation(cases, validation_pairs(["a", "b"], ["a", "b"], []), ["a", "b"], IGNORE)
    for learner, lost in ((_Still(), 0), (_Away(), 2)):
        validation.write(learner, torch.device("cpu"), tmp_path)  # type: ignore[arg-type]
        means = json.loads((tmp_path / "registration.json").read_text(encoding="utf-8"))["mean"]
        assert means["lost"] == 2 * lost and means["labels"]["1"]["lost"] == lost
        assert means["hd95"] == (None if lost else 0)


class _Drawn(_Away):
    """One that does so in steps towards what a guide finds; its looks move nothing."""

    def guide(self, image: torch.Tensor) -> torch.Tensor:
        return torch.ones(1, 1, *SHAPE)

    def looks(self, moving: torch.Tensor, fixed: torch.Tensor) -> tuple[torch.Tensor, bool]:
        return _Still().register(moving, fixed)[0], bool(moving.mean() > fixed.mean())


def test_what_the_looks_alone_make_of_a_pair_is_told(tmp_path: Path) -> None:
    cases = {name: _whole({1: slice(1, length)}) for name, length in (("a", 4), ("b", 6))}
    cases["b"].seg.copy_(cases["a"].seg)
    validation = PairValidation(cases, validation_pairs(["a", "b"], ["a", "b"], []), ["a", "b"], IGNORE)
    validation.write(_Drawn(), torch.device("cpu"), tmp_path)  # type: ignore[arg-type]
    found = json.loads((tmp_path / "registration.json").read_text(encoding="utf-8"))
    assert found["mean"]["dice_after"] == 0 and found["mean"]["dice_looks"] == 1
    assert [row["dice_looks"] for row in found["per_pair"]] == [1, 1]
    assert found["mean"]["steps_kept"] == 0.5 and sorted(row["steps_kept"] for row in found["per_pair"]) == [
        False,
        True,
    ]


def test_without_two_labelled_images_it_is_told_how_often_steps_were_kept(tmp_path: Path) -> None:
    cases = {name: _whole({1: slice(1, length)}) for name, length in (("a", 4), ("b", 6))}
    validation = PairValidation(cases, validation_pairs(["a"], ["a"], ["b"]), ["a"], IGNORE)
    validation.write(_Drawn(), torch.device("cpu"), tmp_path)  # type: ignore[arg-type]
    means = json.loads((tmp_path / "registration.json").read_text(encoding="utf-8"))["mean"]
    assert means["steps_kept"] == 0.5 and "dice_looks" not in means


def test_without_two_labelled_images_the_images_are_compared(tmp_path: Path) -> None:
    cases = {name: _whole({1: slice(1, 4)}) for name in "abc"}
    validation = PairValidation(cases, validation_pairs(["a"], ["a"], ["b", "c"]), ["a"], IGNORE)
    means = validation.summary(_Still(), torch.device("cpu"))  # type: ignore[arg-type]
    assert np.isnan(means["dice_after"]) and means["folds_percent"] == 0 and means["image_cost_after"] >= 0
    validation.write(_Still(), torch.device("cpu"), tmp_path)  # type: ignore[arg-type]
    found = json.loads((tmp_path / "registration.json").read_text(encoding="utf-8"))
    assert (found["pairs"], found["kind"], found["mean"]["dice_after"]) == (6, WITHOUT_LABELS, None)
    assert found["passes"] == 2 and found["structure_steps"] == 8
    for name in ("best", "median", "worst"):
        assert (tmp_path / f"registration_{name}.png").stat().st_size > 10_000
