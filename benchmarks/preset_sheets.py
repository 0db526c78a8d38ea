"""Draw lesions of each preset in one healthy image: what a radiologist would be asked to look at.

python benchmarks/preset_sheets.py IMAGE.nii.gz [IMAGE.nii.gz ...] --channels FLAIR T1 -o OUT [--exclude MASK] [-n 6]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import SimpleITK as sitk
from PIL import Image

from nnunet_synthtumour.lesion_model import available_presets, load_model
from nnunet_synthtumour.synthesis import GrowLesion, grow_in_volume

matplotlib.use("agg")
import matplotlib.pyplot as plt

IGNORE = 99


def load(
    files: list[Path], exclude: Path | None
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...], tuple[np.ndarray, np.ndarray]]:
    """Normalised channels (C, Z, Y, X), host, spacing (mm) and the normalisation, cropped to the nonzero box."""
    images = [sitk.ReadImage(str(file)) for file in files]
    raw = np.stack([sitk.GetArrayFromImage(image).astype(np.float32) for image in images])
    host = (raw != 0).all(0)
    if exclude is not None:
        host &= sitk.GetArrayFromImage(sitk.ReadImage(str(exclude))) == 0
    nonzero = np.argwhere((raw != 0).any(0))
    box = tuple(slice(a, b) for a, b in zip(nonzero.min(0), nonzero.max(0) + 1, strict=True))
    raw, host = raw[(slice(None), *box)], host[box]
    mean = np.array([channel[channel != 0].mean() for channel in raw])
    std = np.array([channel[channel != 0].std() for channel in raw])
    normalised = np.where(raw != 0, (raw - mean[:, None, None, None]) / std[:, None, None, None], 0).astype(np.float32)
    return normalised, host, tuple(images[0].GetSpacing()[::-1]), (mean, std)


def sheet(
    preset: str,
    image: np.ndarray,
    host: np.ndarray,
    spacing: tuple[float, ...],
    normalisation: tuple[np.ndarray, np.ndarray],
    channels: list[str],
    n: int,
    file: Path,
) -> None:
    labels = {"whole": 1, "core": 2, "necrosis": 3}
    transform = GrowLesion(load_model(preset), labels, spacing, IGNORE, channels)
    seg = np.where(host, IGNORE, 0)[None].astype(np.int16)
    figure, axes = plt.subplots(
        len(channels) * 2, n, figsize=(2.1 * n, 4.4 * len(channels)), layout="constrained", squeeze=False
    )
    for column in range(n):
        np.random.seed(column)
        grown, label, _ = grow_in_volume(transform, image, seg, normalisation)
        at = int((label[0] > 0).sum((1, 2)).argmax())
        for c in range(len(channels)):
            low, high = np.percentile(image[c][host], [0.5, 99.5])
            for row, contour in ((2 * c, False), (2 * c + 1, True)):
                axis = axes[row, column]
                axis.imshow(grown[c, at, ::-1], cmap="gray", vmin=low, vmax=high + 0.35 * (high - low))
                if contour:
                    for value, colour in ((1, "tab:orange"), (2, "tab:red"), (3, "tab:cyan")):
                        mask = label[0, at, ::-1] >= value
                        if mask.any():
                            axis.contour(mask, [0.5], colors=colour, linewidths=0.7)
                axis.set_axis_off()
        axes[0, column].set_title(f"{(label > 0).sum() * np.prod(spacing) / 1000:.1f} ml", fontsize=8)
    figure.suptitle(f"{preset} ({', '.join(channels)})", fontsize=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=60)
    plt.close(figure)
    Image.open(file).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(
        file, optimize=True
    )  # small enough to keep in the repository


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--channels", nargs="+", default=["FLAIR"])
    parser.add_argument("--exclude", type=Path, help="a mask of what is not healthy")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--suffix", default="", help="of the names of the pictures")
    parser.add_argument("-n", type=int, default=6)
    parser.add_argument("--presets", nargs="+", default=[p for p in available_presets() if not p.endswith("ct")])
    args = parser.parse_args()
    image, host, spacing, normalisation = load(args.images, args.exclude)
    for preset in args.presets:
        file = args.out / f"presets_{preset}{args.suffix}.png"
        sheet(preset, image, host, spacing, normalisation, args.channels, args.n, file)


if __name__ == "__main__":
    main()
