from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.intensities import crop, has_arbitrary_zero, normalisation, recorded
from nnunet_synthtumour.lesion_model import load_model
from nnunet_synthtumour.settings import settings_of
from nnunet_synthtumour.synthesis import GrowLesion, grow_in_volume
from tests.commands.prepared import dataset, prepare
from tests.small_images import ball_image, write

PLANS = {"configurations": {"3d_fullres": {"normalization_schemes": ["ZScoreNormalization"]}}}


def z_scored(image: np.ndarray, masked: bool = True) -> np.ndarray:
    """As other pipelines leave an image: the background of a stripped one stays 0."""
    values = image[image != 0] if masked else image
    z = ((image - values.mean()) / values.std()).astype(np.float32)
    return np.where(image != 0, z, 0) if masked else z


@pytest.mark.parametrize("stripped", [True, False])
def test_zero_is_arbitrary_in_images_that_are_centred_on_their_tissue(stripped: bool) -> None:
    raw = ball_image(0, stripped)
    assert not has_arbitrary_zero(raw)
    assert has_arbitrary_zero(z_scored(raw, masked=stripped))
    assert has_arbitrary_zero((2 * raw / raw.max() - 1).astype(np.float32))
    assert not has_arbitrary_zero(np.zeros((3, 4, 5), np.float32))


def test_interpolation_that_rings_around_zero_leaves_it_the_zero() -> None:
    rings = np.random.default_rng(0).normal(0, 10, (20, 24, 22)).astype(np.float32)
    assert not has_arbitrary_zero(ball_image(0) + rings)  # a hundredth of the tissue


def test_ct_has_its_own_zero() -> None:
    images = np.stack([z_scored(ball_image(0)), ball_image(1) - 900, z_scored(ball_image(2))])
    maps = recorded(*crop(images, images[0] != 0)[:2], ["T1", "CT", "T2"])
    assert maps["True"]["arbitrary_zero"] == maps["False"]["arbitrary_zero"] == [0, 2]
    assert "arbitrary_zero" not in recorded(*crop(images[1:2], images[1] != 0)[:2], ["CT"])["True"]


def test_prepare_says_so_and_lesions_are_as_visible_as_in_raw_images(
    nnunet_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        write(z_scored(ball_image(i)), tmp_path / "z" / f"h{i}.nii.gz")
        write(ball_image(i), tmp_path / "raw" / f"h{i}.nii.gz")
    assert prepare("--healthy", tmp_path / "raw", "--channel", "FLAIR", number=101) == 0
    assert "zero" not in capsys.readouterr().out
    assert prepare("--healthy", tmp_path / "z", "--channel", "FLAIR") == 0
    assert "FLAIR: the zero of 2 of 2 healthy images lies within the tissue" in capsys.readouterr().out
    settings = settings_of(dataset(nnunet_folders)[1])
    assert settings.intensities["h0"].arbitrary_zero == (0,)
    mean, std = normalisation(settings, PLANS, "3d_fullres", "h0") or (np.zeros(1), np.zeros(1))
    assert np.isnan(mean[0]) and std[0] == pytest.approx(1, abs=1e-3)

    image = z_scored(ball_image(0))[None]
    host = np.where(image != 0, 2, 0)
    quiet = {"distractors": {"probability": 0.0}, "shape": {"volume_ml": [20, 40], "satellites": 0.0}}
    for shifted in (False, True):
        grow = GrowLesion(load_model("glioma", quiet), {"whole": 1}, (3.0,) * 3, 2, ["FLAIR"], shifted=shifted)
        changes = []
        for seed in range(8):
            np.random.seed(seed)
            grown, label, _ = grow_in_volume(grow, image, host, (mean, std))
            changes.append(float((grown - image)[label == 1].mean()))
        assert min(changes) > 0.1 and np.median(changes) > 0.5


def test_lesions_of_files_that_are_z_scored_are_visible(tmp_path: Path) -> None:
    image = z_scored(ball_image(0))
    write(image, tmp_path / "z.nii.gz")
    assert main(["grow", str(tmp_path / "z.nii.gz"), "-o", str(tmp_path / "out"), "-n", "3", "-np", "1", "--seed", "1",
                 "--set", "distractors.probability=0", "--set", "shape.volume_ml=[20,40]"]) == 0  # fmt: skip
    for k in range(3):
        grown, label = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / part))) for part in
                        (f"imagesTr/case_{k:04d}_0000.nii.gz", f"labelsTr/case_{k:04d}.nii.gz"))  # fmt: skip
        assert (grown - image)[label == 1].mean() > 0.1
