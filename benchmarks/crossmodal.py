"""How well labels cross from one modality to another, as the target shows less and less of a lesion; on phantoms.

    python benchmarks/crossmodal.py -o OUT [--visibilities 1 0.5 0.25 0] [--patients 8] [--test 6] [--epochs 16]

Every patient has a source image (FLAIR-like, labelled: white matter, CSF, tumour) in another pose and shape than the
target image (T1-like). `unregistered` and `affine`: the source's labels as they lie, and after `synthtumour align --onto`.
`ours, mind`: the segmenter that CrossModalTrainer trains, with its defaults; `ours, ncc`: with NCC throughout. `bound`:
nnU-Net with the same recipe on the true labels of the same targets. Segmenters are judged on patients that nobody has seen,
transferred labels on the targets themselves. The visibility verdict sees aligned source labels only. Finished runs are not
repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from lesion_metrics import dice
from scipy import ndimage

LABELS = {"white_matter": 1, "csf": 2, "tumour": 3}
ORGANS = (1, 2)
ANATOMY = {3: 1, 1: 2}  # value in the phantom's anatomy -> ours
TARGET, SOURCE, ALIGNED, BOUND = "Dataset300_Target", "Dataset301_Source", "Dataset302_Aligned", "Dataset303_Bound"
PLANS, CONFIGURATION = "nnUNetDeepAtlasSmallPlans", "3d_fullres"


def command(*words: object) -> None:
    print("$", *words, flush=True)
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


def posed(array: np.ndarray, seed: int, order: int, spacing: float) -> np.ndarray:
    """Another pose and shape: a small rigid map and a smooth displacement, the same for one seed."""
    generator = np.random.default_rng(seed)
    angles, shift = np.radians(generator.uniform(-8, 8, 3)), generator.uniform(-6, 6, 3) / spacing
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        one, other = [i for i in range(3) if i != axis]
        step = np.eye(3)
        step[[one, one, other, other], [one, other, one, other]] = [np.cos(angle), -np.sin(angle), np.sin(angle),
                                                                    np.cos(angle)]  # fmt: skip
        turn = turn @ step
    centre = (np.array(array.shape) - 1) / 2
    grid = np.indices(array.shape).reshape(3, -1)
    at = turn @ (grid - centre[:, None]) + centre[:, None] + shift[:, None]
    for axis in range(3):
        noise = ndimage.gaussian_filter(generator.normal(size=array.shape), 18 / spacing)
        at[axis] += (noise / noise.std() * 4 / spacing).ravel()
    return ndimage.map_coordinates(array, at, order=order, mode="nearest").reshape(array.shape)


def write(array: np.ndarray, file: Path, spacing: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing((spacing,) * 3)
    sitk.WriteImage(image, str(file))


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def prepare(folder: Path, visibility: float, args: argparse.Namespace) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(folder / variable)
    if (folder / "prepared").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / variable).mkdir(parents=True)
    from nnunet_synthtumour.phantom import make_subject

    for i in range(args.patients + args.test):
        subject = make_subject(args.seed * 1000 + i, args.spacing, True, "t1", visibility)
        truth = np.zeros(subject.anatomy.shape, np.uint8)
        for value, to in ANATOMY.items():
            truth[subject.anatomy == value] = to
        truth[subject.regions > 0] = LABELS["tumour"]
        name = f"{'patient' if i < args.patients else 'test'}_{i:03d}.nii.gz"
        write(subject.images["t1"].astype(np.float32), folder / "all" / name, args.spacing)
        write(truth, folder / "truth" / name, args.spacing)
        if i < args.patients:
            write(subject.images["t1"].astype(np.float32), folder / "target" / name, args.spacing)
            flair = posed(subject.images["flair"].astype(np.float32), i, 1, args.spacing)
            write(flair, folder / "source" / name, args.spacing)
            write(posed(truth, i, 0, args.spacing), folder / "source_labels" / name, args.spacing)
    labels = [word for name, value in LABELS.items() for word in ("--label", f"{name}={value}")]
    command(
        "synthtumour",
        "prepare",
        "-d",
        300,
        "-n",
        "Target",
        "--unlabelled",
        folder / "target",
        "--channel",
        "T1",
        *labels,
    )
    command("synthtumour", "prepare", "-d", 301, "-n", "Source", "--labelled", folder / "source", "--labels",
            folder / "source_labels", "--channel", "FLAIR", *labels)  # fmt: skip
    command("synthtumour", "prepare", "-d", 303, "-n", "Bound", "--labelled", folder / "all", "--labels", folder / "truth",
            "--channel", "T1", *labels)  # fmt: skip
    command("synthtumour", "align", "-i", 301, "-o", "302_Aligned", "--onto", 300, "--cross-modality", "-np", args.np)
    for number in (300, 302, 303):
        command("nnUNetv2_plan_and_preprocess", "-d", number, "-pl", "DeepAtlasSmallPlanner", "-c", CONFIGURATION, "-np",
                args.np, "-npfp", args.np)  # fmt: skip
    (folder / "prepared").touch()


def scores(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    each = {name: dice(found == v, truth == v) for name, v in LABELS.items()}
    return {"organs": float(np.nanmean([each[name] for name, v in LABELS.items() if v in ORGANS])), **each}


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.nanmean([row[key] for row in rows])) for key in rows[0]}


def transferred(folder: Path, labels: Path) -> dict[str, float]:
    """Labels on the targets' grids against the truth."""
    files = sorted((folder / "target").glob("*.nii.gz"))
    return mean([scores(read(labels / file.name), read(folder / "truth" / file.name)) for file in files])


