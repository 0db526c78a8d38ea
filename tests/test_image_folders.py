from pathlib import Path

import pytest

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_checks import check_case
from nnunet_synthtumour.image_folders import Case, add_masks, cases_of, image_data_in


def _found(folder: Path, *channels: str) -> dict[str, list[str]]:
    """Case -> its files, or its problems where it has any."""
    return {c.name: c.problems or [f.name for f in c.images] for c in cases_of(folder, "healthy", channels)}


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_one_channel_with_and_without_its_suffix(tmp_path: Path) -> None:
    folder = _touch(
        tmp_path, "a_0000.nii.gz", "b.mha", "scan_2019.nii.gz", "scan_2020.nii.gz", ".hidden.nii", "notes.txt"
    )
    assert _found(folder, "FLAIR") == {
        "a": ["a_0000.nii.gz"],
        "b": ["b.mha"],
        "scan_2019": ["scan_2019.nii.gz"],
        "scan_2020": ["scan_2020.nii.gz"],
    }


def test_the_files_that_images_are_read_from(tmp_path: Path) -> None:
    read = ["a_0000.nii.gz", "b.mhd", "b.raw", "scan/1.dcm", "scan/slice"]
    other = [".DS_Store", "notes.txt", "t1/c.nii", "scan/more/c.png", "run/predictions/a.nii.gz"]
    _touch(tmp_path / "flat", *read, *other)
    assert image_data_in(tmp_path / "flat", ["T1"]) == sorted(tmp_path / "flat" / name for name in read)
    assert image_data_in(tmp_path / "flat" / "scan") == [
        tmp_path / "flat" / "scan" / name for name in ("1.dcm", "slice")
    ]
    read = ["t1/a.nii", "t1/scan/1.dcm", "FLAIR/a.mhd", "FLAIR/a.zraw"]
    other = ["t1/.c.nii", "t1/run/c.png", "more/notes.csv", "run/a.nii.gz"]
    _touch(tmp_path / "channels", *read, *other)
    found = image_data_in(tmp_path / "channels", ["FLAIR", "T1"])
    assert found == sorted(tmp_path / "channels" / name for name in read)


def test_a_link_to_nothing_is_a_case_whose_image_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (case,) = cases_of(tmp_path, "healthy", ["FLAIR"])
    assert "a.nii.gz cannot be read" in check_case(case).problems[0]


def test_several_channels(tmp_path: Path) -> None:
    suffixes = _touch(tmp_path / "a", "x_0000.nii.gz", "x_0001.nii.gz")
    folders = _touch(tmp_path / "b", "FLAIR/x.nii.gz", "t1/x_0001.nii.gz")
    assert _found(suffixes, "FLAIR", "T1") == {"x": ["x_0000.nii.gz", "x_0001.nii.gz"]}
    assert _found(folders, "FLAIR", "T1") == {"x": ["x.nii.gz", "x_0001.nii.gz"]}


def test_patients_with_numbers_for_names_in_sub_folders(tmp_path: Path) -> None:
    named = [f"{channel}/patient_{i:04d}.nii.gz" for channel in ("FLAIR", "T1") for i in (1, 2, 3)]
    found = _found(_touch(tmp_path / "a", *named), "FLAIR", "T1")
    assert found == {f"patient_{i:04d}": [f"patient_{i:04d}.nii.gz"] * 2 for i in (1, 2, 3)}
    zero = [f"{channel}/p_{i:04d}.nii.gz" for channel in ("FLAIR", "T1") for i in (0, 1)]
    found = _found(_touch(tmp_path / "c", *zero), "FLAIR", "T1")
    assert found == {f"p_{i:04d}": [f"p_{i:04d}.nii.gz"] * 2 for i in (0, 1)}
    same = _touch(tmp_path / "b", "FLAIR/x_0000.nii.gz", "T1/x_0000.nii.gz")
    assert _found(same, "FLAIR", "T1") == {"x": ["x_0000.nii.gz", "x_0000.nii.gz"]}


def test_a_folder_of_dicom_slices_is_a_file(tmp_path: Path) -> None:
    folder = _touch(tmp_path, "a/1.dcm", "a/2.DCM", "b/1.dcm")
    assert _found(folder, "CT") == {"a": ["a"], "b": ["b"]}


@pytest.mark.parametrize(
    ("files", "channels", "case", "said"),
    [
        (["a.nii.gz", "a_0000.nii.gz"], ["F"], "a", "channel F has 2 files, a.nii.gz and a_0000.nii.gz; keep one"),
        (["a_0000.mha", "a_0001.mha"], ["F"], "a", "a_0001.mha may be its second channel or another case"),
        (["a_0000.mha", "a_0001.mha", "a_0002.mha"], ["F", "G"], "a", "a_0002.mha is channel 3, but 2 are named"),
        (["a.mha"], ["F", "G"], "a", "name it a_0000 to a_0001"),
        (["a_0001.mha"], ["F", "G"], "a", "channel F is missing"),
    ],
)
def test_no_file_is_passed_over_in_silence(
    files: list[str], channels: list[str], case: str, said: str, tmp_path: Path
) -> None:
    assert said in _found(_touch(tmp_path, *files), *channels)[case][0]


def test_folders_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sub-folder T1"):
        _found(_touch(tmp_path / "a", "FLAIR/x.nii.gz"), "FLAIR", "T1")
    with pytest.raises(UserError, match="holds no image"):
        _found(_touch(tmp_path / "b", "FLAIR/readme.txt"), "FLAIR")
    with pytest.raises(UserError, match="is not a folder"):
        _found(tmp_path / "c", "FLAIR")


def test_masks_are_matched_by_name(tmp_path: Path) -> None:
    cases = [Case(name, "healthy") for name in ("a", "b", "c", "d")]
    add_masks(cases, _touch(tmp_path, "a.nrrd", "b_0000.nii.gz", "d.nii.gz", "d.mha"), "the host mask")
    assert [None if c.mask is None else c.mask.name for c in cases] == ["a.nrrd", "b_0000.nii.gz", None, None]
    assert "is missing" in cases[2].problems[0]
    assert "has 2 files, d.mha and d.nii.gz" in cases[3].problems[0]
