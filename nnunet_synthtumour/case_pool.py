"""The same work on many cases: in several processes, with a progress bar, stopped cleanly."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from types import TracebackType
from typing import TypeVar

import SimpleITK as sitk
from tqdm import tqdm

from nnunet_synthtumour.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


class CasePool:
    """Worker processes that are kept between one task and the next; none where one process is asked for.

    They are fresh processes, not forks: neither ITK's nor torch's threads survive a fork.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> CasePool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, work: Callable[[Item], Result], items: Sequence[Item], what: str) -> list[Result]:
        """`work` on every item, results in order. An error, or Ctrl-C, drops what has not begun."""
        few = len(items) < 4
        bar = partial(tqdm, total=len(items), desc=what, unit="case", disable=True if few else None, leave=False)
        if self._processes <= 1 or len(items) < 2:
            return [work(item) for item in bar(items)]
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(min(self._processes, len(items)), context, _begin_worker)
        try:
            return list(bar(self._pool.map(work, items)))
        except BrokenProcessPool as error:
            raise UserError(
                f"A process died while {what}, most likely because memory ran out; try fewer processes, -np 1."
            ) from error


def _begin_worker() -> None:
    """One thread each, for the processes are the parallelism; Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    one_thread()


def one_thread() -> None:
    """ITK on one thread in this process: sums over threads differ in their last bits."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
