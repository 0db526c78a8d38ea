"""nnU-Net's loss in one of several processes that train together (`-num_gpus`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def of_this_rank_alone(loss: nn.Module) -> Iterator[None]:
    """Meanwhile the batch Dice is that of this process's own batch.

    nnU-Net's loss otherwise waits in every step for the batches of all others, which must be as many and as large: those
    of the fixed set are not.
    """
    gathering: list[Any] = [module for module in loss.modules() if getattr(module, "ddp", False)]
    for module in gathering:
        module.ddp = False
    try:
        yield
    finally:
        for module in gathering:
            module.ddp = True
