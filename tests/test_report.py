from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.report_figures import draw_case, draw_curves, draw_scores
from nnunet_synthtumour.report_page import Page, cell_of

VOID = {"meta", "img", "br"}


class Balance(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(text: str) -> None:
    """Well-formed, and nothing that would have to be fetched."""
    balance = Balance()
    balance.feed(text)
    assert not balance.open
    assert not re.findall(r"(?:src|href)='(?!data:|#)", text)
    assert "<script" not in text


def test_figures_and_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    log = {key: [0.1, 0.4, 0.3] for key in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "pasted_dice")}
    draw_curves({"junior": log, "senior": log}, tmp_path / "curves.png")
    rows = [{"dice": 0.5, "ml": 10.0, "true_ml": 12.0}, {"dice": None, "ml": 0.0, "true_ml": 0.0}]
    draw_scores({"junior": rows, "senior": rows}, tmp_path / "scores.png")
    truth = np.zeros((6, 8, 8), bool)
    truth[2:4, 2:6, 2:6] = True
    image = np.random.default_rng(0).normal(size=truth.shape)
    draw_case(image, truth, {"junior": truth, "senior": np.zeros_like(truth)}, tmp_path / "case.png")
    page = Page("A <b>title</b>", "made & written")
    page.numbers([("0.812", "mean Dice")])
    page.table(["case", "Dice"], [["<script>", 0.51234], ["b", None]])
    for name in ("curves", "scores", "case"):
        page.picture(tmp_path / f"{name}.png", f"figure '{name}'")
    page.pictures([(tmp_path / "case.png", "small")])
    text = page.text()
    check_page(text)
    assert "0.812" in text and "0.512" in text
    assert "&lt;script&gt;" in text and "&lt;b&gt;" in text
    assert text.count("data:image/png;base64,") == 4


@pytest.mark.parametrize(("value", "cell"), [(0.12345, "0.123"), (12.34, "12.3"), (3, "3"), ("x", "x")])
def test_numbers_have_the_digits_that_mean_something(value: object, cell: str) -> None:
    assert cell_of(value) == cell


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "-o", str(tmp_path)]) == 2
    assert "has no run.json" in capsys.readouterr().err
