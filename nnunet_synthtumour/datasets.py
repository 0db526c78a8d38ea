"""Raw nnU-Net data sets from folders of images: roles, hosts, ignore labels, intensities; all checks before any writing."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_synthtumour.dataset_folders import RAW, nnunet_folder
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.hosts import FOREGROUND, find_host
from nnunet_synthtumour.image_checks import check_case
from nnunet_synthtumour.image_folders import Case, add_masks, cases_of
from nnunet_synthtumour.intensities import crop, recorded, uses_mask
from nnunet_synthtumour.settings import BLOCK, HEALTHY, LABELLED, UNLABELLED

ENDING = ".nii.gz"
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Folders:
    """Where the images of a new data set lie, and what it shall be called."""

    number: int
    name: str
    channels: tuple[str, ...]
    healthy: Path | None = None
    host_masks: Path | None = None
    unlabelled: Path | None = None
    labelled: Path | None = None
    labels: Path | None = None
    label_names: dict[str, int] = field(default_factory=dict)
    copy: bool = False
    processes: int = 2


@dataclass(frozen=True)
class Prepared:
    """What is known of a case once its files are written."""

    name: str
    host: str | None
    relative_size: float
    intensities: dict[str, dict[str, list[float]]]


def prepare(folders: Folders) -> Path:
    """Build the raw data set; raises `UserError` with every problem found, and then leaves nothing behind."""
    raw = nnunet_folder(RAW)
    target = _target(raw, folders)
    cases = _collect(folders)
    known = frozenset(folders.label_names.values()) if folders.label_names else None
    cases = _parallel(partial(check_case, known_labels=known), cases, folders.processes, "checking")
    _complain_about(cases)
    names = folders.label_names or _labels_found(cases, folders.processes)
    needs_ignore = any(case.role != LABELLED for case in cases)
    labels = {"background": 0, **names, **({"ignore": max(names.values()) + 1} if needs_ignore else {})}
    _check_space(raw, cases, folders.copy)
    with _scratch(target) as scratch:
        write = partial(
            _write_case, scratch=scratch, ignore=labels.get("ignore", 0), channels=folders.channels, copy=folders.copy
        )
        done = _parallel(write, cases, folders.processes, "writing")
        dataset_json = _dataset_json(folders, labels, cases, done)
        (scratch / "dataset.json").write_text(json.dumps(dataset_json, indent=1))
    return target


def guessed_hosts(dataset_json: dict[str, Any]) -> list[str]:
    """The cases whose host is a guess, because the image has a real background and no mask was given."""
    return sorted(case for case, how in dataset_json[BLOCK]["hosts"].items() if how == FOREGROUND)


def _target(raw: Path, folders: Folders) -> Path:
    if not 0 < folders.number < 1000:
        raise UserError(
            f"The data set id is {folders.number}, but nnU-Net's ids run from 1 to 999; choose another with -d."
        )
    if not folders.name.replace("-", "").replace("_", "").isalnum():
        raise UserError(
            f"The name '{folders.name}' has signs that nnU-Net's folder names do not take; use letters and digits."
        )
    if not folders.channels or len(set(folders.channels)) < len(folders.channels):
        raise UserError("Name every channel once, in the order of the files: --channel FLAIR --channel T1.")
    for taken in sorted(raw.glob(f"Dataset{folders.number:03d}_*")):
        raise UserError(
            f"Data set id {folders.number} is taken by {taken}; choose another with -d or remove that folder."
        )
    if not os.access(raw, os.W_OK):
        raise UserError(f"{RAW} points to {raw}, which cannot be written; choose a folder of yours.")
    return raw / f"Dataset{folders.number:03d}_{folders.name}"


def _collect(folders: Folders) -> list[Case]:
    cases: list[Case] = []
    if folders.healthy is not None:
        healthy = cases_of(folders.healthy, HEALTHY, folders.channels)
        if folders.host_masks is not None:
            add_masks(healthy, folders.host_masks, "the host mask")
        cases += healthy
    elif folders.host_masks is not None:
        raise UserError("--host-masks goes with --healthy: it says where in healthy images a lesion may grow.")
    if folders.unlabelled is not None:
        cases += cases_of(folders.unlabelled, UNLABELLED, folders.channels)
    if (folders.labelled is None) != (folders.labels is None):
        raise UserError("--labelled and --labels go together: images, and label files of the same names.")
    if folders.labelled is not None and folders.labels is not None:
        labelled = cases_of(folders.labelled, LABELLED, folders.channels)
        add_masks(labelled, folders.labels, "the label file")
        cases += labelled
    if not cases:
        raise UserError("No folder of images was given; use --healthy, --unlabelled or --labelled with --labels.")
    for name, count in Counter(case.name for case in cases).items():
        if count > 1:
            for case in cases:
                if case.name == name:
                    case.problems.append(f"there are {count} cases of this name; rename all but one")
    return cases


def _complain_about(cases: Sequence[Case]) -> None:
    lines = [f"  {case.role} {case.name}: {problem}." for case in cases for problem in case.problems]
    if lines:
        bad = sum(bool(case.problems) for case in cases)
        head = f"{bad} of {len(cases)} cases cannot be used; nothing was written. Mend or remove:"
        raise UserError("\n".join([head, *lines]))


def _values_of(case: Case) -> list[int]:
    image = sitk.ReadImage(str(case.mask))  # a view does not keep its image alive
    return [int(v) for v in np.unique(sitk.GetArrayViewFromImage(image))]


def _labels_found(cases: Sequence[Case], processes: int) -> dict[str, int]:
    """Names for the values that the label files hold: `tumour` for one, `label_1`, `label_2`, ... for several."""
    labelled = [case for case in cases if case.role == LABELLED]
    values = sorted({v for found in _parallel(_values_of, labelled, processes, "labels") for v in found} - {0})
    if values != list(range(1, len(values) + 1)):
        found = ", ".join(map(str, values[:12]))
        raise UserError(f"The label files hold the values {found}, but nnU-Net asks for 1, 2, 3, ...; renumber them.")
    if len(values) <= 1:
        return {"tumour": 1}
    return {f"label_{value}": value for value in values}


def _check_space(raw: Path, cases: Sequence[Case], copy: bool) -> None:
    linked = [file for case in cases for file in case.images if not copy and _can_link(file, raw)]
    needed = sum(file.stat().st_size for case in cases for file in case.images) - sum(f.stat().st_size for f in linked)
    needed += 200_000 * len(cases)  # label maps
    free = shutil.disk_usage(raw).free
    if needed > free:
        raise UserError(
            f"{raw} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed; free some or change {RAW}."
        )


def _can_link(file: Path, folder: Path) -> bool:
    return file.name.endswith(ENDING) and file.stat().st_dev == folder.stat().st_dev


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes `target` when all went well, and is gone when not."""
    scratch = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(scratch, ignore_errors=True)
    for sub in ("imagesTr", "labelsTr"):
        (scratch / sub).mkdir(parents=True)
    try:
        yield scratch
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _write_case(case: Case, scratch: Path, ignore: int, channels: Sequence[str], copy: bool) -> Prepared:
    for channel, file in enumerate(case.images):
        _put(file, scratch / "imagesTr" / f"{case.name}_{channel:04d}{ENDING}", copy)
    images = [sitk.ReadImage(str(file)) for file in case.images]
    arrays = [sitk.GetArrayFromImage(image).astype(np.float32) for image in images]
    given = None if case.mask is None else sitk.GetArrayFromImage(sitk.ReadImage(str(case.mask)))
    labels, host = _label_map(case.role, arrays, given, ignore)
    written = sitk.GetImageFromArray(labels)
    written.CopyInformation(images[0])
    sitk.WriteImage(written, str(scratch / "labelsTr" / f"{case.name}{ENDING}"))
    stack, seg = np.stack(arrays), labels
    if stack.ndim == 3:  # nnU-Net reads 2D images as one slice
        stack, seg = stack[:, None], seg[None]
    cropped, seg, relative_size = crop(stack, seg)
    return Prepared(case.name, host, relative_size, recorded(cropped, seg, channels))


