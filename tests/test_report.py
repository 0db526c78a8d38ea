from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.known_test_cases import known_test_cases
from nnunet_synthtumour.report import RunReport
from nnunet_synthtumour.report_figures import draw_case, draw_curves, draw_scores
from nnunet_synthtumour.report_page import Page, cell_of
from nnunet_synthtumour.volumes import AREA, VOLUME, Measure
from tests.toy_dataset import FOLDERS

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
    areas = [{key.replace("ml", "cm2"): value for key, value in row.items()} for row in rows]
    draw_scores({"junior": areas, "senior": rows}, tmp_path / "areas.png")
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


def _begun(out: Path, stages: dict[str, Any], test: str | None = None) -> Path:
    """The record of a run; returns the raw data set that it prepared."""
    options = {"number": 1, "name": "G", "rounds": 1, "configuration": "3d_fullres", "device": "cpu", "test": test}
    folders = {name: str(out / name) for name in FOLDERS}
    record = {"about": {"version": "1", "options": options, "folders": folders}, "stages": stages}
    (out / "run.json").write_text(json.dumps(record), encoding="utf-8")
    raw = out / "nnUNet_raw" / "Dataset001_G"
    raw.mkdir(parents=True)
    return raw


DATASET = {
    "channel_names": {"0": "FLAIR"},
    "labels": {"background": 0, "tumour": 1, "ignore": 2},
    "file_ending": ".nii.gz",
}


def _stage(title: str, state: str, output: str, **more: str) -> dict[str, Any]:
    return {"title": title, "command": ["synthtumour", "-plans_name", "P"], "outputs": [output], "state": state, **more}


@pytest.fixture
def keep_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FOLDERS:  # a report sets them
        monkeypatch.setenv(name, "")


@pytest.mark.parametrize("state", ["", "started", "finished"])
def test_of_a_run_that_was_killed_early_there_is_what_there_is(
    tmp_path: Path, keep_folders: None, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    stages = {"prepare": _stage("raw", "finished", str(tmp_path))}
    if state:  # of a finished one, what it made may have been removed
        stages["preprocess"] = _stage("pre", state, str(tmp_path / ("gone" if state == "finished" else "")))
    raw = _begun(tmp_path, stages)
    assert main(["report", "-o", str(tmp_path)]) == 2
    assert "to report on" in capsys.readouterr().err
    (raw / "dataset.json").write_text(json.dumps(DATASET), encoding="utf-8")
    assert main(["report", "-o", str(tmp_path)]) == 0
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    check_page(text)
    assert "What went in" in text and "What training saw" not in text


def test_test_cases_that_were_trained_on_are_counted(tmp_path: Path, keep_folders: None) -> None:
    raw = _begun(tmp_path, {}, test="somewhere")
    (raw / "dataset.json").write_text(json.dumps(DATASET), encoding="utf-8")
    for name, content in {"imagesTr/a_0000": "aa", "imagesTr/b_0000": "bb", "imagesTs/x_0000": "xx",
                          "imagesTs/y_0000": "bb"}.items():  # fmt: skip
        (raw / name).parent.mkdir(exist_ok=True)
        (raw / f"{name}.nii.gz").write_text(content, encoding="utf-8")
    (raw / "imagesTs" / "z_0000.nii.gz").hardlink_to(raw / "imagesTr" / "a_0000.nii.gz")
    assert known_test_cases(raw) == ["y", "z"]
    structure = {"cases": 3, "dice": 0.5}
    report = RunReport(tmp_path)
    page = Page("", "")
    report._headline(page, {"junior": {"summary": {"tumour": structure}}})
    report._input(page)
    assert "test cases, 2 of them trained on" in page.text()
    assert "says nothing of new patients: y, z." in page.text()
    assert report.result["test_cases_trained_on"] == ["y", "z"]
    report.trained_on = []
    report._headline(page, {"junior": {"summary": {"tumour": structure}}})
    assert "test cases, none of them trained on" in page.text()


def test_a_senior_of_older_pseudo_labels_is_named(tmp_path: Path, keep_folders: None) -> None:
    raw = _begun(tmp_path, {
        "senior-1-fold-0": _stage("senior, fold 0", "finished", "Dataset002_GSenior1/fold_0", made_of="old"),
        "senior-1-fold-1": _stage("senior, fold 1", "finished", "Dataset002_GSenior1/fold_1", made_of="new"),
        "senior-1-fold-2": _stage("senior, fold 2", "finished", "Dataset002_GSenior1/fold_2"),
    })  # fmt: skip
    (raw / "dataset.json").write_text(json.dumps(DATASET), encoding="utf-8")
    file = (
        tmp_path
        / "nnUNet_results"
        / "Dataset001_G"
        / "model"
        / "pseudolabels"
        / "Dataset002_GSenior1"
        / "pseudolabels.json"
    )
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"provenance": {"digest": "new"}, "cases": []}), encoding="utf-8")
    page, report = Page("", ""), RunReport(tmp_path)
    report._pseudo_labels(page)
    assert "Trained on older pseudo-labels than these: senior, fold 0." in page.text()
    assert report.result["trained_on_older_pseudo_labels"] == ["senior, fold 0"]


def test_arms_that_were_measured_in_other_units_stand_side_by_side(
    tmp_path: Path, keep_folders: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluation(measure: Measure, size: float) -> dict[str, Any]:
        case = {"dice": 0.5, "hd95": 1.0, "lesion_f1": 1.0, **dict.fromkeys((measure.unit, f"false_positive_{measure.unit}",
                f"true_{measure.unit}", f"false_negative_{measure.unit}"), size)}  # fmt: skip
        cases = [{"case": "a", "prediction": "", "reference": "", "structures": {"tumour": case}}]
        summary = {"cases": 1, f"{measure.name}_difference_{measure.unit}": size}
        summary |= {f"limits_of_agreement_{measure.unit}": [size, size]}
        summary |= {f"{key}{end}": 0.5 for key in ("dice", "hd95", "lesion_f1") for end in ("", "_std")}
        return {"structures": {"tumour": [1]}, "summary": {"tumour": summary}, "cases": cases}

    (_begun(tmp_path, {}) / "dataset.json").write_text(json.dumps(DATASET), encoding="utf-8")
    monkeypatch.setattr(
        RunReport, "_draw_case", lambda *_: draw_scores({"a": [{"dice": 1, "ml": 1, "true_ml": 1}]}, _[-1])
    )
    page, report = Page("", ""), RunReport(tmp_path)
    report.figures.mkdir(parents=True)
    report._scores(page, {"junior": evaluation(VOLUME, 7), "senior": evaluation(AREA, 3)})
    text = page.text()
    for said in ("volume 7.0 ml", "area 3.0 cm²", "junior ml", "senior cm²", "true cm²"):
        assert said in text


def test_a_folder_that_is_no_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "-o", str(tmp_path)]) == 2
    assert "has no run.json" in capsys.readouterr().err
