"""nnU-Net's log and progress.png with the losses of both networks and the registration of validation pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from nnunet_synthtumour.trainers.more_curves import MoreCurves

LOSSES = ("similarity_loss", "regularity_loss", "anatomy_loss", "carried_loss")
REGISTRATION_CURVES = ("dice_before", "dice_after", "folds_percent")


def unmeasured() -> dict[str, Any]:
    """What a training step puts out, all NaN: the losses of both networks."""
    return {"loss": np.array(np.nan), **{key.removesuffix("_loss"): np.array(np.nan) for key in LOSSES}}


def measured(losses: dict[str, Any]) -> dict[str, Any]:
    """All losses as nnU-Net collects them: moved at the end of a step, so that nobody waits for the device within it."""
    return {key: value.cpu().numpy() if isinstance(value, torch.Tensor) else value for key, value in losses.items()}


def mean_of_measured(values: list[Any]) -> float:
    """NaN if none was."""
    known = [float(v) for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def said_of(means: Mapping[str, float]) -> str:
    """A line for the log on an epoch's losses beside nnU-Net's, as far as there were any."""
    names = (key.removesuffix("_loss") for key in LOSSES)
    known = [f"{name} {means[name]:.4f}" for name in names if not np.isnan(means[name])]
    return f"Losses: {', '.join(known)}" if known else ""


class RegistrationLogger(MoreCurves):
    """Adds the curves of a registration network; where something was not measured in an epoch there is a NaN."""

    def __init__(self, verbose: bool = False) -> None:
        super().__init__((*LOSSES, *REGISTRATION_CURVES), verbose)

    def plot_progress_png(self, output_folder: str) -> None:
        """Segmentation losses and Dice, registration losses, registration Dice before and after, folds, epoch times."""
        import matplotlib.pyplot as plt

        log = self.my_fantastic_logging
        n = min(len(values) for values in log.values())
        epochs = np.arange(n)
        figure, (losses, terms, dice, folds) = plt.subplots(
            4, 1, figsize=(12, 18), sharex=True, layout="constrained"
        )  # fmt: skip

        def draw(axis: Axes, key: str, **style: Any) -> None:
            """A curve without a single point, such as pairs of a training with one label, is not in the legend either."""
            values = np.asarray(log[key][:n], dtype=float)
            if np.isfinite(values).any():
                axis.plot(epochs, values, **style)

        for axis, keys in ((losses, ("train_losses", "val_losses", "carried_loss")), (terms, LOSSES[:3])):
            for key in keys:
                draw(axis, key, marker=".", label=key.replace("_", " "))
            axis.set_ylabel("loss")
        losses.set_title("segmentation")
        terms.set_title("registration")
        draw(dice, "mean_fg_dice", color="tab:green", label="segmentation")
        draw(dice, "ema_fg_dice", color="tab:green", alpha=0.5, label="segmentation, moving average")
        draw(dice, "dice_before", color="tab:grey", label="pairs before registration")
        draw(dice, "dice_after", color="tab:purple", label="pairs after registration")
        dice.set_ylabel("Dice")
        dice.set_ylim(0, 1)
        draw(folds, "folds_percent", color="tab:red", label="folded voxels, %")
        folds.set_ylim(bottom=0)
        folds.set_ylabel("%")
        seconds = [log["epoch_end_timestamps"][e] - log["epoch_start_timestamps"][e] for e in epochs]
        times = folds.twinx()
        times.plot(epochs, seconds, color="tab:blue", label="seconds per epoch")
        times.set_ylim(bottom=0)
        times.set_ylabel("seconds")
        folds.set_xlabel("epoch")
        for axis in (losses, terms, dice, folds):
            if axis.lines:
                axis.legend(loc="best")
        times.legend(loc="lower right")
        figure.savefig(Path(output_folder) / "progress.png", dpi=80)
        plt.close(figure)
