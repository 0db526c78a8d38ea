from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nnunet_synthtumour.settings import DeepAtlasSettings
from nnunet_synthtumour.trainers import image_pairs
from nnunet_synthtumour.trainers.image_pairs import KINDS, WITH_LABELS, shares_of_kinds, started
from nnunet_synthtumour.trainers.random_streams import worker_seeds


class _Augmenter:
    """Stands in for batchgenerators' processes."""

    def __init__(self, loader: Any, transform: None, processes: int, seeds: list[int], **options: Any) -> None:
        self.processes, self.seeds, self.taken = processes, seeds, 0

    def __iter__(self) -> Iterator[None]:
        return self

    def __next__(self) -> None:
        self.taken += 1


@pytest.mark.parametrize(("workers", "processes"), [(1, 1), (8, 2)])
def test_pairs_load_beside_patches_with_seeds_of_their_own(
    monkeypatch: pytest.MonkeyPatch, workers: int, processes: int
) -> None:
    monkeypatch.setattr(image_pairs, "get_allowed_n_proc_DA", lambda: workers)
    monkeypatch.setattr(image_pairs, "NonDetMultiThreadedAugmenter", _Augmenter)
    loader: Any = None
    pairs = started(loader, 1, 0, 0, False)
    assert pairs.processes == len(pairs.seeds) == processes and pairs.taken == 1
    assert not set(pairs.seeds) & set(worker_seeds(1, 0, 0, workers))


def test_without_workers_pairs_are_loaded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_pairs, "get_allowed_n_proc_DA", lambda: 0)
    loader: Any = iter(["a pair"])
    assert next(started(loader, 1, 0, 0, False)) == "a pair"


@pytest.mark.parametrize(("labelled", "unlabelled"), [(1, 59), (5, 55), (20, 40), (60, 0), (1, 1)])
def test_images_come_alike_but_labels_in_a_tenth_of_all_pairs(labelled: int, unlabelled: int) -> None:
    shares = shares_of_kinds(DeepAtlasSettings(), labelled, unlabelled)
    both, there, back, neither = (shares[kind] for kind in KINDS)
    p = labelled / (labelled + unlabelled)
    assert both + there + back + neither == pytest.approx(1) and there == back
    assert both + there + back == pytest.approx(max(WITH_LABELS, 1 - (1 - p) ** 2))
    assert both * (1 - p) == pytest.approx(there * p), "in proportion to their numbers"


def test_shares_are_as_wished_or_what_teaches_a_segmenter_without_fitted_labels() -> None:
    wished = DeepAtlasSettings(pairs=(0.0, 1.0, 2.0, 0.0))
    assert shares_of_kinds(wished, 1, 9) == dict(zip(KINDS, wished.pairs or (), strict=True))
    taught = shares_of_kinds(DeepAtlasSettings(fitted=0), 1, 59)
    assert taught["labelled-unlabelled"] + taught["unlabelled-labelled"] == 0.3
