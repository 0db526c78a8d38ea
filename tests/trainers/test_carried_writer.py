"""Labels of a common grid, written for a case that was cropped out of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from nnunet_synthtumour.trainers.carried_labels import Carried, read_locations
from nnunet_synthtumour.trainers.carried_writer import CarriedWriter
from nnunet_synthtumour.trainers.whole_grids import OUTSIDE, Grid

IGNORE = 2


class _Cropped:
    def load_case(self, case: str) -> tuple[Any, ...]:
        seg = np.zeros((1, 4, 6, 8), np.int16)
        seg[0, 0] = OUTSIDE
        return None, seg, None, {
            "shape_after_cropping_and_before_resampling": (4, 6, 8),
            "bbox_used_for_cropping": [[2, 6], [0, 6], [0, 8]],
        }  # fmt: skip


def test_a_case_gets_its_part_of_the_grid_and_what_was_kept_is_told(tmp_path: Path) -> None:
    manager: Any = SimpleNamespace(foreground_labels=[1], all_labels=[0, 1])
    writer = CarriedWriter(_Cropped(), Grid((8, 6, 8), (8, 6, 8)), manager, {"tumour": 1}, IGNORE, (1.0, 2.0, 5.0))
    labels = torch.zeros(8, 6, 8, dtype=torch.int16)
    labels[3, :2] = 1
    kept = labels.clone()
    kept[3, 0] = IGNORE
    row = writer.write(tmp_path, "a", ["s"], Carried(labels, torch.ones(8, 6, 8), torch.zeros(8, 6, 8)), kept)
    assert row["sources"] == ["s"] and row["labels"]["tumour"] == {"ml": 0.08, "kept": 0.5, "agreement": 1.0}
    seg = np.load(tmp_path / "a_seg.npy")
    assert seg.shape == (1, 4, 6, 8) and (seg[0, 0] == OUTSIDE).all()
    assert (seg[0, 1, 0] == IGNORE).all() and (seg[0, 1, 1] == 1).all() and (seg[0, 2:] == 0).all()
    found = read_locations(tmp_path, "a")
    assert {tuple(at[1:3]) for at in found[1]} == {(1, 1)}
    assert (1, 0) not in {tuple(at[1:3]) for at in found[(-1, 0, 1)]}
