from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.image_files import check_complete
from nnunet_synthtumour.phantom import OEDEMA, STRUCTURES, Subject, grid_shape, make_subject
from tests.commands.failing_writes import at_most

SPACING = 3.0


@pytest.fixture(scope="module")
def patient() -> Subject:
    return make_subject(5, SPACING, tumour=True, second="t1", visibility=1.0, scanner="a")


def test_the_same_seed_gives_the_same_subject_and_another_another() -> None:
    first, again, other = make_subject(1, SPACING), make_subject(1, SPACING), make_subject(2, SPACING)
    assert np.array_equal(first.images["flair"], again.images["flair"])
    assert np.array_equal(first.displacement, again.displacement)
    overlap = (
        ((first.anatomy == 2) & (other.anatomy == 2)).sum()
        * 2
        / ((first.anatomy == 2).sum() + (other.anatomy == 2).sum())
    )
    assert overlap < 0.8


def test_all_structures_are_there_and_the_image_is_stripped() -> None:
    subject = make_subject(1, SPACING)
    assert subject.anatomy.shape == grid_shape(SPACING)
    assert set(np.unique(subject.anatomy)) == {0, *STRUCTURES.values()}
    assert (subject.images["flair"][~subject.brain] == 0).all()
    assert (subject.images["flair"][subject.brain] > 0).mean() > 0.99
    assert not subject.regions.any()
    litres = subject.brain.sum() * SPACING**3 / 1e6
    assert 0.6 < litres < 1.6


@pytest.mark.parametrize("scanner", ["a", "b", "c"])
def test_flair_is_dark_in_fluid_and_brighter_in_grey_than_in_white_matter(scanner: str) -> None:
    subject = make_subject(3, SPACING, scanner=scanner)
    inner = {name: ndimage.binary_erosion(subject.anatomy == value) for name, value in STRUCTURES.items()}
    means = {name: float(subject.images["flair"][mask].mean()) for name, mask in inner.items() if mask.any()}
    cortex = float(subject.images["flair"][subject.anatomy == STRUCTURES["cortex"]].mean())
    assert means["csf"] < 0.6 * means["white_matter"] < cortex


def test_the_displacement_is_the_truth_for_registration() -> None:
    plain, subject = make_subject(7, SPACING, deformation=0.0), make_subject(7, SPACING)
    assert not plain.displacement.any()
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in plain.anatomy.shape], indexing="ij"))
    warped = ndimage.map_coordinates(plain.anatomy, grid + subject.displacement, order=0, mode="nearest")
    for value in STRUCTURES.values():
        a, b = warped == value, subject.anatomy == value
        before = plain.anatomy == value
        dice = 2 * (a & b).sum() / (a.sum() + b.sum())
        assert dice > 0.7  # thin structures, nearest neighbour, 3 mm
        assert dice > 1.2 * (before & b).sum() / (before.sum() + b.sum())
    jacobian = np.stack([np.stack(np.gradient(u)) for u in subject.displacement]).transpose(2, 3, 4, 0, 1) + np.eye(3)
    assert np.linalg.det(jacobian).min() > 0


def test_the_tumour_lies_in_the_brain_in_one_piece_with_nested_regions(patient: Subject) -> None:
    whole = patient.regions > 0
    assert patient.tumour_ml == pytest.approx(whole.sum() * SPACING**3 / 1000)
    assert 1 < patient.tumour_ml < 130
    assert not (whole & ~patient.brain).any()
    pieces, _ = ndimage.label(whole)
    assert np.bincount(pieces.ravel())[1:].max() > 0.9 * whole.sum()
    healthy_white = ndimage.binary_erosion(
        (patient.anatomy == STRUCTURES["white_matter"]) & ~ndimage.binary_dilation(whole)
    )
    oedema = patient.regions == 1
    assert patient.images["flair"][oedema].mean() > 1.15 * patient.images["flair"][healthy_white].mean()


@pytest.mark.parametrize("second", ["t1", "ct"])
def test_visibility_orders_the_contrast_of_the_second_modality(second: str) -> None:
    subjects = [make_subject(5, SPACING, tumour=True, second=second, visibility=v) for v in (0.0, 0.5, 1.0)]
    invisible, faint, plain = (subject.images[second].astype(float) for subject in subjects)
    whole = subjects[0].regions > 0
    far = ndimage.distance_transform_edt(~whole) > 5
    assert np.array_equal(invisible[far], plain[far])
    assert 0 < np.abs(faint - invisible)[whole].mean() < 0.7 * np.abs(plain - invisible)[whole].mean()
    assert all(np.array_equal(subject.images["flair"], subjects[0].images["flair"]) for subject in subjects)


