"""`synthtumour pseudolabel`: a junior segments patients, and a new data set for a senior is made of what it is sure of.

Work lies in the junior's folder, under `pseudolabels/DATASET`: a folder for each step, a file for each case, so that
several processes can share it, and whatever is killed goes on where it stopped.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_synthtumour.atomic_files import read_json
from nnunet_synthtumour.case_pool import CasePool
from nnunet_synthtumour.dataset_folders import PREPROCESSED, RAW, dataset_name, nnunet_folder
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.file_lock import take_lock
from nnunet_synthtumour.junior_model import Junior, digest_of
from nnunet_synthtumour.kept_settings import without_cases
from nnunet_synthtumour.lesion_model import load_model
from nnunet_synthtumour.pseudolabel_cases import (
    PatientCase,
    apply_rules,
    is_decided,
    is_predicted,
    patient_cases,
    predict,
)
from nnunet_synthtumour.pseudolabel_report import write_report
from nnunet_synthtumour.schema import merge, parse, to_json
from nnunet_synthtumour.senior_dataset import Provenance, Senior, build, is_built, taken_over, target_name
from nnunet_synthtumour.settings import (
    BLOCK,
    PSEUDO,
    UNLABELLED,
    PseudoLabelSettings,
    Settings,
    settings_of,
    with_settings,
)

REPORT = "report.html"


@dataclass(frozen=True)
class PseudoLabelOptions:
    """Whose patients, which junior, which rules, and the new data set.

    `junior` is the data set of the model where it is another than `dataset` (later rounds). `settings` replace those that
    the new data set takes over from `dataset`, `rules` those of `PseudoLabelSettings` among them.
    """

    dataset: str
    number: int
    name: str | None = None
    junior: str | None = None
    trainer: str = "SynthTumourTrainer"
    plans: str = "nnUNetPlans"
    configuration: str = "3d_fullres"
    folds: tuple[str, ...] | None = None
    checkpoint: str = "checkpoint_best.pth"
    rules: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cuda"
    num_parts: int = 1
    part_id: int = 0
    processes: int = 2


@dataclass(frozen=True)
class Job:
    """Everything that is known before the work begins."""

    source: Path
    target: str
    dataset_json: dict[str, Any]
    junior: Junior
    rules: PseudoLabelSettings
    cases: tuple[PatientCase, ...]
    work: Path


@dataclass(frozen=True)
class PseudoLabelled:
    """The raw data set that was built (None while other parts are at work) and the page that says what was kept."""

    raw: Path | None
    report: Path


def pseudolabel(options: PseudoLabelOptions) -> PseudoLabelled:
    """Segment, apply the rules, and build the data set. What is done already is not done again. Raises `UserError`."""
    job = plan(options)
    mine = job.cases[options.part_id :: options.num_parts]
    _predict([case for case in mine if not is_predicted(case)], job, options)
    with CasePool(options.processes) as pool:
        open_cases = [case for case in mine if not is_decided(case, job.rules)]
        pool.map(functools.partial(apply_rules, rules=job.rules), open_cases, "applying the rules")
    if not all(is_decided(case, job.rules) for case in job.cases):
        return PseudoLabelled(None, job.work / REPORT)
    return PseudoLabelled(assemble(job, options), job.work / REPORT)


def plan(options: PseudoLabelOptions) -> Job:
    """Check all that can be checked before anything is computed."""
    if not 0 <= options.part_id < options.num_parts:
        raise UserError(f"-part_id is {options.part_id}, but {options.num_parts} parts are numbered from 0.")
    name = dataset_name(options.dataset)
    source = nnunet_folder(RAW) / name
    dataset_json = read_json(source / "dataset.json")
    if dataset_json is None:
        raise UserError(f"There is no readable {source / 'dataset.json'}; the raw data set {name} is needed.")
    dataset_json = with_settings(dataset_json, options.settings)
    settings = settings_of(dataset_json)
    patients = settings.cases(UNLABELLED, PSEUDO)
    if not patients:
        raise UserError(
            f"{name} has no unlabelled case to segment; build it with 'synthtumour prepare --unlabelled FOLDER'."
        )
    junior = Junior.find(
        options.junior or name, options.trainer, options.plans, options.configuration, options.folds, options.checkpoint
    )
    if junior.dataset_json["labels"] != dataset_json["labels"]:
        raise UserError(
            f"{junior.name} segments the labels {', '.join(junior.dataset_json['labels'])}, but {name} declares "
            f"{', '.join(dataset_json['labels'])}; give a junior of the same labels."
        )
    plans_file = nnunet_folder(PREPROCESSED) / name / f"{options.plans}.json"
    if not plans_file.is_file():
        raise UserError(f"There is no {plans_file}, which the new data set shares; run nnUNetv2_plan_and_preprocess.")
    target = target_name(name, options.number, options.name)
    work = junior.folder / "pseudolabels" / target
    cases = patient_cases(patients, source, dataset_json, junior.identity(), work)
    return Job(source, target, dataset_json, junior, rules_of(settings, options.rules), cases, work)


def rules_of(settings: Settings, changes: Mapping[str, Any]) -> PseudoLabelSettings:
    """The rules of a data set, changed by the user, with the preset's answer where `min_ml` is open."""
    rules = parse(PseudoLabelSettings, merge(to_json(settings.pseudolabels), changes), "pseudolabels")
    if rules.min_ml is not None:
        return rules
    smallest = load_model(settings.lesion.preset, settings.lesion.overrides).shape.volume_ml[0]
    return parse(PseudoLabelSettings, {**to_json(rules), "min_ml": float(f"{smallest / 3:.3g}")})


