"""Checkpoints that a training finds in its folder: `--c` must go on from what was trained last.

`nnUNetv2_train --c` prefers checkpoint_final, whatever is newer. Left where it is, the final checkpoint of a training that
went on (more epochs, more patience), or of another one in the same folder, would win over all that a killed training saved.
"""

from __future__ import annotations

from pathlib import Path

FINAL, LATEST, BEST = (f"checkpoint_{which}.pth" for which in ("final", "latest", "best"))
BEFORE = "previous_"


def make_way(folder: Path, goes_on: bool) -> str | None:
    """Rename what a training that trains now would leave behind as newer than itself; a line for the log."""
    if goes_on:
        if (folder / FINAL).is_file():
            (folder / FINAL).replace(folder / LATEST)
        return None
    moved = [name for name in (FINAL, LATEST, BEST) if (folder / name).is_file()]
    for name in moved:
        (folder / name).replace(folder / f"{BEFORE}{name}")
    return (
        f"A training was here before; its checkpoints are now {BEFORE}{f', {BEFORE}'.join(moved)}." if moved else None
    )
