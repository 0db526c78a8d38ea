"""A junior on real FLAIR hosts: trained on one real brain, tested on another in which tumours were grown by reaction and
diffusion and painted as gliomas look, by nothing that the synthesis engine shares.

    python benchmarks/real_hosts.py DATA -o OUT [--epochs 16 --iterations 50] [--set KEY=VALUE ...] [--device cuda]

DATA holds patient07/ and patient26/, each with flair, t1, t2 and lesion_gt (.nii.gz, one grid). patient07, and a mirrored,
bent and brighter copy of it, are the healthy hosts (their lesions are no host); patient26 carries the tumours: four kinds
of three sizes. The plan is SmallPlanner's at 2 mm. Prints the Dice and the volume ratio of each tumour, at the epoch that
the shifted validation chose and at the last; OUT/found.png shows truth (green) and prediction (red) of the former.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunet_synthtumour.phantom_anatomy import STRUCTURES
from nnunet_synthtumour.phantom_tumour import CORE, NECROSIS, displaced, grow_tumour, mass_effect

MM = 2.0
VOLUMES_ML = (8, 15, 25, 40, 60, 80, 100, 130, 60, 100, 35, 20)
KINDS = ("necrotic", "solid", "low-grade", "dark")
EPOCHS = {"chosen": "checkpoint_best.pth", "last": "checkpoint_final.pth"}
NAME, PLANS, TRAINER = "Dataset100_RealHosts", "nnUNetSmallPlans", "SynthTumourTrainer"


def read(file: Path, label: bool = False) -> np.ndarray:
    image = sitk.Cast(sitk.ReadImage(str(file)), sitk.sitkFloat32)
    size = [round(n * mm / MM) for n, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    if not label:
        image = sitk.SmoothingRecursiveGaussian(image, 0.6)
    method = sitk.sitkNearestNeighbor if label else sitk.sitkLinear
    moved = sitk.Resample(image, size, sitk.Transform(), method, image.GetOrigin(), [MM] * 3, image.GetDirection(), 0.0)
    return sitk.GetArrayFromImage(moved)


def write(array: np.ndarray, file: Path, kind: type = np.float32) -> None:
    image = sitk.GetImageFromArray(array.astype(kind))
    image.SetSpacing((MM,) * 3)
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))


def patient(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """FLAIR, tissues (values of `STRUCTURES`), lesions and brain, cropped to the brain."""
    from sklearn.mixture import GaussianMixture

    flair, t1, t2 = (read(folder / f"{name}.nii.gz") for name in ("flair", "t1", "t2"))
    lesions = read(folder / "lesion_gt.nii.gz", label=True) > 0
    brain = ndimage.binary_fill_holes(ndimage.binary_opening(flair > 0.1 * np.median(flair[flair > 0])))
    where = np.argwhere(brain)
    box = tuple(slice(max(int(a) - 3, 0), int(b) + 4) for a, b in zip(where.min(0), where.max(0), strict=True))
    flair, t1, t2, lesions, brain = (a[box] for a in (np.where(brain, flair, 0), t1, t2, lesions, brain))
    looks = np.stack([t1[brain], t2[brain]], 1)
    looks = (looks - looks.mean(0)) / looks.std(0)
    mixture = GaussianMixture(3, random_state=0, means_init=[[-1.5, 1.8], [-0.2, 0.1], [0.8, -0.5]]).fit(looks)
    by_t1 = np.argsort(np.argsort(mixture.means_[:, 0]))
    values = np.array([STRUCTURES[name] for name in ("csf", "cortex", "white_matter")])
    tissues = np.zeros(brain.shape, np.int64)
    tissues[brain] = values[by_t1][mixture.predict(looks)]
    tissues[0, 0, 0] = STRUCTURES["cerebellum"]  # far away: tumours may be seeded anywhere
    return flair, tissues, lesions, brain


def with_tumour(
    flair: np.ndarray, tissues: np.ndarray, brain: np.ndarray, ml: float, kind: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """FLAIR and mask of the host with a tumour: bright oedema that fades outwards, a core by `kind`, necrosis."""
    draw = np.random.default_rng(seed)
    tumour = grow_tumour(tissues, MM, ml, draw)
    pushed = mass_effect(tumour, brain, MM, draw.uniform(0, 6))
    tumour = displaced(tumour, pushed)
    at = np.stack(np.meshgrid(*[np.arange(n) for n in flair.shape], indexing="ij")) + pushed
    image = ndimage.map_coordinates(flair, at, order=1)
    brain = ndimage.map_coordinates(brain.astype(float), at, order=1) > 0.5
    white = float(np.median(flair[tissues == STRUCTURES["white_matter"]]))
    coarse, fine = (noise / noise.std() for noise in
                    (ndimage.gaussian_filter(draw.normal(size=flair.shape), sigma) for sigma in (4, 1)))  # fmt: skip

    def soft(mask: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(mask.astype(float), 0.7)

    whole, core = (tumour.regions > 0) & brain, (tumour.regions >= CORE) & brain
    factor, kept = draw.uniform(1.35, 2.0), draw.uniform(0.1, 0.5)
    fading = 0.55 + 0.45 * np.clip((tumour.oedema - 0.25) / 0.5, 0, 1)
    level = white * (1 + (factor - 1) * fading) * (1 + 0.07 * coarse + 0.04 * fine)
    opacity = np.clip((tumour.oedema - 0.15) / 0.35, 0, 1) * soft(whole)
    image = image + opacity * ((level - image) * (1 - kept) + 0.8 * white * (factor - 1) * kept)
    bright = {"necrotic": draw.uniform(0.9, 1.6), "solid": draw.uniform(1.0, 1.7),
              "low-grade": factor * draw.uniform(0.85, 1.05), "dark": draw.uniform(0.75, 1.0)}  # fmt: skip
    image = image + soft(core) * (white * bright[kind] * (1 + 0.12 * coarse + 0.08 * fine) - image)
    if kind == "necrotic":
        dead = soft((tumour.regions == NECROSIS) & brain)
        image = image + dead * (white * draw.uniform(0.3, 0.85) * (1 + 0.05 * coarse) - image)
    image = np.maximum(image, 0) * brain * (1 + 0.03 * draw.normal(size=image.shape))
    return image, whole


def write_data(data: Path, out: Path) -> None:
    if (out / "written").exists():
        return
    flair, _, lesions, brain = patient(data / "patient07")
    host = brain & ~ndimage.binary_dilation(lesions)
    write(flair, out / "healthy" / "a.nii.gz")
    write(host, out / "hosts" / "a.nii.gz", np.uint8)
    draw = np.random.default_rng(5)
    bend = np.stack([ndimage.gaussian_filter(draw.normal(size=flair.shape), 8) for _ in range(3)])
    at = np.stack(np.meshgrid(*[np.arange(n) for n in flair.shape], indexing="ij")) + 2 * bend / bend.std()
    write(1.7 * ndimage.map_coordinates(flair[..., ::-1], at, order=1), out / "healthy" / "b.nii.gz")
    write(ndimage.map_coordinates(host[..., ::-1].astype(float), at, order=0), out / "hosts" / "b.nii.gz", np.uint8)
    flair, tissues, _, brain = patient(data / "patient26")
    for i, ml in enumerate(VOLUMES_ML):
        kind = KINDS[i % len(KINDS)]
        image, mask = with_tumour(flair, tissues, brain, ml, kind, 100 + i)
        write(image, out / "test" / f"{kind}_{i:02d}_0000.nii.gz")
        write(mask, out / "truth" / f"{kind}_{i:02d}.nii.gz", np.uint8)
    (out / "written").touch()


def command(*words: object) -> None:
    print("$", *words, flush=True)
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


def scores(truths: Path, predictions: Path) -> dict[str, dict[str, float]]:
    rows = {}
    for file in sorted(truths.glob("*.nii.gz")):
        truth, found = (sitk.GetArrayFromImage(sitk.ReadImage(str(f))) > 0 for f in (file, predictions / file.name))
        total = float(truth.sum() + found.sum())
        rows[file.name[:-7]] = {"dice": 2 * float((truth & found).sum()) / total, "ratio": found.sum() / truth.sum()}
    return rows


def figure(out: Path, rows: dict[str, dict[str, float]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(2, len(rows), figsize=(2.2 * len(rows), 5.6), layout="constrained")
    for (case, row), (above, below) in zip(rows.items(), axes.T, strict=True):
        image, truth, found = (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in (
            out / "test" / f"{case}_0000.nii.gz", out / "truth" / f"{case}.nii.gz", out / "chosen" / f"{case}.nii.gz"
        ))  # fmt: skip
        z = int((truth + found).sum((1, 2)).argmax())
        for axis in (above, below):
            axis.imshow(image[z, ::-1], cmap="gray", vmin=0, vmax=np.percentile(image[image > 0], 99.7))
            axis.set_axis_off()
        for mask, colour in ((truth, "lime"), (found, "red")):
            if mask[z].any():
                below.contour(mask[z, ::-1], [0.5], colors=colour, linewidths=0.8)
        above.set_title(f"{case} {row['dice']:.2f}", fontsize=8)
    drawing.savefig(out / "found.png", dpi=70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    out = args.out.resolve()
    write_data(args.data, out)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(out / variable)
        (out / variable).mkdir(exist_ok=True)
    os.environ.setdefault("nnUNet_n_proc_DA", "2")
    chosen = {"training.epochs": args.epochs, "training.iterations": args.iterations, "training.seed": args.seed,
              "validation.patches": 16}  # fmt: skip
    settings = [word for text in (*(f"{k}={v}" for k, v in chosen.items()), *args.set) for word in ("--set", text)]
    command("synthtumour", "prepare", "-d", NAME[7:10], "-n", NAME[11:], "--channel", "FLAIR", "--healthy",
            out / "healthy", "--host-masks", out / "hosts", *settings, "--overwrite", "-np", 2)  # fmt: skip
    command("nnUNetv2_plan_and_preprocess", "-d", NAME[7:10], "-pl", "SmallPlanner", "-overwrite_target_spacing",
            MM, MM, MM, "-overwrite_plans_name", PLANS, "-c", "3d_fullres", "-np", 2)  # fmt: skip
    command("nnUNetv2_train", NAME[7:10], "3d_fullres", "all", "-tr", TRAINER, "-p", PLANS, "-device", args.device)
    found = {}
    for epoch, checkpoint in EPOCHS.items():
        command("nnUNetv2_predict", "-d", NAME[7:10], "-c", "3d_fullres", "-f", "all", "-tr", TRAINER, "-p", PLANS, "-chk",
                checkpoint, "-i", out / "test", "-o", out / epoch, "-device", args.device, "--disable_tta")  # fmt: skip
        found[epoch] = scores(out / "truth", out / epoch)
    print("| tumour | Dice | volume found / true | at the last epoch | |\n|---|---|---|---|---|")
    for case in found["chosen"]:
        print(
            f"| {case} | "
            + " | ".join(f"{f[case]['dice']:.3f} | {f[case]['ratio']:.2f}" for f in found.values())
            + " |"
        )
    print("| mean | " + " | ".join(f"{np.mean([row['dice'] for row in f.values()]):.3f} |" for f in found.values()))
    (out / "real_hosts.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    figure(out, found["chosen"])


if __name__ == "__main__":
    main()
