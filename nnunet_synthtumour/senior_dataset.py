"""The senior's data set: what the junior's had, and patients with pseudo-labels; planned alike, preprocessing shared."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nnunet_synthtumour._version import __version__
from nnunet_synthtumour.atomic_files import link, read_json, write_json
from nnunet_synthtumour.case_pool import CasePool
from nnunet_synthtumour.dataset_folders import PREPROCESSED, RAW, RESULTS, nnunet_folder, raw_files
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.junior_model import stamps_of
from nnunet_synthtumour.kept_settings import changed_since, own_settings
from nnunet_synthtumour.schema import leaves, merge
from nnunet_synthtumour.senior_preprocessing import FILES, Recipe, preprocess_case
from nnunet_synthtumour.settings import BLOCK, HEALTHY, LABELLED, PSEUDO, settings_of, with_settings

PROVENANCE = "synthtumour_provenance.json"


@dataclass(frozen=True)
class Provenance:
    """Where pseudo-labels come from; `digest` stands for everything that the data set depends on.

    `settings` are the source's; where the data set has others, they are its own.
    """

    digest: str
    junior: str
    checkpoint: str
    checkpoints: dict[str, str]
    epochs: dict[str, int]
    patients_from: str
    rules: dict[str, Any]
    kept: list[str]
    set_aside: dict[str, str]
    settings: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        versions = {"nnunet-synthtumour": __version__} | {name: version(name) for name in ("nnunetv2", "torch")}
        return {**asdict(self), "versions": versions}


@dataclass(frozen=True)
class Senior:
    """What the new data set is made of: the raw data set `source`, and case -> label file for the pseudo-labelled.

    `candidates` are all patients that were segmented, whether anything was kept of them or not.
    """

    source: Path
    target: str
    dataset_json: dict[str, Any]
    plans: str
    configuration: str
    pseudo_labels: Mapping[str, Path]
    candidates: Sequence[str]
    provenance: Provenance


def target_name(source: str, number: int, name: str | None) -> str:
    """`Dataset101_NAME`, checked to be free or made by us. Without a name: that of an earlier run, or `...Senior`."""
    if not 0 < number < 1000 or number == int(source[7:10]):
        raise UserError(
            f"The new data set's id is {number}, but it must be from 1 to 999 and other than {source}; choose another -o."
        )
    folders = [Path(os.environ[v]) for v in (RAW, PREPROCESSED, RESULTS) if os.environ.get(v)]
    taken = sorted({found.name for folder in folders for found in folder.glob(f"Dataset{number:03d}_*")})
    wanted = f"Dataset{number:03d}_{name}" if name else (taken or [f"Dataset{number:03d}_{source[11:]}Senior"])[0]
    if not wanted[11:].replace("-", "").replace("_", "").isalnum():
        raise UserError(f"The name '{name}' has signs that nnU-Net's folder names do not take; use letters and digits.")
    if taken not in ([], [wanted]):
        raise UserError(f"Data set id {number} is taken by {', '.join(taken)}; choose another with -o.")
    places = [nnunet_folder(variable) / wanted for variable in (RAW, PREPROCESSED)]
    if any(place.exists() for place in places) and not any((place / PROVENANCE).is_file() for place in places):
        raise UserError(f"{wanted} was not made by 'synthtumour pseudolabel' and is not replaced; choose another -o.")
    return wanted


def taken_over(source: Path, dataset_json: dict[str, Any], plans: str, configuration: str) -> list[Any]:
    """What the new data set shares with a raw one, as values that change with it: plans, splits, and files of cases."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    preprocessed = nnunet_folder(PREPROCESSED) / source.name
    plans_manager = PlansManager(str(preprocessed / f"{plans}.json"))
    data = preprocessed / plans_manager.get_configuration(configuration).data_identifier
    files: list[Path] = []
    for case in settings_of(dataset_json).cases(HEALTHY, LABELLED):
        images, label = raw_files(source, dataset_json, case)
        files += [*images, label, *(data / f"{case}{ending}" for ending in FILES)]
    return [plans_manager.plans, read_json(preprocessed / "splits_final.json"), stamps_of(files)]


def is_built(target: str, digest: str) -> bool:
    """Whether the data set is there, complete, and made of the same."""
    there = [read_json(nnunet_folder(variable) / target / PROVENANCE) for variable in (RAW, PREPROCESSED)]
    return all(provenance is not None and provenance.get("digest") == digest for provenance in there)


def build(senior: Senior, processes: int) -> Path:
    """Write the raw data set, then the preprocessed one; an older one of the same name is replaced. Returns the raw."""
    raw = _write_raw(senior)
    _write_preprocessed(senior, raw, processes)
    return raw


