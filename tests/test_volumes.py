from __future__ import annotations

import pytest

from nnunet_synthtumour.volumes import AREA, VOLUME, measure_in, measure_of


def test_a_slice_has_an_area_whatever_its_thickness_and_areas_add_up() -> None:
    assert measure_of((5, 9, 9)) == VOLUME and measure_of((1, 9, 9)) == measure_of((9, 9)) == AREA
    assert VOLUME.of(10, (1.0, 2.0, 3.0)) == pytest.approx(0.06)
    assert AREA.of(100, (999.0, 0.5, 2.0)) == AREA.of(100, (0.5, 2.0)) == pytest.approx(1.0)
    assert AREA.of(30, (1.0, 1.0)) + AREA.of(12, (1.0, 1.0)) == pytest.approx(AREA.of(42, (1.0, 1.0)))


@pytest.mark.parametrize("measure", [VOLUME, AREA])
def test_keys_say_what_was_measured(measure: object) -> None:
    for key in (measure.unit, f"true_{measure.unit}", measure.key):  # type: ignore[attr-defined]
        assert measure_in({"case": "a", key: 1.0}) == measure
