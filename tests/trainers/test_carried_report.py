"""The page on carried labels says what its colours are, and tells nothing kept from nothing carried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from nnunet_synthtumour.trainers.carried_labels import Carried, summary
from nnunet_synthtumour.trainers.carried_report import colour_of, draw_case, draw_legend, write_page

NAMES, IGNORE = {1: "oedema", 2: "core & rim", 11: "nothing"}, 12


def test_a_structure_that_was_not_carried_is_not_one_that_was_thrown_away(tmp_path: Path) -> None:
    labels = torch.zeros(6, 7, 8, dtype=torch.int16)
    labels[2:4], labels[4] = 1, 2
    kept = torch.where(labels == 2, IGNORE, labels)
    kept[3] = IGNORE
    row = summary(
        "a", ["s"], kept, Carried(labels, torch.ones(6, 7, 8), torch.zeros(6, 7, 8)), NAMES, IGNORE, (10, 10, 10)
    )
    assert {name: found["kept"] for name, found in row["labels"].items()} == {
        "oedema": 0.5,
        "core & rim": 0,
        "nothing": None,
    }
    draw_case(tmp_path, "a", np.random.default_rng(0).normal(size=(6, 7, 8)), kept.numpy(), IGNORE)
    write_page(tmp_path, [row], NAMES)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<td>56.0, 50 %</td><td>0.0, 0 %</td><td>–</td>" in page  # noqa: RUF001 - the dash of an empty cell
    assert page.count("<img") == 2 and "<th>core &amp; rim: ml, kept</th>" in page


def test_the_legend_has_the_colours_of_the_outlines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    legend = Figure.legend
    monkeypatch.setattr(Figure, "legend", lambda *args, **options: drawn.append(legend(*args, **options)))
    assert draw_legend(tmp_path, NAMES).stat().st_size > 1000
    *lines, tint = drawn[0].legend_handles
    assert [line.get_color() for line in lines] == [colour_of(value) for value in NAMES]
    assert [text.get_text() for text in drawn[0].texts] == [*NAMES.values(), "tinted: ignored"] and tint.get_alpha() < 1


def test_twenty_structures_have_colours_of_their_own() -> None:
    assert len({colour_of(value) for value in range(1, 21)}) == 20
