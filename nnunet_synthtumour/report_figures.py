"""The figures of the report, each one PNG: learning curves, volumes, worst cases, samples of what training saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synthtumour.chosen_epoch import chosen_epoch
from nnunet_synthtumour.contact_sheet import Panel, save_sheet
from nnunet_synthtumour.volumes import measure_in

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#777777"  # told apart by colour-blind eyes
CURVES = {
    "mean_fg_dice": "validation",
    "in_distribution_dice": "in-distribution",
    "pasted_dice": "pasted donors",
    "shifted_dice": "shifted lesions",
}
TRUTH_AND_FOUND = "truth blue, found orange"


def plain_axes() -> Any:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
    return plt


def kept_epoch(title: str, log: Mapping[str, list[float]]) -> int:
    """The epoch whose weights segment: the chosen one of a junior, the last of a senior (`junior_model.usual_checkpoint`)."""
    return len(log["ema_fg_dice"]) - 1 if title.startswith("senior") else chosen_epoch(log["ema_fg_dice"])


def draw_curves(trainings: Mapping[str, Mapping[str, list[float]]], file: Path) -> None:
    """Losses and Dice over the epochs of every training, one column each; dotted: the epoch that is kept."""
    plt = plain_axes()
    n = len(trainings)
    figure, axes = plt.subplots(2, n, figsize=(4.2 * n + 0.5, 5), squeeze=False, layout="constrained", sharey="row")
    for (title, log), losses, dice in zip(trainings.items(), axes[0], axes[1], strict=True):
        losses.plot(log["train_losses"], color=BLUE, label="training")
        losses.plot(log["val_losses"], color=ORANGE, label="validation")
        for (key, words), style in zip(CURVES.items(), ("-", "--", "-.", ":"), strict=True):
            if log.get(key):
                of_all = key == "mean_fg_dice"
                said = f"{words} (chooses the epoch)" if of_all and not title.startswith("senior") else words
                dice.plot(log[key], style, color=BLUE if of_all else GREY, label=said)
        chosen = kept_epoch(title, log)
        for axis in (losses, dice):
            axis.axvline(chosen, color=ORANGE, linestyle=":", linewidth=1)
        dice.set_ylim(0, 1)
        dice.set_xlabel("epoch")
        losses.set_title(f"{title} (epoch {chosen} kept)")
        losses.legend(frameon=False)
        dice.legend(frameon=False, fontsize=7)
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("Dice on fixed patches")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_scores(arms: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Dice of every case, and volumes as Bland and Altman compare two measurements; `arms` have the cases' rows."""
    plt = plain_axes()
    figure, (dice, volumes) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    names = list(arms)
    values = [[row["dice"] for row in arms[name]] for name in names]
    for rows in zip(*values, strict=True):
        dice.plot(range(len(names)), [np.nan if v is None else v for v in rows], color=GREY, alpha=0.4, linewidth=0.8)
    for i, (column, colour) in enumerate(zip(values, (BLUE, ORANGE), strict=False)):
        known = [v for v in column if v is not None]
        dice.plot([i] * len(known), known, "o", color=colour, markersize=4, alpha=0.7)
        if known:
            dice.plot([i - 0.2, i + 0.2], [np.mean(known)] * 2, color=colour, linewidth=2.5)
    dice.set_xticks(range(len(names)), names)
    dice.set_xlim(-0.5, len(names) - 0.5)
    dice.set_ylim(0, 1)
    dice.set_ylabel("Dice, each case and the mean")
    measures = {name: measure_in(arms[name][0]) for name in names}
    for name, colour, mark in zip(names, (BLUE, ORANGE), ("o", "s"), strict=False):
        unit, shown = measures[name].unit, measures[name].shown
        pair = np.array([[row[unit], row[f"true_{unit}"]] for row in arms[name]])
        difference = pair[:, 0] - pair[:, 1]
        volumes.plot(pair.mean(1), difference, mark, color=colour, markersize=4, label=f"{name} ({shown})")
        spread = 1.96 * difference.std(ddof=1) if len(difference) > 1 else 0
        for level, style in (
            (difference.mean(), "-"),
            (difference.mean() - spread, ":"),
            (difference.mean() + spread, ":"),
        ):
            volumes.axhline(level, color=colour, linestyle=style, linewidth=1)
    kinds = " or ".join(dict.fromkeys(measure.name for measure in measures.values()))
    volumes.set_xlabel(f"mean of found and true {kinds}")
    volumes.set_ylabel(f"found - true {kinds}")
    volumes.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_case(image: np.ndarray, truth: np.ndarray, found: Mapping[str, np.ndarray], file: Path) -> None:
    """One case (X, Y, Z arrays): the slice where truth and predictions differ most, bare and with each prediction."""
    plt = plain_axes()
    wrong = sum((mask != truth).astype(int) for mask in found.values())
    counts = np.asarray(wrong).sum(axis=(1, 2))
    at = int(counts.argmax() if counts.any() else truth.sum(axis=(1, 2)).argmax())
    figure, axes = plt.subplots(1, 1 + len(found), figsize=(3 * (1 + len(found)), 3.2), layout="constrained")
    low, high = np.percentile(image, [1, 99.8])
    for axis, title in zip(axes, ("image", *found), strict=True):
        axis.imshow(image[at], cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
        axis.set_axis_off()
        axis.set_title(title)
        if title in found:
            for mask, colour, style in ((truth[at], "#56b4e9", "solid"), (found[title][at], "#e69f00", "solid")):
                if mask.any():
                    axis.contour(mask, [0.5], colors=colour, linewidths=1.2, linestyles=style)
    figure.savefig(file, dpi=90)
    plt.close(figure)


def draw_pastes(bank_folder: Path, cases_folder: Path, healthy: Sequence[str], settings: Any, ignore_label: int, n: int,
                file: Path) -> None:  # fmt: skip
    """`n` held-up samples of what the senior saw: donors of the bank in healthy cases."""
    import torch
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    from nnunet_synthtumour.donor_bank import DonorBank
    from nnunet_synthtumour.mixing import PasteTumour, paste_in_volume

    bank = DonorBank.open(bank_folder)
    paste = PasteTumour(bank, settings, bank.index.spacing, ignore_label, 1.0)
    data = infer_dataset_class(str(cases_folder))(str(cases_folder), list(healthy))
    np.random.seed(0)
    torch.manual_seed(0)
    panels = []
    for i in range(n):
        case = healthy[i % len(healthy)]
        image, seg, *_ = data.load_case(case)
        grown, labels = paste_in_volume(paste, image[:], seg[:])
        labels = np.where(labels[0] == ignore_label, 0, labels[0].clip(min=0))
        at = int((labels > 0).sum(axis=(1, 2)).argmax())
        panels.append(Panel(grown[0][at], labels[at], case))
    rows = [panels[i : i + 6] for i in range(0, len(panels), 6)]
    save_sheet(rows, file, "Real tumours of the donor bank, pasted into healthy images")
