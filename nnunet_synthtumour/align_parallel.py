"""Work on many cases at once with fresh processes: ITK's threads do not survive a fork."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import SimpleITK as sitk
from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel(work: Callable[[Item], Result], items: Sequence[Item], processes: int, what: str) -> list[Result]:
    """`work` on every item, in order, with a progress bar; in this process where one is enough."""
    bar = tqdm(total=len(items), desc=what, unit="case", disable=True if len(items) < 4 else None, leave=False)
    with bar:
        if processes <= 1 or len(items) < 2:
            found = []
            for item in items:
                found.append(work(item))
                bar.update()
            return found
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(items)), context, one_thread) as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            return [future.result() for future in futures]


def one_thread() -> None:
    """The processes are the parallelism."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
