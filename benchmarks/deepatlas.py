"""DeepAtlas against labels alone and registration alone, down to one label, on cases that nobody trained on.

    python benchmarks/deepatlas.py DATA -o OUT [--labels 1 5 10] [--draws 0 1 2] [--test 20] [--epochs 20 --iterations 25]

DATA holds imagesTr/ and labelsTr/ (files of the same names), or is the word `phantoms`: 80 of the embedded brains without
a tumour, six structures labelled. Everything is first put on one grid (`synthtumour align`)
and planned by DeepAtlasSmallPlanner; all arms share plans, networks and number of iterations. `labels-alone`: stock
nnU-Net on the k labelled images. `same-recipe`: the same with what DeepAtlasTrainer changes about nnU-Net besides (AdamW in
short trainings, averaged weights, no mirroring), so what is left is what unlabelled images give. `deepatlas`: all others
without label beside. `bound`: the same recipe on all labels. `unsupervised`: the registration network of `deepatlas`
without any label and without segmentation, with as many registration steps, the same pairs and as many looks.
Dice is the mean over labels and cases (or pairs) of the test set; labels are warped by the nearest neighbour, folds
counted by central differences. `looks` is the registration network without its steps towards the structures that its
segmenter finds, `after` with them (the same in `unsupervised`, which finds none). `refined` is what
`synthtumour register --model` makes of a pair by default: the network's velocity fitted to the two images and, in
`deepatlas`, to what its segmenter finds in them; `guided` the same with a hundred times the weight of the latter.
`--set` changes settings of `deepatlas`. Runs that are finished, OUT/BUDGET/*.json, are not repeated, so several
processes can share the arms and draws of one folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from crossmodal import write

RAW, ALIGNED = "Dataset200_Raw", "Dataset201_Aligned"
PLANS, CONFIGURATION = "nnUNetDeepAtlasSmallPlans", "3d_fullres"
PAIRS = 40
PHANTOMS, PHANTOM_MM = 80, 4.0
STRONG = 10.0  # --anatomy-weight of `guided`


def command(*words: object) -> None:
    print("$", *words, flush=True)
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


def write_phantoms(folder: Path) -> Path:
    """Images and anatomies of the embedded phantoms, as DATA should be."""
    from nnunet_synthtumour.phantom import make_subject

    for i in range(PHANTOMS):
        subject = make_subject(i, PHANTOM_MM)
        for name, array in (("imagesTr", subject.images["flair"].astype(np.float32)), ("labelsTr", subject.anatomy)):
            write(array, folder / name / f"brain_{i:03d}.nii.gz", PHANTOM_MM)
    return folder


def prepare(args: argparse.Namespace) -> None:
    """One aligned, planned and preprocessed data set with all cases labelled; arms are told what they may know of it."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(args.out / variable)
        (args.out / variable).mkdir(parents=True, exist_ok=True)
    if (args.out / "prepared").exists():
        return
    data = write_phantoms(args.out / "phantoms") if str(args.data) == "phantoms" else args.data
    values = sorted({int(v) for file in sorted((data / "labelsTr").glob("*.nii.gz"))[:20]
                     for v in np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(file))))} - {0})  # fmt: skip
    labels = [word for value in values for word in ("--label", f"label{value}={value}")]
    command("synthtumour", "prepare", "-d", 200, "-n", "Raw", "--channel", "MR", "--labelled", data / "imagesTr",
            "--labels", data / "labelsTr", *labels, "--overwrite", "-np", 2)  # fmt: skip
    command("synthtumour", "align", "-i", args.out / "nnUNet_raw" / RAW, "-o", args.out / "nnUNet_raw" / ALIGNED,
            "-np", 2)  # fmt: skip
    command("nnUNetv2_plan_and_preprocess", "-d", 201, "-pl", "DeepAtlasSmallPlanner", "-c", CONFIGURATION, "-np", 2)
    (args.out / "prepared").touch()


