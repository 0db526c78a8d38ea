"""Run a command that does not outlive the one who asked for it.

`nnUNetv2_train` has worker processes of its own. Should `synthtumour run` be killed, all of them would stay, and a
second run would write into the same folders beside them. So a small guard stands between: it starts the command in a
session of its own and ends that session as soon as its own standard input closes, which the system sees to whichever
way its parent died.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


@contextmanager
def guarded(
    command: Sequence[str], environment: Mapping[str, str], keep: Sequence[int] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Start `command`; its output is in `stdout` of what this yields. Leaving the block ends it if it still runs.

    `keep`: file descriptors, such as that of a lock, that stay open until the command has ended.
    """
    guard = subprocess.Popen(
        [sys.executable, __file__, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", env=dict(environment), pass_fds=tuple(keep),
    )  # fmt: skip
    try:
        yield guard
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait()


def _end(session: int) -> None:
    """Ask all processes of a session to end, then end them."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(session, sign)
        except (ProcessLookupError, PermissionError):
            return
        if sign == signal.SIGTERM:
            threading.Event().wait(0.2)


def main(command: Sequence[str]) -> int:
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent decides; closing our input tells us
        signal.signal(sign, signal.SIG_IGN)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_default_signals)

    def watch() -> None:
        sys.stdin.buffer.read()
        _end(child.pid)

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    _end(child.pid)  # workers that the command left behind
    return code if code >= 0 else 128 - code


def _default_signals() -> None:
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, signal.SIG_DFL)


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
