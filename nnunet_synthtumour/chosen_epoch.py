"""Which epoch a fixed validation set chooses: the last one that is as good as the best, by a moving average of its Dice."""

from __future__ import annotations

from collections.abc import Sequence

AS_GOOD = 0.01  # Dice: what two epochs of a settled training differ by on a fixed set, though neither is the better one
REMEMBERED_EPOCHS, SHARE_OF_TRAINING = 10, 25


def moved(average: float, now: float, epochs: int) -> float:
    """nnU-Net's moving average remembers ten epochs of a thousand. A training of ten epochs would never leave its first
    one behind, so this one remembers a 25th of the epochs, at most those ten.
    """
    share = 1 / min(REMEMBERED_EPOCHS, max(1.0, epochs / SHARE_OF_TRAINING))
    return average + share * (now - average)


def is_chosen(averages: Sequence[float]) -> bool:
    """Whether the newest epoch takes the place of the one that was chosen before."""
    return len(averages) < 2 or averages[-1] > max(averages[:-1]) - AS_GOOD


def chosen_epoch(averages: Sequence[float]) -> int:
    """The epoch that is chosen in the end."""
    return max(epoch for epoch in range(len(averages)) if is_chosen(averages[: epoch + 1]))
