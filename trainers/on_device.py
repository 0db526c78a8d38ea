"""Batches of nested tensors on the device of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def on_device(batch: Any, device: torch.device) -> Any:
    """`batch` with all tensors in its dicts and lists moved; what is none stays."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: on_device(part, device) for key, part in batch.items()}
    if isinstance(batch, list):
        return [on_device(part, device) for part in batch]
    return batch
