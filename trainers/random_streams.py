"""Where randomness comes from: one seed per worker, and blocks whose randomness is fixed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from threadpoolctl import threadpool_limits


def worker_seeds(seed: int | None, rank: int, first_epoch: int, workers: int) -> list[int]:
    """One seed per worker that no other worker, rank or resumed run shares.

    `first_epoch` is where a run starts or is resumed: a resumed run goes on with fresh streams instead of repeating
    what it saw after its start. Without a seed the operating system's entropy is used.
    """
    entropy = None if seed is None else [seed, rank, first_epoch]
    return [int(s) for s in np.random.SeedSequence(entropy).generate_state(max(1, workers), np.uint32)]


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Run a block on one thread with all generators seeded by `key`; afterwards they go on where they were.

    One thread, because sums over a tensor depend in their last bit on how many threads share it.
    """
    numpy_state, python_state, threads = np.random.get_state(), random.getstate(), torch.get_num_threads()
    drawn = np.random.SeedSequence(key).generate_state(3, np.uint32)
    try:
        with torch.random.fork_rng(devices=[]), threadpool_limits(limits=1, user_api=None):
            torch.set_num_threads(1)
            np.random.seed(int(drawn[0]))
            torch.manual_seed(int(drawn[1]))
            random.seed(int(drawn[2]))
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
