"""Every case of a raw nnU-Net data set on one grid, as a new raw data set."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_synthtumour.align_case import (
    RECORDS,
    SUBFOLDERS,
    RawCase,
    Task,
    align_case,
    finished,
    of_an_earlier_version,
    stamp_of,
)
from nnunet_synthtumour.align_checks import warnings_of
from nnunet_synthtumour.align_reference import AUTO, on_spacing, reference_image
from nnunet_synthtumour.atomic_files import write_json
from nnunet_synthtumour.case_pool import CasePool
from nnunet_synthtumour.dataset_folders import RAW, nnunet_folder, read_dataset_json
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_files import write_image
from nnunet_synthtumour.kept_settings import own_settings, without_cases
from nnunet_synthtumour.settings import BLOCK, HEALTHY, UNLABELLED, settings_of

REPORT, OPTIONS = "alignment.json", "options.json"
GRID, REFERENCE = "reference.nii.gz", "reference_as_it_was.nii.gz"


@dataclass(frozen=True)
class AlignOptions:
    """What `synthtumour align` is asked for."""

    dataset: str
    out: str
    reference: str = AUTO
    kind: str = "affine"
    cross_modality: bool = False
    spacing: float | None = None
    onto: str | None = None
    seed: int = 0
    processes: int = 1


@dataclass(frozen=True)
class Aligned:
    """Where the new data set lies, what it is aligned to, how many cases it has, which look misaligned and why, whether
    there are test images, which stay as they are, which settings of its own, other than the source's, it kept, and how many
    cases an earlier version had aligned, which are done anew."""

    folder: Path
    reference: str
    cases: int
    kept: int
    warnings: dict[str, str]
    test_images: bool = False
    own_settings: tuple[str, ...] = ()
    older: int = 0


def align_dataset(options: AlignOptions) -> Aligned:
    """Align all cases; a run that was interrupted goes on where it was, with what is finished kept."""
    if options.spacing is not None and not options.spacing > 0:
        raise UserError(f"--spacing {options.spacing} is not a length in mm; give a number above 0.")
    dataset_json, source = _dataset(options.dataset)
    settings_of(dataset_json)  # a mistake in the block shall show before the work, not after it
    cases = _cases(source, dataset_json)
    target = _target(options.out, source)
    asked = {
        "source": str(source),
        "reference": _spelt_out(options.reference, cases),
        "kind": options.kind,
        "cross_modality": options.cross_modality,
        "spacing": options.spacing,
        "onto": None if options.onto is None else str(_dataset(options.onto)[1]),
        "seed": options.seed,
    }
    partners = _partners(options, cases)
    work = _work_folder(target, asked)
    own = own_settings(target)
    name, stamp = (options.onto, []) if options.onto is not None else _reference(work, cases, options)
    block = dataset_json.get(BLOCK) or {}
    task = Task(
        out=work,
        ending=dataset_json["file_ending"],
        reference=work / REFERENCE,
        grid=work / GRID,
        reference_case=_reference_case(name, stamp, cases),
        reference_stamp=stamp,
        kind=options.kind,
        cross_modality=options.cross_modality,
        seed=options.seed,
        channels=tuple(dataset_json["channel_names"].values()),
        intensities=bool(block.get("intensities")),
        partners=partners,
    )
    kept = sum(finished(case, task) is not None for case in cases)
    older = sum(of_an_earlier_version(case, task) for case in cases)
    with CasePool(options.processes) as pool:
        records = pool.map(partial(align_case, task=task), cases, "aligning")
    _forget_others(work, cases, task.ending)
    warnings = warnings_of(records, task.reference_case)
    new_block = _block(block, own, records)
    _conclude(work, target, {**dataset_json, BLOCK: new_block}, records, {**asked, "reference": name}, warnings)
    if work != target:
        work.rename(target)
    theirs, mine = without_cases(block), without_cases(new_block)
    differing = tuple(sorted(key for key in {*theirs, *mine} if theirs.get(key) != mine.get(key)))
    return Aligned(target, name, len(cases), kept, warnings, (source / "imagesTs").is_dir(), differing, older)


def _dataset(given: str) -> tuple[dict[str, Any], Path]:
    """Its `dataset.json`, and its folder, which is the same however it is spelt."""
    dataset_json, file = read_dataset_json(_source(given))
    return dataset_json, file.parent.resolve()


def _spelt_out(reference: str, cases: Sequence[RawCase]) -> str:
    """A file by its whole path, so that another spelling is no other option; a case, `auto` and `template` as they are."""
    is_case = any(case.name == reference for case in cases)
    return str(Path(reference).resolve()) if not is_case and Path(reference).is_file() else reference


def _source(given: str) -> str | Path:
    """An id or a name goes through nnU-Net's folders; anything with a dataset.json in it is a folder."""
    if (Path(given) / "dataset.json").is_file():
        return Path(given)
    if os.sep in given:
        raise UserError(f"There is no dataset.json in {given}; is this the folder of a raw nnU-Net data set?")
    nnunet_folder(RAW)
    return given


