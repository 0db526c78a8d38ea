"""`synthtumour register`: its files mean to SimpleITK what they mean to us."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_synthtumour import pair_registration
from nnunet_synthtumour.cli import main
from nnunet_synthtumour.pair_network import Said
from nnunet_synthtumour.registration.fields import compose, warp
from nnunet_synthtumour.registration.instance import Deformation
from nnunet_synthtumour.registration.model_files import Architecture, save_model
from nnunet_synthtumour.registration.physical import Geometry, from_physical
from tests.commands.failing_writes import fails_for
from tests.registration.plans import architecture


def turned(degrees: float) -> list[float]:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return [c, -s, 0, s, c, 0, 0, 0, 1]


def drawn(size, spacing, degrees: float, bend: float) -> tuple[sitk.Image, sitk.Image]:
    """An egg with a core, in mm around the origin, bent by `bend` mm, on a rotated anisotropic grid; and its labels."""
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing(spacing)
    image.SetDirection(turned(degrees))
    image.SetOrigin([-float(v) for v in image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in size])])
    matrix = Geometry.of(image).matrix().numpy()
    index = np.stack([*np.indices(size[::-1]), np.ones(size[::-1])])
    x, y, z = np.tensordot(matrix, index, 1)[:3]
    y = y - bend * np.cos(x / 9)
    radius = np.sqrt((x / 16) ** 2 + (y / 11) ** 2 + (z / 13) ** 2)
    values = 1 / (1 + np.exp(12 * (radius - 1))) + 0.7 / (1 + np.exp(20 * (radius - 0.45))) + 0.1 * np.sin(x / 3)
    labels = sitk.GetImageFromArray(((radius < 1).astype(np.uint8) + (radius < 0.45)).astype(np.uint8))
    filled = sitk.GetImageFromArray(values.astype(np.float32))
    for made in (filled, labels):
        made.CopyInformation(image)
    return filled, labels


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    pairs = {"f": drawn((40, 36, 22), (1.2, 1.3, 2.0), 15, 0.0), "m": drawn((34, 40, 30), (1.4, 1.1, 1.5), -10, 3.0)}
    for name, (image, labels) in pairs.items():
        sitk.WriteImage(image * (1 if name == "f" else 1e4), str(folder / f"{name}.nii.gz"))
        sitk.WriteImage(labels, str(folder / f"{name}_labels.nii.gz"))
    return folder


@pytest.fixture(scope="module")
def registered(files):
    given = ["--labels", str(files / "m_labels.nii.gz"), "--fixed-labels", str(files / "f_labels.nii.gz")]
    assert register(files, files / "out", *given, "--iterations", "45") == 0
    return files / "out"


def register(files, out, *more: str) -> int:
    return main(["register", "-f", str(files / "f.nii.gz"), "-m", str(files / "m.nii.gz"), "-o", str(out), *more])


def applied(image, grid, field, interpolator=sitk.sitkLinear):
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(field), sitk.sitkVectorFloat64))
    return sitk.GetArrayFromImage(sitk.Resample(image, grid, transform, interpolator))


def test_a_stripped_image_keeps_its_outline(files, tmp_path) -> None:
    shown = np.zeros((24, 24, 24), np.float32)
    shown[6:18, 6:18, 6:18] = 1000 + np.random.default_rng(0).normal(0, 20, (12, 12, 12))
    for name, shift in (("f", 0.0), ("m", 1.4)):
        image = sitk.GetImageFromArray(shown)
        image.SetOrigin((shift, 0.0, 0.0))
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    assert register(tmp_path, tmp_path / "out", "--iterations", "5") == 0
    warped = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "warped.nii.gz")))
    assert (warped > 0).sum() > 1000 and warped[warped > 0].min() > 800


def test_simpleitk_applies_the_field_as_it_is(files, registered) -> None:
    fixed, moving = (sitk.ReadImage(str(files / f"{name}.nii.gz")) for name in "fm")
    warped = sitk.ReadImage(str(registered / "warped.nii.gz"))
    assert warped.GetSize() == fixed.GetSize()
    seen = applied(moving, fixed, registered / "field.nii.gz")
    inside = seen != 0
    written = sitk.GetArrayFromImage(warped)
    assert np.abs(seen - written)[inside].max() < 1e-3 * 1e4
    assert np.abs(written[~inside] - sitk.GetArrayViewFromImage(moving).min()).max() < 1  # as dark as the image gets
    # our own warping of the same field, in voxels
    field = sitk.ReadImage(str(registered / "field.nii.gz"), sitk.sitkVectorFloat64)
    vectors = torch.from_numpy(sitk.GetArrayFromImage(field))[None]
    u = from_physical(vectors, Geometry.of(fixed), Geometry.of(moving))
    ours = warp(torch.from_numpy(sitk.GetArrayFromImage(moving))[None, None].double(), u)[0, 0].numpy()
    assert inside.mean() > 0.5
    assert np.quantile(np.abs(ours - seen)[inside], 0.99) < 1e-3 * 1e4
    labels = applied(sitk.ReadImage(str(files / "m_labels.nii.gz")), fixed, registered / "field.nii.gz", 1)
    assert (labels == sitk.GetArrayFromImage(sitk.ReadImage(str(registered / "warped_labels.nii.gz")))).all()


def test_the_inverse_field_leads_back(files, registered) -> None:
    fixed, moving = (sitk.ReadImage(str(files / f"{name}.nii.gz")) for name in "fm")
    grids = Geometry.of(fixed), Geometry.of(moving)
    there, back = (
        from_physical(
            torch.from_numpy(sitk.GetArrayFromImage(sitk.ReadImage(str(registered / name), sitk.sitkVectorFloat64)))[
                None
            ],
            *order,
        )
        for name, order in (("field.nii.gz", grids), ("inverse_field.nii.gz", grids[::-1]))
    )
    # x + there(x), then back: away from the border, where no inverse is known
    round_trip = compose(back, there)[0, :, 5:-5, 8:-8, 8:-8]
    assert round_trip.norm(dim=0).mean() < 0.15
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(files / "m_labels.nii.gz"))) > 0
    seen = applied(sitk.ReadImage(str(files / "f_labels.nii.gz")), moving, registered / "inverse_field.nii.gz", 1) > 0
    assert 2 * (seen & truth).sum() / (seen.sum() + truth.sum()) > 0.93


def test_the_report_and_the_picture(registered) -> None:
    report = json.loads((registered / "report.json").read_text(encoding="utf-8"))
    assert report["folds_percent"] <= 0.003 and report["sd_log_jacobian"] < 1
    assert report["similarity"]["final"] < report["similarity"]["affine"]
    scores = report["labels"]
    for label in ("1", "2"):
        assert scores["final"][label]["dice"] > max(0.85, scores["initial"][label]["dice"])
    assert (registered / "check.png").stat().st_size > 10_000
    affine = sitk.ReadTransform(str(registered / "affine.tfm"))
    assert affine.GetDimension() == 3


@pytest.mark.parametrize("structures", [0, 2])
def test_a_model_takes_the_place_of_the_optimisation(files, structures) -> None:
    torch.manual_seed(0)
    stored = Architecture("unet", *architecture(), options={"structures": structures, "structure_steps": 4})
    network = stored.build()
    torch.nn.init.normal_(network.head.weight, std=1.0)
    if network.guide is not None:
        network.guide.say(True)
    save_model(files / "model", stored, network)
    model = str(files / "model" / ("registration.pth" if structures else ""))  # the file will do, too
    assert register(files, files / "net", "--model", model, "--iterations", "0", "--affine", "none") == 0
    report = json.loads((files / "net" / "report.json").read_text(encoding="utf-8"))
    assert report["network"] == {"looks": 1, "structure_steps": 4 if structures else 0}
    assert report["largest_displacement_mm"] > 0.5 and report["folds_percent"] <= 0.003
    assert report["deformation"] == "the network's"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--labels", "nowhere.nii.gz"], "There is no image nowhere.nii.gz."),
        (["--labels", "{files}/f_labels.nii.gz"], "does not lie on the grid of"),
        (["--model", "{files}"], "There is no registration model in"),
        (["--iterations", "-1"], "it must be 0 or more."),
        (["--anatomy-weight", "1"], "give the model's folder with --model, too."),
        (["--device", "cuda:77"], "--device cuda:77 is not available here; cpu always is."),
    ],
)
def test_mistakes_are_told_in_one_sentence(files, capsys, more, sentence) -> None:
    assert register(files, files / "never", *[text.format(files=files) for text in more]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and said.count("\n") == 0
    assert not (files / "never").exists()


@pytest.mark.parametrize("constant", [False, True])
def test_an_input_is_never_replaced(files, tmp_path, capsys, constant: bool) -> None:
    image = sitk.ReadImage(str(files / "m.nii.gz"))
    sitk.WriteImage(image * 0 if constant else image, str(tmp_path / "warped.nii.gz"))
    before = (tmp_path / "warped.nii.gz").read_bytes()
    both = ["-f", str(files / "f.nii.gz"), "-m", str(tmp_path / "warped.nii.gz")]
    assert main(["register", *both, "-o", str(tmp_path), "--iterations", "2"]) == 2
    assert "the results would replace it" in capsys.readouterr().err
    assert (tmp_path / "warped.nii.gz").read_bytes() == before


def test_a_registration_that_cannot_begin_leaves_an_earlier_one(files, tmp_path, capsys) -> None:
    (tmp_path / "warped.nii.gz").write_text("of an earlier run", encoding="utf-8")
    far = sitk.ReadImage(str(files / "m.nii.gz"))
    far.SetOrigin((1e3, 1e3, 1e3))
    sitk.WriteImage(far, str(tmp_path / "far.nii.gz"))
    both = ["-f", str(files / "f.nii.gz"), "-m", str(tmp_path / "far.nii.gz")]
    assert main(["register", *both, "-o", str(tmp_path), "--affine", "none", "--iterations", "2"]) == 2
    assert "do not overlap; mend the header" in capsys.readouterr().err
    assert main(["register", *both, "-o", str(tmp_path / "far.nii.gz")]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err
    assert (tmp_path / "warped.nii.gz").is_file()


def test_images_that_fit_as_they_are_are_left_alone_and_old_files_go(tmp_path, capsys) -> None:
    volume = np.random.default_rng(0).normal(100, 10, (24, 20, 16)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / "a.nii.gz"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "warped_labels.nii.gz").write_text("of an earlier run", encoding="utf-8")
    both = ["-f", str(tmp_path / "a.nii.gz"), "-m", str(tmp_path / "a.nii.gz")]
    assert main(["register", *both, "-o", str(tmp_path / "out"), "--affine", "none"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["similarity"]["final"] <= report["similarity"]["affine"]
    assert report["largest_displacement_mm"] == 0
    assert report["deformation"] == "left out, it made the fit worse"
    assert "deformation: left out" in capsys.readouterr().out
    assert not (tmp_path / "out" / "warped_labels.nii.gz").exists()


@pytest.mark.parametrize(("shift", "kept"), [(2.0, "the network's"), (-5.0, "left out")])
def test_what_the_optimiser_spoils_is_the_networks_or_nothing(tmp_path, monkeypatch, shift: float, kept: str) -> None:
    for name, start in (("a", 8), ("b", 10)):
        volume = np.zeros((20, 20, 20), np.float32)
        volume[start : start + 7, 6:15, 5:13] = 100
        sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / f"{name}.nii.gz"))

    def all_moved(voxels: float) -> torch.Tensor:
        return torch.tensor([voxels, 0.0, 0.0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 20, 20, 20).clone()

    spoiled = Deformation(all_moved(-6.0), all_moved(-6.0), all_moved(6.0), ())
    monkeypatch.setattr(pair_registration, "optimise", lambda *_, **__: spoiled)
    network = SimpleNamespace(say=lambda *_: Said(all_moved(shift), None), network=SimpleNamespace(passes=1))
    monkeypatch.setattr(pair_registration, "network_for", lambda *_: network)
    both = ["-f", str(tmp_path / "a.nii.gz"), "-m", str(tmp_path / "b.nii.gz"), "--similarity", "mse"]
    assert main(["register", *both, "-o", str(tmp_path), "--affine", "none", "--model", "any"]) == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["deformation"].startswith(kept)
    assert report["largest_displacement_mm"] == pytest.approx(2.0 if kept == "the network's" else 0.0, abs=0.1)
    assert report["similarity"]["final"] <= report["similarity"]["affine"]


def test_structures_that_a_model_finds_are_brought_together(tmp_path, monkeypatch, capsys) -> None:
    """Images that show nothing of them: only the model knows."""
    noise = np.random.default_rng(0).normal(100, 1, (20, 20, 20)).astype(np.float32)
    found = []
    for name, start in (("b", 9), ("a", 6)):
        block = np.zeros((20, 20, 20), np.float32)
        block[start : start + 6, 6:15, 5:13] = 1
        sitk.WriteImage(sitk.GetImageFromArray(noise), str(tmp_path / f"{name}.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(block.astype(np.uint8)), str(tmp_path / f"{name}_seg.nii.gz"))
        found.append(torch.from_numpy(np.stack([1 - block, block]))[None])
    still = torch.zeros(1, 3, 20, 20, 20)
    network = SimpleNamespace(say=lambda *_: Said(still, (found[0], found[1])), network=SimpleNamespace(passes=1))
    monkeypatch.setattr(pair_registration, "network_for", lambda *_: network)
    files = {f"{name}{end}": str(tmp_path / f"{name}{end}.nii.gz") for name in "ab" for end in ("", "_seg")}
    command = ["register", "-f", files["a"], "-m", files["b"], "--affine", "none", "--model", "any",
               "--labels", files["b_seg"], "--fixed-labels", files["a_seg"]]  # fmt: skip
    reports = {}
    for weight in ("10", "0"):
        assert main([*command, "-o", str(tmp_path / weight), "--anatomy-weight", weight]) == 0
        reports[weight] = json.loads((tmp_path / weight / "report.json").read_text(encoding="utf-8"))
    assert reports["10"]["structures"]["final"] > 0.9 > 0.6 > reports["10"]["structures"]["affine"]
    assert reports["10"]["labels"]["final"]["1"]["dice"] > 0.9 > 0.6 > reports["0"]["labels"]["final"]["1"]["dice"]
    assert reports["10"]["folds_percent"] == 0
    assert "structures that the model finds: Dice 0.5" in capsys.readouterr().out
    assert main([*command, "-o", str(tmp_path / "no"), "--anatomy-weight", "-1"]) == 2
    assert "--anatomy-weight is -1.0; it must be 0 or more." in capsys.readouterr().err


@pytest.mark.parametrize("written", ["field.nii.gz", "affine.tfm", "warped.nii.gz"])
def test_a_failed_write_is_told_in_one_sentence(files, tmp_path, capsys, monkeypatch, written: str) -> None:
    fails_for(monkeypatch, written)
    assert register(files, tmp_path, "--iterations", "0", "--affine", "none") == 2
    said = capsys.readouterr().err.strip()
    assert "is the disk full" in said and said.count("\n") == 0


@pytest.mark.parametrize("slices", [1, 2])
def test_a_few_slices_are_registered_and_a_single_one_is_refused(tmp_path, capsys, slices: int) -> None:
    for name, shift in (("a", 0), ("b", 2)):
        volume = np.zeros((slices, 48, 48), np.float32)
        volume[:, 14 + shift : 34 + shift, 12:30] = 100
        sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / f"{name}.nii.gz"))
    both = ["-f", str(tmp_path / "a.nii.gz"), "-m", str(tmp_path / "b.nii.gz")]
    refused = main(["register", *both, "-o", str(tmp_path / "out"), "--iterations", "5"])
    assert bool(refused) == (slices == 1)
    assert (tmp_path / "out" / "check.png").is_file() == (slices == 2)
    assert ("has a single slice" in capsys.readouterr().err) == (slices == 1)


@pytest.mark.parametrize(("mistake", "sentence"), [("nan", "NaN"), ("torn", "is not complete")])
def test_what_itk_reads_without_a_word_is_refused(tmp_path, capsys, mistake: str, sentence: str) -> None:
    volume = np.random.default_rng(0).normal(100, 10, (12, 12, 12)).astype(np.float32)
    for name in "ab":
        sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / f"{name}.nii.gz"))
    file = tmp_path / "b.nii.gz"
    if mistake == "nan":
        volume[:6] = np.nan
        sitk.WriteImage(sitk.GetImageFromArray(volume), str(file))
    else:
        file.write_bytes(file.read_bytes()[:2000])
    assert main(["register", "-f", str(tmp_path / "a.nii.gz"), "-m", str(file), "-o", str(tmp_path / "out")]) != 0
    assert sentence in capsys.readouterr().err
