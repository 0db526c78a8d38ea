from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnunet_synthtumour.pseudolabel_report import write_report
from nnunet_synthtumour.schema import to_json
from nnunet_synthtumour.settings import PseudoLabelSettings

PROVENANCE = {"patients_from": "Dataset001_P", "junior": "j", "checkpoint": "c", "epochs": {"0": 3},
              "rules": {**to_json(PseudoLabelSettings()), "min_ml": 1.0}}  # fmt: skip


def _record(unit: str) -> dict[str, Any]:
    component = {"ml": 7.0, "confidence": 0.9, "rim_share": 0.0, "middle": [0, 1, 1], "dropped": None}
    sizes = {"tumour": 4.2, "unsure": 1.3, "dropped": 0.0}
    return {"case": "a", "kept": True, "reason": None, "doubt": 0.1, "components": [component],
            unit: sizes, f"{unit}_per_label": {"oedema": 3.0, "core": 1.2}}  # fmt: skip


@pytest.mark.parametrize(("unit", "shown"), [("ml", "ml"), ("cm2", "cm²")])
def test_sizes_have_the_unit_that_they_were_measured_in(tmp_path: Path, unit: str, shown: str) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    text = write_report(tmp_path / "report.html", [_record(unit)], PROVENANCE, [tmp_path / "a.png"]).read_text("utf-8")
    for said in (f"4.2 {shown} tumour", f"1.3 {shown} are unsure", f"<th>tumour ({shown})</th>", f"oedema 3.0 {shown}"):
        assert said in text
    assert ("as a ball (ml)" in text) == (unit == "cm2")
