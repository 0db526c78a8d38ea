"""What a registration network's file says of the images that it learnt from."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_synthtumour.trainers.crossmodal_trainer import CrossModalTrainer
from nnunet_synthtumour.trainers.deepatlas_trainer import DeepAtlasTrainer
from nnunet_synthtumour.trainers.seen_images import SeenImages, across, clip_windows, common_direction
from tests.toy_dataset import NAME, make_trainer

IDENTITY = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)
TURNED = (-1.0, 0, 0, 0, -1, 0, 0, 0, 1)
TILTED = (0.995, -0.0998, 0, 0.0998, 0.995, 0, 0, 0, 1)


def keep(folder: Path, **directions) -> list[str]:
    for case, direction in directions.items():
        save_pickle({"sitk_stuff": {"direction": direction}}, str(folder / f"{case}.pkl"))
    return list(directions)


def test_the_direction_is_that_of_all_images_or_none(tmp_path) -> None:
    assert common_direction(tmp_path, keep(tmp_path, a=TURNED, b=TURNED)) == TURNED
    assert common_direction(tmp_path, keep(tmp_path, a=IDENTITY, b=TILTED)) == IDENTITY
    assert common_direction(tmp_path, keep(tmp_path, a=IDENTITY, b=TURNED)) is None
    assert common_direction(tmp_path, [*keep(tmp_path, a=TURNED), "gone"]) == TURNED
    assert common_direction(tmp_path, ["gone"]) is None
    save_pickle({}, str(tmp_path / "b.pkl"))
    assert common_direction(tmp_path, ["a", "b"]) is None


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
def test_the_direction_is_that_of_the_array_which_a_reader_returns(tmp_path, reader) -> None:
    affine = np.array([[0, 0, -2.0, 5], [1.5, 0, 0, 3], [0, -1, 0, 7], [0, 0, 0, 1]])
    values = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, affine), str(tmp_path / "i.nii.gz"))
    array, properties = reader().read_images((str(tmp_path / "i.nii.gz"),))
    save_pickle(properties, str(tmp_path / "i.pkl"))
    # an image with this array and this direction shows the same when both are brought into one orientation
    seen = sitk.GetImageFromArray(array[0])
    seen.SetDirection(common_direction(tmp_path, ["i"]))
    one, other = (sitk.DICOMOrient(image, "LPS") for image in (seen, sitk.ReadImage(str(tmp_path / "i.nii.gz"))))
    assert np.array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other))


def test_only_ct_normalisation_clips() -> None:
    statistics = {"0": {"percentile_00_5": -900.0, "percentile_99_5": 300.0}, "1": {}}
    assert clip_windows(["CTNormalization", "ZScoreNormalization"], statistics) == ((-900.0, 300.0), None)
    assert clip_windows(["ZScoreNormalization", "RescaleTo01Normalization"], statistics) is None


def test_two_data_sets_keep_their_windows_and_a_direction_that_both_have() -> None:
    one, other = ((0.0, 1.0),), ((2.0, 3.0),)
    moving, fixed = SeenImages((0, 1, 2), IDENTITY, one, one), SeenImages((2, 0, 1), TILTED, other, other)
    assert across(moving, fixed) == SeenImages((2, 0, 1), TILTED, one, other)
    assert across(SeenImages((0, 1, 2), TURNED, None, None), fixed) == SeenImages((2, 0, 1), None, None, other)
    assert across(SeenImages((0, 1, 2), None, None, None), fixed).direction is None


def test_trainers_say_it_in_the_architecture(two: Path) -> None:
    roles = {f"case_{i:03d}": "labelled" if i > 5 else "unlabelled" for i in range(8)}
    trainer = make_trainer(two, DeepAtlasTrainer, fold="all", roles=roles)
    trainer.initialize()
    about = trainer.registration.architecture
    plans = json.loads((two / "nnUNet_preprocessed" / NAME / "nnUNetTinyPlans.json").read_text(encoding="utf-8"))
    assert about.transpose_forward == tuple(plans["transpose_forward"]) and about.direction == IDENTITY
    assert about.moving_windows is None and about.fixed_windows is None
    source = {"dataset": "2", "pairing": "unpaired"}
    crossing = make_trainer(two, CrossModalTrainer, fold="all", roles=roles, source=source)
    schemes = crossing.configuration_manager.configuration["normalization_schemes"]
    schemes[0] = "CTNormalization"
    seen = crossing.images_seen()
    assert seen.direction == IDENTITY and seen.moving_windows is None and seen.fixed_windows is not None
