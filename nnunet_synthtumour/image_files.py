"""Image files: any format that SimpleITK knows, or a folder with the slices of one DICOM series."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from nnunet_synthtumour.errors import UserError

VOLUMES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".gipl", ".gipl.gz", ".hdr", ".img.gz", ".hdr.gz")
PICTURES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
NIFTI = (".nii", ".nii.gz")
GZIP_MAGIC = b"\x1f\x8b"
ENDINGS = tuple(sorted(VOLUMES + PICTURES, key=len, reverse=True))  # .nii.gz is tried before a shorter ending


class UnusableImage(UserError):
    """An image that cannot be taken as it is; the text names the file, says why and what to do."""


def stem_of(path: Path) -> str:
    """`case_1.nii.gz` -> `case_1`; a folder of DICOM slices has its name."""
    if path.is_dir():
        return path.name
    ending = next((e for e in ENDINGS if path.name.lower().endswith(e)), "")
    return path.name[: len(path.name) - len(ending)]


def is_image(path: Path) -> bool:
    """Whether this looks like an image by its name, or is a folder that holds DICOM slices."""
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return any(file.suffix.lower() == ".dcm" for file in path.iterdir())
    return path.is_file() and path.name.lower().endswith(ENDINGS)


def read_image(path: Path) -> sitk.Image:
    """The image, 2D or 3D, one value per voxel; raises `UnusableImage` for anything else."""
    try:
        return _read_series(path) if path.is_dir() else _read_file(path)
    except RuntimeError as error:
        if "orthonormal" in str(error):
            why = "has axes that are not at right angles, which ITK and nnU-Net do not take; resample it"
        else:
            why = "cannot be read; make sure that it is there, and complete"
        raise UnusableImage(f"{path.name} {why}") from error


def check_complete(file: Path) -> None:
    """Raise `UnusableImage` for a NIfTI file that was cut off: ITK fills what is missing with zeros, without a word."""
    if not file.name.lower().endswith(NIFTI):
        return
    try:
        voxels = nibabel.load(file).dataobj  # type: ignore[attr-defined]
        wanted = voxels.offset + int(np.prod(voxels.shape)) * voxels.dtype.itemsize
        cut_off = _bytes_in(file) < wanted
    except (EOFError, OSError, zlib.error):
        cut_off = True
    except nibabel.filebasedimages.ImageFileError:  # no header, or not packed as its name says, which ITK does not mind
        with file.open("rb") as stream:
            cut_off = stream.read(2) == GZIP_MAGIC
    if cut_off:
        raise UnusableImage(f"{file.name} is not complete; copy it again")


def _bytes_in(file: Path) -> int:
    if not file.name.lower().endswith(".gz"):
        return file.stat().st_size
    with gzip.open(file) as stream:
        return sum(len(part) for part in iter(lambda: stream.read(1 << 20), b""))


def count_not_finite(file: Path, image: sitk.Image) -> int:
    """Voxels that are NaN or infinite. ITK's NIfTI reader turns NaN into 0, so another reader looks at those files."""
    values = sitk.GetArrayViewFromImage(image)
    if not np.issubdtype(values.dtype, np.floating):
        return 0
    if file.name.lower().endswith(NIFTI):
        with contextlib.suppress(nibabel.filebasedimages.ImageFileError):
            values = np.asanyarray(nibabel.load(file).dataobj)  # type: ignore[attr-defined]
    return int(np.count_nonzero(~np.isfinite(values)))


def _read_file(file: Path) -> sitk.Image:
    check_complete(file)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()  # a long time series is refused before it is loaded
    size = reader.GetSize()
    if any(n > 1 for n in size[3:]):
        raise UnusableImage(f"{file.name} has {len(size)} dimensions; split it into 3D images")
    if reader.GetNumberOfComponents() > 1:
        raise UnusableImage(
            f"{file.name} has {reader.GetNumberOfComponents()} values per voxel; split it into channels"
        )
    image = reader.Execute()
    return sitk.Extract(image, [*size[:3], *[0] * (len(size) - 3)]) if len(size) > 3 else image


def _read_series(folder: Path) -> sitk.Image:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)) if any(folder.iterdir()) else ()
    if not series:
        raise UnusableImage(
            f"{folder.name} is a folder without DICOM images; give an image, or the folder of one DICOM series"
        )
    if len(series) > 1:
        raise UnusableImage(f"{folder.name} holds {len(series)} DICOM series; make one folder for each")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    return reader.Execute()


def write_image(image: sitk.Image, file: Path) -> None:
    """Write a file; raises `UserError` where that fails."""
    try:
        sitk.WriteImage(image, str(file))
    except RuntimeError as error:
        raise UserError(f"{file} cannot be written; is the disk full, or the folder not yours?") from error


def size_on_disk(path: Path) -> int:
    """Bytes of a file or of a folder of slices."""
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
