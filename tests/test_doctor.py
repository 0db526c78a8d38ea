import shutil
from pathlib import Path

import pytest

from nnunet_synthtumour import doctor
from nnunet_synthtumour.cli import main


def _disk_with(free_gb: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free on the disk that the tests run on is nobody's business."""
    usage = shutil.disk_usage("/")._replace(free=int(free_gb * 1e9))
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)


def test_all_is_well_where_nnunet_finds_everything(
    nnunet_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _disk_with(doctor.LEAST_FREE_GB, monkeypatch)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "[pass] trainer SynthTumourTrainer" in shown
    assert "[pass] planner SmallPlanner" in shown
    assert "FAIL" not in shown


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "not set"), ("/nowhere/at/all", "is not a folder")],
)
def test_a_missing_folder_fails_with_a_remedy(
    value: str | None,
    said: str,
    nnunet_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if value is None:
        monkeypatch.delenv("nnUNet_results")
    else:
        monkeypatch.setenv("nnUNet_results", value)
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("[FAIL] nnUNet_results"))
    assert said in lines[at]
    assert lines[at + 1].lstrip().startswith("->")


def test_too_little_space_fails(
    nnunet_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _disk_with(doctor.LEAST_FREE_GB - 0.01, monkeypatch)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert shown.count("[FAIL]") == shown.count("free some space") == 3


def test_a_trainer_that_cannot_be_imported_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunet_synthtumour.discovery.trainers.synthtumour_trainers import TRAINERS

    monkeypatch.setitem(TRAINERS, "GoneTrainer", "nnunet_synthtumour.trainers.gone")
    finding = next(f for f in doctor._discovered() if "GoneTrainer" in f.what)
    assert not finding.passed
    assert "reinstall" in finding.remedy


def test_an_untested_nnunet_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda _: "2.6.1")
    assert not doctor._nnunet_version().passed
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda _: "3.0.0")
    assert not doctor._nnunet_version().passed
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda _: "2.8.0")
    assert doctor._nnunet_version().passed


def test_link_is_undone_by_unlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_nnunet_folder", lambda kind: tmp_path / kind)
    doctor.link()
    linked = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.py"))
    assert linked == [
        "planners/__init__.py",
        "planners/synthtumour_planners.py",
        "trainers/__init__.py",
        "trainers/synthtumour_trainers.py",
    ]
    doctor.unlink()
    assert list(tmp_path.iterdir()) == []


def test_link_leaves_a_regular_install_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_nnunet_folder", lambda kind: tmp_path / kind)
    (tmp_path / "trainers").mkdir()
    mine = tmp_path / "trainers" / "__init__.py"
    mine.write_text("installed", encoding="utf-8")
    doctor.link()
    doctor.unlink()
    assert mine.read_text(encoding="utf-8") == "installed"
