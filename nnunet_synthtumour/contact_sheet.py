"""Contact sheets: many samples on one picture, lesions outlined; and the same as a self-contained HTML page."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synthtumour.volumes import measure_in

COLOURS = ("tab:orange", "tab:red", "tab:cyan", "tab:green", "tab:purple")


@dataclass(frozen=True)
class Panel:
    """One picture: a 2D image, a label map over it, and what stands above."""

    image: np.ndarray
    labels: np.ndarray
    title: str


def middle_slice(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The slice (first axis) of (X, Y, Z) with most of the lesion, or the middle one; 2D comes back as it is."""
    if image.ndim == 2:
        return image, labels
    counts = (labels > 0).sum(axis=tuple(range(1, labels.ndim)))
    at = int(counts.argmax()) if counts.any() else image.shape[0] // 2
    return image[at], labels[at]


def save_sheet(rows: Sequence[Sequence[Panel]], file: Path, title: str) -> None:
    """Rows of panels as a PNG; each panel has its own grey scale, from the 1st to the 99.8th percentile."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    n = max(map(len, rows))
    figure, axes = plt.subplots(
        len(rows), n, figsize=(1.9 * n, 2.15 * len(rows) + 0.4), squeeze=False, layout="constrained"
    )
    for row, panels in enumerate(rows):
        for column in range(n):
            axis = axes[row, column]
            axis.set_axis_off()
            if column < len(panels):
                _draw(axis, panels[column])
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, dpi=80)
    plt.close(figure)


def _draw(axis: Any, panel: Panel) -> None:
    low, high = np.percentile(panel.image, [1, 99.8])
    axis.imshow(panel.image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
    for i, value in enumerate(v for v in np.unique(panel.labels) if v > 0):
        axis.contour(panel.labels == value, [0.5], colors=COLOURS[i % len(COLOURS)], linewidths=0.8)
    axis.set_title(panel.title, fontsize=7)


def save_page(sheets: Sequence[tuple[str, Path]], records: Sequence[dict[str, Any]], file: Path, title: str) -> None:
    """One HTML file with the pictures inside, and a table of what was drawn."""
    pictures = "".join(
        f"<h2>{html.escape(name)}</h2><img alt='{html.escape(name)}' src='data:image/png;base64,"
        f"{base64.b64encode(picture.read_bytes()).decode()}'>"
        for name, picture in sheets
    )
    measure = measure_in(records[0])
    rows = "".join(
        f"<tr><td>{i}</td><td>{html.escape(str(r['case']))}</td><td>{r[measure.key]:.1f}</td><td>{r['lesions']}</td>"
        f"<td><details><summary>show</summary><pre>{html.escape(json.dumps(r['drawn'], indent=1))}</pre></details></td></tr>"
        for i, r in enumerate(records)
    )
    head = f"<th>#</th><th>case</th><th>{measure.name} ({measure.shown})</th><th>lesions</th><th>parameters</th>"
    file.write_text(
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        "<style>body{font:14px sans-serif;margin:2em;max-width:1200px}img{max-width:100%}table{border-collapse:collapse}"
        "td,th{border:1px solid #ccc;padding:.2em .6em;text-align:right;vertical-align:top}pre{text-align:left}"
        "@media print{details{display:none}}</style>"
        f"<h1>{html.escape(title)}</h1>{pictures}<h2>What was drawn</h2><table><tr>{head}</tr>{rows}</table></html>",
        encoding="utf-8",
    )