def _label_map(
    role: str, images: list[np.ndarray], given: np.ndarray | None, ignore: int
) -> tuple[np.ndarray, str | None]:
    """The label map of a case and how its host was found.

    Unlabelled: the ignore label everywhere but in the zeros around a stripped organ. nnU-Net takes what a label map
    marks for part of the image when it normalises; were the zeros marked, the same image would be normalised one way
    here and another way at inference.
    """
    if role == HEALTHY:
        host, how = find_host(images, given)
        return np.where(host, ignore, 0).astype(np.uint8), how
    if role == UNLABELLED:
        from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask

        return np.where(create_nonzero_mask(np.stack(images)), ignore, 0).astype(np.uint8), None
    assert given is not None
    return given.astype(np.uint8 if given.max() < 256 else np.uint16), None


def _put(file: Path, target: Path, copy: bool) -> None:
    if not file.name.endswith(ENDING):
        sitk.WriteImage(sitk.ReadImage(str(file)), str(target))
        return
    if not copy:
        try:
            os.link(file.resolve(), target)
            return
        except OSError:  # another disk, or a file system without hard links
            pass
    shutil.copyfile(file, target)


def _dataset_json(
    folders: Folders, labels: dict[str, int], cases: Sequence[Case], done: Sequence[Prepared]
) -> dict[str, Any]:
    use_mask = str(uses_mask([case.relative_size for case in done]))
    return {
        "channel_names": {str(i): name for i, name in enumerate(folders.channels)},
        "labels": labels,
        "numTraining": len(cases),
        "file_ending": ENDING,
        "name": folders.name,
        BLOCK: {
            "roles": {case.name: case.role for case in cases},
            "hosts": {case.name: case.host for case in done if case.host is not None},
            "intensities": {case.name: case.intensities[use_mask] for case in done},
        },
    }


def _parallel(work: Callable[[Item], Result], items: Sequence[Item], processes: int, what: str) -> list[Result]:
    """`work` on every item, in order, with a progress bar; in this process where one is enough."""
    bar = partial(tqdm, total=len(items), desc=what, unit="case", disable=True if len(items) < 4 else None, leave=False)
    if processes <= 1 or len(items) < 2:
        return [work(item) for item in bar(items)]
    with ProcessPoolExecutor(min(processes, len(items))) as pool:
        return list(bar(pool.map(work, items)))
