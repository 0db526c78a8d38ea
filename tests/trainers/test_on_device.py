from __future__ import annotations

import torch

from nnunet_synthtumour.trainers.on_device import on_device


def test_tensors_move_wherever_they_are_and_the_rest_stays() -> None:
    batch = {"data": torch.zeros(1), "target": [torch.zeros(1)], "side": {"seg": torch.zeros(1), "case": ["a", "b"]}}
    moved = on_device(batch, torch.device("meta"))
    assert all(t.is_meta for t in (moved["data"], moved["target"][0], moved["side"]["seg"]))
    assert moved["side"]["case"] == ["a", "b"] and not batch["data"].is_meta
