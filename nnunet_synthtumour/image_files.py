"""Image files: any format that SimpleITK knows, or a folder with the slices of one DICOM series."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from nnunet_synthtumour.atomic_files import complete
from nnunet_synthtumour.errors import UserError

VOLUMES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr", ".gipl", ".gipl.gz", ".hdr", ".img.gz", ".hdr.gz")
PICTURES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
NIFTI = (".nii", ".nii.gz")
GZIP_MAGIC = b"\x1f\x8b"
NO_HEADER = (ImageFileError, HeaderDataError, WrapStructError, ValueError)
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
    """Whether this looks like an image by its name, or is a folder that holds DICOM slices.

    A link to a file that is not there is one, too: that it cannot be read must be said.
    """
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return any(file.suffix.lower() == ".dcm" for file in path.iterdir())
    return path.name.lower().endswith(ENDINGS)


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


def read_or_refuse(path: Path) -> sitk.Image:
    """`read_image`, with a sentence that says where the file lies if it cannot be taken, or holds NaN."""
    try:
        image = read_image(path)
    except UnusableImage as error:
        raise UserError(f"{path.parent / str(error)}.") from error  # the text begins with the file's name
    if count_not_finite(path, image):
        raise UserError(f"{path} has voxels that are NaN or infinite; mend it.")
    return image


def check_complete(file: Path) -> None:
    """Raise `UnusableImage` for a NIfTI file that was cut off: ITK fills what is missing with zeros, without a word.

    What is no NIfTI file in spite of its name is left to ITK, which refuses it with a `RuntimeError`.
    """
    if not file.name.lower().endswith(NIFTI):
        return
    try:
        with _unpacked(file) as stream:
            voxels = _voxels(stream)
            if voxels is None:
                _header(file)
                return
            whole = _bytes_in(stream) >= voxels.offset + math.prod(voxels.shape) * voxels.dtype.itemsize
    except (EOFError, zlib.error, gzip.BadGzipFile):
        whole = False
    except OSError as error:
        raise UnusableImage(f"{file.name} cannot be read ({error.strerror or error}); replace it") from error
    if not whole:
        raise UnusableImage(f"{file.name} is not complete; copy it again")


def count_not_finite(file: Path, image: sitk.Image) -> int:
    """Voxels that are NaN or infinite. ITK's NIfTI reader turns NaN into 0, so another reader looks at those files."""
    values = sitk.GetArrayViewFromImage(image)
    if not np.issubdtype(values.dtype, np.floating):
        return 0
    if file.name.lower().endswith(NIFTI):
        with _unpacked(file) as stream:
            voxels = _voxels(stream)
            values = values if voxels is None else voxels.get_unscaled()
    return int(np.count_nonzero(~np.isfinite(values)))


def _unpacked(file: Path) -> io.BufferedIOBase:
    """A NIfTI file, whether it is packed or not: ITK does not go by the name."""
    with file.open("rb") as stream:
        packed = stream.read(2) == GZIP_MAGIC
    return gzip.open(file) if packed else file.open("rb")


def _voxels(stream: io.BufferedIOBase) -> Any:
    """Where the voxels lie and of what type they are; None where there is no header that nibabel understands."""
    try:
        return nibabel.Nifti1Image.from_stream(stream).dataobj
    except NO_HEADER:
        return None


def _bytes_in(stream: io.BufferedIOBase) -> int:
    """What is packed is read to the end, where gzip compares its checksum, without being held whole."""
    if not isinstance(stream, gzip.GzipFile):
        return stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return sum(len(part) for part in iter(lambda: stream.read(1 << 20), b""))


def _header(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return reader


def _read_file(file: Path) -> sitk.Image:
    check_complete(file)
    reader = _header(file)  # a long time series is refused before it is loaded
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


@contextmanager
def written(file: Path) -> Iterator[Path]:
    """`complete` for what ITK writes, with a look at what is there: ITK does not always say that a disk was full.

    Raises `UserError` where the file could not be written.
    """
    try:
        with complete(file) as scratch:
            yield scratch
            check_complete(scratch)
            if scratch.name.endswith(ENDINGS) and not scratch.name.endswith(NIFTI):
                sitk.ReadImage(str(scratch))
    except (OSError, RuntimeError, UnusableImage) as error:
        raise UserError(f"{file} cannot be written; is the disk full, or the folder not yours?") from error


def write_image(image: sitk.Image, file: Path) -> None:
    """Write a file, whole or not at all; raises `UserError` where that fails."""
    with written(file) as scratch:
        sitk.WriteImage(image, str(scratch))
        wanted = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
        if file.name.endswith(".gipl") and scratch.stat().st_size < wanted:
            raise OSError("cut off")


def write_transform(transform: sitk.Transform, file: Path) -> None:
    """Write a file, whole or not at all; raises `UserError` where that fails."""
    with written(file) as scratch:
        sitk.WriteTransform(transform, str(scratch))
        there = sitk.ReadTransform(str(scratch))
        if [there.GetParameters(), there.GetFixedParameters()] != [
            transform.GetParameters(),
            transform.GetFixedParameters(),
        ]:
            raise OSError("cut off")


def size_on_disk(path: Path) -> int:
    """Bytes of a file or of a folder of slices."""
    files = [file for file in path.iterdir() if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
