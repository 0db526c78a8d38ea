"""How far off a field between two modalities is, on real images of one patient, one of them bent by a known field.

    python benchmarks/crossmodal_pairs.py ONE.nii.gz OTHER.nii.gz [...] [--spacing 3] [--fields 2] [--iterations 60]

Images come in pairs that lie on one grid (T1 and FLAIR of a patient). Each in turn is bent by a smooth random field of
4 mm and registered back to the other, with every similarity of `--similarities`, from nothing, both ways. Printed: the
mean distance in mm between where a voxel of the fixed image should come from and where the field found sends it, before
and after, and the worst share of folds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from nnunet_synthtumour.registration.fields import warp
from nnunet_synthtumour.registration.instance import InstanceSettings, normalised, optimise
from nnunet_synthtumour.registration.metrics import folds_percent

SMOOTHNESS_MM, DEVIATION_MM, MARGIN = 18.0, 4.0, 2


def at_spacing(file: Path, mm: float) -> np.ndarray:
    image = sitk.SmoothingRecursiveGaussian(sitk.Cast(sitk.ReadImage(str(file)), sitk.sitkFloat32), 1.0)
    size = [round(n * s / mm) for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    grid = (image.GetOrigin(), (mm,) * 3, image.GetDirection())
    return sitk.GetArrayFromImage(sitk.Resample(image, size, sitk.Transform(), sitk.sitkLinear, *grid, 0.0))


def distances(bent: np.ndarray, fixed: np.ndarray, field: np.ndarray, similarity: str, args: argparse.Namespace
              ) -> tuple[float, float, float]:  # fmt: skip
    """Mean distance before and after in the fixed image's body, and folds in percent."""
    grid = np.indices(fixed.shape).astype(np.float32)
    body = fixed > 0.1 * fixed.max()

    def off(places: torch.Tensor) -> float:
        return float(np.linalg.norm((places[0].numpy() - grid) * args.spacing, axis=0)[body].mean())

    one, other = (normalised(torch.from_numpy(a[None, None].astype(np.float32))) for a in (bent, fixed))
    settings = InstanceSettings(similarity=similarity, iterations=args.iterations, symmetric=True)  # type: ignore[arg-type]
    found = optimise(one, other, settings, (args.spacing,) * 3).displacement
    places = torch.from_numpy((grid + field).astype(np.float32))[None]
    return off(places), off(warp(places, found)), folds_percent(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--spacing", type=float, default=3.0)
    parser.add_argument("--fields", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--similarities", nargs="+", default=["mind", "nmi"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator = np.random.default_rng(args.seed)
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in args.similarities}
    for pair in zip(args.images[::2], args.images[1::2], strict=True):
        images = [at_spacing(file, args.spacing) for file in pair]
        seen = np.argwhere(images[0] > 0.05 * images[0].max())
        box = tuple(slice(max(0, a - MARGIN), b + MARGIN) for a, b in zip(seen.min(0), seen.max(0) + 1, strict=True))
        images = [image[box] for image in images]
        for _ in range(args.fields):
            noise = [ndimage.gaussian_filter(generator.normal(size=images[0].shape), SMOOTHNESS_MM / args.spacing)
                     for _ in range(3)]  # fmt: skip
            field = np.stack([n / n.std() * DEVIATION_MM / args.spacing for n in noise])
            for moving, fixed in (images, images[::-1]):
                bent = ndimage.map_coordinates(moving, np.indices(moving.shape) + field, order=1)
                for name, found in rows.items():
                    found.append(distances(bent, fixed, field, name, args))
    print("| similarity | before (mm) | after (mm) | worst (mm) | folds %, worst | registrations |")
    print("|---|---|---|---|---|---|")
    for name, found in rows.items():
        before, after, folds = np.array(found).T
        print(
            f"| {name} | {before.mean():.2f} | {after.mean():.2f} | {after.max():.2f} | {folds.max():.4f} | {len(found)} |"
        )


if __name__ == "__main__":
    main()
