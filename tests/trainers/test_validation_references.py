from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_synthtumour.trainers import validation_references
from nnunet_synthtumour.trainers.validation_references import ReferenceWriter


class _Loaded:
    identifiers = ("given", "loaded")

    def load_case(self, case: str) -> tuple[Any, ...]:
        return None, np.array([[[[0, 1, 2]]]]), None, {"of": case}


@pytest.mark.parametrize(("ignored", "values"), [(None, [0, 1, 2]), (2, [0, 1, 0])])
def test_given_references_are_copied_and_others_written_as_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignored: int | None, values: list[int]
) -> None:
    written: dict[Path, tuple[list[int], dict[str, Any]]] = {}
    monkeypatch.setattr(
        validation_references, "write_reference",
        lambda seg, properties, file, *_: written.update({file: (seg.ravel().tolist(), properties)}),
    )  # fmt: skip
    (tmp_path / "given.mha").write_text("theirs", encoding="utf-8")
    nothing: Any = None
    writer = ReferenceWriter(tmp_path / "lent", tmp_path, nothing, nothing, {"file_ending": ".mha"})
    writer.write(_Loaded(), lambda case: case == "given", ignored)
    assert (tmp_path / "lent" / "given.mha").read_text(encoding="utf-8") == "theirs"
    assert written == {tmp_path / "lent" / "loaded": (values, {"of": "loaded"})}
