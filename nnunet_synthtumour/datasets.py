"""Raw nnU-Net data sets from folders of images: roles, hosts, ignore labels, intensities; all checks before any writing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_synthtumour.case_pool import CasePool
from nnunet_synthtumour.case_writing import ENDING, Destination, Written, can_link, write_case
from nnunet_synthtumour.dataset_folders import PREPROCESSED, RAW, RESULTS, nnunet_folder
from nnunet_synthtumour.dataset_labels import IGNORE, check_named, dataset_labels, regions_class_order, values_of
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.hosts import FOREGROUND, HEAD
from nnunet_synthtumour.image_checks import check_case, check_for_training, check_together, check_truth, complain
from nnunet_synthtumour.image_files import size_on_disk
from nnunet_synthtumour.image_folders import TEST, Case, add_masks, cases_of
from nnunet_synthtumour.intensities import uses_mask
from nnunet_synthtumour.kept_settings import own_settings
from nnunet_synthtumour.lesion_model import model_of
from nnunet_synthtumour.schema import leaves, merge, parse
from nnunet_synthtumour.settings import BLOCK, HEALTHY, LABELLED, UNLABELLED, Settings

BYTES_OF_LABELS_PER_VOXEL = 0.05  # gzip leaves a hundredth of most label maps; a twentieth is on the safe side


@dataclass(frozen=True)
class PrepareOptions:
    """Where the images of a new data set lie, and what it shall be called."""

    number: int
    name: str
    channels: tuple[str, ...]
    healthy: Path | None = None
    host_masks: Path | None = None
    unlabelled: Path | None = None
    labelled: Path | None = None
    labels: Path | None = None
    label_names: dict[str, int | list[int]] = field(default_factory=dict)
    test: Path | None = None
    test_labels: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    copy: bool = False
    overwrite: bool = False
    processes: int = 2


def prepare(options: PrepareOptions) -> Path:
    """Build the raw data set; raises `UserError` with every problem found, and then leaves nothing behind."""
    raw = nnunet_folder(RAW)
    target = _target(raw, options)
    options = replace(options, settings=_over_kept(target, options.settings))
    check_named(options.label_names)
    model_of(parse(Settings, options.settings, BLOCK), options.channels)  # complains about what does not exist or fit
    cases = [*_collect(options), *_collect_test(options)]
    known = frozenset(values_of(options.label_names)) if options.label_names else None
    with CasePool(options.processes) as pool:
        cases = pool.map(partial(check_case, known_labels=known), cases, "checking")
        training = [case for case in cases if case.role != TEST]
        tests = [case for case in cases if case.role == TEST]
        check_together(training)
        check_for_training(training)
        check_together(tests, training)
        complain(cases)
        labels = dataset_labels(options.label_names, training)
        declared = _declared(labels, options)
        binary = len(declared) == 1 and not options.label_names
        if binary:
            _say_what_becomes_tumour(tests)
        else:
            check_truth(tests, declared)
            complain(cases)
        _check_space(raw, cases, options.copy)
        with _scratch(target) as scratch:
            to = Destination(scratch, options.channels, labels.get(IGNORE, 0), options.copy, binary)
            written = pool.map(partial(write_case, to=to), cases, "writing")
            dataset_json = _dataset_json(options, labels, training, written[: len(training)])
            (scratch / "dataset.json").write_text(json.dumps(dataset_json, indent=1), encoding="utf-8")
    return target


def about_guessed_hosts(dataset_json: dict[str, Any]) -> list[str]:
    """One sentence for each reason why hosts are a guess."""
    said = []
    for guess, what, mend in (
        (
            FOREGROUND,
            "bright foreground), because they have a background and no mask",
            "look at labelsTr, or give --host-masks",
        ),
        (
            HEAD,
            "all but the background), because they have a bright rim over a dark layer, as of scalp over bone, and lesions "
            "would grow there too",
            "give --host-masks of the organ",
        ),
    ):
        cases = sorted(case for case, how in dataset_json[BLOCK]["hosts"].items() if how == guess)
        if cases:
            names = ", ".join(cases[:3]) + (", ..." if len(cases) > 3 else "")
            said.append(f"The host of {len(cases)} cases ({names}) is a guess ({what}; {mend}.")
    return said


def check_names(number: int, name: str, channels: Sequence[str]) -> None:
    """Raise `UserError` for what cannot be the id, the name or the channels of a data set."""
    if not 0 < number < 1000:
        raise UserError(f"The data set id is {number}, but nnU-Net's ids run from 1 to 999; choose another with -d.")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"The name '{name}' has signs that nnU-Net's folder names do not take; use letters and digits.")
    if not channels or "" in channels or len(set(channels)) < len(channels):
        raise UserError("Name every channel once, in the order of the files: --channel FLAIR --channel T1.")


def _target(raw: Path, options: PrepareOptions) -> Path:
    check_names(options.number, options.name, options.channels)
    if not os.access(raw, os.W_OK):
        raise UserError(f"{RAW} points to {raw}, which cannot be written; choose a folder of yours.")
    target = raw / f"Dataset{options.number:03d}_{options.name}"
    _check_id_is_free(target, options)
    if target.exists():
        _check_may_be_replaced(target, options.overwrite)
    return target


def _over_kept(target: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings `given` over those of the data set that is replaced."""
    try:
        own = own_settings(target) or {}
    except UserError as error:
        raise UserError(f"{target / 'dataset.json'}, whose settings the new data set keeps: {error}") from error
    both = merge(own, given)
    kept = [key for key in leaves(both) if key not in leaves(given)]
    if kept:
        print(f"{target.name} keeps settings of its own, which --set changes: {', '.join(kept)}")
    return both


