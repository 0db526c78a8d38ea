"""Synthetic lesions in whole images, written to files: the offline baseline, and a way to make challenge data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_synthtumour.atomic_files import alone_in, forget_unfinished, is_empty, read_json, write_json
from nnunet_synthtumour.case_pool import CasePool
from nnunet_synthtumour.drawing import LesionParameters
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.hosts import find_host
from nnunet_synthtumour.image_checks import check_case, complain
from nnunet_synthtumour.image_files import read_image, write_image
from nnunet_synthtumour.image_folders import Case
from nnunet_synthtumour.intensities import crop, recorded, uses_mask
from nnunet_synthtumour.lesion_model import load_model
from nnunet_synthtumour.schema import to_json
from nnunet_synthtumour.settings import HEALTHY
from nnunet_synthtumour.stages import fingerprint
from nnunet_synthtumour.synthesis import GrowLesion, grow_in_volume
from nnunet_synthtumour.volumes import measure_of

IGNORE = 9999


@dataclass(frozen=True)
class Growth:
    """What to grow, in what. `images` holds one tuple of files (the channels) per case."""

    images: tuple[tuple[Path, ...], ...]
    channels: tuple[str, ...]
    out: Path
    number: int
    seed: int = 0
    preset: str = "glioma"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    hosts: tuple[Path | None, ...] = ()
    sub_regions: bool = False

    def model_overrides(self) -> dict[str, Any]:
        """Files keep what they show: distractors belong to training, unless asked for."""
        return {"distractors": {"probability": 0.0}, **self.overrides}


def grow_files(growth: Growth, processes: int = 1) -> list[str]:
    """Write `number` cases to `out/imagesTr` and `out/labelsTr`, parameters to `out/parameters`; finished ones are kept.

    Case k grows in image k mod N with seed (seed, k): adding cases later leaves those that are there as they are.
    """
    # a wrong preset is said before anything is written
    load_model(growth.preset, growth.model_overrides(), growth.channels)
    hosts = growth.hosts or (None,) * len(growth.images)
    check_images(list(zip(growth.images, hosts, strict=True)))
    _check_same_run(growth)  # nothing, not even a lock, is put into a folder that is not ours
    with alone_in(growth.out):
        write_json(_check_same_run(growth), growth.out / "grow.json")  # another run may have come first
        forget_unfinished(growth.out)
        with CasePool(processes) as pool:
            names = pool.map(partial(_grow_one, growth), range(growth.number), "growing")
        # what an earlier run with a larger number left is part of the data set too
        _write_dataset_json(growth, len(list((growth.out / "labelsTr").glob("*.nii.gz"))))
    return names


def _check_same_run(growth: Growth) -> dict[str, Any]:
    """What identifies a run. Mixing the cases of two in one folder is a mistake that nobody would see later."""
    hosts = [host for host in growth.hosts if host is not None]
    block = {
        "images": [[str(f.resolve()) for f in files] for files in growth.images],
        "preset": to_json(load_model(growth.preset, growth.model_overrides())),
        "seed": growth.seed,
        "channels": list(growth.channels),
        "hosts": [None if host is None else str(host.resolve()) for host in growth.hosts],
        "sub_regions": growth.sub_regions,
        "fingerprints": {str(f.resolve()): fingerprint(f) for f in chain(*growth.images, hosts)},
    }
    if not is_empty(growth.out):
        present = read_json(growth.out / "grow.json")
        if not isinstance(present, dict):
            raise UserError(f"{growth.out} is not empty and was not made by 'synthtumour grow'; choose another folder.")
        if "fingerprints" not in present:
            raise UserError(
                f"{growth.out} holds cases of another version of this package; choose another folder or remove it."
            )
        if present != block:
            raise UserError(
                f"{growth.out} holds cases grown with other options, or in images that have changed since; "
                "choose another folder or remove it."
            )
    return block


def _grow_one(growth: Growth, k: int) -> str:
    which = k % len(growth.images)
    name = f"case_{k:04d}"
    parameters = growth.out / "parameters" / f"{name}.json"
    if read_json(parameters) is not None:  # written last
        return name
    images, host, _, arbitrary = load_raw(
        growth.images[which], growth.channels, growth.hosts[which] if growth.hosts else None
    )
    spacing = images[0].GetSpacing()[::-1]
    raw = np.stack([sitk.GetArrayFromImage(image).astype(np.float32) for image in images])
    labels = {"whole": 1, "core": 2, "necrosis": 3} if growth.sub_regions else {"whole": 1}
    transform = GrowLesion(
        load_model(growth.preset, growth.model_overrides()), labels, spacing, IGNORE, growth.channels
    )
    np.random.seed(np.random.SeedSequence([growth.seed, k]).generate_state(1)[0])
    # The formulas are homogeneous: raw images are normalised ones with mean 0 and deviation 1, and the result is raw.
    of_raw = np.where(arbitrary, np.nan, 0.0), np.ones(len(raw))
    grown, label, drawn = grow_in_volume(transform, raw, np.where(host, IGNORE, 0)[None], of_raw)
    for channel, (image, array) in enumerate(zip(images, grown, strict=True)):
        _write_like(image, array, growth.out / "imagesTr" / f"{name}_{channel:04d}.nii.gz", image.GetPixelID())
    _write_like(images[0], label[0].astype(np.uint8), growth.out / "labelsTr" / f"{name}.nii.gz", sitk.sitkUInt8)
    measure = measure_of(label.shape[1:])
    about = {"image": [str(f) for f in growth.images[which]], "lesions": to_json(drawn),
             measure.key: measure.of((label > 0).sum(), spacing)}  # fmt: skip
    write_json(about, parameters)
    return name


def check_images(cases: Sequence[tuple[Sequence[Path], Path | None]]) -> None:
    """Raise `UserError` with all that is wrong with these (channels, host mask)."""
    for file in (file for files, host in cases for file in (*files, *([host] if host else []))):
        if not file.exists():
            raise UserError(f"There is no file {file}.")
    complain([check_case(Case(files[0].name, HEALTHY, list(files), host)) for files, host in cases])


def load_raw(
    files: Sequence[Path], channels: Sequence[str], host_file: Path | None
) -> tuple[list[sitk.Image], np.ndarray, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The images of one case, its host (Z, Y, X), the (mean, std) that nnU-Net's normalisation would use, and in which
    channels the raw zero is arbitrary (C,)."""
    images = [read_image(file) for file in files]
    arrays = [sitk.GetArrayFromImage(image).astype(np.float32) for image in images]
    mask = None if host_file is None else sitk.GetArrayFromImage(read_image(host_file))
    host, _ = find_host(arrays, mask)
    stack, seg = np.stack(arrays), host.astype(np.int16)
    if stack.ndim == 3:
        stack, seg = stack[:, None], seg[None]
    cropped, seg, relative = crop(stack, seg)
    maps = recorded(cropped, seg, channels)[str(uses_mask([relative]))]
    arbitrary = np.isin(np.arange(len(images)), maps.get("arbitrary_zero", []))
    return images, host, (np.array(maps["mean"]), np.array(maps["std"])), arbitrary


def _write_like(like: sitk.Image, array: np.ndarray, file: Path, pixel_type: int) -> None:
    if pixel_type not in (sitk.sitkFloat32, sitk.sitkFloat64):
        limits = np.iinfo(sitk.GetArrayViewFromImage(sitk.Image([1] * like.GetDimension(), pixel_type)).dtype)
        array = np.clip(np.round(array), limits.min, limits.max)
    image = sitk.Cast(sitk.GetImageFromArray(array.astype(np.float64)), pixel_type)
    image.CopyInformation(like)
    write_image(image, file)


def _write_dataset_json(growth: Growth, n: int) -> None:
    names = {"oedema": 1, "core": 2, "necrosis": 3} if growth.sub_regions else {"tumour": 1}
    block = {
        "channel_names": {str(i): c for i, c in enumerate(growth.channels)},
        "labels": {"background": 0, **names},
        "numTraining": n,
        "file_ending": ".nii.gz",
    }
    write_json(block, growth.out / "dataset.json")


__all__ = ["Growth", "LesionParameters", "check_images", "grow_files", "load_raw"]
