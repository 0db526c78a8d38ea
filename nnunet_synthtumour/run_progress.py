"""One line that says where a run is and how long is left, from what nnU-Net prints."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence

from nnunet_synthtumour.stages import Stage


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class RunProgress:
    """Which of the stages is at work, and in a training, at which epoch."""

    def __init__(self) -> None:
        self.epochs_after = 0
        self.seconds_per_epoch: float | None = None
        self._begun = time.monotonic()
        self._stage: Stage | None = None
        self._epoch = -1

    def begin(self, at: int, stage: Stage, later: Sequence[Stage]) -> None:
        self._stage, self._epoch = stage, -1
        self.epochs_after = sum(other.epochs for other in later)
        self._say(f"[{at}/{at + len(later)}] {stage.title}", end=True)

    def skip(self, at: int, stage: Stage, later: Sequence[Stage]) -> None:
        self._say(f"[{at}/{at + len(later)}] {stage.title}: done before", end=True)

    def end(self) -> None:
        self._say(f"      done; {duration(time.monotonic() - self._begun)} so far", end=True)

    def line(self, line: str) -> None:
        """A line that the stage's command printed."""
        if not self._stage or not self._stage.epochs:
            return
        if found := re.search(r"\bEpoch (\d+)\s*$", line):
            self._epoch = int(found[1])
        elif found := re.search(r"Epoch time: ([\d.]+) s", line):
            seconds = float(found[1])
            kept = self.seconds_per_epoch
            self.seconds_per_epoch = seconds if kept is None else 0.7 * kept + 0.3 * seconds
            self._report()

    def _report(self) -> None:
        assert self._stage is not None and self.seconds_per_epoch is not None
        left = max(0, self._stage.epochs - self._epoch - 1)
        text = (f"      epoch {self._epoch + 1} of {self._stage.epochs}, {duration(self.seconds_per_epoch)} each: "
                f"{duration(left * self.seconds_per_epoch)} left")  # fmt: skip
        if self.epochs_after:
            text += f", {duration((left + self.epochs_after) * self.seconds_per_epoch)} with the trainings to come"
        self._say(text, end=False)

    def _say(self, text: str, end: bool) -> None:
        if sys.stdout.isatty():
            print("\r\033[K" + text, end="\n" if end else "", flush=True)
        else:
            print(text, flush=True)
