"""Workers that end when the training that they load for is killed: nobody else would end them, and each keeps gigabytes."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

SECONDS = 5.0  # between two looks

_watched: int | None = None  # the process in which there is a watch: a fork inherits this, but not the thread


def end_with_parent() -> None:
    """In a worker, once: from here on it ends within `SECONDS` of its parent. In a main process: nothing."""
    global _watched
    parent = multiprocessing.parent_process()
    if parent is None or _watched == os.getpid():
        return
    if os.getppid() == 1 != parent.pid:  # it was killed before this one began
        os._exit(1)
    _watched = os.getpid()
    threading.Thread(target=_watch, args=(os.getppid(),), name="end with parent", daemon=True).start()


def _watch(parent: int) -> None:
    """Whoever adopts an orphan has another number than its parent, which keeps its own for as long as it lives."""
    while os.getppid() == parent:
        time.sleep(SECONDS)
    os._exit(1)
