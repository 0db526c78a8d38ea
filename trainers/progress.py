"""nnU-Net's log and progress.png with a second Dice curve, so that the turning point can be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2.training.logging.nnunet_logger import LocalLogger

IN_DISTRIBUTION_DICE = "in_distribution_dice"


class TwoCurveLogger(LocalLogger):
    """`mean_fg_dice` is the shifted Dice, which chooses the epoch; `in_distribution_dice` stands beside it."""

    def __init__(self, verbose: bool = False) -> None:
        super().__init__(verbose)
        self.my_fantastic_logging[IN_DISTRIBUTION_DICE] = []

    def load_checkpoint(self, checkpoint: dict[str, list[Any]]) -> None:
        super().load_checkpoint(checkpoint)
        self.my_fantastic_logging.setdefault(IN_DISTRIBUTION_DICE, [])

    def plot_progress_png(self, output_folder: str) -> None:
        """Losses and both Dice curves with the chosen epoch, epoch times, learning rate."""
        import matplotlib.pyplot as plt

        log = self.my_fantastic_logging
        n = min(len(values) for values in log.values())
        epochs = list(range(n))
        figure, (losses, dice, times) = plt.subplots(3, 1, figsize=(12, 15), sharex=True, layout="constrained")
        losses.plot(epochs, log["train_losses"][:n], label="training loss")
        losses.plot(epochs, log["val_losses"][:n], label="validation loss (shifted)")
        losses.set_ylabel("loss")
        dice.plot(epochs, log["mean_fg_dice"][:n], color="tab:green", alpha=0.5, label="shifted Dice")
        dice.plot(epochs, log["ema_fg_dice"][:n], color="tab:green", label="shifted Dice, moving average (chooses)")
        dice.plot(epochs, log[IN_DISTRIBUTION_DICE][:n], color="tab:purple", alpha=0.7, label="in-distribution Dice")
        if n:
            best = max(epochs, key=lambda e: log["ema_fg_dice"][e])
            dice.axvline(best, color="tab:grey", linestyle=":", label=f"checkpoint_best (epoch {best})")
        dice.set_ylabel("Dice on fixed patches")
        dice.set_ylim(0, 1)
        seconds = [log["epoch_end_timestamps"][e] - log["epoch_start_timestamps"][e] for e in epochs]
        times.plot(epochs, seconds, color="tab:blue", label="seconds per epoch")
        times.set_ylim(bottom=0)
        times.set_ylabel("seconds")
        times.set_xlabel("epoch")
        rates = times.twinx()
        rates.plot(epochs, log["lrs"][:n], color="tab:orange", label="learning rate")
        rates.set_ylabel("learning rate")
        for axis, where in (
            (losses, "upper right"),
            (dice, "lower right"),
            (times, "upper left"),
            (rates, "upper right"),
        ):
            axis.legend(loc=where)
        figure.savefig(Path(output_folder) / "progress.png", dpi=80)
        plt.close(figure)
