"""The report of a run: what went in, what training saw, how it learnt, what became of the patients, and how good it is."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synthtumour.atomic_files import complete, read_json, write_json
from nnunet_synthtumour.dataset_folders import PREPROCESSED, RAW, RESULTS
from nnunet_synthtumour.donor_bank import INDEX
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.evaluation import FILE as EVALUATION
from nnunet_synthtumour.evaluation import MATCHING_IOU
from nnunet_synthtumour.kept_settings import without_cases
from nnunet_synthtumour.known_test_cases import known_test_cases
from nnunet_synthtumour.report_figures import (
    TRUTH_AND_FOUND,
    draw_case,
    draw_curves,
    draw_pastes,
    draw_scores,
    kept_epoch,
)
from nnunet_synthtumour.report_page import Page
from nnunet_synthtumour.schema import leaves
from nnunet_synthtumour.settings import BLOCK, HEALTHY, settings_of
from nnunet_synthtumour.stages import RECORD, option_of
from nnunet_synthtumour.volumes import measure_in

SAMPLES, WORST, SHOWN_PATIENTS = 12, 6, 12


class RunReport:
    """Gathers what a run left behind. What is not there is left out."""

    def __init__(self, out: Path) -> None:
        record = read_json(out / RECORD)
        if record is None:
            raise UserError(f"{out} has no {RECORD}; give the folder (-o) of a 'synthtumour run'.")
        self.out, self.stages, self.about = out, record["stages"], record["about"]
        self.options = self.about["options"]
        self.folders = {name: Path(folder) for name, folder in self.about["folders"].items()}
        os.environ.update({name: str(folder) for name, folder in self.folders.items()})  # for what looks data sets up
        number = int(self.options["number"])
        self.junior = f"Dataset{number:03d}_{self.options['name']}"
        self.rounds = int(self.about.get("rounds", self.options["rounds"]))
        self.senior = f"Dataset{number + self.rounds:03d}_{self.options['name']}Senior{self.rounds}"
        self.folder = out / "report"
        self.figures = self.folder / "figures"
        raw = self.folders[RAW] / self.junior
        self.dataset_json = read_json(raw / "dataset.json")
        if self.dataset_json is None:
            raise UserError(
                f"There is no readable {raw / 'dataset.json'} to report on; let 'synthtumour run' prepare it."
            )
        self.trained_on = known_test_cases(raw) if self.options.get("test") else []
        self.result: dict[str, Any] = {
            "version": self.about["version"], "options": self.options, "test_cases_trained_on": self.trained_on
        }  # fmt: skip

    def write(self) -> Path:
        self.figures.mkdir(parents=True, exist_ok=True)
        made_by = f"Written by nnunet-synthtumour {self.about['version']}."
        page = Page(
            f"{self.options['name']}: from healthy images to a tumour segmenter",
            f"{made_by} Junior: {self.junior}; senior: {self.senior}.",
        )
        evaluations = self._evaluations()
        self._headline(page, evaluations)
        self._input(page)
        self._samples(page)
        self._curves(page)
        self._pseudo_labels(page)
        self._scores(page, evaluations)
        self._stages(page)
        write_json(self.result, self.folder / "report.json")
        file = self.folder / "report.html"
        with complete(file) as scratch:
            scratch.write_text(page.text(), encoding="utf-8")
        return file

    def _evaluations(self) -> dict[str, dict[str, Any]]:
        found = {}
        for who, folder in (("junior", "junior"), ("senior", f"senior_{self.rounds}")):
            evaluation = read_json(self.out / "predictions" / folder / EVALUATION)
            if evaluation is not None:
                found[who] = evaluation
        return found

    def _headline(self, page: Page, evaluations: Mapping[str, Any]) -> None:
        if not evaluations:
            return
        main = next(iter(next(iter(evaluations.values()))["summary"]))
        dice = {who: evaluation["summary"][main]["dice"] for who, evaluation in evaluations.items()}
        self.result["dice"] = dice
        cases = next(iter(evaluations.values()))["summary"][main]["cases"]
        numbers = [("undefined" if v is None else f"{v:.3f}", f"mean Dice of the {who}") for who, v in dice.items()]
        page.numbers([*numbers, (str(cases), f"test cases, {len(self.trained_on) or 'none'} of them trained on")])

    def _input(self, page: Page) -> None:
        settings = settings_of(self.dataset_json)
        page.heading("What went in")
        counts = {role: len(settings.cases(role)) for role in sorted(set(settings.roles.values()))}
        channels = ", ".join(self.dataset_json["channel_names"].values())
        self.result["cases"] = counts
        page.table(["role", "cases"], [[role, n] for role, n in counts.items()])
        page.paragraph(
            f"Channels: {channels}. Lesions: preset {settings.lesion.preset}. Configuration: "
            f"{self.options['configuration']}, on {self.options['device']}."
        )
        mine = leaves(without_cases(self.dataset_json.get(BLOCK) or {}))
        self.result["settings"] = mine
        if self.trained_on:
            page.paragraph(
                f"{len(self.trained_on)} of the test images are images to train on too, so what is measured on them says "
                f"nothing of new patients: {', '.join(self.trained_on)}."
            )
        if mine:
            page.paragraph("Settings that were given: " + ", ".join(f"{k} = {v}" for k, v in mine.items()) + ".")

    def _samples(self, page: Page) -> None:
        from nnunet_synthtumour.preview import draw_preview, scene_of_dataset

        preprocess = self.stages.get("preprocess", {})
        if preprocess.get("state") != "finished" or not all(Path(path).exists() for path in preprocess["outputs"]):
            return
        preprocessed, plans = self.folders[PREPROCESSED], option_of(preprocess["command"], "-plans_name")
        assert plans is not None
        page.heading("What training saw")
        scene = scene_of_dataset(self.junior, self.options["configuration"], plans, None, {})
        draw_preview(scene, self.figures, SAMPLES, 0)
        page.picture(self.figures / "preview.png", "Synthetic lesions as they are grown for the junior")
        settings = settings_of(self.dataset_json)
        for index in sorted((preprocessed / self.senior).glob(f"donors_*{self.options['configuration']}/{INDEX}")):
            bank = index.parent
            file = self.figures / "pastes.png"
            cases = preprocessed / self.senior / bank.name.removeprefix("donors_")
            draw_pastes(bank, cases, settings.cases(HEALTHY), settings.donors, self.dataset_json["labels"]["ignore"],
                        SAMPLES, file)  # fmt: skip
            page.picture(file, "Real tumours, cut out by pseudo-labels, as they are pasted for the senior")

    def _curves(self, page: Page) -> None:
        import torch

        trainings: dict[str, dict[str, list[float]]] = {}
        for entry in self.stages.values():
            checkpoints = [Path(file) for file in entry["outputs"] if file.endswith("checkpoint_final.pth")]
            if checkpoints and checkpoints[0].is_file():
                log = torch.load(checkpoints[0], map_location="cpu", weights_only=False)["logging"]
                trainings[entry["title"]] = {k: [float(v) for v in values] for k, values in log.items()
                                             if k != "dice_per_class_or_region"}  # fmt: skip
        if not trainings:
            return
        page.heading("How they learnt")
        draw_curves(trainings, self.figures / "curves.png")
        page.picture(self.figures / "curves.png", "Losses and Dice on fixed patches; dotted: the epoch that was kept")
        self.result["chosen_epochs"] = {k: kept_epoch(k, log) for k, log in trainings.items()}

    def _pseudo_labels(self, page: Page) -> None:
        work = sorted(self.folders[RESULTS].glob(f"*/*/pseudolabels/{self.senior}"))
        found = read_json(work[0] / "pseudolabels.json") if work else None
        if found is None:
            return
        cases = found["cases"]
        kept = [case for case in cases if case["kept"]]
        page.heading("Pseudo-labels")
        sizes = {c["case"]: c[measure_in(c).unit] for c in cases}
        total, in_unit = sum(sizes[c["case"]]["tumour"] for c in kept), measure_in(cases[0] if cases else {}).shown
        page.paragraph(
            f"{len(kept)} of {len(cases)} patients were kept, with {total:.1f} {in_unit} of tumour. "
            f"All cases, with their components: {work[0] / 'report.html'}."
        )
        now = found["provenance"]["digest"]
        older = [
            e["title"]
            for e in self.stages.values()
            if e.get("made_of", now) not in ("", now) and self.senior in e["outputs"][0]
        ]
        if older:
            page.paragraph(f"Trained on older pseudo-labels than these: {', '.join(older)}.")
            self.result["trained_on_older_pseudo_labels"] = older
        if agreement := {r: v for r, v in self.about.get("agreement", {}).items() if v is not None}:
            page.table(["round", "Dice with the round before"], list(agreement.items()))
        page.table(
            ["patient", f"tumour ({in_unit})", f"unsure ({in_unit})", f"dropped ({in_unit})", "decision"],
            [
                [
                    c["case"],
                    *(sizes[c["case"]][state] for state in ("tumour", "unsure", "dropped")),
                    c["reason"] or "kept",
                ]
                for c in cases
            ],
        )
        shown = [c for c in cases if not c["kept"]][: SHOWN_PATIENTS // 2]
        shown += kept[: SHOWN_PATIENTS - len(shown)]
        pictures = [(work[0] / "pictures" / f"{c['case']}.png", f"{c['case']}: {c['reason'] or 'kept'}") for c in shown]
        page.pictures([(file, caption) for file, caption in pictures if file.is_file()])
        self.result["pseudo_labels"] = {"kept": len(kept), "of": len(cases)}

    def _scores(self, page: Page, evaluations: Mapping[str, Any]) -> None:
        if not evaluations:
            return
        page.heading("How good they are")
        main = next(iter(next(iter(evaluations.values()))["summary"]))
        rows = []
        for who, evaluation in evaluations.items():
            for name, s in evaluation["summary"].items():
                m = measure_in(s)  # of an arm: an earlier version measured single slices in ml
                rows.append(
                    [f"{who}, {name}", s["cases"], _spread(s, "dice"), _spread(s, "hd95"), _spread(s, "lesion_f1"),
                     f"{m.name} {s[f'{m.name}_difference_{m.unit}']:.1f} {m.shown}",
                     _limits(s[f"limits_of_agreement_{m.unit}"])]
                )  # fmt: skip
        page.table(
            ["", "cases", "Dice", "HD95 (mm)", "lesion F1", "difference in size", "its limits of agreement"], rows
        )
        page.paragraph(
            "Means and standard deviations over cases. Where truth and prediction are both empty, a case does not enter the "
            "means; where one of them is, its Dice and F1 are 0 and its HD95 is left out. Lesions are connected components; "
            f"a found one counts from an intersection over union of {MATCHING_IOU:g} with a real one."
        )
        arms = {who: [case["structures"][main] for case in e["cases"]] for who, e in evaluations.items()}
        draw_scores(arms, self.figures / "scores.png")
        page.picture(self.figures / "scores.png", "Dice of every test case; sizes with their limits of agreement")
        self._cases(page, evaluations, main)
        self.result["summary"] = {who: e["summary"] for who, e in evaluations.items()}

    def _cases(self, page: Page, evaluations: Mapping[str, Any], main: str) -> None:
        """Rows of all test cases and pictures of the worst, as the last of the models has them."""
        last = list(evaluations)[-1]
        order = sorted(evaluations[last]["cases"], key=lambda c: _or(c["structures"][main]["dice"], 2.0))
        by_case = {who: {c["case"]: c for c in e["cases"]} for who, e in evaluations.items()}
        measures = {who: measure_in(e["summary"][main]) for who, e in evaluations.items()}
        head = ["case, worst first"]
        head += [f"{who} {what}" for who, m in measures.items() for what in ("Dice", "HD95", "F1", m.shown)]
        head.append(f"true {measures[last].shown}")
        rows = []
        for case in order:
            values: list[Any] = [case["case"]]
            for who in evaluations:
                s = by_case[who][case["case"]]["structures"][main]
                values += [s["dice"], s["hd95"], s["lesion_f1"], f"{s[measures[who].unit]:.1f}"]
            rows.append([*values, f"{case['structures'][main][f'true_{measures[last].unit}']:.1f}"])
        page.table(head, rows)
        page.heading(f"The worst cases ({TRUTH_AND_FOUND})", 3)
        values_of = evaluations[last]["structures"][main]
        for case in order[:WORST]:
            file = self.figures / f"case_{case['case']}.png"
            self._draw_case(case["case"], by_case, values_of, file)
            page.picture(file, f"{case['case']}: Dice "
                         + ", ".join(f"{_or_undefined(by_case[w][case['case']]['structures'][main]['dice'])} ({w})"
                                     for w in evaluations))  # fmt: skip

    def _draw_case(self, case: str, by_case: Mapping[str, Any], values: list[int], file: Path) -> None:
        import SimpleITK as sitk

        def read(path: str | Path) -> np.ndarray:
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            return array if array.ndim == 3 else array[None]

        image = read(self.folders[RAW] / self.junior / "imagesTs" / f"{case}_0000{self.dataset_json['file_ending']}")
        found = {who: np.isin(read(cases[case]["prediction"]), values) for who, cases in by_case.items()}
        truth = np.isin(read(next(iter(by_case.values()))[case]["reference"]), values)
        draw_case(image, truth, found, file)

    def _stages(self, page: Page) -> None:
        page.heading("How it was made")
        rows = [[e["title"], e.get("finished", "not finished"), e.get("seconds")] for e in self.stages.values()]
        page.table(["stage", "finished", "seconds"], rows)
        page.code("\n".join(shlex.join([Path(e["command"][0]).name, *e["command"][1:]]) for e in self.stages.values()))


def write_report(out: Path) -> Path:
    """Write `report/report.html`, its figures and `report.json` into the folder of a run."""
    return RunReport(out.resolve()).write()


def _spread(summary: Mapping[str, Any], metric: str) -> str:
    mean, std = summary[metric], summary[f"{metric}_std"]
    digits = 1 if metric == "hd95" else 3
    if mean is None:
        return "undefined"
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def _limits(values: list[float] | None) -> str:
    return "" if values is None else f"{values[0]:.1f} to {values[1]:.1f}"


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _or_undefined(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