class TestCases:
    """What no arm has seen: segmentation of single cases, registration of pairs."""

    def __init__(self, names: list[str], seed: int) -> None:
        from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

        from nnunet_synthtumour.trainers.whole_grids import WholeCases

        preprocessed = Path(os.environ["nnUNet_preprocessed"]) / ALIGNED
        self.plans = json.loads((preprocessed / f"{PLANS}.json").read_text(encoding="utf-8"))
        configuration = self.plans["configurations"][CONFIGURATION]
        folder = str(preprocessed / configuration["data_identifier"])
        dataset = infer_dataset_class(folder)(folder, names)
        self.cases = WholeCases(dataset, configuration["spacing"], self.plans["transpose_forward"])
        generator = np.random.default_rng(seed)
        self.pairs = [tuple(str(c) for c in generator.choice(names, 2, replace=False)) for _ in range(PAIRS)]

    def segmentation(self, trainer: Any) -> float:
        """Mean Dice of the network's last weights, with mirroring."""
        import torch
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(use_mirroring=True, device=trainer.device, allow_tqdm=False)
        trainer.set_deep_supervision_enabled(False)
        trainer.network.eval()
        predictor.manual_initialization(
            trainer.network, trainer.plans_manager, trainer.configuration_manager, None, trainer.dataset_json,
            type(trainer).__name__, trainer.inference_allowed_mirroring_axes,
        )  # fmt: skip
        scores = []
        for name in self.cases.cases:
            whole = self.cases[name]
            with torch.no_grad():
                found = predictor.predict_sliding_window_return_logits(whole.image).argmax(0).cpu().numpy()
            scores.append(mean_dice(found, whole.seg[0].clamp(min=0).numpy()))
        return float(np.nanmean(scores))

    def registration(self, trainer: Any) -> dict[str, float]:
        """Mean Dice of the pairs before, after the network's looks, after its steps and after `synthtumour register --model`;
        worst folds."""
        import torch

        from nnunet_synthtumour.registration.fields import warp
        from nnunet_synthtumour.registration.metrics import folds_percent
        from nnunet_synthtumour.trainers.pair_validation import refined

        before, folds = [], []
        scores: dict[str, list[float]] = {key: [] for key in ("looks", "after", "refined", "guided")}
        for moving, fixed in self.pairs:
            one, other = self.cases[moving], self.cases[fixed]
            with torch.no_grad():
                both = [whole.match()[None].to(trainer.device) for whole in (one, other)]
                fields = [trainer.registration.register(*both, to_structures=False)[0],
                          trainer.registration.register(*both)[0], refined(trainer.registration, *both).displacement,
                          refined(trainer.registration, *both, STRONG).displacement]  # fmt: skip
            truth, labels = other.seg[0].clamp(min=0).numpy(), one.seg.clamp(min=0)
            before.append(mean_dice(labels[0].numpy(), truth))
            for of_field, u in zip(scores.values(), (field.cpu() for field in fields), strict=True):
                of_field.append(mean_dice(warp(labels[None].float(), u, "nearest")[0, 0].numpy(), truth))
                folds.append(folds_percent(u))
        means = {key: float(np.nanmean(values)) for key, values in (scores | {"affine": before}).items()}
        return means | {"folds": float(np.max(folds))}


def mean_dice(one: np.ndarray, other: np.ndarray) -> float:
    from nnunet_synthtumour.registration.metrics import dice

    return float(np.nanmean([dice(one == v, other == v) for v in np.unique(other) if v > 0]))


