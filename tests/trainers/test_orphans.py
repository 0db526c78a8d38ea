"""A worker ends with its parent, however that ends, and never before it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nnunet_synthtumour.trainers import host_patches, image_pairs, orphans, patches_within
from nnunet_synthtumour.trainers.host_patches import HostPatchLoader
from nnunet_synthtumour.trainers.image_pairs import PairLoader
from nnunet_synthtumour.trainers.orphans import end_with_parent
from nnunet_synthtumour.trainers.patches_within import CentresWithin

LIMIT = 20  # seconds
WORKER = """
import multiprocessing, os, sys, threading, time
from nnunet_synthtumour.trainers import orphans

def work(seconds):
    orphans.SECONDS = 0.05
    for _ in range(2):
        orphans.end_with_parent()
    print(os.getpid(), threading.active_count(), flush=True)
    time.sleep(seconds)

if __name__ == "__main__":
    worker = multiprocessing.get_context(sys.argv[1]).Process(target=work, args=(float(sys.argv[2]),))
    worker.start()
    worker.join()
    sys.exit(worker.exitcode)
"""


def begun(folder: Path, method: str, seconds: float) -> subprocess.Popen[str]:
    """A process with a worker that sleeps; both of them hold its standard output open for as long as they live."""
    (folder / "parent.py").write_text(WORKER, encoding="utf-8")
    command = [sys.executable, str(folder / "parent.py"), method, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_ends_soon_after_a_parent_that_is_killed(tmp_path: Path, method: str) -> None:
    parent = begun(tmp_path, method, 30 * LIMIT)
    assert parent.stdout is not None
    pid, threads = map(int, parent.stdout.readline().split())
    assert threads == 2, "called twice, there is one watch beside the main thread"
    parent.kill()
    try:
        parent.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.kill(pid, signal.SIGKILL)
        raise


def test_a_worker_whose_parent_lives_ends_when_it_is_done(tmp_path: Path) -> None:
    parent = begun(tmp_path, "fork", 1.0)  # many looks long
    assert parent.wait(timeout=LIMIT) == 0


def test_nothing_watches_a_main_process() -> None:
    before = threading.active_count()
    end_with_parent()
    assert threading.active_count() == before


def _of_no_case(*_: Any) -> Any:
    raise KeyError("a")


def _stub(**parts: Any) -> Any:
    return SimpleNamespace(**parts)


NOTHING = _stub(load_case=_of_no_case, identifiers=[])
LOADED = {
    image_pairs: lambda: PairLoader.generate_train_batch(_stub(batch_size=1, _draw_pair=_of_no_case)),
    patches_within: lambda: CentresWithin(NOTHING, (4, 4, 4), (4, 4, 4)).load_case("a"),
    host_patches: lambda: HostPatchLoader.patch_at(_stub(_data=NOTHING), "a", True, True),
}


@pytest.mark.parametrize("module", LOADED, ids=lambda module: module.__name__.rpartition(".")[2])
def test_whatever_loads_in_a_worker_ends_with_its_parent(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[ModuleType] = []
    monkeypatch.setattr(module, "end_with_parent", lambda: called.append(module))
    with pytest.raises(KeyError):
        LOADED[module]()
    assert called == [module]


@pytest.mark.parametrize(("adopted_by", "parent", "ends"), [(1, 77, True), (1, 1, False), (77, 77, False)])
def test_a_worker_whose_parent_was_killed_before_it_began_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, adopted_by: int, parent: int, ends: bool
) -> None:
    """In a container, the parent may be the first process of all."""
    ended: list[int] = []
    monkeypatch.setattr(orphans, "_watched", None)
    monkeypatch.setattr(orphans.multiprocessing, "parent_process", lambda: SimpleNamespace(pid=parent))
    monkeypatch.setattr(orphans.os, "getppid", lambda: adopted_by)
    monkeypatch.setattr(orphans.os, "_exit", ended.append)
    monkeypatch.setattr(orphans.threading, "Thread", lambda **_: SimpleNamespace(start=lambda: None))
    end_with_parent()
    assert bool(ended) == ends
