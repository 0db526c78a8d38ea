"""Checkpoints that a training finds in its folder: `--c` must go on from what was trained last.

`nnUNetv2_train --c` prefers checkpoint_final, then checkpoint_latest, whatever is newer. Left where they are, those of a
training that went on (more epochs, more patience), or of another one in the same folder, would win over all that a killed
training saved. They make way with the first checkpoint that takes their place, and are never overwritten.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

FINAL, LATEST, BEST = (f"checkpoint_{which}.pth" for which in ("final", "latest", "best"))


def make_way(folder: Path, names: tuple[str, ...]) -> str | None:
    """Rename those of a folder's checkpoints; a line for the log."""
    moved = [name for name in names if (folder / name).is_file()]
    if not moved:
        return None
    free = next(n for n in count(1) if not any(folder.glob(f"previous_{n}_*")))
    for name in moved:
        (folder / name).replace(folder / f"previous_{free}_{name}")
    return (
        f"{', '.join(moved)} of what was trained here before: renamed to previous_{free}_...; named as before, --c takes "
        "them again."
    )
