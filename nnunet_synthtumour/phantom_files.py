"""The phantom data set on disk: roles in folders, the truth apart from what a trainer may see, a manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_synthtumour.atomic_files import alone_in, forget_unfinished, is_empty, read_json, write_json
from nnunet_synthtumour.case_pool import CasePool
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_files import write_image
from nnunet_synthtumour.phantom import Subject, make_subject

MANIFEST = "phantom.json"
GENERATION = 2  # raised whenever the same seed gives other images, so that no folder mixes two generations


@dataclass(frozen=True)
class PhantomSet:
    """How many cases of which kind. Every case has a seed of its own, so sets of other sizes share their cases."""

    healthy: int = 12
    unlabelled: int = 6
    test: int = 6
    spacing: float = 2.4
    seed: int = 0
    second: str = "none"
    visibility: float = 1.0


def write_phantoms(out: Path, wanted: PhantomSet, processes: int = 2) -> Path:
    """Write the set to `out`; what is there of the same set is kept. Raises `UserError` if something else is there."""
    manifest = out / MANIFEST
    block = asdict(wanted)
    _check_same_set(out, block)  # nothing, not even a lock, is put into a folder that is not ours
    with alone_in(out):
        _check_same_set(out, block)  # another run may have come first
        if not manifest.exists():
            write_json({"generation": GENERATION, "set": block}, manifest)
        forget_unfinished(out)
        undeformed = out / "truth" / "undeformed_anatomy.nii.gz"
        if not undeformed.exists():
            _write(make_subject(0, wanted.spacing, deformation=0.0).anatomy, undeformed, wanted.spacing)
        jobs = [(role, i) for role in ("healthy", "unlabelled", "test") for i in range(getattr(wanted, role))]
        with CasePool(processes) as pool:
            cases = pool.map(_write_case, [(out, wanted, role, i) for role, i in jobs], "phantoms")
        write_json({"generation": GENERATION, "set": block, "cases": dict(cases)}, manifest)
    return manifest


def _check_same_set(out: Path, block: dict[str, Any]) -> None:
    if is_empty(out):
        return
    present = read_json(out / MANIFEST)
    if present is None:
        raise UserError(f"{out} is not empty and holds no phantoms; choose another folder.")
    if present.get("generation") != GENERATION:
        raise UserError(f"{out} holds phantoms of another version of this package; choose another folder or remove it.")
    if present.get("set") != block:
        raise UserError(f"{out} holds phantoms made with other options; choose another folder or remove it.")


def _write_case(arguments: tuple[Path, PhantomSet, str, int]) -> tuple[str, dict[str, Any]]:
    out, wanted, role, i = arguments
    name = f"{role}_{i:03d}"
    # Roles are far apart, so that enlarging one never turns its cases into those of another.
    number = wanted.seed * 1_000_000 + {"healthy": 0, "unlabelled": 100_000, "test": 200_000}[role] + i
    note = out / "cases" / f"{name}.json"
    about: dict[str, Any] | None = read_json(note)
    if about is not None:
        return name, about
    subject = make_subject(number, wanted.spacing, role != "healthy", wanted.second, wanted.visibility)
    whole = (subject.regions > 0).astype(np.uint8)
    # nnUNetv2_predict reads the folder of test images as it is, and wants channel numbers there.
    suffix = "_0000" if role == "test" else ""
    _write(subject.images["flair"], out / role / f"{name}{suffix}.nii.gz", subject.spacing)
    if wanted.second != "none":
        _write(subject.images[wanted.second], out / wanted.second / role / f"{name}{suffix}.nii.gz", subject.spacing)
    if role == "test":
        _write(whole, out / "test_labels" / f"{name}.nii.gz", subject.spacing)
    if role == "unlabelled":
        _write(whole, out / "truth" / "unlabelled" / f"{name}.nii.gz", subject.spacing)
    if role != "healthy":
        _write(subject.regions, out / "truth" / "regions" / f"{name}.nii.gz", subject.spacing)
    _write(subject.anatomy, out / "truth" / "anatomy" / f"{name}.nii.gz", subject.spacing)
    _write_displacement(subject, out / "truth" / "displacement" / f"{name}.nii.gz")
    about = {"role": role, "seed": number, "scanner": subject.scanner, "tumour_ml": round(subject.tumour_ml, 2)}
    write_json(about, note)
    return name, about


def _write(array: np.ndarray, file: Path, spacing: float) -> None:
    """(X, Y, Z) with x to the left and y to the front, as an image in ITK's coordinates (left, posterior, superior)."""
    _save(sitk.GetImageFromArray(np.ascontiguousarray(array[:, ::-1].transpose(2, 1, 0))), array.shape, file, spacing)


def _write_displacement(subject: Subject, file: Path) -> None:
    """A field of vectors in mm, as `SimpleITK.DisplacementFieldTransform` takes it: subject point -> undeformed point."""
    millimetres = subject.displacement * subject.spacing * np.array([1, -1, 1], np.float32).reshape(3, 1, 1, 1)
    vectors = np.ascontiguousarray(millimetres[:, :, ::-1].transpose(3, 2, 1, 0), dtype=np.float32)
    _save(sitk.GetImageFromArray(vectors, isVector=True), subject.anatomy.shape, file, subject.spacing)


def _save(image: sitk.Image, shape: tuple[int, ...], file: Path, spacing: float) -> None:
    image.SetSpacing((spacing,) * 3)
    image.SetOrigin(tuple(-(n - 1) / 2 * spacing for n in shape))
    write_image(image, file)
