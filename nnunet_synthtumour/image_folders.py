"""Which files of a folder belong to which case and channel."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_files import PICTURES, VOLUMES, is_image, stem_of

BESIDE_THEIR_HEADER = (".raw", ".zraw", ".img")
TEST = "test"  # a role for files only: test images are no cases of the data set, so no setting knows of them
Files = dict[str, list[Path]]  # name of a case -> its files of one channel; one is right, more are a problem


@dataclass
class Case:
    """The files of one case, and what the checks found in them.

    `problems` are sentences about files: a user wants to hear all of them at once.
    """

    name: str
    role: str
    images: list[Path] = field(default_factory=list)
    mask: Path | None = None  # host mask of a healthy case, label map of a labelled one
    problems: list[str] = field(default_factory=list)
    dimensions: int = 0
    voxels: int = 0
    size: tuple[int, ...] = ()  # (X, Y[, Z]) voxels
    spacing: tuple[float, ...] = ()  # of the same axes, mm
    label_values: tuple[int, ...] = ()


def images_in(folder: Path) -> list[Path]:
    """The images of a folder, sorted; raises `UserError` where there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a folder of images.")
    found = sorted(path for path in folder.iterdir() if is_image(path))
    if not found:
        raise UserError(
            f"{folder} holds no image; known are {', '.join(VOLUMES + PICTURES)} and folders of .dcm files."
        )
    return found


def image_data_in(folder: Path, channels: Sequence[str] = ()) -> list[Path]:
    """Every file that the images of a folder are read from, as `cases_of` finds them, sorted; not what else lies there.

    Of a folder of DICOM slices its files, of a file itself.
    """
    if not folder.is_dir():
        return [folder]
    if is_image(folder):
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    folders = [folder]
    if not any(map(is_image, folder.iterdir())):
        sub_folders = _sub_folders(folder)
        folders = [sub_folders[name] for name in map(str.lower, channels) if name in sub_folders]
    there = [path for each in folders for path in each.iterdir() if not path.name.startswith(".")]
    return sorted(
        file
        for path in there
        if is_image(path) or (path.is_file() and path.suffix.lower() in BESIDE_THEIR_HEADER)
        for file in image_data_in(path)
    )


def cases_of(folder: Path, role: str, channels: Sequence[str]) -> list[Case]:
    """The cases of a folder.

    One channel: `case.nii.gz` or `case_0000.nii.gz`. Several: `case_0000.nii.gz`, `case_0001.nii.gz`, ..., in the order of
    `channels`; or one sub-folder per channel, named like it. A folder of DICOM slices counts as a file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a folder of images.")
    surplus: dict[str, str] = {}
    if any(map(is_image, folder.iterdir())):
        files = images_in(folder)
        per_channel, surplus = _one_channel(files) if len(channels) == 1 else _by_suffix(files, len(channels))
    else:
        per_channel = _by_sub_folder(folder, channels)
    cases = []
    for name in sorted(set(surplus).union(*per_channel)):
        case = Case(name, role, problems=[surplus[name]] if name in surplus else [])
        for channel, of_channel in zip(channels, per_channel, strict=True):
            file = _only(case, of_channel.get(name, []), f"channel {channel}", "; add it or take the case out")
            if file is not None:
                case.images.append(file)
        cases.append(case)
    return cases


def _sub_folders(folder: Path) -> dict[str, Path]:
    return {sub.name.lower(): sub for sub in folder.iterdir() if sub.is_dir()}


def _by_sub_folder(folder: Path, channels: Sequence[str]) -> list[Files]:
    sub_folders = _sub_folders(folder)
    absent = [channel for channel in channels if channel.lower() not in sub_folders]
    if len(absent) == len(channels):
        images_in(folder)  # raises, for there is none
    if absent:
        raise UserError(f"{folder} has no sub-folder {absent[0]}, but one per --channel is needed.")
    found = [images_in(sub_folders[channel.lower()]) for channel in channels]
    stems = [{stem_of(file) for file in files} for files in found]
    # `patient_0001` in every sub-folder is a name; `patient_0000` in the first and `patient_0001` in the second are channels
    shared = set.intersection(*stems)
    if all(stem.endswith("_0000") for stem in set.union(*stems)):
        shared = set()
    per_channel = []
    for number, files in enumerate(found):
        by_name: Files = defaultdict(list)
        for file in files:
            stem = stem_of(file)
            ending = "_0000$" if shared else f"_(0000|{number:04d})$"
            by_name[stem if stem in shared else re.sub(ending, "", stem)].append(file)
        per_channel.append(by_name)
    return per_channel


def _one_channel(files: Sequence[Path]) -> tuple[list[Files], dict[str, str]]:
    """Four digits at the end of a name are a channel only if they are 0000: `scan_2019` is a name."""
    found: Files = defaultdict(list)
    for file in files:
        found[re.sub("_0000$", "", stem_of(file))].append(file)
    surplus = {}
    for name in list(found):
        second = found.get(f"{name}_0001")
        if second and stem_of(found[name][0]) == f"{name}_0000":
            surplus[name] = (
                f"{second[0].name} may be its second channel or another case; name all channels with --channel, or "
                f"rename {found[name][0].name}"
            )
    return [found], surplus


def _by_suffix(files: Sequence[Path], n: int) -> tuple[list[Files], dict[str, str]]:
    per_channel: list[Files] = [defaultdict(list) for _ in range(n)]
    surplus = {}
    for file in files:
        stem = stem_of(file)
        match = re.fullmatch(r"(.+)_(\d{4})", stem)
        if match is None:
            surplus[stem] = f"{file.name} does not say which channel it is; name it {stem}_0000 to {stem}_{n - 1:04d}"
        elif int(match[2]) >= n:
            surplus[match[1]] = f"{file.name} is channel {int(match[2]) + 1}, but {n} are named with --channel"
        else:
            per_channel[int(match[2])][match[1]].append(file)
    return per_channel, surplus


def add_masks(cases: Sequence[Case], folder: Path, what: str) -> None:
    """Give each case the file of the same name from `folder`."""
    files: Files = defaultdict(list)
    for file in images_in(folder):
        files[stem_of(file)].append(file)
    for case in cases:
        found = files.get(case.name) or files.get(f"{case.name}_0000") or []
        mask = _only(case, found, what, f" in {folder}; add a file of that name or take the case out")
        if mask is not None:
            case.mask = mask


def _only(case: Case, found: Sequence[Path], what: str, if_missing: str) -> Path | None:
    """The one file that was found; where there is none or there are several, that is a problem of the case."""
    if len(found) == 1:
        return found[0]
    names = " and ".join(file.name for file in found)
    case.problems.append(
        f"{what} has {len(found)} files, {names}; keep one" if found else f"{what} is missing{if_missing}"
    )
    return None
