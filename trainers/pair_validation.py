"""How well validation pairs are registered: every epoch in a few numbers, at the end in full, with pictures."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nnunet_synthtumour.registration.anatomy import in_both
from nnunet_synthtumour.registration.fields import warp
from nnunet_synthtumour.registration.instance import Deformation, InstanceSettings, Similarity, image_cost, optimise
from nnunet_synthtumour.registration.metrics import dice, folds_percent, hd95, sd_log_jacobian
from nnunet_synthtumour.registration_picture import save_picture
from nnunet_synthtumour.trainers.registration_network import RegistrationLearner

EVERY_EPOCH, AT_THE_END, FITTED = 6, 60, 10
MEASURES = (
    "dice_before", "dice_after", "folds_percent", "sd_log_jacobian", "image_cost_before", "image_cost_after",
)  # fmt: skip
# without steps towards what is found: those flatter where the guide has learnt from the very labels
LOOKS, KEPT = "dice_looks", "steps_kept"
REFINED = ("dice_refined", "folds_percent_refined")  # of `FITTED` pairs with labels, at the end
HELD_OUT, WITH_TRAINING, TRAINING, WITHOUT_LABELS = (
    "both held out",
    "one held out, one of training",
    "both of training",
    "no two labelled images: no Dice",
)


class ValidationPairs(NamedTuple):
    """What is registered, and how far it is from what training has seen."""

    kind: str
    pairs: list[tuple[str, str]]


def validation_pairs(train: Sequence[str], val: Sequence[str], unlabelled: Sequence[str]) -> ValidationPairs:
    """Ordered pairs of labelled cases, of held-out ones as far as there are any; of any images where one is labelled."""
    held_out = [case for case in val if case not in train]
    if len(held_out) > 1:
        return ValidationPairs(HELD_OUT, list(itertools.permutations(held_out, 2)))
    if held_out:
        one = held_out[0]
        return ValidationPairs(WITH_TRAINING, [pair for other in train for pair in ((one, other), (other, one))])
    if len(train) > 1:
        return ValidationPairs(TRAINING, list(itertools.permutations(train, 2)))
    some = [*train, *unlabelled]
    draw = np.random.default_rng(0)
    some = [some[i] for i in draw.permutation(len(some))[:AT_THE_END]]  # of thousands of images, pairs of a few do
    return ValidationPairs(WITHOUT_LABELS, list(itertools.permutations(some, 2)))


class Labels(NamedTuple):
    """Label maps of a pair on the fixed grid; what either image does not know is background in all of them."""

    before: np.ndarray
    warped: np.ndarray
    fixed: np.ndarray
    both: list[int]  # structures that both images have: one that an image lacks says nothing about a registration

    def dice(self, moving: np.ndarray) -> float:
        return _mean([dice(moving == label, self.fixed == label) for label in self.both])


def refined(
    learner: RegistrationLearner, moving: Tensor, fixed: Tensor, anatomy: float = InstanceSettings.anatomy
) -> Deformation:
    """What `synthtumour register --model`, with the similarity of training, makes of a pair that lies on its grid: the
    network's velocity, fitted to the images and, with the weight of `anatomy`, to structures that the guide finds in both."""
    seen = learner.found_in(moving, fixed)
    found = None if seen is None else in_both(seen)
    settings = InstanceSettings(similarity=cast(Similarity, learner.settings.similarity), anatomy=anatomy)
    initial = learner.velocity(moving, fixed, to_structures=anatomy > 0)
    with torch.enable_grad():  # nnU-Net validates without
        return optimise(moving, fixed, settings, learner.architecture.spacing, initial=initial, found=found)


