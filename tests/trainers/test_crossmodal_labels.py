from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_synthtumour.settings import CrossModalSettings
from nnunet_synthtumour.trainers.carried_labels import Carried
from nnunet_synthtumour.trainers.crossmodal_cases import SOURCE
from nnunet_synthtumour.trainers.crossmodal_labels import Crossing
from nnunet_synthtumour.trainers.whole_grids import Whole

SHAPE = (6, 7, 8)
IGNORE = 9


class _Carrier:
    def __init__(self) -> None:
        self.images = {"t": Whole(torch.rand(1, *SHAPE), torch.zeros(1, *SHAPE, dtype=torch.int16))}

    def carry(self, target: str, sources: list[str]) -> Carried:
        assert sources == [f"{SOURCE}a", f"{SOURCE}b"]
        agreement = torch.ones(SHAPE)
        agreement[0] = 0.5
        return Carried(torch.ones(SHAPE, dtype=torch.int16), agreement, torch.zeros(SHAPE))


class _Writer:
    ignore = IGNORE

    def write(self, folder: Path, case: str, sources: list[str], carried: Carried, kept: Tensor) -> dict[str, Any]:
        return {"case": case, "sources": sources, "kept": kept}


def test_what_sources_disagree_on_is_ignored_and_a_picture_shows_it(tmp_path: Path) -> None:
    carrier, writer = _Carrier(), _Writer()
    settings = CrossModalSettings(trusted=0.8, doubtful=0.0)
    crossing = Crossing(carrier, writer, lambda case: [f"{SOURCE}a", f"{SOURCE}b"], settings)  # type: ignore[arg-type]
    row = crossing.to_target("t", tmp_path)
    assert row["case"] == "t" and row["sources"] == ["a", "b"]
    assert (row["kept"][0] == IGNORE).all() and (row["kept"][1:] == 1).all()
    assert (tmp_path / "pictures" / "t.png").is_file()