def _cases(source: Path, dataset_json: dict[str, Any]) -> list[RawCase]:
    missing = [key for key in ("file_ending", "channel_names", "labels") if key not in dataset_json]
    if missing:
        raise UserError(f"{source / 'dataset.json'} has no '{missing[0]}'; nnU-Net needs it, add it.")
    ending, channels = dataset_json["file_ending"], len(dataset_json["channel_names"])
    if "dataset" in dataset_json:  # nnU-Net's way to name files that lie elsewhere
        found = {
            name: ([_absolute(source, f) for f in files["images"]], _absolute(source, files["label"]))
            for name, files in dataset_json["dataset"].items()
        }
    else:
        found = {
            name: ([source / "imagesTr" / f"{name}_{c:04d}{ending}" for c in range(channels)],
                   source / "labelsTr" / f"{name}{ending}")
            for name in _names(source, ending)
        }  # fmt: skip
    if not found:
        raise UserError(f"There are no images *_0000{ending} in {source / 'imagesTr'}; is this a raw nnU-Net data set?")
    roles = (dataset_json.get(BLOCK) or {}).get("roles", {})
    cases = []
    for name, (images, label) in sorted(found.items()):
        for file in images:
            if not file.is_file():
                raise UserError(f"Case {name} lacks the file {file}; add it, or remove the case's other files.")
        # of a healthy case the ignore label is where lesions grow, and nothing grows outside of the image
        unknown = 0 if roles.get(name) in (HEALTHY, UNLABELLED) else dataset_json["labels"].get("ignore", 0)
        cases.append(RawCase(name, tuple(images), label if label.is_file() else None, int(unknown)))
    return cases


def _names(source: Path, ending: str) -> list[str]:
    """All cases of which there is a channel or a label map; none where there is no image at all."""
    channel = re.compile(rf"(.+)_\d{{4}}{re.escape(ending)}")
    images = [channel.fullmatch(f.name) for f in (source / "imagesTr").glob(f"*{ending}") if f.name[0] != "."]
    labels = [f.name.removesuffix(ending) for f in (source / "labelsTr").glob(f"*{ending}") if f.name[0] != "."]
    names = {match[1] for match in images if match}
    return sorted(names.union(labels)) if names else []


def _partners(options: AlignOptions, cases: Sequence[RawCase]) -> dict[str, Path] | None:
    """First channel of the case of the same name in another data set."""
    if options.onto is None:
        return None
    if options.spacing is not None or options.reference != AUTO:
        raise UserError("--onto takes reference and grid from the other data set; leave out --reference and --spacing.")
    dataset_json, folder = _dataset(options.onto)
    there = {case.name: case.images[0] for case in _cases(folder, dataset_json)}
    alone = [case.name for case in cases if case.name not in there]
    if alone:
        raise UserError(
            f"{len(alone)} cases have no case of the same name in {folder} ({alone[0]}, for one); rename or remove them."
        )
    return {case.name: there[case.name] for case in cases}


def _absolute(source: Path, file: str) -> Path:
    return source / os.path.expandvars(file)


def _target(out: str, source: Path) -> Path:
    number = re.fullmatch(r"(?:Dataset)?(\d{1,3})_([^/\\]+)", out)
    if number is None and re.fullmatch(r"\d+", out):
        raise UserError(f"-o {out} is an id without a name; give both, for example -o {out}_Aligned.")
    if number is None and re.fullmatch(r"(?:Dataset)?\d+_[^/\\]*", out):
        raise UserError(f"-o {out}: nnU-Net's ids run from 1 to 999, each with a name; choose another.")
    target = Path(out).absolute()
    if number is not None:
        raw = nnunet_folder(RAW)
        if not int(number[1]):
            raise UserError(f"-o {out}: nnU-Net's ids run from 1 to 999; choose another.")
        target = raw / f"Dataset{int(number[1]):03d}_{number[2]}"
        for taken in sorted(raw.glob(f"Dataset{int(number[1]):03d}_*")):
            if taken != target:
                raise UserError(f"Data set id {int(number[1])} is taken by {taken}; choose another for -o.")
    if target.resolve() == source:
        raise UserError(f"-o {out} is the data set that is to be aligned; choose another folder or id.")
    return target


