"""A lock that only one process holds; the system takes it back from one that is killed."""

from __future__ import annotations

import errno
import os
from typing import IO

TAKEN = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)


def take_lock(stream: IO[str]) -> bool:
    """Whether an open file is locked for this process now; True also where there are no locks to be had, which is said."""
    if os.name == "nt":  # no such locks there
        return True
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        print(
            f"The file system of {stream.name} cannot lock files ({error.strerror}), so nothing keeps a second process out; "
            "do not start one.",
            flush=True,
        )
    return True
