from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_files import (
    PICTURES,
    UnusableImage,
    check_complete,
    count_not_finite,
    read_image,
    size_on_disk,
    stem_of,
    write_image,
    write_transform,
)
from tests.commands.failing_writes import at_most


def _dicom(folder: Path, volume: np.ndarray, series: str) -> None:
    folder.mkdir(exist_ok=True)
    for k, pixels in enumerate(volume):
        image = sitk.GetImageFromArray(pixels[None])
        for tag, value in {
            "0008|0060": "MR",
            "0020|000e": series,
            "0020|000d": "1.2.3",
            "0020|0013": str(k),
            "0020|0032": f"0\\0\\{k * 2.5}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{series}_{9 - k}.dcm"))
        writer.Execute(image)


def test_a_dicom_series_is_one_image_and_two_are_a_mistake(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 500, (4, 6, 5)).astype(np.int16)
    _dicom(tmp_path / "case.1", volume, "1.2.3.4")
    image = read_image(tmp_path / "case.1")
    assert np.array_equal(sitk.GetArrayFromImage(image), volume)
    assert image.GetSpacing()[2] == pytest.approx(2.5)
    assert stem_of(tmp_path / "case.1") == "case.1"
    assert size_on_disk(tmp_path / "case.1") > volume.nbytes
    _dicom(tmp_path / "case.1", volume, "1.2.3.5")
    with pytest.raises(UnusableImage, match="holds 2 DICOM series"):
        read_image(tmp_path / "case.1")


def test_a_fourth_axis_of_one_is_dropped_and_a_longer_one_refused(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(sitk.JoinSeries([image]), str(tmp_path / "one.mha"))
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(tmp_path / "two.mha"))
    one = read_image(tmp_path / "one.mha")
    assert one.GetSpacing() == (1.0, 2.0, 3.0)
    assert np.array_equal(sitk.GetArrayFromImage(one), volume)
    with pytest.raises(UnusableImage, match=r"two\.mha has 4 dimensions"):
        read_image(tmp_path / "two.mha")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_a_nifti_file_that_was_cut_off_is_no_image(tmp_path: Path, ending: str, kind: type) -> None:
    file = tmp_path / f"case{ending}"
    volume = np.random.default_rng(0).integers(0, 500, (9, 8, 7)).astype(kind)
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(file))
    assert np.array_equal(sitk.GetArrayFromImage(read_image(file)), volume)
    whole = file.read_bytes()
    for share in (0.999, 0.7, 0.2):
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UnusableImage, match="complete"):
            read_image(file)


def test_an_image_that_is_not_packed_as_its_name_says_is_read(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).normal(size=(5, 4, 6)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / "case.nii"))
    (tmp_path / "case.nii").rename(tmp_path / "case.nii.gz")
    image = read_image(tmp_path / "case.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(image), volume)
    assert count_not_finite(tmp_path / "case.nii.gz", image) == 0
    volume[0] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / "nan.nii"))
    (tmp_path / "nan.nii").rename(tmp_path / "nan.nii.gz")
    assert count_not_finite(tmp_path / "nan.nii.gz", read_image(tmp_path / "nan.nii.gz")) == volume[0].size
    whole = (tmp_path / "case.nii.gz").read_bytes()
    (tmp_path / "case.nii.gz").write_bytes(whole[:-9])
    with pytest.raises(UnusableImage, match="not complete"):
        read_image(tmp_path / "case.nii.gz")


@pytest.mark.parametrize(("at", "value"), [(70, 999), (40, -3), (40, 9)])
def test_a_damaged_header_is_no_defect_of_ours(tmp_path: Path, at: int, value: int) -> None:
    file = tmp_path / "case.nii.gz"
    sitk.WriteImage(sitk.Image(5, 4, 3, sitk.sitkFloat32), str(file))
    header = bytearray(gzip.decompress(file.read_bytes()))
    header[at : at + 2] = value.to_bytes(2, "little", signed=True)  # the type of the voxels, the number of axes
    file.write_bytes(gzip.compress(bytes(header)))
    with pytest.raises(UnusableImage, match=r"case\.nii\.gz cannot be read"):
        read_image(file)


def test_a_packed_file_is_not_held_whole_to_be_checked(tmp_path: Path) -> None:
    file = tmp_path / "case.nii.gz"
    sitk.WriteImage(sitk.Image(300, 300, 300, sitk.sitkUInt8), str(file))
    tracemalloc.start()
    check_complete(file)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 300**3 / 3