def _check_id_is_free(target: Path, options: PrepareOptions) -> None:
    """nnU-Net looks for an id in all its folders, and stops where two names share one."""
    folders = [Path(os.environ[variable]) for variable in (RAW, PREPROCESSED, RESULTS) if os.environ.get(variable)]
    for folder in folders:
        for taken in sorted(folder.glob(f"Dataset{options.number:03d}_*")):
            if taken.name != target.name:
                raise UserError(
                    f"Data set id {options.number} is taken by {taken}; choose another with -d or remove that folder."
                )


def _check_may_be_replaced(target: Path, overwrite: bool) -> None:
    if not overwrite:
        raise UserError(f"{target} exists already; choose another id with -d, or replace it with --overwrite.")
    try:
        ours = bool(json.loads((target / "dataset.json").read_text(encoding="utf-8"))[BLOCK]["roles"])
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UserError(f"{target} was not made by 'synthtumour prepare' and is not overwritten; remove it yourself.")


def _collect(options: PrepareOptions) -> list[Case]:
    cases: list[Case] = []
    if options.healthy is not None:
        healthy = cases_of(options.healthy, HEALTHY, options.channels)
        if options.host_masks is not None:
            add_masks(healthy, options.host_masks, "the host mask")
        cases += healthy
    elif options.host_masks is not None:
        raise UserError("--host-masks goes with --healthy: it says where in healthy images a lesion may grow.")
    if options.unlabelled is not None:
        cases += cases_of(options.unlabelled, UNLABELLED, options.channels)
    if (options.labelled is None) != (options.labels is None):
        raise UserError("--labelled and --labels go together: images, and label files of the same names.")
    if options.labelled is not None and options.labels is not None:
        labelled = cases_of(options.labelled, LABELLED, options.channels)
        add_masks(labelled, options.labels, "the label file")
        cases += labelled
    if not cases:
        raise UserError("No folder of images was given; use --healthy, --unlabelled or --labelled with --labels.")
    return cases


def _collect_test(options: PrepareOptions) -> list[Case]:
    if options.test is None:
        if options.test_labels is not None:
            raise UserError("--test-labels goes with --test: they are the truth of the test images.")
        return []
    cases = cases_of(options.test, TEST, options.channels)
    if options.test_labels is not None:
        add_masks(cases, options.test_labels, "the label file")
    return cases


def _declared(labels: Mapping[str, Any], options: PrepareOptions) -> set[int]:
    """The values that the truth of test images may have; an ignore label only where the user named it."""
    return values_of({name: v for name, v in labels.items() if name != IGNORE or IGNORE in options.label_names}) - {0}


def _say_what_becomes_tumour(tests: Sequence[Case]) -> None:
    """Where there is one label that nobody named, all that a truth marks is that label, whatever its values."""
    other = sorted({value for case in tests for value in case.label_values} - {0, 1})
    if other:
        print(
            f"The label files of the test images hold {', '.join(map(str, other[:12]))}; there is one label, so all that "
            "is not 0 counts as it (labelsTs has 1 there). Name several labels with --label to tell them apart."
        )


def _check_space(raw: Path, cases: Sequence[Case], copy: bool) -> None:
    needed = BYTES_OF_LABELS_PER_VOXEL * sum(case.voxels for case in cases)
    for case in cases:
        for file in case.images:
            if copy or not can_link(file, raw):
                # What is converted is packed; a header's size says nothing of the voxels in the file beside it.
                needed += size_on_disk(file) if file.name.endswith(ENDING) else max(size_on_disk(file), case.voxels)
    free = shutil.disk_usage(raw).free
    if needed > free:
        raise UserError(
            f"{raw} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed; free some or change {RAW}."
        )


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes `target` when all went well, and is gone when not.

    What a killed run left behind is swept first.
    """
    # 'synthtumour align' keeps what it goes on with in .unfinished
    scratch, old = target.with_name(f".{target.name}.preparing"), target.with_name(f".{target.name}.replaced")
    if old.exists() and not target.exists():  # killed between the two renames: this is the data set
        old.rename(target)
    prefix = target.name.partition("_")[0]
    for left in [*target.parent.glob(f".{prefix}_*.preparing"), *target.parent.glob(f".{prefix}_*.replaced")]:
        shutil.rmtree(left, ignore_errors=True)
    for sub in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (scratch / sub).mkdir(parents=True)
    try:
        yield scratch
        for sub in ("imagesTs", "labelsTs"):
            if not any((scratch / sub).iterdir()):
                (scratch / sub).rmdir()
        if target.exists():
            target.rename(old)
        scratch.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _dataset_json(
    options: PrepareOptions, labels: dict[str, Any], cases: Sequence[Case], written: Sequence[Written]
) -> dict[str, Any]:
    use_mask = str(uses_mask([case.relative_size for case in written]))
    order = regions_class_order(labels)
    return {
        "channel_names": {str(i): name for i, name in enumerate(options.channels)},
        "labels": labels,
        **({} if order is None else {"regions_class_order": order}),
        "numTraining": len(cases),
        "file_ending": ENDING,
        "name": options.name,
        BLOCK: {
            "roles": {case.name: case.role for case in cases},
            "hosts": {case.name: case.host for case in written if case.host is not None},
            "intensities": {case.name: case.intensities[use_mask] for case in written},
            **options.settings,
        },
    }