def test_tumours_follow_white_matter_and_are_no_balls() -> None:
    """Solidity: the volume over that of the ellipsoid with the same inertia, 1 for every ball and ellipsoid."""
    solidity = []
    for seed in (11, 12, 14, 19):
        subject = make_subject(seed, SPACING, tumour=True)
        whole = subject.regions > 0
        ring = ndimage.binary_dilation(whole, iterations=2) & ~whole & subject.brain
        white = subject.anatomy == STRUCTURES["white_matter"]
        assert white[subject.regions == OEDEMA].mean() > 1.15 * white[ring].mean()
        points = np.argwhere(whole)
        solidity.append(len(points) / (4 / 3 * np.pi * np.sqrt(np.linalg.det(5 * np.cov(points.T)))))
    assert np.mean(solidity) < 0.9


def test_command_keeps_the_truth_apart_continues_and_does_not_depend_on_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--spacing", "3", "--healthy", "1", "--unlabelled", "1", "--test", "1"]
    assert main(["phantom", str(tmp_path / "a"), *options, "-np", "1"]) == 0
    assert main(["phantom", str(tmp_path / "b"), *options, "-np", "2"]) == 0
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.nii.gz"))
    assert [str(f) for f in files if f.parts[0] != "truth"] == [
        "healthy/healthy_000.nii.gz", "test/test_000_0000.nii.gz", "test_labels/test_000.nii.gz",
        "unlabelled/unlabelled_000.nii.gz",
    ]  # fmt: skip
    for file in files:
        first, second = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / side / file))) for side in "ab")
        assert np.array_equal(first, second)
    manifest = json.loads((tmp_path / "a" / "phantom.json").read_text(encoding="utf-8"))
    assert manifest["cases"]["test_000"]["tumour_ml"] > 0
    assert manifest["cases"]["healthy_000"]["tumour_ml"] == 0

    _check_the_written_truth(tmp_path / "a" / "truth", "test_000")
    kept = (tmp_path / "a" / "healthy" / "healthy_000.nii.gz").stat().st_mtime_ns
    assert main(["phantom", str(tmp_path / "a"), *options, "-np", "1"]) == 0
    assert (tmp_path / "a" / "healthy" / "healthy_000.nii.gz").stat().st_mtime_ns == kept
    capsys.readouterr()
    assert main(["phantom", str(tmp_path / "a"), "--seed", "9"]) == 2
    assert "made with other options" in capsys.readouterr().err
    assert main(["phantom", str(tmp_path)]) == 2
    assert "is not empty and holds no phantoms" in capsys.readouterr().err
    assert main(["phantom", str(tmp_path / "c"), "--spacing", "0.5"]) == 2
    assert "1.5 to 4 mm" in capsys.readouterr().err


def test_what_a_full_disk_cut_off_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["phantom", str(tmp_path / "a"), "--spacing", "4", "--healthy", "1", "--unlabelled", "0", "--test", "0"]
    with at_most(20_000):  # a label map has less, an image more
        assert main([*command, "-np", "1"]) == 2
    assert "is the disk full" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list((tmp_path / "a" / "healthy").iterdir())
    (tmp_path / "a" / "cases").mkdir()
    (tmp_path / "a" / "cases" / "healthy_000.json").touch()  # of a version that knew no better
    (tmp_path / "a" / "healthy" / ".7.healthy_000.nii.gz").touch()  # of a run that was killed
    assert main([*command, "-np", "1"]) == 0
    assert [file.name for file in (tmp_path / "a" / "healthy").iterdir()] == ["healthy_000.nii.gz"]
    for file in (tmp_path / "a").rglob("*.nii.gz"):
        check_complete(file)


def _check_the_written_truth(truth: Path, case: str) -> None:
    """The undeformed anatomy, resampled by SimpleITK through the written field, is the anatomy of the case."""
    field = sitk.ReadImage(str(truth / "displacement" / f"{case}.nii.gz"), sitk.sitkVectorFloat64)
    undeformed = sitk.ReadImage(str(truth / "undeformed_anatomy.nii.gz"))
    anatomy = sitk.ReadImage(str(truth / "anatomy" / f"{case}.nii.gz"))
    warped = sitk.Resample(undeformed, anatomy, sitk.DisplacementFieldTransform(field), sitk.sitkNearestNeighbor)
    before, after, wanted = (sitk.GetArrayFromImage(image) for image in (undeformed, warped, anatomy))
    assert (after == wanted)[wanted > 0].mean() > 0.8
    assert (before == wanted)[wanted > 0].mean() < 0.75
