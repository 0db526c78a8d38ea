"""The visibility report: verdicts in words, figures in a table, and what the structures look like in both modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_synthtumour.atomic_files import complete, write_json
from nnunet_synthtumour.report_page import Page
from nnunet_synthtumour.visibility import Verdict, VisibilityCase

HEAD = ("structure", "verdict", "Dice to expect", "by place", "AUC intensity", "AUC texture", "contrast to noise", "edge",
        "ml", "cases")  # fmt: skip


def write_report(
    out: Path, verdicts: Sequence[Verdict], cases: Sequence[VisibilityCase], names: Mapping[str, int], origin: str
) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    write_json({"labels": origin, "verdicts": [v.as_json() for v in verdicts]}, out / "visibility.json")
    page = Page("What this modality shows", f"{len(cases)} cases; {origin}")
    for verdict in verdicts:
        page.paragraph(verdict.sentence())
    page.heading("In the target")
    page.table(HEAD, [_row(v, "target") for v in verdicts])
    if any(v.source for v in verdicts):
        page.heading("In the source")
        page.table(HEAD[:1] + HEAD[4:8], [_row(v, "source")[:1] + _row(v, "source")[4:8] for v in verdicts if v.source])
    page.heading("Pictures")
    pictures = []
    for verdict in verdicts:
        case = max(cases, key=lambda c: int((c.labels == names[verdict.structure]).sum()))
        file = out / f"{verdict.structure}.png"
        _draw(case, names[verdict.structure], file)
        pictures.append((file, f"{verdict.structure} in {case.name}: {verdict.verdict}"))
    page.pictures(pictures)
    page.heading("How to read this")
    page.paragraph(
        "AUC: how well voxels of the structure are told from those of a ring around it, 0.5 is chance. Edge: share of the "
        "boundary across which the image steps more than it does elsewhere. By place: the Dice of the structure's usual "
        "place alone, whatever the image shows, where cases share a grid in space; the verdict takes no account of it. The "
        "Dice to expect is what networks reached on phantoms of this visibility; registration can put a label where a "
        "structure is, but not show a network what the image does not."
    )
    file = out / "visibility.html"
    with complete(file) as scratch:
        scratch.write_text(page.text(), encoding="utf-8")
    return file


def _row(verdict: Verdict, modality: str) -> tuple[object, ...]:
    seen = getattr(verdict, modality)
    return (verdict.structure, verdict.verdict, verdict.expected_dice, verdict.place_dice, seen.auc_intensity,
            seen.auc_texture, seen.cnr, seen.edge_share, verdict.ml, verdict.cases)  # fmt: skip


def _draw(case: VisibilityCase, value: int, file: Path) -> None:
    """The slice with most of the structure, with and without its outline, in the modalities that there are."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    mask = case.labels == value
    axis = int(np.argmin(case.labels.shape))
    at = int(np.argmax(mask.sum(tuple(i for i in range(mask.ndim) if i != axis))))
    images = [("target", case.target[0])] + ([("source", case.source[0])] if case.source is not None else [])
    figure, axes = plt.subplots(1, 2 * len(images), figsize=(2.4 * 2 * len(images), 2.8), layout="constrained")
    sides = [s for i, s in enumerate(case.spacing) if i != axis]
    for i, panel in enumerate(axes):
        title, image = images[i // 2]
        plane = image.take(at, axis)
        low, high = np.percentile(image, [2, 99.5])
        panel.imshow(
            plane, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower", aspect=sides[0] / sides[1]
        )
        if i % 2:
            panel.contour(mask.take(at, axis), [0.5], colors="tab:orange", linewidths=0.9)
        else:
            panel.set_title(title, fontsize=9)
        panel.set_axis_off()
    with complete(file) as scratch:
        figure.savefig(scratch, dpi=90, format="png")
    plt.close(figure)
