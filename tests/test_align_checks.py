"""Which cases an alignment is said to have failed for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnunet_synthtumour.align_checks import warnings_of

MOVED = np.eye(4) + np.array([[0.02, 0.01, 0, 7], [-0.01, 0, 0, -4], [0, 0, 0, 2], [0, 0, 0, 0]])
SHIVER = np.eye(4) + np.array([[4e-4, 0, 0, 0.2], [0, -3e-4, 0, -0.1], [0, 0, 0, 0], [0, 0, 0, 0]])


def record(case: str, before: float | None, after: float | None, matrix: np.ndarray = MOVED) -> dict[str, Any]:
    return {"case": case, "similarity_before": before, "similarity": after, "matrix": matrix.tolist(), "problem": None}


OTHERS = [record(f"c{i}", 0.1, after) for i, after in enumerate((0.455, 0.46, 0.45, 0.452, 0.458))]


def test_cases_that_came_aligned_are_not_accused_of_getting_no_better() -> None:
    found = warnings_of([record(f"c{i}", s, s, np.eye(4)) for i, s in enumerate((0.376, 0.38, 0.39, 0.31))], None)
    assert found == {}


@pytest.mark.parametrize("matrix", [np.eye(4), SHIVER])
def test_a_case_that_came_aligned_may_be_less_smooth_than_others_that_were_resampled(matrix: np.ndarray) -> None:
    assert warnings_of([*OTHERS, record("still", 0.378, 0.378, matrix)], None) == {}


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (record("odd", 0.1, 0.378), "its similarity is 0.378, that of the others 0.454 (median)"),
        (record("odd", 0.05, 0.05, np.eye(4)), "its similarity is 0.050, that of the others 0.454 (median)"),
        (record("odd", 0.379, 0.378, SHIVER), "its similarity is 0.378, that of the others 0.454 (median)"),
        (record("odd", 0.451, 0.451), "its similarity is 0.451 and was 0.451 before"),
        (record("odd", None, None), "it hardly overlaps with the reference"),
        (record("odd", 0.1, 0.46, np.diag([-1.0, -1.0, 1.0, 1.0])), "it is turned by 180 degrees against its header"),
        ({**record("odd", 0.0, 0.0), "problem": "its first channel is constant"}, "its first channel is constant"),
    ],
    ids=["moved-outlier", "nothing-could-be-done", "worse", "moved-in-vain", "no-overlap", "turned", "constant"],
)
def test_what_looks_misaligned_is_told(case: dict[str, Any], why: str) -> None:
    assert warnings_of([*OTHERS, case], None) == {"odd": why}


def test_the_reference_is_beyond_doubt() -> None:
    assert warnings_of([*OTHERS, record("odd", 0.1, 0.2)], "odd") == {}
