"""nnU-Net's log with curves of our own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nnunetv2.training.logging.nnunet_logger import LocalLogger


class MoreCurves(LocalLogger):
    """Adds the curves `keys`, also to what a checkpoint of a trainer without them had logged."""

    def __init__(self, keys: Iterable[str], verbose: bool = False) -> None:
        super().__init__(verbose)
        self._keys = tuple(keys)
        self._add_missing()

    def _add_missing(self) -> None:
        for key in self._keys:
            self.my_fantastic_logging.setdefault(key, [])

    def load_checkpoint(self, checkpoint: dict[str, list[Any]]) -> None:
        super().load_checkpoint(checkpoint)
        self._add_missing()
