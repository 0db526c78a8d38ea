from __future__ import annotations

import pytest

from nnunet_synthtumour.settings import DeepAtlasSettings
from nnunet_synthtumour.trainers.deepatlas_labels import with_fitted


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
