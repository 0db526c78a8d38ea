from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_synthtumour.atomic_files import LOCK, alone_in, forget_unfinished, is_empty
from nnunet_synthtumour.errors import UserError


def test_only_scratch_files_are_swept(tmp_path: Path) -> None:
    (tmp_path / "a" / ".1.folder").mkdir(parents=True)
    kept = [tmp_path / "a" / "case.nii.gz", tmp_path / ".hidden", tmp_path / "a" / ".1.folder" / "x"]
    for file in [*kept, tmp_path / "a" / ".12.case.nii.gz"]:
        file.touch()
    forget_unfinished(tmp_path)
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == set(kept)


def test_what_its_writer_renamed_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".13.case").touch()
    monkeypatch.setattr(Path, "is_file", lambda file: file.unlink() is None)
    forget_unfinished(tmp_path)
    assert is_empty(tmp_path)


def test_one_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert is_empty(out)
    with alone_in(out):
        assert is_empty(out)
        with pytest.raises(UserError, match="Another process is writing to"), alone_in(out):
            pass
    with alone_in(out):
        assert [file.name for file in out.iterdir()] == [LOCK]
    (out / "x").touch()
    assert not is_empty(out)