class PairValidation:
    """A seeded sample of the `wanted` pairs where there are many; `labelled` cases have labels of `classes`, background
    included, and perhaps the ignore label."""

    def __init__(
        self, cases: Any, wanted: ValidationPairs, labelled: Sequence[str], classes: int, seed: int = 0
    ) -> None:
        self.cases, self.labelled, self.classes, self.kind = cases, set(labelled), classes, wanted.kind
        order = np.random.default_rng(seed).permutation(len(wanted.pairs))
        self.pairs = [wanted.pairs[i] for i in order]

    def summary(self, learner: RegistrationLearner, device: torch.device) -> dict[str, float]:
        """Means over a few pairs, NaN of what is not known."""
        rows = [self._register(learner, device, pair)[0] for pair in self.pairs[:EVERY_EPOCH]]
        return {key: _mean([row[key] for row in rows]) for key in MEASURES}

    def write(self, learner: RegistrationLearner, device: torch.device, folder: Path) -> None:
        """`registration.json` and pictures of the best, the median and the worst pair."""
        folder.mkdir(parents=True, exist_ok=True)
        spacing = learner.architecture.spacing or (1.0, 1.0, 1.0)
        rows: list[dict[str, Any]] = []
        for pair in tqdm(self.pairs[:AT_THE_END], desc="Registration", unit="pair", disable=len(self.pairs) < 2):
            row, _, labels = self._register(learner, device, pair)
            if learner.guide is not None and learner.structure_steps:
                row |= self._looks(learner, device, pair, labels is not None)
            if labels and len(rows) < FITTED:
                row |= self._refined(learner, device, pair)
            rows.append({"moving": pair[0], "fixed": pair[1], **row, "labels": _per_label(labels, spacing)})
        about = {"pairs": len(rows), "of": len(self.pairs), "kind": self.kind, "determinant": "central differences",
                 "passes": learner.passes, "structure_steps": learner.structure_steps, "mean": _means(rows),
                 "refined": _of_fitted(rows)}  # fmt: skip
        text = json.dumps(_no_nan({**about, "per_pair": rows}), indent=1)
        (folder / "registration.json").write_text(text + "\n", encoding="utf-8")
        ranked = sorted(rows, key=_rank)
        for name, at in (("best", 0), ("median", len(ranked) // 2), ("worst", len(ranked) - 1)) if ranked else ():
            _, (fixed, moved), labels = self._register(learner, device, (ranked[at]["moving"], ranked[at]["fixed"]))
            contours = (labels.warped, labels.fixed) if labels else ()
            save_picture(folder / f"registration_{name}.png", fixed, moved, spacing, *contours)

    def _register(
        self, learner: RegistrationLearner, device: torch.device, pair: tuple[str, str]
    ) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray], Labels | None]:
        """Measures, the fixed and the warped image, and labels where both images have some."""
        one, other = (self.cases[case].match()[None].to(device) for case in pair)
        forward, _ = learner.register(one, other)
        moved = warp(one, forward)
        labels = self._labels(pair, forward) if self.labelled.issuperset(pair) else None
        similarity = cast(Similarity, learner.settings.similarity)
        row = {
            "dice_before": labels.dice(labels.before) if labels else float("nan"),
            "dice_after": labels.dice(labels.warped) if labels else float("nan"),
            "folds_percent": folds_percent(forward),
            "sd_log_jacobian": sd_log_jacobian(forward),
            "image_cost_before": image_cost(similarity, one, other),
            "image_cost_after": image_cost(similarity, moved, other),
        }
        return row, (other[0, 0].cpu().numpy(), moved[0, 0].cpu().numpy()), labels

    def _refined(self, learner: RegistrationLearner, device: torch.device, pair: tuple[str, str]) -> dict[str, float]:
        u = refined(learner, *(self.cases[case].match()[None].to(device) for case in pair)).displacement
        labels = self._labels(pair, u)
        return dict(zip(REFINED, (labels.dice(labels.warped), folds_percent(u)), strict=True))

    def _looks(
        self, learner: RegistrationLearner, device: torch.device, pair: tuple[str, str], labelled: bool
    ) -> dict[str, Any]:
        one, other = (self.cases[case].match()[None].to(device) for case in pair)
        u, kept = learner.looks(one, other)
        labels = self._labels(pair, u) if labelled else None
        return {KEPT: kept} | ({LOOKS: labels.dice(labels.warped)} if labels else {})

    def _labels(self, pair: tuple[str, str], forward: Tensor) -> Labels:
        moving, fixed = (self.cases[case].seg.clamp(min=0) for case in pair)  # outside of the image is background
        warped = warp(moving[None].float().to(forward.device), forward, "nearest")[0].cpu().to(moving.dtype)
        maps = (moving, warped, fixed)
        unknown = torch.stack([labels >= self.classes for labels in maps]).any(0)  # the ignore label
        before, after, truth = (labels.masked_fill(unknown, 0)[0].numpy() for labels in maps)
        both = [k for k in range(1, self.classes) if (before == k).any() and (truth == k).any()]
        return Labels(before, after, truth, both)


def _per_label(labels: Labels | None, spacing: Sequence[float]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    if labels is None:
        return found
    for label in labels.both:
        masks = labels.warped == label, labels.fixed == label
        found[str(label)] = {"dice": dice(*masks), "hd95": hd95(*masks, spacing)}
    return found


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over all pairs, and of every label over the pairs that have it in both images."""
    if not rows:
        return {}
    means: dict[str, Any] = {key: _mean([row[key] for row in rows]) for key in MEASURES}
    if any(LOOKS in row for row in rows):
        means[LOOKS] = _mean([row[LOOKS] for row in rows if LOOKS in row])
    if any(KEPT in row for row in rows):
        means[KEPT] = _mean([float(row[KEPT]) for row in rows if KEPT in row])
    of_label: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        for label, values in row["labels"].items():
            of_label.setdefault(label, []).append(values)
    means |= _distances([v for values in of_label.values() for v in values])
    means["labels"] = {
        label: {"pairs": len(values), "dice": _mean([v["dice"] for v in values]), **_distances(values)}
        for label, values in sorted(of_label.items(), key=lambda item: int(item[0]))
    }
    return means


def _of_fitted(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the pairs that were fitted, beside what the network alone makes of them."""
    some = [row for row in rows if REFINED[0] in row]
    keys = ("dice_before", "dice_after", *REFINED) if some else ()
    return {"pairs": len(some), **{key: _mean([row[key] for row in some]) for key in keys}}


def _distances(structures: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean HD95 of what is still there after registration, and how many structures it lost, which have no distance."""
    found = [v["hd95"] for v in structures if np.isfinite(v["hd95"])]
    return {"hd95": _mean(found), "lost": len(structures) - len(found)}


def _rank(row: dict[str, Any]) -> float:
    """The best pair first: by Dice, or by the image where there are no labels."""
    return float(row["image_cost_after"] if np.isnan(row["dice_after"]) else -row["dice_after"])


def _mean(values: Sequence[float]) -> float:
    """Of what is known; NaN if nothing is."""
    known = [float(v) for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def _no_nan(value: Any) -> Any:
    """NaN and infinity are no JSON."""
    if isinstance(value, dict):
        return {key: _no_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_no_nan(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
