"""nnU-Net's log and progress.png with more Dice curves, so that the turning point can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nnunet_synthtumour.chosen_epoch import chosen_epoch
from nnunet_synthtumour.trainers.more_curves import MoreCurves

COLOURS = ("tab:purple", "tab:olive", "tab:cyan")


class CurvesLogger(MoreCurves):
    """`mean_fg_dice` is nnU-Net's own key for what chooses the epoch, `chooses` in words; `beside` names other curves."""

    def __init__(self, chooses: str, beside: Mapping[str, str], verbose: bool = False) -> None:
        super().__init__(beside, verbose)
        self.chooses, self.beside = chooses, dict(beside)

    def plot_progress_png(self, output_folder: str) -> None:
        """Losses and all Dice curves with the chosen epoch, epoch times, learning rate."""
        import matplotlib.pyplot as plt

        log = self.my_fantastic_logging
        n = min(len(values) for values in log.values())
        epochs = list(range(n))
        figure, (losses, dice, times) = plt.subplots(3, 1, figsize=(12, 15), sharex=True, layout="constrained")
        losses.plot(epochs, log["train_losses"][:n], label="training loss")
        losses.plot(epochs, log["val_losses"][:n], label=f"validation loss ({self.chooses})")
        losses.set_ylabel("loss")
        dice.plot(epochs, log["mean_fg_dice"][:n], color="tab:green", alpha=0.5, label=f"{self.chooses} Dice")
        dice.plot(
            epochs, log["ema_fg_dice"][:n], color="tab:green", label=f"{self.chooses} Dice, moving average (chooses)"
        )
        for (key, words), colour in zip(self.beside.items(), COLOURS, strict=False):
            dice.plot(epochs, log[key][:n], color=colour, alpha=0.7, label=f"{words} Dice")
        if n:
            best = chosen_epoch(log["ema_fg_dice"][:n])
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