def test_what_cannot_be_read_or_written_says_why(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image([3, 3], sitk.sitkVectorUInt8, 3), str(tmp_path / "rgb.png"))
    with pytest.raises(UnusableImage, match=r"rgb\.png has 3 values per voxel"):
        read_image(tmp_path / "rgb.png")
    sheared = np.array([[3, 0.3, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.float32), sheared), tmp_path / "sheared.nii.gz")
    with pytest.raises(UnusableImage, match="not at right angles"):
        read_image(tmp_path / "sheared.nii.gz")
    (tmp_path / "text.nii.gz").write_text("no image", encoding="utf-8")
    with pytest.raises(UnusableImage, match=r"text\.nii\.gz cannot be read"):
        read_image(tmp_path / "text.nii.gz")
    with pytest.raises(UserError, match=r"text\.nii\.gz/x\.nii\.gz cannot be written"):
        write_image(sitk.Image(3, 3, 3, sitk.sitkUInt8), tmp_path / "text.nii.gz" / "x.nii.gz")
    with pytest.raises(UserError, match="cannot be written"):
        write_transform(sitk.Transform(3, sitk.sitkIdentity), tmp_path / "text.nii.gz" / "x.tfm")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".gipl", ".png", ".tif"])
@pytest.mark.parametrize("size", [0, 400, 9000])
def test_a_disk_that_fills_up_leaves_no_part_of_an_image(tmp_path: Path, ending: str, size: int) -> None:
    noise = np.random.default_rng(0).integers(0, 60000, (24, 40, 40)).astype(np.uint16)
    image = sitk.GetImageFromArray(noise if ending not in PICTURES else noise.reshape(240, 160))
    file = tmp_path / f"case{ending}"
    with at_most(size), pytest.raises(UserError, match=r"case\.\w+(\.gz)? cannot be written; is the disk full"):
        write_image(image, file)
    assert not list(tmp_path.iterdir())
    write_image(image, file)
    with at_most(size), pytest.raises(UserError, match="cannot be written"):
        write_image(image, file)
    assert np.array_equal(sitk.GetArrayFromImage(read_image(file)), sitk.GetArrayFromImage(image)), "the older file"


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".gipl", ".png", ".tif"])
@pytest.mark.parametrize("size", [0, 60])
def test_what_fits_into_one_block_may_be_cut_off_too(tmp_path: Path, ending: str, size: int) -> None:
    image = sitk.Image([20, 20, 20][: 2 if ending in PICTURES else 3], sitk.sitkUInt8)
    with at_most(size), pytest.raises(UserError, match="cannot be written"):
        write_image(image, tmp_path / f"case{ending}")
    assert not list(tmp_path.iterdir())


def test_a_field_of_vectors_and_a_2d_image_count_as_written(tmp_path: Path) -> None:
    field = np.random.default_rng(0).normal(size=(5, 4, 6, 3)).astype(np.float32)
    write_image(sitk.GetImageFromArray(field, isVector=True), tmp_path / "field.nii.gz")
    write_image(sitk.GetImageFromArray(field[0, :, :, 0]), tmp_path / "slice.nii.gz")
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "field.nii.gz"))), field)
    assert np.array_equal(sitk.GetArrayFromImage(read_image(tmp_path / "slice.nii.gz")), field[0, :, :, 0])


@pytest.mark.parametrize("size", [0, 30, 100, 150])
def test_a_disk_that_fills_up_leaves_no_part_of_a_transform(tmp_path: Path, size: int) -> None:
    transform = sitk.AffineTransform(3)
    transform.SetTranslation((1 / 3, 2.5, 3.123456789))
    with at_most(size), pytest.raises(UserError, match="cannot be written"):
        write_transform(transform, tmp_path / "case.tfm")
    assert not list(tmp_path.iterdir())
    write_transform(transform, tmp_path / "case.tfm")
    assert sitk.ReadTransform(str(tmp_path / "case.tfm")).GetParameters() == transform.GetParameters()


def test_a_folder_without_images_is_no_series(tmp_path: Path) -> None:
    with pytest.raises(UnusableImage, match="without DICOM images"):
        read_image(tmp_path)
    (tmp_path / "notes.txt").write_text("no image", encoding="utf-8")
    with pytest.raises(UnusableImage, match="without DICOM images"):
        read_image(tmp_path)
