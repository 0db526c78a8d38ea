"""Batches of image pairs on a common grid, in settable proportions of labelled and unlabelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.data_loader import DataLoader
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_synthtumour.settings import DeepAtlasSettings
from nnunet_synthtumour.trainers.orphans import end_with_parent
from nnunet_synthtumour.trainers.random_streams import worker_seeds
from nnunet_synthtumour.trainers.whole_grids import Whole, WholeCases

KINDS = ("labelled-labelled", "labelled-unlabelled", "unlabelled-labelled", "unlabelled-unlabelled")


WITH_LABELS = 0.1  # least share of pairs of which an image is labelled
TEACHING = (0.1, 0.15, 0.15, 0.6)  # where labels come to other images through these pairs alone


def shares_of_kinds(settings: DeepAtlasSettings, labelled: int, unlabelled: int) -> dict[str, float]:
    """How often each of KINDS is drawn: as the settings say, or so that every image comes as often as any other.

    Of 60 images one with a label need not be in every third pair: registration would learn that image (hippocampi, one
    label: Dice 0.767 on others so, 0.777 and 0.770, two trainings, if it is in every tenth).
    """
    if settings.pairs is not None:
        return dict(zip(KINDS, settings.pairs, strict=True))
    if not settings.fitted:
        return dict(zip(KINDS, TEACHING, strict=True))
    p = labelled / (labelled + unlabelled)
    known, neither = np.array([p * p, p * (1 - p), (1 - p) * p]), (1 - p) ** 2
    if known.sum() < WITH_LABELS:
        known, neither = known * WITH_LABELS / known.sum(), 1 - WITH_LABELS
    return dict(zip(KINDS, [*known.tolist(), neither], strict=True))


class PairLoader(DataLoader):
    """Yields `moving` and `fixed`, each a dict of

    image (B, C, X, Y, Z)   as nnU-Net normalised it, for the segmentation network
    match (B, C, X, Y, Z)   the same scaled to 0 ... 1 and dark outside, for the registration network and the similarity
    seg (B, 1, X, Y, Z)     labels; -1 outside of the image, the ignore label everywhere in unlabelled cases
    labelled                B times whether the labels are known
    """

    def __init__(
        self,
        cases: WholeCases,
        labelled: Sequence[str],
        unlabelled: Sequence[str],
        batch_size: int,
        shares: Mapping[str, float],
        flip_axes: Sequence[int] = (),
    ) -> None:
        super().__init__(list(cases.cases), batch_size, 1, None, True, False, True)
        self.cases = cases
        self.groups = {"labelled": list(labelled), "unlabelled": list(unlabelled)}
        self.flip_axes = tuple(flip_axes or ())
        possible = {kind: share for kind, share in shares.items() if share > 0 and self._is_possible(kind)}
        self.kinds = list(possible)
        total = sum(possible.values())
        self.probabilities = [share / total for share in possible.values()]

    def _is_possible(self, kind: str) -> bool:
        one, other = (self.groups[role] for role in kind.split("-"))
        return bool(one and other) and len(set(one) | set(other)) > 1

    def generate_train_batch(self) -> dict[str, Any]:
        end_with_parent()
        pairs = [self._draw_pair() for _ in range(self.batch_size)]
        sides: dict[str, Any] = {}
        for side, name in enumerate(("moving", "fixed")):
            samples = [self._sample(pair[side], flips) for pair, flips in pairs]
            sides[name] = {
                "image": torch.stack([whole.image for whole, _ in samples]),
                "match": torch.stack([whole.match() for whole, _ in samples]),
                "seg": torch.stack([whole.seg for whole, _ in samples]),
                "labelled": [known for _, known in samples],
                "case": [pair[side] for pair, _ in pairs],
            }
        return sides

    def _draw_pair(self) -> tuple[tuple[str, str], list[int]]:
        kind = str(np.random.choice(self.kinds, p=self.probabilities))
        one, other = (self.groups[role] for role in kind.split("-"))
        moving = str(np.random.choice(one))
        fixed = str(np.random.choice([case for case in other if case != moving]))
        flips = [axis for axis in self.flip_axes if np.random.uniform() < 0.5]
        return (moving, fixed), flips

    def _sample(self, case: str, flips: Sequence[int]) -> tuple[Whole, bool]:
        whole = self.cases[case]
        axes = [axis + 1 for axis in flips]
        return Whole(whole.image.flip(axes), whole.seg.flip(axes)), case in self.groups["labelled"]


def started(loader: PairLoader, seed: int | None, rank: int, first_epoch: int, pin_memory: bool) -> Any:
    """Batches from processes of their own, a quarter as many as nnU-Net has for patches; from this one where it has none.

    With a seed, what this process draws from now on is seeded too: crops of pairs, and what nnU-Net's workers inherit.
    """
    workers = get_allowed_n_proc_DA()
    if seed is not None:
        drawn = worker_seeds(seed, rank, first_epoch, 2)
        np.random.seed(drawn[0] ^ 2)
        torch.manual_seed(drawn[1] ^ 2)
    if workers == 0:
        return SingleThreadedAugmenter(loader, None)
    mine = max(1, workers // 4)
    seeds = [s ^ 1 for s in worker_seeds(seed, rank, first_epoch, workers)[:mine]]
    pairs = NonDetMultiThreadedAugmenter(
        loader, None, mine, num_cached=4, seeds=seeds, pin_memory=pin_memory, wait_time=0.002
    )
    _ = next(pairs)
    return pairs
