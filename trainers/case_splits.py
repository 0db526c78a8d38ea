"""Cross-validation splits that know the roles of cases and work with a handful of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from nnunetv2.utilities.crossval_split import generate_crossval_split

SHOWN = 5  # names in a line of the log


class Split(TypedDict):
    """One fold, as in nnU-Net's `splits_final.json`."""

    train: list[str]
    val: list[str]


def splits_by_role(groups: Sequence[Sequence[str]], n_folds: int = 5, seed: int = 12345) -> list[Split]:
    """nnU-Net's seeded split of each group of cases (one per role), joined fold by fold.

    A group smaller than `n_folds` is validated on in turn; a group of one case is trained and validated on the same
    case, which is all that one case allows.
    """
    per_group = [_splits(sorted(cases), n_folds, seed) for cases in groups if cases]
    return [
        {
            "train": sorted({case for splits in per_group for case in splits[fold % len(splits)]["train"]}),
            "val": sorted({case for splits in per_group for case in splits[fold % len(splits)]["val"]}),
        }
        for fold in range(n_folds)
    ]


def _splits(cases: list[str], n_folds: int, seed: int) -> list[Split]:
    if len(cases) == 1:
        return [{"train": cases, "val": cases}]
    splits = generate_crossval_split(cases, seed=seed, n_splits=min(n_folds, len(cases)))
    return [{"train": list(map(str, s["train"])), "val": list(map(str, s["val"]))} for s in splits]


def restrict(split: Split, usable: set[str]) -> Split:
    """`split` without the cases that a trainer cannot use."""
    return {"train": [c for c in split["train"] if c in usable], "val": [c for c in split["val"] if c in usable]}


def left_out(usable: set[str], files: set[str], roles: Mapping[str, str], folds: Iterable[Split]) -> list[str]:
    """Lines for the log: cases that are never used although they could be, and why.

    `usable` are the cases whose role a trainer can use, `files` those that are preprocessed.
    """
    in_folds = {case for fold in folds for case in (*fold["train"], *fold["val"])}
    like_segmentations = {case for case in usable - files if case.endswith("_seg")}
    reasons = {
        "nnU-Net takes a name that ends in _seg for that of a segmentation (rename the case)": like_segmentations,
        "no preprocessed file": usable - files - like_segmentations,
        "no role in dataset.json": files - set(roles),
        "in no fold of splits_final.json (delete it to split anew)": (usable & files) - in_folds,
    }
    return [
        f"WARNING: left out, {reason}: {', '.join(sorted(cases)[:SHOWN])}"
        + (f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else "")
        for reason, cases in reasons.items()
        if cases
    ]
