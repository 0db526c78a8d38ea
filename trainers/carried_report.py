"""A page that shows what labels were carried to which target, with a picture of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synthtumour.report_page import Page

PICTURES, LEGEND = "pictures", "legend.png"
TINT: dict[str, Any] = {"cmap": "autumn", "alpha": 0.25, "vmin": 0, "vmax": 1}


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
        panel.imshow(np.where(parts == ignore, 1.0, np.nan), origin="lower", **TINT)
        for value in np.unique(parts):
            if value > 0 and value != ignore:
                panel.contour(parts == value, [0.5], colors=[colour_of(int(value))], linewidths=0.8)
        panel.set_axis_off()
    file = folder / PICTURES / f"{case}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=80)
    plt.close(figure)
    return file


def draw_legend(folder: Path, names: Mapping[int, str]) -> Path:
    """The colour of each structure's outline, and the tint."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    outlines = [Line2D([], [], color=colour_of(value), label=name) for value, name in names.items()]
    tint = Patch(facecolor=colormaps[TINT["cmap"]](1.0), alpha=TINT["alpha"], label="tinted: ignored")
    figure = Figure()
    figure.legend(handles=[*outlines, tint], ncols=4, loc="center", frameon=False)
    file = folder / LEGEND
    figure.savefig(file, dpi=80, bbox_inches="tight")
    return file


def colour_of(value: int) -> tuple[float, float, float]:
    """Of a structure's outline: ten colours, and of each a lighter one."""
    from matplotlib import colormaps

    red, green, blue, _ = colormaps["tab20"](2 * (value % 10) + value // 10 % 2)
    return red, green, blue


def write_page(folder: Path, cases: Sequence[dict[str, Any]], names: Mapping[int, str]) -> None:
    """report.html in `folder`; the pictures that `draw_case` put there come with it. `names` are those of label values."""
    page = Page("Labels carried over", f"{len(cases)} targets; tinted voxels are ignored in training")
    head = ["target", "sources", "ignored", *(f"{name}: ml, kept" for name in names.values())]
    rows = [
        [c["case"], ", ".join(c["sources"]), f"{100 * c['ignored']:.1f} %",
         *(_amount(c["labels"][name]) for name in names.values())]
        for c in cases
    ]  # fmt: skip
    page.table(head, rows)
    page.picture(draw_legend(folder, names), "Outlines: what was kept of each structure. Tinted: ignored in training")
    page.pictures([(folder / PICTURES / f"{c['case']}.png", c["case"]) for c in cases])
    (folder / "report.html").write_text(page.text(), encoding="utf-8")


def _amount(of_label: Mapping[str, Any]) -> str | None:
    """None where nothing was carried, of which nothing could be kept."""
    return None if of_label["kept"] is None else f"{of_label['ml']:.1f}, {100 * of_label['kept']:.0f} %"