def train(arm: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    from nnunet_synthtumour.settings import CrossModalSettings, with_settings
    from nnunet_synthtumour.trainers.averaging_trainer import AveragingTrainer
    from nnunet_synthtumour.trainers.crossmodal_trainer import CrossModalTrainer

    name = BOUND if arm == "bound" else TARGET
    preprocessed = folder / "nnUNet_preprocessed"
    plans = json.loads((preprocessed / name / f"{PLANS}.json").read_text(encoding="utf-8")) | {
        "continue_training": False
    }
    dataset_json = json.loads((preprocessed / name / "dataset.json").read_text(encoding="utf-8"))
    data = preprocessed / BOUND / plans["configurations"][CONFIGURATION]["data_identifier"]

    class SameRecipe(AveragingTrainer):
        MIRRORING, ADAMW_LR = CrossModalTrainer.MIRRORING, CrossModalTrainer.ADAMW_LR

    base: type[Any] = SameRecipe if arm == "bound" else CrossModalTrainer
    patients = sorted(file.name[:-7] for file in (folder / "target").glob("*.nii.gz"))

    class Arm(base):
        def do_split(self) -> tuple[list[str], list[str]]:
            return (patients, patients) if arm == "bound" else super().do_split()

    Arm.__name__ = arm.replace(", ", "_")
    segmentation = args.epochs - round(CrossModalSettings().alone * args.epochs)
    epochs = segmentation if arm == "bound" else args.epochs
    if arm != "bound":
        similarity = arm.split()[-1]
        refined_by = {} if similarity == "mind" else {"refine_similarity": similarity}
        dataset_json = with_settings(dataset_json, {
            "source": {"dataset": ALIGNED, "pairing": "paired"},
            "crossmodal": {"similarity": similarity, **refined_by},
            "training": {"epochs": epochs, "iterations": args.iterations, "seed": args.seed}})  # fmt: skip
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)
    trainer = Arm(plans, CONFIGURATION, "all", dataset_json, torch.device(args.device))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = (
        epochs,
        args.iterations,
        1,
    )
    trainer.disable_checkpointing = True
    begun = time.time()
    trainer.run_training()
    result: dict[str, Any] = {"minutes": (time.time() - begun) / 60}
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(use_mirroring=True, device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(trainer.network, trainer.plans_manager, trainer.configuration_manager, None,
                                    trainer.dataset_json, arm, trainer.inference_allowed_mirroring_axes)  # fmt: skip
    test = infer_dataset_class(str(data))(str(data))
    rows = []
    for case in [c for c in test.identifiers if c.startswith("test")]:
        image, seg, *_ = test.load_case(case)
        with torch.no_grad():
            logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(np.asarray(image[:])))
        rows.append(scores(logits.argmax(0).cpu().numpy(), np.asarray(seg[:])[0]))
    result |= mean(rows)
    if arm != "bound":
        result |= crossed(trainer, folder)
    return result


