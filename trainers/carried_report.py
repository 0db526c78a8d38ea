"""A page that shows what labels were carried to which target, with a picture of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synthtumour.report_page import Page

PICTURES = "pictures"


def draw_case(folder: Path, case: str, image: np.ndarray, labels: np.ndarray, ignore: int) -> Path:
    """Three planes with the outlines of the labels; what is ignored is tinted."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    found = np.argwhere((labels > 0) & (labels != ignore))
    at = [int(v) for v in (found.mean(0) if len(found) else np.array(image.shape) / 2)]
    low, high = np.percentile(image, [1, 99.5])
    figure, axes = plt.subplots(1, 3, figsize=(8, 3), layout="constrained")
    for axis, panel in enumerate(axes):
        plane, parts = image.take(at[axis], axis), labels.take(at[axis], axis)
        panel.imshow(plane, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower")
        panel.imshow(np.where(parts == ignore, 1.0, np.nan), cmap="autumn", alpha=0.25, origin="lower", vmin=0, vmax=1)
        for value in np.unique(parts):
            if value > 0 and value != ignore:
                panel.contour(parts == value, [0.5], colors=[f"C{value % 10}"], linewidths=0.8)
        panel.set_axis_off()
    file = folder / PICTURES / f"{case}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=80)
    plt.close(figure)
    return file


def write_page(folder: Path, cases: Sequence[dict[str, Any]], labels: Sequence[str]) -> None:
    """report.html in `folder`; the pictures that `draw_case` put there come with it."""
    page = Page("Labels carried over", f"{len(cases)} targets; tinted voxels are ignored in training")
    head = ["target", "sources", "ignored", *(f"{label}: ml, kept" for label in labels)]
    rows = [
        [c["case"], ", ".join(c["sources"]), f"{100 * c['ignored']:.1f} %",
         *(f"{c['labels'][label]['ml']:.1f}, {100 * c['labels'][label]['kept']:.0f} %" for label in labels)]
        for c in cases
    ]  # fmt: skip
    page.table(head, rows)
    page.pictures([(folder / PICTURES / f"{c['case']}.png", c["case"]) for c in cases])
    (folder / "report.html").write_text(page.text(), encoding="utf-8")
