"""Which files of a folder belong to which case and channel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_synthtumour.errors import UserError

ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".img.gz", ".gipl", ".hdr")


@dataclass
class Case:
    """The files of one case. `problems` are sentences about files, for all of which a user wants to hear at once."""

    name: str
    role: str
    images: list[Path] = field(default_factory=list)
    mask: Path | None = None  # host mask of a healthy case, label map of a labelled one
    problems: list[str] = field(default_factory=list)


def stem_of(file: Path) -> str:
    """`case_1.nii.gz` -> `case_1`."""
    name = file.name
    ending = next((e for e in ENDINGS if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def is_image(file: Path) -> bool:
    return file.is_file() and not file.name.startswith(".") and file.name.lower().endswith(ENDINGS)


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted; raises `UserError` where there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a folder of images.")
    found = sorted(file for file in folder.iterdir() if is_image(file))
    if not found:
        raise UserError(f"{folder} holds no image; known endings are {', '.join(ENDINGS)}.")
    return found


def cases_of(folder: Path, role: str, channels: Sequence[str]) -> list[Case]:
    """The cases of a folder.

    One channel: `case.nii.gz` or `case_0000.nii.gz`. Several: `case_0000.nii.gz`, `case_0001.nii.gz`, ..., in the order of
    `channels`; or one sub-folder per channel, named like it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a folder of images.")
    sub_folders = {sub.name.lower(): sub for sub in folder.iterdir() if sub.is_dir()}
    if all(channel.lower() in sub_folders for channel in channels) and not any(map(is_image, folder.iterdir())):
        per_channel = [{_bare(f): f for f in images_in(sub_folders[channel.lower()])} for channel in channels]
    else:
        per_channel = _by_suffix(images_in(folder), len(channels))
    cases = []
    for name in sorted(set().union(*per_channel)):
        case = Case(name, role)
        for channel, files in zip(channels, per_channel, strict=True):
            if name in files:
                case.images.append(files[name])
            else:
                case.problems.append(f"channel {channel} is missing; add it or take the case out")
        cases.append(case)
    return cases


def _bare(file: Path) -> str:
    return re.sub(r"_\d{4}$", "", stem_of(file))


def _by_suffix(files: Sequence[Path], n: int) -> list[dict[str, Path]]:
    per_channel: list[dict[str, Path]] = [{} for _ in range(n)]
    for file in files:
        match = re.search(r"_(\d{4})$", stem_of(file))
        channel = int(match.group(1)) if match else 0
        if channel < n:
            per_channel[channel][_bare(file)] = file
        elif n == 1:  # one channel is asked for: `scan_2019` is a name, not the 2,020th channel
            per_channel[0][stem_of(file)] = file
    return per_channel


def add_masks(cases: Sequence[Case], folder: Path, what: str) -> None:
    """Give each case the file of the same name from `folder`."""
    files = {stem_of(file): file for file in images_in(folder)}
    for case in cases:
        case.mask = files.get(case.name) or files.get(f"{case.name}_0000")
        if case.mask is None:
            case.problems.append(f"{what} is missing in {folder}; add a file of that name or take the case out")