def _work_folder(target: Path, asked: dict[str, Any]) -> Path:
    """The target where an earlier run finished it, else a hidden neighbour that becomes it in the end."""
    scratch = target.with_name(f".{target.name}.unfinished")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        if _asked(target / REPORT) is None:
            raise UserError(f"{target} exists and is not an aligned data set; choose another -o or remove it.")
        if _asked(target / REPORT) != asked:
            raise UserError(
                f"{target} was aligned from other images or with other options; choose another -o or remove it."
            )
        _make_subfolders(target)
        return target
    if _asked(scratch / OPTIONS) != asked:
        shutil.rmtree(scratch, ignore_errors=True)
    _make_subfolders(scratch)
    write_json({"asked": asked}, scratch / OPTIONS)
    return scratch


def _make_subfolders(folder: Path) -> None:
    for sub in SUBFOLDERS:
        (folder / sub).mkdir(parents=True, exist_ok=True)


def _asked(file: Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("asked")
    except (OSError, json.JSONDecodeError, AttributeError):
        return None


def _reference(work: Path, cases: Sequence[RawCase], options: AlignOptions) -> tuple[str, list[Any]]:
    """What the reference is called, and the stamp of its file. It is chosen and written once, for finished cases lie on
    its grid; anew only where its file has changed since, and all cases with it."""
    chosen = work / "reference.json"
    images = {case.name: case.images[0] for case in cases}
    if chosen.is_file():
        kept = json.loads(chosen.read_text(encoding="utf-8"))
        stamp = kept.get("stamp")
        if stamp is not None and all(
            not Path(file).is_file() or stamp_of([Path(file)]) == [[file, *of_file]] for file, *of_file in stamp
        ):
            return str(kept["reference"]), stamp
    name, image = reference_image(options.reference, images, options.cross_modality, options.seed, options.processes)
    source = images.get(name, Path(name))
    stamp = stamp_of([source.absolute()]) if source.is_file() else []  # a template is the mean of many
    grid = on_spacing(image, options.spacing)
    write_image(image, work / REFERENCE)
    write_image(grid, work / GRID)
    write_json({"reference": name, "stamp": stamp}, chosen)
    return name, stamp


def _reference_case(name: str, stamp: Sequence[Sequence[Any]], cases: Sequence[RawCase]) -> str | None:
    """The case that is the reference, for its map is the identity: a case called like a template or a file is not."""
    files = [str(case.images[0].absolute()) for case in cases if case.name == name]
    return name if files and [file for file, *_ in stamp] == files else None


def _forget_others(work: Path, cases: Sequence[RawCase], ending: str) -> None:
    """Remove what an earlier run made of cases, channels or labels that the source no longer has."""
    names = {case.name for case in cases}
    wanted = {
        "imagesTr": {f"{case.name}_{c:04d}{ending}" for case in cases for c in range(len(case.images))},
        "labelsTr": {f"{case.name}{ending}" for case in cases if case.label is not None},
        "transforms": {f"{name}.tfm" for name in names},
        "checks": {f"{name}.png" for name in names},
        RECORDS: {f"{name}.json" for name in names},
    }
    for folder in SUBFOLDERS:
        for file in (work / folder).iterdir():
            if file.name not in wanted[folder]:
                file.unlink()


def _conclude(
    work: Path,
    target: Path,
    dataset_json: dict[str, Any],
    records: Sequence[dict[str, Any]],
    used: dict[str, Any],
    warnings: dict[str, str],
) -> None:
    asked = _asked(work / OPTIONS)
    keys = ("case", "similarity_before", "similarity", "matrix")
    report = {
        "asked": asked,
        "reference": used["reference"],
        "measure": "mutual information, share of the mean entropy" if used["cross_modality"] else "correlation",
        "cases": [{**{k: r[k] for k in keys}, "warning": warnings.get(r["case"])} for r in records],
    }
    new = {key: value for key, value in dataset_json.items() if key != "dataset"}
    new |= {"name": target.name.partition("_")[2] or target.name, "numTraining": len(records)}
    if not new[BLOCK]:
        del new[BLOCK]
    write_json(new, work / "dataset.json")
    write_json(report, work / REPORT)


def _block(block: dict[str, Any], own: dict[str, Any] | None, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The source's settings, or the `own` ones of a data set that is aligned again; with the roles of what was aligned, and
    the intensities of the resampled images where there were any."""
    from nnunet_synthtumour.intensities import uses_mask

    cases = {record["case"] for record in records}
    new = without_cases(block) if own is None else dict(own)
    if "hosts" in block:
        new["hosts"] = block["hosts"]
    if "roles" in block:
        new["roles"] = {case: role for case, role in block["roles"].items() if case in cases}
    found = {r["case"]: r["intensities"] for r in records if r["intensities"] is not None}
    if found:
        use_mask = str(uses_mask([of_case["relative_size"] for of_case in found.values()]))
        new["intensities"] = {case: of_case["maps"][use_mask] for case, of_case in found.items()}
    return new


__all__ = ["AlignOptions", "Aligned", "align_dataset"]