def _write_raw(senior: Senior) -> Path:
    target = nnunet_folder(RAW) / senior.target
    scratch = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(scratch, ignore_errors=True)
    ending = senior.dataset_json["file_ending"]
    dataset_json = _dataset_json(senior)
    for case in settings_of(dataset_json).roles:
        images, label = raw_files(senior.source, senior.dataset_json, case)
        for channel, image in enumerate(images):
            link(image, scratch / "imagesTr" / f"{case}_{channel:04d}{ending}")
        link(senior.pseudo_labels.get(case, label), scratch / "labelsTr" / f"{case}{ending}")
    write_json(dataset_json, scratch / "dataset.json")
    write_json(senior.provenance.as_json(), scratch / PROVENANCE)
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    return target


def _dataset_json(senior: Senior) -> dict[str, Any]:
    """The source's, with the roles, hosts and intensities of the cases that are taken over, and what the user set in the
    data set that is replaced."""
    settings = settings_of(senior.dataset_json)
    roles = {case: settings.roles[case] for case in settings.cases(HEALTHY, LABELLED)}
    roles |= dict.fromkeys(senior.pseudo_labels, PSEUDO)
    block = dict(senior.dataset_json[BLOCK])
    for key in ("hosts", "intensities"):
        block[key] = {case: value for case, value in block.get(key, {}).items() if case in roles}
    block["roles"] = dict(sorted(roles.items()))
    plain = {key: value for key, value in senior.dataset_json.items() if key not in ("dataset", BLOCK)}
    about = {
        "name": senior.target[11:],
        "numTraining": len(roles),
        "synthtumour_provenance": senior.provenance.as_json(),
    }
    own = changed_since(block, _own_settings(senior.target))
    if own:
        print(f"{senior.target} keeps settings of its own: {', '.join(leaves(own))}")
    return with_settings({**plain, **about, BLOCK: block}, {**own, "pseudolabels": senior.provenance.rules})


def _own_settings(target: str) -> dict[str, Any]:
    """Those that a user set in the data set itself since it was made, its rules aside."""
    own: dict[str, Any] = {}
    for folder in (nnunet_folder(RAW) / target, nnunet_folder(PREPROCESSED) / target):  # trainers read the last
        then, now = (read_json(folder / PROVENANCE) or {}).get("settings"), own_settings(folder)
        if then is not None and now is not None:  # an earlier version did not say which settings were the source's
            own = merge(own, changed_since(then, now))
    return {key: value for key, value in own.items() if key != "pseudolabels"}


def _write_preprocessed(senior: Senior, raw: Path, processes: int) -> None:
    from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import (
        move_plans_between_datasets,
    )

    source = nnunet_folder(PREPROCESSED) / senior.source.name
    target = nnunet_folder(PREPROCESSED) / senior.target
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    move_plans_between_datasets(source.name, target.name, senior.plans)
    shutil.copyfile(source / "dataset_fingerprint.json", target / "dataset_fingerprint.json")
    shutil.copyfile(raw / "dataset.json", target / "dataset.json")
    cases = sorted(file.name for file in (raw / "labelsTr").iterdir())
    for file in cases:
        link(raw / "labelsTr" / file, target / "gt_segmentations" / file)
    splits = read_json(source / "splits_final.json")
    if splits is not None:
        write_json(
            splits_with_patients(splits, list(senior.pseudo_labels), senior.candidates), target / "splits_final.json"
        )
    names = sorted(settings_of(senior.dataset_json).cases(HEALTHY, LABELLED)) + sorted(senior.pseudo_labels)
    recipe = Recipe(source, target, raw, senior.plans, senior.configuration, frozenset(senior.pseudo_labels))
    with CasePool(processes) as pool:
        pool.map(functools.partial(preprocess_case, recipe=recipe), names, "preprocessing")
    write_json(senior.provenance.as_json(), target / PROVENANCE)


def splits_with_patients(
    splits: Sequence[Mapping[str, Sequence[str]]], patients: Sequence[str], candidates: Sequence[str]
) -> list[dict[str, list[str]]]:
    """The source's splits with `patients` dealt out over the folds; whoever was held out stays held out.

    A patient's fold follows from its place among all `candidates`, so it is the same in every round, whatever is kept.
    Only where that leaves a fold without a patient to validate with are those that are kept dealt out anew.
    """
    n = len(splits)
    fold_of = {case: i % n for i, case in enumerate(sorted(candidates))}
    if {fold_of[case] for case in patients} != set(range(n)):
        fold_of = {case: i % n for i, case in enumerate(sorted(patients))}
    groups = min(n, len(patients))
    out = []
    for fold, split in enumerate(splits):
        held_out = {case for case in patients if fold_of[case] == fold % groups}
        trained = set(patients) - held_out or held_out
        out.append(
            {
                "train": sorted({*split["train"], *trained} - (set(candidates) - trained)),
                "val": sorted({*split["val"], *held_out} - (set(candidates) - held_out)),
            }
        )
    return out