def crossed(trainer: Any, folder: Path) -> dict[str, Any]:
    """Dice of the labels that were carried over, folds of the fields, and the verdicts."""
    from nnunet_synthtumour.registration.metrics import folds_percent

    rows, folds, carrier = [], [], trainer.carrier()
    for target in trainer.unlabelled:
        source = trainer._sources_of(target)
        labels = carrier.carry(target, source).labels.numpy()
        truth = read(folder / "truth" / f"{target}.nii.gz")
        rows.append(scores(labels, truth))
        images = [trainer.pairs_of[case].match()[None] for case in (source[0], target)]
        folds.append(folds_percent(carrier.field(*images)))
    verdicts = {v.structure: v.as_json() for v in trainer.verdicts()}
    return {"carried": mean(rows), "folds": float(np.max(folds)), "verdicts": verdicts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--visibilities", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.0])
    parser.add_argument("--arms", nargs="+", default=["bound", "ours, mind", "ours, ncc"])
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--test", type=int, default=6)
    parser.add_argument("--spacing", type=float, default=4.0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-np", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    os.environ.setdefault("nnUNet_n_proc_DA", "2")
    results: dict[str, dict[str, Any]] = {}
    for visibility in args.visibilities:
        folder = args.out.resolve() / f"visibility_{visibility:g}"
        prepare(folder, visibility, args)
        aligned = folder / "nnUNet_raw" / ALIGNED / "labelsTr"
        results[f"{visibility:g}"] = here = {
            "unregistered": transferred(folder, folder / "source_labels"),
            "affine": transferred(folder, aligned),
        }
        for arm in args.arms:
            file = folder / f"{arm.replace(', ', '_')}.json"
            if not file.exists():
                file.write_text(json.dumps(train(arm, folder, args), indent=1), encoding="utf-8")
            here[arm] = json.loads(file.read_text(encoding="utf-8"))
    (args.out / "crossmodal.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    table(results, args)
    figure(results, args.out / "crossmodal_wall.png")


def table(results: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    print(
        f"\n{args.patients} patients, {args.test} unseen, {args.spacing} mm, {args.epochs} x {args.iterations} iterations\n"
    )
    print("| visibility | arm | organs | lesion | folds %, worst | minutes |\n|---|---|---|---|---|---|")
    for visibility, arms in results.items():
        for arm, row in arms.items():
            print(f"| {visibility} | {arm} | {row['organs']:.3f} | {row['tumour']:.3f} | "
                  f"{row.get('folds', float('nan')):.4f} | {row.get('minutes', float('nan')):.1f} |")  # fmt: skip
            if "carried" in row:
                print(f"| {visibility} | {arm}: carried labels | {row['carried']['organs']:.3f} | "
                      f"{row['carried']['tumour']:.3f} | | |")  # fmt: skip
    pairs = verdicts(results)
    if len(pairs) > len(LABELS):
        from scipy.stats import spearmanr

        print(f"\nSpearman of predicted and achieved Dice, {len(pairs)} structures and grades: "
              f"{spearmanr(*zip(*pairs, strict=True))[0]:.3f}")  # fmt: skip
        lesion = verdicts(results, ("tumour",))
        print(f"of the lesion over grades: {spearmanr(*zip(*lesion, strict=True))[0]:.3f}")
    for visibility, arms in results.items():
        for name, v in arms.get("ours, mind", {}).get("verdicts", {}).items():
            print(f"{visibility} {name}: {v['verdict']}, AUC intensity {v['target']['auc_intensity']:.3f}, texture "
                  f"{v['target']['auc_texture']:.3f}, CNR {v['target']['cnr']:.2f}, edge {v['target']['edge_share']:.2f}, "
                  f"expected {v['expected_dice']:.2f}")  # fmt: skip


def verdicts(results: dict[str, dict[str, Any]], names: tuple[str, ...] = tuple(LABELS)) -> list[tuple[float, float]]:
    """(expected, achieved) Dice of structures."""
    return [
        (arms["ours, mind"]["verdicts"][name]["expected_dice"], arms["ours, mind"][name])
        for arms in results.values() if "ours, mind" in arms for name in names
        if name in arms["ours, mind"]["verdicts"] and name in arms["ours, mind"]
    ]  # fmt: skip


def figure(results: dict[str, dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.rcdefaults()  # nnU-Net's progress.png leaves its large fonts behind
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    grades = sorted((float(v) for v in results), reverse=True)
    drawing, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for axis, key in zip(axes, ("organs", "tumour"), strict=True):
        for i, arm in enumerate(dict.fromkeys(arm for arms in results.values() for arm in arms)):
            known = [g for g in grades if arm in results[f"{g:g}"]]
            line = "-" if known == grades else "none"  # no line across grades that were not run
            axis.plot(known, [results[f"{g:g}"][arm][key] for g in known], linestyle=line, marker="o", color=f"C{i}",
                      label=arm)  # fmt: skip
        axis.set_title("organs, visible in both" if key == "organs" else "lesion")
        axis.set_xlabel("visibility of the lesion in the target")
        axis.invert_xaxis()
        axis.set_ylim(0, 1)
    axes[0].set_ylabel("Dice")
    expected = [
        results[f"{g:g}"].get("ours, mind", {}).get("verdicts", {}).get("tumour", {}).get("expected_dice")
        for g in grades
    ]
    if all(value is not None for value in expected):
        axes[1].plot(grades, expected, "k--", label="verdict beforehand")
    axes[1].legend(fontsize=8)
    drawing.savefig(file, dpi=110)
    plt.close(drawing)


if __name__ == "__main__":
    main()
