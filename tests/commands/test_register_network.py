"""`synthtumour register --model`: a network sees images as those it was trained on."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.pair_network import seen
from nnunet_synthtumour.registration import networks
from nnunet_synthtumour.registration.model_files import Architecture, load_model, save_model
from tests.registration.plans import architecture

IDENTITY = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)


def write_model(folder, channels: int = 1, **about) -> None:
    torch.manual_seed(0)
    described = Architecture("unet", *architecture(), image_channels=channels, **about)
    network = described.build()
    torch.nn.init.normal_(network.head.weight, std=1.0)
    save_model(folder, described, network)


def blob(shift: float, seed: int) -> sitk.Image:
    """25 x 22 x 19 voxels in ITK's order; -1000 around, as in CT."""
    z, y, x = np.indices((19, 22, 25))
    radius = np.sqrt(((x - 12 - shift) / 7) ** 2 + ((y - 11) / 6) ** 2 + ((z - 9) / 5) ** 2)
    values = np.where(radius < 1, 50 + 30 * np.sin(x) + np.random.default_rng(seed).normal(0, 5, x.shape), -1000)
    image = sitk.GetImageFromArray(values.astype(np.float32))
    image.SetSpacing((1.0, 1.1, 2.0))
    return image


def pair(folder, change=lambda image: image) -> list[str]:
    folder.mkdir()
    for name, shift in (("f", 0.0), ("m", 1.5)):
        sitk.WriteImage(change(blob(shift, len(name))), str(folder / f"{name}.nii.gz"))
    return ["-f", str(folder / "f.nii.gz"), "-m", str(folder / "m.nii.gz"), "--affine", "none", "--iterations", "0"]


def in_space(file) -> np.ndarray:
    """The displacement field as the images of `blob` are stored: in mm, so no vector changes with the storage."""
    field = sitk.ReadImage(str(file), sitk.sitkVectorFloat64)
    return sitk.GetArrayFromImage(sitk.Resample(field, blob(0, 0), sitk.Transform(), sitk.sitkNearestNeighbor))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_however_a_pair_is_stored_the_field_is_the_same(tmp_path, order) -> None:
    write_model(tmp_path / "model", transpose_forward=(1, 0, 2), direction=IDENTITY, spacing=(1.0, 2.0, 1.0))
    changes = (
        (lambda image: image),
        (lambda image: sitk.Flip(sitk.PermuteAxes(image, order), (True, False, True), False)),
    )
    for number, change in enumerate(changes):
        given = pair(tmp_path / f"pair{number}", change)
        assert main(["register", *given, "-o", str(tmp_path / f"{number}"), "--model", str(tmp_path / "model")]) == 0
    one, other = (in_space(tmp_path / name / "field.nii.gz") for name in "01")
    assert np.abs(one).max() > 0.3
    assert np.abs(one - other).max() < 1e-3


def test_structures_are_drawn_together_unless_their_weight_is_zero(tmp_path, monkeypatch) -> None:
    write_model(tmp_path / "model", options={"structures": 1, "structure_steps": 3})
    network, described = load_model(tmp_path / "model")
    network.guide.say(True)
    save_model(tmp_path / "model", described, network)
    given, steps = pair(tmp_path / "pair"), []

    def drawn(velocity, found, stride, extent, number, limits):
        steps.append(number)
        return velocity

    monkeypatch.setattr(networks, "drawn_together", drawn)
    for weight, expected in (("0.1", [3]), ("0", [])):
        steps.clear()
        more = ["--model", str(tmp_path / "model"), "--anatomy-weight", weight]
        assert main(["register", *given, "-o", str(tmp_path / "out"), *more]) == 0
        assert steps == expected


def test_a_pair_is_shown_without_rims(tmp_path, monkeypatch) -> None:
    """The moving image is interpolated and the fixed one is not: the network must not see that."""
    write_model(tmp_path / "model", spacing=(1.0, 1.0, 1.0), transpose_forward=(0, 1, 2))
    given, seen_images = pair(tmp_path / "pair"), []
    monkeypatch.setattr(
        networks.RegistrationUNet, "predict", lambda self, *images, **_: seen_images.extend(images) or self(*images)
    )
    with torch.no_grad():
        assert main(["register", *given, "-o", str(tmp_path / "out"), "--model", str(tmp_path / "model")]) == 0
    for image in seen_images:
        assert image.shape[2] == 38 and image[image > 0].min() > 0.9  # -1000 is 0, the object 0.93 and more


def test_around_the_moving_image_is_its_background(tmp_path) -> None:
    given = pair(tmp_path / "pair")
    moved = sitk.ReadImage(str(tmp_path / "pair" / "m.nii.gz"))
    moved.SetOrigin((6.0, 0.0, 0.0))
    sitk.WriteImage(moved, str(tmp_path / "pair" / "m.nii.gz"))
    assert main(["register", *given, "-o", str(tmp_path / "out")]) == 0
    warped = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "warped.nii.gz")))
    assert (warped[..., :5] == -1000).all()


