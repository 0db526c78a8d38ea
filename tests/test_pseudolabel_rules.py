from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nnunet_synthtumour.pseudolabel_rules import DROPPED, KEPT, UNSURE, decide, label_map, outer_rim
from nnunet_synthtumour.schema import SettingsError, parse
from nnunet_synthtumour.settings import PseudoLabelSettings
from nnunet_synthtumour.shapes import half_axes
from nnunet_synthtumour.volumes import millilitres, radius_of

SPACING = (2.0, 2.0, 2.0)
SHAPE = (16, 16, 16)


def _rules(**changes: float) -> PseudoLabelSettings:
    return parse(PseudoLabelSettings, {"min_ml": 0.1, "lower": 0.2, "max_doubt": 1e9, **changes})


def _ball() -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n) - 7.5 for n in SHAPE], indexing="ij"))
    return np.sqrt((grid**2).sum(0)) < 7.5


def _blob(probability: float, low: int = 6, high: int = 10) -> np.ndarray:
    tumour = np.zeros(SHAPE, dtype=np.float32)
    tumour[low:high, low:high, low:high] = probability
    return tumour


def _decide(tumour: np.ndarray, **changes: float):  # type: ignore[no-untyped-def]
    host = _ball()
    return decide(tumour, tumour, host, host, SPACING, _rules(**changes))


def test_a_sure_component_is_kept_and_its_unsure_border_is_ignored() -> None:
    tumour = np.maximum(_blob(0.3, 5, 11), _blob(0.9))
    decision = _decide(tumour)
    assert decision.reason is None
    assert (decision.state == KEPT).sum() == 4**3
    assert (decision.state == UNSURE).sum() == 6**3 - 4**3
    (component,) = decision.components
    assert component.ml == pytest.approx(4**3 * 8 / 1000)
    assert component.confidence == pytest.approx(0.9)
    assert component.rim_share == 0
    assert set(component.centre) <= {7, 8}


@pytest.mark.parametrize(
    ("tumour", "changes", "why"),
    [
        (_blob(0.9), {"min_ml": 1.0}, "too small"),
        (_blob(0.6), {}, "too unsure"),
        (_blob(0.9), {"rim_mm": 12.0}, "at the outer rim"),
        (_blob(0.9), {"max_host_share": 0.01}, "too large"),
    ],
)
def test_a_component_is_dropped_for_a_reason_and_then_ignored(tumour: np.ndarray, changes: dict, why: str) -> None:
    decision = _decide(tumour, **changes)
    assert [c.dropped for c in decision.components] == [why]
    assert decision.reason == f"all components dropped ({why})"
    assert (decision.state == DROPPED).sum() == 4**3
    assert set(np.unique(label_map(decision.state, np.ones(SHAPE, np.uint8), 2))) == {0, 2}


def test_components_are_judged_one_by_one() -> None:
    tumour = _blob(0.9)
    tumour[3, 8, 8] = 0.95
    decision = _decide(tumour)
    assert [c.dropped for c in decision.components] == [None, "too small"]
    assert decision.state[3, 8, 8] == DROPPED
    assert decision.reason is None


def test_a_case_with_more_doubt_than_tumour_is_set_aside() -> None:
    tumour = np.maximum(_blob(0.3, 4, 12), _blob(0.9))
    decision = _decide(tumour, max_doubt=1.0)
    assert decision.doubt == pytest.approx((decision.state == UNSURE).sum() / 64)
    assert decision.doubt > 2
    assert str(decision.reason).startswith("more doubt than tumour")
    assert _decide(tumour, max_doubt=8.0).reason is None


def test_nothing_found_and_nothing_sure_are_told_apart() -> None:
    assert _decide(_blob(0.0)).reason == "nothing found"
    assert _decide(_blob(0.3)).reason == "nothing above the upper threshold"


def test_the_edge_of_the_image_is_no_rim() -> None:
    host = np.ones(SHAPE, dtype=bool)
    assert not outer_rim(host, SPACING, 3.0).any()
    host[:4] = False
    rim = outer_rim(host, SPACING, 3.0)
    assert rim[4].all()
    assert not rim[5:].any()


def test_outside_of_the_image_there_is_no_label() -> None:
    decision = _decide(np.ones(SHAPE, dtype=np.float32), max_host_share=1.0, rim_mm=0.0)
    assert not decision.state[~_ball()].any()
    assert (decision.state[_ball()] == KEPT).all()


def test_a_2d_image_is_one_slice() -> None:
    tumour, host = _blob(0.9)[8:9], _ball()[8:9]
    decision = decide(tumour, tumour, host, host, (1.0, 2.0, 2.0), _rules(min_ml=0.01))
    assert (decision.state == KEPT).sum() == 16
    radius = np.sqrt(16 * 4 / np.pi)
    assert decision.components[0].ml == pytest.approx(4 / 3 * np.pi * radius**3 / 1000)


