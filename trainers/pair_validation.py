"""How well validation pairs are registered: every epoch in a few numbers, at the end in full, with pictures."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_synthtumour.registration.fields import warp
from nnunet_synthtumour.registration.metrics import dice, folds_percent, overlap, sd_log_jacobian
from nnunet_synthtumour.registration_picture import save_picture
from nnunet_synthtumour.trainers.registration_network import RegistrationLearner

EVERY_EPOCH, AT_THE_END = 6, 60


class PairValidation:
    """Ordered pairs of labelled cases, a seeded sample where there are many."""

    def __init__(self, cases: Any, labelled: list[str], classes: int, seed: int = 0) -> None:
        self.cases, self.classes = cases, classes
        pairs = list(itertools.permutations(labelled, 2))
        order = np.random.default_rng(seed).permutation(len(pairs))
        self.pairs = [pairs[i] for i in order]

    def summary(self, learner: RegistrationLearner, device: torch.device) -> dict[str, float]:
        """Mean Dice before and after, and folds, of a few pairs; NaN where there is no pair of labelled cases."""
        rows = [self._register(learner, device, pair)[0] for pair in self.pairs[:EVERY_EPOCH]]
        return {key: float(np.nanmean([row[key] for row in rows])) if rows else float("nan")
                for key in ("dice_before", "dice_after", "folds_percent")}  # fmt: skip

    def write(self, learner: RegistrationLearner, device: torch.device, folder: Path) -> None:
        """`registration.json` and pictures of the best, the median and the worst pair."""
        folder.mkdir(parents=True, exist_ok=True)
        spacing = learner.architecture.spacing or (1.0, 1.0, 1.0)
        rows = []
        for pair in self.pairs[:AT_THE_END]:
            row, (_, _, warped, truth) = self._register(learner, device, pair)
            per_label = overlap(warped, truth, spacing, list(range(1, self.classes)))
            rows.append({"moving": pair[0], "fixed": pair[1], **row,
                         "labels": {str(label): values for label, values in per_label.items()}})  # fmt: skip
        keys = ("dice_before", "dice_after", "folds_percent", "sd_log_jacobian")
        means = {key: float(np.nanmean([row[key] for row in rows])) for key in keys} if rows else {}
        finite = [v["hd95"] for row in rows for v in row["labels"].values() if np.isfinite(v["hd95"])]
        means |= {"hd95": float(np.mean(finite))} if finite else {}
        about = {"pairs": len(rows), "of": len(self.pairs), "determinant": "central differences", "mean": means}
        text = json.dumps(_no_nan({**about, "per_pair": rows}), indent=1)
        (folder / "registration.json").write_text(text + "\n", encoding="utf-8")
        ranked = sorted(rows, key=lambda row: -row["dice_after"])
        for name, at in (("best", 0), ("median", len(ranked) // 2), ("worst", len(ranked) - 1)) if ranked else ():
            pair = ranked[at]["moving"], ranked[at]["fixed"]
            _, (fixed, moved, warped, truth) = self._register(learner, device, pair)
            save_picture(folder / f"registration_{name}.png", fixed, moved, spacing, warped, truth)

    def _register(
        self, learner: RegistrationLearner, device: torch.device, pair: tuple[str, str]
    ) -> tuple[dict[str, float], tuple[np.ndarray, ...]]:
        moving, fixed = (self.cases[case] for case in pair)
        one, other = (side.match()[None].to(device) for side in (moving, fixed))
        forward, _ = learner.register(one, other)
        labels = moving.seg[None].clamp(min=0).float().to(device)
        warped = warp(labels, forward, "nearest")[0, 0].cpu().numpy().astype(np.int16)
        before, truth = moving.seg[0].clamp(min=0).numpy(), fixed.seg[0].clamp(min=0).numpy()
        row = {
            "dice_before": self._mean_dice(before, truth),
            "dice_after": self._mean_dice(warped, truth),
            "folds_percent": folds_percent(forward),
            "sd_log_jacobian": sd_log_jacobian(forward),
        }
        return row, (other[0, 0].cpu().numpy(), warp(one, forward)[0, 0].cpu().numpy(), warped, truth)

    def _mean_dice(self, one: np.ndarray, other: np.ndarray) -> float:
        values = [dice(one == label, other == label) for label in range(1, self.classes)]
        return float(np.nanmean(values)) if not np.all(np.isnan(values)) else float("nan")


def _no_nan(value: Any) -> Any:
    """NaN and infinity are no JSON."""
    if isinstance(value, dict):
        return {key: _no_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_no_nan(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