def test_what_training_clipped_is_clipped() -> None:
    values = sitk.GetArrayFromImage(blob(0, 0))
    values[values > 60] = 3000
    bright = sitk.GetImageFromArray(values)
    shown = seen([bright, bright], ((-20.0, 90.0), None))[0]
    assert shown.shape == (2, *values.shape)
    assert (shown[0][torch.from_numpy(values < -20)] == 0).all() and (
        shown[0][torch.from_numpy(values > 90)] == 1
    ).all()
    middle = (values > -20) & (values < 90)
    assert np.allclose(shown[0].numpy()[middle], (values[middle] + 20) / 110, atol=1e-4)
    assert np.allclose(shown[1].numpy()[middle], (values[middle] + 1000) / 4000, atol=1e-4)


def test_every_side_has_its_window(tmp_path) -> None:
    given = pair(tmp_path / "pair")
    for name, windows in (
        ("none", (None, None)),
        ("fixed", (None, ((-50.0, 90.0),))),
        ("both", (((-50.0, 90.0),),) * 2),
    ):
        write_model(tmp_path / name, moving_windows=windows[0], fixed_windows=windows[1])
        assert main(["register", *given, "-o", str(tmp_path / f"out_{name}"), "--model", str(tmp_path / name)]) == 0
    fields = [in_space(tmp_path / f"out_{name}" / "field.nii.gz") for name in ("none", "fixed", "both")]
    assert all(np.abs(fields[one] - fields[other]).max() > 1e-3 for one, other in ((0, 1), (1, 2), (0, 2)))


def test_a_network_of_two_channels(tmp_path, capsys) -> None:
    write_model(tmp_path / "model", channels=2)
    given = pair(tmp_path / "pair")
    model = ["--model", str(tmp_path / "model")]
    assert main(["register", *given, "-o", str(tmp_path / "out"), *model]) == 2
    said = capsys.readouterr().err.strip()
    assert "registers images of 2 channels, and these have 1 (-f) and 1 (-m); give one file per channel" in said
    for name in "fm":
        sitk.WriteImage(blob(3.0, 7) * 2, str(tmp_path / "pair" / f"{name}2.nii.gz"))
    both = [
        *given[:2],
        str(tmp_path / "pair" / "f2.nii.gz"),
        *given[2:4],
        str(tmp_path / "pair" / "m2.nii.gz"),
        *given[4:],
    ]
    assert main(["register", *both, "-o", str(tmp_path / "out"), *model]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["deformation"] == "the network's" and report["largest_displacement_mm"] > 0.1
    second = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "warped_0001.nii.gz")))
    assert second.min() == pytest.approx(-2000) and second.max() > 100
    # the channel of that run does not stay beside another's results
    assert main(["register", *given, "-o", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "warped_0001.nii.gz").exists()


def test_channels_share_a_grid_and_are_not_replaced(tmp_path, capsys) -> None:
    given = pair(tmp_path / "pair")
    other = blob(0, 0)
    other.SetSpacing((1.0, 1.0, 1.0))
    sitk.WriteImage(other, str(tmp_path / "pair" / "other.nii.gz"))
    sitk.WriteImage(blob(0, 0), str(tmp_path / "pair" / "warped_0001.nii.gz"))
    for name, sentence in (("other", "channels of one image share it."), ("warped_0001", "would replace it")):
        both = [*given[:2], str(tmp_path / "pair" / f"{name}.nii.gz"), *given[2:]]
        assert main(["register", *both, "-o", str(tmp_path / "pair")]) == 2
        assert sentence in capsys.readouterr().err
    assert (tmp_path / "pair" / "warped_0001.nii.gz").is_file()


def test_a_model_of_other_dimensions_is_told(tmp_path, capsys) -> None:
    write_model(tmp_path / "model")
    for name in "fm":
        sitk.WriteImage(blob(0, 0)[:, :, 9], str(tmp_path / f"{name}.nii.gz"))
    both = ["-f", str(tmp_path / "f.nii.gz"), "-m", str(tmp_path / "m.nii.gz"), "-o", str(tmp_path / "out")]
    assert main(["register", *both, "--model", str(tmp_path / "model")]) == 2
    assert "registers 3D images, and these are 2D." in capsys.readouterr().err


def test_an_image_that_is_tiny_for_the_network_is_told(tmp_path, capsys) -> None:
    write_model(tmp_path / "model", spacing=(8.0, 8.0, 8.0))
    given = pair(tmp_path / "pair")
    assert main(["register", *given, "-o", str(tmp_path / "out"), "--model", str(tmp_path / "model")]) == 2
    assert "The fixed image has 5 x 3 x 3 voxels at the spacing of the model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
