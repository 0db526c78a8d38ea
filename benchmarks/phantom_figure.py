"""The figure of docs/phantoms.md: healthy subjects and patients, two modalities, tumours outlined.

python benchmarks/phantom_figure.py docs/phantoms.png
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from nnunet_synthtumour.phantom import Subject, make_subject

SHOWN = [(1, False), (4, False), *((200_000 + i, True) for i in (1, 2, 8, 10, 13))]


def slices(subject: Subject) -> list[tuple[np.ndarray, np.ndarray]]:
    """Axial FLAIR, sagittal FLAIR, axial T1 and axial anatomy through the tumour (or the ventricles), with outlines."""
    regions, flair = subject.regions, subject.images["flair"]
    has = bool((regions > 0).any())
    z = int((regions > 0).sum((0, 1)).argmax()) if has else flair.shape[2] // 2 + 3
    x = int((regions > 0).sum((1, 2)).argmax()) if has else flair.shape[0] // 2 + 5
    return [
        (flair[:, :, z], regions[:, :, z]),
        (flair[x], regions[x]),
        (subject.images["t1"][:, :, z], regions[:, :, z]),
        (subject.anatomy[:, :, z], regions[:, :, z] * 0),
    ]


figure, axes = plt.subplots(4, len(SHOWN), figsize=(1.75 * len(SHOWN), 7.4), layout="constrained")
for column, (seed, tumour) in enumerate(SHOWN):
    subject = make_subject(seed, 1.8, tumour, "t1", 0.4)
    for row, (image, regions) in enumerate(slices(subject)):
        axis = axes[row, column]
        picture = np.rot90(image)
        if row == 3:
            axis.imshow(picture, cmap="tab10", vmin=0, vmax=9, interpolation="nearest")
        else:
            axis.imshow(picture, cmap="gray", vmax=np.percentile(picture[picture > 0], 99.5))
        outline = np.rot90(regions)
        if outline.any():
            axis.contour(outline, [0.5, 1.5, 2.5], colors=["tab:orange", "tab:red", "tab:cyan"], linewidths=0.6)
        axis.set_axis_off()
    axes[0, column].set_title(f"patient, {subject.tumour_ml:.0f} ml" if tumour else "healthy", fontsize=9)
figure.savefig(sys.argv[1], dpi=70)