def assemble(job: Job, options: PseudoLabelOptions) -> Path | None:
    """The report and the data set, from the decisions of all cases; None where another process is at it."""
    records = [json.loads(case.record.read_text(encoding="utf-8")) for case in job.cases]
    kept = [record["case"] for record in records if record["kept"]]
    shared = taken_over(job.source, job.dataset_json, options.plans, options.configuration)
    digest = digest_of([records, job.junior.identity(), to_json(job.rules), job.dataset_json, shared])
    with _alone(job.work / "assemble.lock") as alone:
        if not alone:
            return None
        provenance = Provenance(
            digest=digest,
            junior=job.junior.name,
            checkpoint=job.junior.checkpoint,
            checkpoints=job.junior.digests,
            epochs=job.junior.epochs(),
            patients_from=job.source.name,
            rules=to_json(job.rules),
            kept=kept,
            set_aside={record["case"]: record["reason"] for record in records if not record["kept"]},
            settings=without_cases(job.dataset_json[BLOCK]),
        )
        page = write_report(job.work / REPORT, records, provenance.as_json(), [case.picture for case in job.cases])
        if is_built(job.target, digest):
            return nnunet_folder(RAW) / job.target
        if not kept:
            raise UserError(
                f"No pseudo-label is left of {len(records)} cases, so there is nothing to train a senior with; "
                f"{page} says why, case by case. Train the junior for longer, or repeat this command with other rules, --set "
                "pseudolabels.KEY=VALUE (docs/pseudolabels.md)."
            )
        senior = Senior(
            job.source, job.target, job.dataset_json, options.plans, options.configuration,
            {case.name: case.labels for case in job.cases if case.name in kept},
            [case.name for case in job.cases], provenance,
        )  # fmt: skip
        return build(senior, options.processes)


def _predict(cases: list[PatientCase], job: Job, options: PseudoLabelOptions) -> None:
    if not cases:
        return
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("There is no CUDA device here; give -device cpu (or mps).")
    predictor = job.junior.predictor(options.device)
    bar = tqdm(total=len(cases), desc="segmenting", unit="case", disable=True if len(cases) < 4 else None, leave=False)
    with bar:
        for _ in predict(cases, predictor, options.processes):
            bar.update()


@contextmanager
def _alone(file: Path) -> Iterator[bool]:
    """Whether no other process is at it."""
    with file.open("w", encoding="utf-8") as stream:
        yield take_lock(stream)
