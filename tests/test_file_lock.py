from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nnunet_synthtumour.file_lock import take_lock
from nnunet_synthtumour.pseudolabels import _alone
from nnunet_synthtumour.stages import only_one


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with only_one(tmp_path), _alone(tmp_path / "assemble.lock") as alone:
        assert alone
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert all("cannot lock files" in line and str(tmp_path) in line for line in said)


def test_a_lock_is_taken_once_and_given_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lock"
    with file.open("w") as one, file.open("w") as other:
        assert take_lock(one)
        assert not take_lock(other)
        one.close()
        assert take_lock(other)
    assert not capsys.readouterr().out
