"""The files of one case of a raw data set: its images, its label map, and what is to be known of it later."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_synthtumour.hosts import find_host
from nnunet_synthtumour.image_files import read_image, write_image
from nnunet_synthtumour.image_folders import TEST, Case
from nnunet_synthtumour.intensities import crop, recorded
from nnunet_synthtumour.settings import HEALTHY, UNLABELLED

ENDING = ".nii.gz"


@dataclass(frozen=True)
class Destination:
    """Where cases are written, and how. `ignore` is the value of the ignore label.

    `binary_truth`: all that a label file of test images marks is the one label, 1.
    """

    folder: Path
    channels: tuple[str, ...]
    ignore: int
    copy: bool
    binary_truth: bool = False


@dataclass(frozen=True)
class Written:
    """A case whose files are there: how its host was found, its size after nnU-Net's crop, its intensities."""

    name: str
    host: str | None
    relative_size: float
    intensities: dict[str, dict[str, list[float]]]


def write_case(case: Case, to: Destination) -> Written:
    """Write `imagesTr/NAME_0000.nii.gz`, ... and `labelsTr/NAME.nii.gz` below `to.folder`.

    Test images go to `imagesTs`, their labels, if there are any, to `labelsTs`, as nnU-Net users keep them.
    """
    part = "Ts" if case.role == TEST else "Tr"
    images = [read_image(file) for file in case.images]
    for channel, (file, image) in enumerate(zip(case.images, images, strict=True)):
        _put(file, image, images[0], to.folder / f"images{part}" / f"{case.name}_{channel:04d}{ENDING}", to.copy)
    if case.role == TEST and case.mask is None:
        return Written(case.name, None, 1.0, {})
    arrays = [sitk.GetArrayFromImage(image).astype(np.float32) for image in images]
    given = None if case.mask is None else sitk.GetArrayFromImage(read_image(case.mask))
    if given is not None and case.role == TEST and to.binary_truth:
        given = (given != 0).astype(np.uint8)
    labels, host = _label_map(case.role, arrays, given, to.ignore)
    written = sitk.GetImageFromArray(labels)
    written.CopyInformation(images[0])
    write_image(written, to.folder / f"labels{part}" / f"{case.name}{ENDING}")
    if case.role == TEST:
        return Written(case.name, None, 1.0, {})
    stack, seg = np.stack(arrays), labels
    if stack.ndim == 3:  # nnU-Net reads 2D images as one slice
        stack, seg = stack[:, None], seg[None]
    cropped, seg, relative_size = crop(stack, seg)
    return Written(case.name, host, relative_size, recorded(cropped, seg, to.channels))


def can_link(file: Path, folder: Path) -> bool:
    """Whether a file may become part of `folder` by a hard link, as far as one can tell without trying."""
    return file.is_file() and file.name.endswith(ENDING) and file.stat().st_dev == folder.stat().st_dev


def _put(file: Path, image: sitk.Image, first: sitk.Image, target: Path, copy: bool) -> None:
    """Link or copy a file, or write its image anew where nnU-Net could not take the file.

    nnU-Net stops at channels whose spacings differ in the sixth digit, as float32 headers of different programs do.
    """
    same = image is first or (
        np.allclose(image.GetSpacing(), first.GetSpacing())
        and np.allclose(image.GetOrigin(), first.GetOrigin())
        and np.allclose(image.GetDirection(), first.GetDirection())
    )
    if not (same and file.is_file() and file.name.endswith(ENDING)):
        image = sitk.Image(image)
        image.CopyInformation(first)
        write_image(image, target)
        return
    if not copy:
        try:
            os.link(file.resolve(), target)
            return
        except OSError:  # another disk, or a file system without hard links
            pass
    shutil.copyfile(file, target)


def _label_map(
    role: str, images: Sequence[np.ndarray], given: np.ndarray | None, ignore: int
) -> tuple[np.ndarray, str | None]:
    """The label map of a case and how its host was found.

    Unlabelled: the ignore label everywhere but in the zeros around a stripped organ. nnU-Net takes what a label map
    marks for part of the image when it normalises; were the zeros marked, the same image would be normalised one way
    here and another way at inference.
    """
    if role == HEALTHY:
        host, how = find_host(list(images), given)
        return np.where(host, ignore, 0).astype(np.uint8), how
    if role == UNLABELLED:
        from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask

        return np.where(create_nonzero_mask(np.stack(images)), ignore, 0).astype(np.uint8), None
    assert given is not None
    return given.astype(np.uint8 if given.max() < 256 else np.uint16), None