def train(arm: str, labelled: list[str], training: list[str], seed: int, test: TestCases, args: argparse.Namespace
          ) -> dict[str, Any]:  # fmt: skip
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_synthtumour.schema import parse_assignments
    from nnunet_synthtumour.settings import BLOCK, DeepAtlasSettings, with_settings
    from nnunet_synthtumour.trainers.averaging_trainer import AveragingTrainer
    from nnunet_synthtumour.trainers.deepatlas_trainer import DeepAtlasTrainer
    from nnunet_synthtumour.trainers.image_pairs import shares_of_kinds

    class SameRecipe(AveragingTrainer):
        MIRRORING, ADAMW_LR = DeepAtlasTrainer.MIRRORING, DeepAtlasTrainer.ADAMW_LR

    others = {"labels-alone": nnUNetTrainer, "same-recipe": SameRecipe, "bound": SameRecipe}
    base: type[Any] = others.get(arm, DeepAtlasTrainer)

    class Arm(base):
        def do_split(self) -> tuple[list[str], list[str]]:
            return list(labelled), list(labelled)

        def segmentation_step(self, batch: dict[str, Any], pair: Any) -> dict[str, Any]:
            if arm != "unsupervised":
                return super().segmentation_step(batch, pair)
            return {"loss": np.array(np.nan), "carried": np.array(np.nan)}

    Arm.__name__ = f"{arm}_{len(labelled)}_{seed}_{args.budget}"
    dataset_json = json.loads(
        (Path(os.environ["nnUNet_preprocessed"]) / ALIGNED / "dataset.json").read_text(encoding="utf-8")
    )
    roles = {case: "labelled" if case in labelled else "unlabelled" for case in training}
    block: dict[str, Any] = {
        "roles": roles,
        "training": {"seed": seed, "epochs": args.epochs, "iterations": args.iterations},
    }
    if arm == "unsupervised":
        alike = list(shares_of_kinds(DeepAtlasSettings(), 1, len(training) - 1).values())  # the pairs of one label
        block |= {
            "deepatlas": {"alone": 1.0, "guided": False, "fitted": 0, "pairs": alike},
            "registration": {"anatomy": 0.0},
        }
    dataset_json[BLOCK] = block
    if arm == "deepatlas":
        dataset_json = with_settings(dataset_json, parse_assignments(args.set, "deepatlas.fitted=0"))
    torch.manual_seed(seed)
    np.random.seed(seed)
    trainer = Arm(test.plans | {"continue_training": False}, CONFIGURATION, "all", dataset_json,
                  torch.device(args.device))  # fmt: skip
    trainer.num_epochs, trainer.num_iterations_per_epoch = args.epochs, args.iterations
    trainer.num_val_iterations_per_epoch = 1
    trainer.disable_checkpointing = True
    begun, cpu = time.time(), time.process_time()
    trainer.run_training()
    result: dict[str, Any] = {"minutes": (time.time() - begun) / 60, "cpu_minutes": (time.process_time() - cpu) / 60}
    if arm != "unsupervised":
        result["segmentation"] = test.segmentation(trainer)
    if base is DeepAtlasTrainer:
        result |= test.registration(trainer)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder, or phantoms")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--arms", nargs="+", default=["labels-alone", "same-recipe", "deepatlas", "unsupervised", "bound"]
    )
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.budget = "_".join([f"{args.epochs}x{args.iterations}", *args.set])
    os.environ.setdefault("nnUNet_n_proc_DA", "2")
    prepare(args)
    names = sorted(json.loads((args.out / "nnUNet_preprocessed" / ALIGNED / "dataset.json").read_text(encoding="utf-8"))
                   ["synthtumour"]["roles"])  # fmt: skip
    order = np.random.default_rng(0).permutation(names)
    held_out, training = sorted(map(str, order[: args.test])), [str(c) for c in order[args.test :]]
    test = TestCases(held_out, 0)
    results: dict[str, list[dict[str, Any]]] = {}
    (args.out / args.budget).mkdir(exist_ok=True)
    for draw in args.draws:
        shuffled = [str(c) for c in np.random.default_rng(100 + draw).permutation(training)]
        for arm in args.arms:
            for k in args.labels if arm not in ("unsupervised", "bound") else [len(training)]:
                file = args.out / args.budget / f"{arm}_{k}_{draw}.json"
                if not file.exists():
                    labelled = shuffled[:k] if arm != "unsupervised" else shuffled[:1]
                    file.write_text(json.dumps(train(arm, labelled, training, draw, test, args)), encoding="utf-8")
                results.setdefault(f"{arm} {k}", []).append(json.loads(file.read_text(encoding="utf-8")))
    budget = f"draws {args.draws}, {args.epochs} x {args.iterations} iterations"
    print(f"\n{len(training)} images, {args.test} test cases, {budget}\n")
    print(
        "| arm, labels | segmentation Dice | registration Dice | looks | refined | guided | affine | folds %, worst "
        "| minutes |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for arm, runs in results.items():
        cells = [spread(runs, key) for key in ("segmentation", "after", "looks", "refined", "guided", "affine")]
        folds = [r["folds"] for r in runs if "folds" in r]
        print(f"| {arm} | {' | '.join(cells)} | {max(folds):.4f} | " if folds else f"| {arm} | {' | '.join(cells)} | | ",
              end="")  # fmt: skip
        print(f"{np.mean([r['minutes'] for r in runs]):.1f} |")
    figure(results, args, len(training))


def spread(runs: list[dict[str, Any]], key: str) -> str:
    values = [r[key] for r in runs if key in r]
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}" if values else ""


def figure(results: dict[str, list[dict[str, Any]]], args: argparse.Namespace, everything: int) -> None:
    import matplotlib

    matplotlib.rcdefaults()  # nnU-Net's progress.png leaves its large fonts behind
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    drawing, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    axes[2].sharey(axes[1])
    panels = (("segmentation", "segmentation"), ("after", "registration, the network"),
              ("refined", "registration, and 40 iterations for the pair"))  # fmt: skip
    for axis, (key, title) in zip(axes, panels, strict=True):
        for arm, colour in (("labels-alone", "C1"), ("same-recipe", "C2"), ("deepatlas", "C0")):
            ks = [k for k in args.labels if any(key in r for r in results.get(f"{arm} {k}", []))]
            if ks:
                axis.plot(
                    ks, [np.mean([r[key] for r in results[f"{arm} {k}"]]) for k in ks], "o-", color=colour, label=arm
                )
        for arm, style in (("bound", "--"), ("unsupervised", ":")):
            values = [r[key] for r in results.get(f"{arm} {everything}", []) if key in r]
            if values:
                axis.axhline(float(np.mean(values)), color="grey", linestyle=style, label=arm)
        axis.set_title(title)
        axis.set_xlabel("labelled images")
        axis.set_ylabel("Dice on test cases")
        axis.legend()
    drawing.savefig(args.out / args.budget / "deepatlas.png", dpi=110)


if __name__ == "__main__":
    main()
