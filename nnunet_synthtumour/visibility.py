"""Can a modality show what is to be segmented in it? Measured per structure, before anybody trains on carried labels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nnunet_synthtumour.carried_appearance import corrected
from nnunet_synthtumour.visibility_features import (
    contrast_to_noise,
    edge_share,
    local_features,
    ring_around,
)

# The Dice of CrossModalTrainer's segmenter over separability, drawn by hand through what benchmarks/crossmodal.py reached
# for two organs and a lesion of four grades (docs/crossmodal.md): it rises monotonically, though the lesion's did not.
SEPARABILITY = (0.50, 0.70, 0.78, 0.86, 0.91, 0.97, 1.00)
EXPECTED_DICE = (0.00, 0.00, 0.38, 0.42, 0.67, 0.87, 0.95)
VISIBLE, FAINT, INVISIBLE, UNKNOWN = "visible", "faint", "not visible", "not to be told"
VISIBLE_FROM, FAINT_FROM = 0.60, 0.20  # expected Dice
VOXELS_PER_CASE, FOLDS, FEWEST_VOXELS = 2000, 5, 20
SAME_PLACE = 1e-2  # of spacings and origins in mm, and of directions

ADVICE = {
    VISIBLE: "Train on carried labels.",
    FAINT: "Expect gaps: correct some labels by hand in the target modality, or add a channel that shows it.",
    INVISIBLE: "Do not train on carried labels of it: the target does not show it, and registration cannot put it there. "
    "Use a modality or a contrast phase that shows it, or segment the source modality instead.",
    UNKNOWN: "The labels looked at are other patients', in whom it lies elsewhere: they neither tell whether these images "
    "show it nor teach it. Take labels of the same patients (source.pairing=paired), or label it in some targets.",
}  # fmt: skip


@dataclass(frozen=True)
class VisibilityCase:
    """One case on one grid: target (C, X, Y, Z), labels (X, Y, Z), source image (C', X, Y, Z) if there is one; mm.

    `frame` is where the grid lies in space, its origin and where its axes point; empty where that is unknown.
    """

    name: str
    target: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, ...]
    source: np.ndarray | None = None
    frame: tuple[float, ...] = ()
    carried: bool = False  # labels that came by registration, so not quite where the target shows a structure
    of_another: bool = False  # patient, who has a lesion elsewhere


@dataclass(frozen=True)
class Seen:
    """What one modality shows of a structure; means over cases, the best channel."""

    cnr: float
    auc_intensity: float
    auc_texture: float
    edge_share: float
    channel: int

    @property
    def separability(self) -> float:
        return float(np.nanmax([self.auc_intensity, self.auc_texture, 0.5]))


@dataclass(frozen=True)
class Verdict:
    """A structure's visibility, by what the image shows; `place_dice` is what its usual place alone gives, on cases that
    share a grid: no image is asked for it."""

    structure: str
    value: int
    cases: int
    ml: float
    target: Seen
    source: Seen | None
    place_dice: float
    expected_dice: float
    verdict: str
    advice: str

    def sentence(self) -> str:
        """One line for a log."""
        place = ""
        if self.place_dice > max(self.expected_dice, FAINT_FROM):
            place = (
                f" Its usual place alone gives a Dice of {self.place_dice:.2f}: enough to find what lies alike in "
                "everybody, of no use for what differs, as a lesion does."
            )
        if self.verdict == UNKNOWN:
            return f"{self.structure}: {self.verdict}. {self.advice}"
        return (
            f"{self.structure}: {self.verdict} in this modality (AUC {self.target.separability:.2f}, contrast to "
            f"noise {self.target.cnr:.2f}, edge on {100 * self.target.edge_share:.0f} % of its boundary); a Dice of about "
            f"{self.expected_dice:.2f} can be expected. {self.advice}{place}"
        )

    def as_json(self) -> dict[str, Any]:
        return _no_nan(asdict(self))


def visibility(cases: Sequence[VisibilityCase], labels: Mapping[str, int]) -> list[Verdict]:
    """A verdict per structure that any case has. `labels` is name -> value, without background and ignore."""
    bodies = [body_of(case.target) for case in cases]
    as_shown = [_as_shown(case, body) for case, body in zip(cases, bodies, strict=True)]
    verdicts = []
    for name, value in labels.items():
        found = [i for i, case in enumerate(cases) if (case.labels == value).sum() >= FEWEST_VOXELS]
        if not found:
            continue
        chosen, body = [cases[i] for i in found], [bodies[i] for i in found]
        target = _seen([as_shown[i] for i in found], body, value, "target")
        source = _seen(chosen, body, value, "source") if all(c.source is not None for c in chosen) else None
        place = _place_dice(chosen, value)
        expected = expected_dice(target.separability)
        verdict = VISIBLE if expected >= VISIBLE_FROM else FAINT if expected >= FAINT_FROM else INVISIBLE
        if verdict != VISIBLE and all(c.of_another for c in chosen) and _lies_anywhere(cases, value):
            verdict = UNKNOWN
        ml = float(np.mean([(c.labels == value).sum() * np.prod(c.spacing) / 1000 for c in chosen]))
        verdicts.append(
            Verdict(name, value, len(chosen), ml, target, source, place, expected, verdict, ADVICE[verdict])
        )
    return verdicts


def _as_shown(case: VisibilityCase, body: np.ndarray) -> VisibilityCase:
    """Carried labels with their borders where the target shows them: what is visible must not look faint because a
    field was off."""
    if not case.carried:
        return case
    labels = corrected(case.labels.astype(np.int16), case.target, body, case.spacing, 1.0).labels
    return replace(case, labels=labels)


def expected_dice(separability: float) -> float:
    """The Dice to expect of a structure of this separability; see SEPARABILITY."""
    return float(np.interp(separability, SEPARABILITY, EXPECTED_DICE))


def body_of(image: np.ndarray) -> np.ndarray:
    """Where there is an image: what differs from the value at its border, or everything where that has no one value."""
    first = image[0]
    corners = first[tuple(np.ix_(*[[0, -1]] * first.ndim))].ravel()
    return first != corners[0] if np.ptp(corners) < 1e-6 else np.ones(first.shape, bool)


def _seen(cases: Sequence[VisibilityCase], bodies: Sequence[np.ndarray], value: int, modality: str) -> Seen:
    images = [getattr(case, modality) for case in cases]
    channels = range(len(images[0]))
    return max((_channel(cases, bodies, [i[c] for i in images], value, c) for c in channels),
               key=lambda seen: seen.separability)  # fmt: skip


def _channel(
    cases: Sequence[VisibilityCase],
    bodies: Sequence[np.ndarray],
    images: Sequence[np.ndarray],
    value: int,
    channel: int,
) -> Seen:
    cnr, edges, samples = [], [], []
    for number, (case, body, image) in enumerate(zip(cases, bodies, images, strict=True)):
        mask = (case.labels == value) & body
        ring = ring_around(mask, body, case.spacing)
        cnr.append(contrast_to_noise(image, mask, ring))
        edges.append(edge_share(image, mask, ring))
        samples.append(_sample(local_features(image, body, case.spacing), mask, ring, number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is NaN, which is what is meant
        return Seen(float(np.nanmean(cnr)), separability(samples, slice(0, 1)), separability(samples, slice(None)),
                    float(np.nanmean(edges)), channel)  # fmt: skip


Sample = tuple[np.ndarray, np.ndarray, np.ndarray]


def _sample(features: np.ndarray, mask: np.ndarray, ring: np.ndarray, seed: int) -> Sample:
    """As many voxels of the structure as of its ring: features (N, F), whether inside (N,), slab of a case (N,)."""
    generator = np.random.default_rng(seed)
    inside, outside = (np.argwhere(where) for where in (mask, ring))
    n = min(len(inside), len(outside), VOXELS_PER_CASE)
    chosen = np.concatenate([generator.choice(places, n, replace=False) for places in (inside, outside)])
    truth = np.repeat([True, False], n)
    along = chosen[:, np.argmax(np.ptp(chosen, 0))] if n else np.zeros(0)
    slabs = np.searchsorted(np.quantile(along, [0.25, 0.5, 0.75]), along) if n else np.zeros(0, int)
    return features[tuple(chosen.T)], truth, slabs


def separability(samples: Sequence[Sample], features: slice) -> float:
    """Area under the ROC curve, structure against ring, of cases (slabs, if there is one case) held out in turn.

    A classifier is fitted to the others and ranks the voxels of the one held out; 0.5 is chance.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    usable = [s for s in samples if len(s[1])]
    if not usable:
        return 0.5
    x = np.concatenate([s[0][:, features] for s in usable])
    y = np.concatenate([s[1] for s in usable])
    case = np.concatenate([np.full(len(s[1]), i) for i, s in enumerate(usable)])
    group = case % FOLDS if len(usable) > 1 else usable[0][2]
    scores = []
    for held_out in np.unique(group):
        test = group == held_out
        if len(np.unique(y[~test])) < 2:
            continue
        leaf = max(5, min(40, int((~test).sum()) // 12))  # a few small lesions must be enough for a split
        model = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=8, min_samples_leaf=leaf, early_stopping=False, random_state=0
        )
        score = model.fit(x[~test], y[~test]).predict_proba(x[test])[:, 1]
        for one in np.unique(case[test]):
            here = case[test] == one
            if len(np.unique(y[test][here])) == 2:
                scores.append(roc_auc_score(y[test][here], score[here]))
    return max(0.5, float(np.mean(scores))) if scores else 0.5


def _place_dice(cases: Sequence[VisibilityCase], value: int) -> float:
    """Mean Dice of every mask with where most others are; 0 where cases share no grid or are fewer than three."""
    if not _are_comparable(cases):
        return 0.0
    masks = [case.labels == value for case in cases]
    total = np.sum(masks, 0)
    scores = []
    for mask in filter(np.any, masks):
        usual = (total - mask) * 2 >= len(masks) - 1
        scores.append(2 * float((usual & mask).sum()) / max(1, int(usual.sum()) + int(mask.sum())))
    return float(np.mean(scores))


def _lies_anywhere(cases: Sequence[VisibilityCase], value: int) -> bool:
    """Whether a structure is in another place in every case, or in few of them, as lesions are; that takes three cases on
    one grid to see."""
    return _are_comparable(cases) and _place_dice(cases, value) < FAINT_FROM


def _are_comparable(cases: Sequence[VisibilityCase]) -> bool:
    return len(cases) >= 3 and all(_share_grid(cases[0], case) for case in cases)


def no_verdict(verdicts: Sequence[Verdict], names: Mapping[str, int]) -> str:
    """What to say about structures that none of the labels looked at has, or nothing."""
    missing = ", ".join(name for name in names if name not in {verdict.structure for verdict in verdicts})
    return f"Nothing can be said about {missing}: none of the labels looked at has it." if missing else ""


def _share_grid(one: VisibilityCase, other: VisibilityCase) -> bool:
    """Whether a voxel is the same place in both, as far as headers tell."""
    if not one.frame or len(one.frame) != len(other.frame) or one.labels.shape != other.labels.shape:
        return False
    return bool(np.allclose((*one.spacing, *one.frame), (*other.spacing, *other.frame), atol=SAME_PLACE))


def _no_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _no_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
