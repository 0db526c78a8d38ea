from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.contact_sheet import middle_slice
from nnunet_synthtumour.phantom import make_subject
from nnunet_synthtumour.preview import is_mirrored
from nnunet_synthtumour.settings import TrainingSettings


def _looks_drawn(folder: Path, n: int, size: str = "volume_ml") -> None:
    for name in ("preview.png", "augmented.png"):
        picture = matplotlib.image.imread(folder / name)
        assert picture.std() > 0.1
        colour = np.abs(picture[..., 0] - picture[..., 2])  # outlines are the only thing that is not grey
        assert (colour > 0.3).sum() > 50
    records = json.loads((folder / "preview.json").read_text(encoding="utf-8"))
    assert len(records) == n
    assert all(record[size] > 0 and record["drawn"]["lesions"] for record in records)
    page = (folder / "preview.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert page.count("<tr>") == n + 1


def test_of_an_image_without_a_data_set(tmp_path: Path) -> None:
    subject = make_subject(0, 3.0)
    image = sitk.GetImageFromArray(subject.images["flair"].transpose(2, 1, 0))
    image.SetSpacing((3.0,) * 3)
    sitk.WriteImage(image, str(tmp_path / "flair.nii.gz"))
    out = tmp_path / "out"
    assert (
        main(["preview", "--image", str(tmp_path / "flair.nii.gz"), "-o", str(out), "-n", "3", "--preset", "stroke"])
        == 0
    )
    _looks_drawn(out, 3)
    first = (out / "preview.json").read_text(encoding="utf-8")
    assert (
        main(["preview", "--image", str(tmp_path / "flair.nii.gz"), "-o", str(out), "-n", "3", "--preset", "stroke"])
        == 0
    )
    assert (out / "preview.json").read_text(encoding="utf-8") == first


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_of_a_preprocessed_data_set(configuration: str, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["preview", "-d", "1", "-p", "nnUNetTinyPlans", "-c", configuration, "-o", str(out), "-n", "2"]) == 0
    _looks_drawn(out, 2, "area_cm2" if configuration == "2d" else "volume_ml")


def test_mistakes_are_one_sentence(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        assert main(["preview", "-o", str(tmp_path / "out"), *arguments]) == 2
        return capsys.readouterr().err

    assert "no plans nnUNetPlans; there are nnUNetTinyPlans" in said("-d", "1")
    assert "no configuration 3d_lowres" in said("-d", "1", "-p", "nnUNetTinyPlans", "-c", "3d_lowres")
    assert "There is no data set 77" in said("-d", "77")
    assert "channel FLAIR is not CT" in said("-d", "1", "-p", "nnUNetTinyPlans", "--preset", "liver-ct")
    assert "channel CT)" in said("--image", "a", "--channel", "CT", "--preset", "ms")
    assert "name one --channel per --image" in said("--image", "a", "--image", "b")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_the_slice_with_most_of_the_lesion_is_shown() -> None:
    labels = np.zeros((5, 4, 4), int)
    labels[3, 1:3, 1:3] = 1
    image = np.arange(5)[:, None, None] * np.ones((5, 4, 4))
    assert middle_slice(image, labels)[0][0, 0] == 3
    assert middle_slice(image, labels * 0)[0][0, 0] == 2
    assert middle_slice(image[0], labels[0])[0].shape == (4, 4)


@pytest.mark.parametrize(
    ("given", "mirrored"),
    [({}, True), ({"epochs": 21}, True), ({"epochs": 20, "iterations": 250}, False), ({"mirroring": False}, False),
     ({"epochs": 2, "mirroring": True}, True)],
)  # fmt: skip
def test_patches_are_mirrored_as_in_training(given: dict[str, Any], mirrored: bool) -> None:
    assert is_mirrored(TrainingSettings(**given)) is mirrored