def test_a_disc_has_the_volume_that_synthesis_gives_it() -> None:
    axes, area = half_axes(4.0, 1.0, 2)
    found = millilitres(round(area / 0.25), (1, 100, 100), (999.0, 0.5, 0.5))
    assert found == pytest.approx(4.0, rel=1e-2)
    assert radius_of(found) == pytest.approx(axes[0], rel=1e-2)
    assert millilitres(10, (5, 9, 9), (1.0, 2.0, 3.0)) == pytest.approx(0.06)


@given(
    arrays(np.float32, (6, 7, 5), elements=st.floats(0, 1, width=16)),
    arrays(bool, (6, 7, 5)),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 0.2),
    st.floats(0, 1),
)
def test_what_always_holds(
    tumour: np.ndarray, image: np.ndarray, a: float, b: float, min_ml: float, min_confidence: float
) -> None:
    rules = _rules(lower=min(a, b), upper=max(a, b), min_ml=min_ml, min_confidence=min_confidence)
    decision = decide(tumour, tumour, image, image, SPACING, rules)
    state = decision.state
    assert not state[~image].any()
    assert (tumour[(state == KEPT) | (state == DROPPED)] >= rules.upper).all()
    assert (tumour[state == UNSURE] < rules.upper).all()
    assert (tumour[state != 0] >= rules.lower).all()
    voxel_ml = 8 / 1000
    for kept, value in ((True, KEPT), (False, DROPPED)):
        mine = [c for c in decision.components if (c.dropped is None) == kept]
        assert sum(c.ml for c in mine) == pytest.approx((state == value).sum() * voxel_ml)
    assert all(c.ml >= min_ml and c.confidence >= min_confidence for c in decision.components if c.dropped is None)
    assert (decision.reason is None) == bool((state == KEPT).any())
    wider = decide(
        tumour,
        tumour,
        image,
        image,
        SPACING,
        _rules(lower=rules.lower, upper=rules.upper, min_ml=0.0, min_confidence=0.0),
    )
    assert ((wider.state == KEPT) | (state != KEPT)).all()


def test_thresholds_are_checked_together() -> None:
    with pytest.raises(SettingsError, match=r"lower is 0.7 and upper is 0.5; lower must not exceed upper"):
        _rules(lower=0.7)


def test_what_a_large_component_encloses_is_tumour_and_small_ones_are_not_joined() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(40) - 19.5] * 3, indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    host = radius < 19
    ring = (radius < 13) & (radius > 8) & ~((np.abs(grid[1]) < 2) & (grid[0] > 0))  # with a gap
    rules = _rules(rim_mm=0.0, closing_mm=9.0)
    state = decide(*[ring.astype(np.float32)] * 2, host, host, (1.0, 1.0, 1.0), rules).state
    assert (state == KEPT)[radius < 7].all()
    assert not (state == KEPT)[radius > 14].any()
    state = decide(
        *[ring.astype(np.float32)] * 2, host, host, (1.0, 1.0, 1.0), _rules(rim_mm=0.0, closing_mm=0.0)
    ).state
    assert not (state == KEPT)[radius < 7].any()
    dots = (np.abs(np.abs(grid[0]) - 5) < 3) & (np.abs(grid[1]) < 3) & (np.abs(grid[2]) < 3)
    state = decide(*[dots.astype(np.float32)] * 2, host, host, (1.0, 1.0, 1.0), rules).state
    assert np.array_equal(state == KEPT, dots)


def test_a_component_is_trusted_by_the_junior_not_by_what_was_corrected() -> None:
    host = _ball()
    decision = decide(_blob(0.95), _blob(0.6), host, host, SPACING, _rules())
    assert decision.components[0].dropped == "too unsure"
    assert decision.components[0].confidence == pytest.approx(0.6)


def test_what_is_kept_without_a_label_of_its_own_takes_the_nearest() -> None:
    state = np.full((1, 1, 6), KEPT, dtype=np.uint8)
    inside = np.array([[[1, 0, 0, 0, 2, 2]]], dtype=np.uint8)
    assert label_map(state, inside, 3)[0, 0].tolist() in ([1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 2, 2])


def test_the_inside_of_a_ring_in_a_single_slice_is_tumour() -> None:
    grid = np.stack(np.meshgrid(np.zeros(1), np.arange(40) - 19.5, np.arange(40) - 19.5, indexing="ij"))
    radius = np.sqrt((grid**2).sum(0))
    host, ring = radius < 19, (radius < 16) & (radius > 13)
    state = decide(
        *[ring.astype(np.float32)] * 2, host, host, (1.0, 1.0, 1.0), _rules(rim_mm=0.0, closing_mm=1.0)
    ).state
    assert (state == KEPT)[radius < 13].all()
