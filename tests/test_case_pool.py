from __future__ import annotations

import os

import pytest

from nnunet_synthtumour.case_pool import CasePool
from nnunet_synthtumour.errors import UserError


def _square(n: int) -> int:
    return n * n


def _process(_: int) -> int:
    return os.getpid()


def _die(n: int) -> int:
    if n == 1:
        os._exit(9)  # as a process ends whose memory the system takes away
    return n


def test_results_are_in_order_and_processes_stay_for_the_next_task() -> None:
    with CasePool(1) as pool:
        assert pool.map(_square, [3, 1, 2], "squaring") == [9, 1, 4]
        assert set(pool.map(_process, [1, 2], "asking")) == {os.getpid()}
    with CasePool(2) as pool:
        assert pool.map(_square, [3, 1, 2], "squaring") == [9, 1, 4]
        first = set(pool.map(_process, [1, 2, 3], "asking"))
        assert os.getpid() not in first
        assert len(first | set(pool.map(_process, [1, 2, 3], "asking"))) <= 2


def test_a_process_that_dies_is_one_sentence() -> None:
    with pytest.raises(UserError, match="died while growing, most likely because memory ran out"), CasePool(2) as pool:
        pool.map(_die, [0, 1, 2], "growing")
