from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_synthtumour.settings import DeepAtlasSettings, RegistrationSettings
from nnunet_synthtumour.trainers import deepatlas_labels
from nnunet_synthtumour.trainers.deepatlas_labels import Fitting, mark_of_fits, relays_for, with_fitted


@pytest.mark.parametrize(
    ("settings", "labelled", "others"),
    [
        ({"manual": 0.5}, 4, ["a", "b", "warped to a", "warped to b"]),
        ({"manual": 0.5, "warped": 0.0}, 2, ["a", "b"]),
        ({"manual": 0.0, "carried": 0.0}, 1, ["warped to a", "warped to b"]),
        ({"manual": 0.5, "carried": 0.0, "warped": 0.0}, 1, []),
        ({"manual": 0.0, "carried": 0.5, "warped": 1.0}, 1, ["a", "b", *["warped to a", "warped to b"] * 2]),
        ({"manual": 0.1}, 1, ["a", "b", "warped to a", "warped to b"]),
    ],
)
def test_labelled_cases_keep_their_share_of_the_patches(settings: dict, labelled: int, others: list[str]) -> None:
    cases = with_fitted(["l"], ["a", "b"], DeepAtlasSettings(**settings))
    assert cases == [*["l"] * labelled, *others]


def test_the_share_of_labelled_cases_is_never_less_than_asked_for() -> None:
    cases = with_fitted(list("lmn"), [f"case_{i}" for i in range(20)], DeepAtlasSettings())
    assert sum(case in "lmn" for case in cases) / len(cases) >= 0.1


def test_without_fitted_labels_the_labelled_cases_are_all() -> None:
    assert with_fitted(["l", "m"], [], DeepAtlasSettings()) == ["l", "m"]


class _Fitter:
    """Stands in for `LabelFitter`; remembers what was asked of it."""

    def __init__(self) -> None:
        self.direct: list[str] = []
        self.ways: dict[str, list[str]] = {}

    def most_alike(self, target: str, labelled: list[str], count: int) -> list[str]:
        return labelled[:count]

    def fit(self, target: str, sources: list[str]) -> Any:
        self.direct.append(target)
        labels = torch.full((2, 2, 2), len(target))
        return SimpleNamespace(
            carried=SimpleNamespace(labels=labels), image=torch.zeros(1, 2, 2, 2), labels=labels[None]
        )

    def by_way_of(self, relays: dict[str, torch.Tensor], target: str, direct: Any) -> Any:
        among_relays = target.startswith("relay")
        assert target not in self.ways, "once"
        for relay, labels in relays.items():
            assert (labels == len(relay) + (0 if among_relays else 100)).all(), "each relay's own, voted on for others"
        self.ways[target] = list(relays)
        return SimpleNamespace(labels=direct.labels + 100)


class _Writer:
    def locations(self, seg: np.ndarray) -> dict[Any, Any]:
        return {}

    def write(self, folder: Path, case: str, sources: list[str], carried: Any, kept: torch.Tensor) -> dict[str, Any]:
        return {"sources": sources, "value": int(kept.max())}


def test_labels_come_through_every_relay_but_the_target_itself(tmp_path: Path) -> None:
    fitter = _Fitter()
    fitting = Fitting(fitter, _Writer(), ["l", "m"], 1, relays=["relay_1", "relay_12"])  # type: ignore[arg-type]
    assert fitting.to_target("case", tmp_path) == {
        "sources": ["l"], "relays": ["relay_1", "relay_12"], "value": 104}  # fmt: skip
    assert fitting.to_target("relay_1", tmp_path)["relays"] == ["relay_12"]
    assert fitter.ways == {"case": ["relay_1", "relay_12"], "relay_1": ["relay_12"], "relay_12": ["relay_1"]}
    assert sorted(fitter.direct) == ["case", "relay_1", "relay_12"], (
        "relays are fitted once, for all and for themselves"
    )


def test_without_relays_labels_come_directly(tmp_path: Path) -> None:
    fitter = _Fitter()
    fitting = Fitting(fitter, _Writer(), ["l"], 1)  # type: ignore[arg-type]
    assert fitting.to_target("case", tmp_path) == {"sources": ["l"], "relays": [], "value": 4}
    assert not fitter.ways


def _mark(
    registration: RegistrationSettings, targets: Sequence[str] = ("a",), settings: DeepAtlasSettings | None = None
) -> dict[str, Any]:
    cases = {name: (torch.full((1, 2, 2, 2), ord(name)),) for name in "lab"}
    manager = SimpleNamespace(spacing=[1.0] * 3, normalization_schemes=["ZScoreNormalization"])
    return mark_of_fits(cases, ["l"], targets, "plans", "3d_fullres", manager, settings or DeepAtlasSettings(),
                        registration)  # type: ignore[arg-type]  # fmt: skip


def test_labels_are_fitted_anew_for_what_they_depend_on_alone() -> None:
    before = _mark(RegistrationSettings())
    assert _mark(RegistrationSettings(network="mscgunet", anatomy=2.0, initial_lr=0.1, pairs=3)) == before
    for other in ({"similarity": "nmi"}, {"regularity": 2.0}, {"regularity_kind": "bending"}):
        assert _mark(RegistrationSettings(**other)) != before  # type: ignore[arg-type]


def test_labels_of_a_version_that_fitted_otherwise_are_fitted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _mark(RegistrationSettings())
    monkeypatch.setattr(deepatlas_labels, "STIFFNESS", 1.0)
    assert _mark(RegistrationSettings()) != before


@pytest.mark.parametrize("relays", [0, 1])
def test_what_comes_to_an_image_depends_on_others_only_through_relays(relays: int) -> None:
    of_one, of_two = (_mark(RegistrationSettings(), t, DeepAtlasSettings(relays=relays)) for t in ("a", "ab"))
    assert (of_one["each"]["a"] == of_two["each"]["a"]) == (relays == 0)
    assert {**of_one, "each": 0} == {**of_two, "each": 0}


def test_relays_help_where_labels_are_few() -> None:
    assert [relays_for(labelled, DeepAtlasSettings()) for labelled in (1, 2, 3)] == [8, 8, 0]
    assert relays_for(9, DeepAtlasSettings(relays=2)) == 2 and relays_for(1, DeepAtlasSettings(relays=0)) == 0
