"""A disk that is full, for all files or for those of one name."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import SimpleITK as sitk


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """No file gets more bytes than these: the system refuses the rest, and ITK does with it what it does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fails_for(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Cut off what SimpleITK writes where the name of a file ends so."""

    def failing(write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(what: Any, file: str, *more: Any, **options: Any) -> None:
            with at_most(60) if file.endswith(name) else nullcontext():
                write(what, file, *more, **options)

        return wrapped

    for writer in ("WriteImage", "WriteTransform"):
        monkeypatch.setattr(sitk, writer, failing(getattr(sitk, writer)))
