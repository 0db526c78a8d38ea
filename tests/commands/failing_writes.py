"""A disk that is full for files of one name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import SimpleITK as sitk


def fails_for(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let SimpleITK fail as it does, with a `RuntimeError`, where the name of a file ends so."""

    def failing(write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(what: Any, file: str, *more: Any, **options: Any) -> None:
            if file.endswith(name):
                raise RuntimeError(f"sitk::ERROR: cannot write {file}")
            write(what, file, *more, **options)

        return wrapped

    for writer in ("WriteImage", "WriteTransform"):
        monkeypatch.setattr(sitk, writer, failing(getattr(sitk, writer)))
