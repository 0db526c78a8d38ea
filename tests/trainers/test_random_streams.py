import random

import numpy as np
import pytest
import torch

from nnunet_synthtumour.trainers.random_streams import seeded, worker_seeds


def _draw() -> tuple[float, float, float]:
    return float(np.random.uniform()), float(torch.rand(())), random.random()


def test_a_block_draws_the_same_whatever_came_before() -> None:
    with seeded(1, 2):
        first = _draw()
    np.random.seed(99)
    torch.manual_seed(99)
    with seeded(1, 2):
        assert _draw() == first
    with seeded(1, 3):
        assert _draw() != first


def test_outside_the_block_the_streams_go_on_undisturbed() -> None:
    def stream(interrupted: bool) -> list[tuple[float, float, float]]:
        np.random.seed(5)
        torch.manual_seed(5)
        random.seed(5)
        drawn = [_draw()]
        if interrupted:
            with seeded(7):
                _draw()
        return [*drawn, _draw()]

    assert stream(True) == stream(False)


def test_the_streams_go_on_after_an_error() -> None:
    np.random.seed(5)
    threads, expected = torch.get_num_threads(), np.random.RandomState(5).uniform()
    with pytest.raises(KeyError), seeded(7):
        raise KeyError
    assert torch.get_num_threads() == threads
    assert np.random.uniform() == expected


def test_workers_ranks_and_resumed_runs_share_no_seed() -> None:
    drawn = [s for rank in range(4) for epoch in (0, 1, 50) for s in worker_seeds(3, rank, epoch, 8)]
    assert len(set(drawn)) == len(drawn)
    assert worker_seeds(3, 1, 0, 8) == worker_seeds(3, 1, 0, 8)
    assert worker_seeds(None, 0, 0, 4) != worker_seeds(None, 0, 0, 4)
