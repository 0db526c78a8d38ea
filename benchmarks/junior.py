"""Junior against its alternatives on phantoms: Dice, HD95 and lesion-wise F1 on patients that no arm has seen.

    python benchmarks/junior.py -o OUT [--seeds 0 1 2] [--arms online paper offline supervised threshold] [--device cuda]

All arms share one plan, one network, one number of iterations and averaged weights. `online`: SynthTumourTrainer with its
defaults. `paper`: the same with the reference's synthesis. `offline`: a fixed set of volumes grown by the same engine in
the same hosts (those of fold 0), with distractors and healthy ones among them as online. `clean`: online without either.
`supervised`: as many labelled patients as there are healthy cases, the upper bound. `threshold`: the brightest
voxels of the z-scored brain, opened, largest component, with the threshold that is best for the phantoms of seed 0.
`no-...`: the defaults without one ingredient. After every epoch each network segments the patients, so that the epoch
that its validation chose can be compared with the best one in hindsight. The patients lie, without their labels, in the
healthy data set too, as `synthtumour run` has it; benchmarks/senior.py goes on from the same folder. Finished runs are not
repeated, so several processes can share the arms and seeds of one folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from lesion_metrics import dice, hd95, lesion_f1

TRAINED = ("online", "paper", "offline", "supervised")
ABLATIONS: dict[str, dict[str, Any]] = {
    "no-parts": {"lesion": {"overrides": {"parts": {p: {"probability": 0.0} for p in ("core", "necrosis")}}}},
    "no-distractors": {"lesion": {"overrides": {"distractors": {"probability": 0.0}}}},
    "no-soft-edges": {"lesion": {"overrides": {"appearance": {"softness_mm": [0.0, 0.5], "halo": 0.0}}}},
    "no-texture": {"lesion": {"overrides": {"appearance": {"texture": [0.0, 0.0], "texture_kept": [0.0, 0.0]}}}},
    "no-averaging": {"training": {"averaging": 0}},
    "sgd": {"training": {"optimizer": "sgd"}},
    "clean": {"training": {"healthy_patches": 0.0}, "lesion": {"overrides": {"distractors": {"probability": 0.0}}}},
    "mirrored": {"training": {"mirroring": True}},
    "no-reuse": {"training": {"reuse": 1}},
    "no-healthy": {"training": {"healthy_patches": 0.0}},
}
HEALTHY, OFFLINE, SUPERVISED, TEST = (
    "Dataset100_Healthy",
    "Dataset101_Offline",
    "Dataset102_Supervised",
    "Dataset103_Test",
)
CONFIGURATION = "3d_fullres"
Curve = list[dict[str, float]]


def command(*words: object) -> None:
    print("$", *words, flush=True)
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)


def prepare_data(folder: Path, seed: int, args: argparse.Namespace) -> None:
    """Phantoms of one seed as four data sets with one plan, in `folder`, to which nnU-Net's variables are set."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(folder / variable)
        (folder / variable).mkdir(parents=True, exist_ok=True)
    if (folder / "prepared").exists():
        return
    shutil.rmtree(folder)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / variable).mkdir(parents=True)
    phantoms, grown = folder / "phantoms", folder / "grown"
    command("synthtumour", "phantom", phantoms, "--seed", seed, "--spacing", args.spacing, "--healthy", args.healthy,
            "--unlabelled", args.healthy, "--test", args.test)  # fmt: skip
    grow_offline(hosts_of_fold_0(phantoms / "healthy"), grown, seed, args)
    command("synthtumour", "prepare", "-d", 100, "-n", "Healthy", "--healthy", phantoms / "healthy", "--channel", "FLAIR",
            "--unlabelled", phantoms / "unlabelled")  # fmt: skip
    for name, images, labels in (
        (OFFLINE, grown / "imagesTr", grown / "labelsTr"),
        (SUPERVISED, phantoms / "unlabelled", phantoms / "truth" / "unlabelled"),
        (TEST, phantoms / "test", phantoms / "test_labels"),
    ):
        command("synthtumour", "prepare", "-d", name[7:10], "-n", name[11:], "--labelled", images, "--labels", labels,
                "--label", "tumour=1", "--channel", "FLAIR")  # fmt: skip
    command("nnUNetv2_extract_fingerprint", "-d", 100, "-np", 2)
    command("nnUNetv2_plan_experiment", "-d", 100, "-pl", args.planner)
    for name in (OFFLINE, SUPERVISED, TEST):
        command("nnUNetv2_extract_fingerprint", "-d", name[7:10], "-np", 2)
        command("nnUNetv2_move_plans_between_datasets", "-s", 100, "-t", name[7:10], "-sp", plans_of(args), "-tp",
                plans_of(args))  # fmt: skip
        shutil.copy(folder / "nnUNet_raw" / name / "dataset.json", folder / "nnUNet_preprocessed" / name)
    for name in (HEALTHY, OFFLINE, SUPERVISED, TEST):
        command("nnUNetv2_preprocess", "-d", name[7:10], "-plans_name", plans_of(args), "-c", CONFIGURATION, "-np", 2)
    (folder / "prepared").touch()


def grow_offline(hosts: list[Path], grown: Path, seed: int, args: argparse.Namespace) -> None:
    """What the junior draws, as files: as many of them healthy, and distractors as often."""
    from nnunet_synthtumour.lesion_model import load_model
    from nnunet_synthtumour.settings import Settings

    defaults = Settings()
    healthy = round(defaults.training.healthy_patches * args.offline)
    distractors = load_model(defaults.lesion.preset).distractors.probability
    command("synthtumour", "grow", *hosts, "-o", grown, "-n", args.offline - healthy, "--seed", seed, "--set",
            f"distractors.probability={distractors}")  # fmt: skip
    for i, host in enumerate(hosts[:healthy]):
        shutil.copy(host, grown / "imagesTr" / f"healthy_{i:02d}_0000.nii.gz")
        image = sitk.ReadImage(str(host))
        sitk.WriteImage(sitk.Cast(image * 0, sitk.sitkUInt8), str(grown / "labelsTr" / f"healthy_{i:02d}.nii.gz"))


def hosts_of_fold_0(folder: Path) -> list[Path]:
    """The healthy images that the junior trains on."""
    from nnunet_synthtumour.trainers.case_splits import splits_by_role

    images = {file.name[:-7]: file for file in folder.glob("*.nii.gz")}
    return [images[case] for case in splits_by_role([list(images)])[0]["train"]]


def plans_of(args: argparse.Namespace) -> str:
    return f"nnUNet{args.planner.removesuffix('Planner')}Plans"


class Patients:
    """The test patients, preprocessed, and how well a network segments them."""

    def __init__(self, folder: Path, plans: str) -> None:
        from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

        preprocessed = folder / "nnUNet_preprocessed" / TEST
        self.plans = json.loads((preprocessed / f"{plans}.json").read_text(encoding="utf-8"))
        self.spacing = tuple(self.plans["configurations"][CONFIGURATION]["spacing"])
        cases = str(preprocessed / self.plans["configurations"][CONFIGURATION]["data_identifier"])
        dataset = infer_dataset_class(cases)(cases)
        loaded = {name: dataset.load_case(name) for name in dataset.identifiers}
        self.cases = {
            name: (np.asarray(data[:]), np.asarray(seg[:])[0] == 1) for name, (data, seg, *_) in loaded.items()
        }

    def predictor(self, trainer: Any, mirroring: bool) -> Any:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(use_mirroring=mirroring, device=trainer.device, allow_tqdm=False)
        predictor.manual_initialization(
            trainer.network, trainer.plans_manager, trainer.configuration_manager, None, trainer.dataset_json,
            type(trainer).__name__, trainer.inference_allowed_mirroring_axes,
        )  # fmt: skip
        return predictor

    def segment(self, trainer: Any, mirroring: bool) -> dict[str, np.ndarray]:
        import torch

        trainer.network.eval()
        trainer.set_deep_supervision_enabled(False)
        predictor = self.predictor(trainer, mirroring)
        with torch.no_grad():
            logits = {
                name: predictor.predict_sliding_window_return_logits(torch.from_numpy(data))
                for name, (data, _) in self.cases.items()
            }
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
        return {name: value.argmax(0).cpu().numpy() == 1 for name, value in logits.items()}

    def mean_dice(self, masks: dict[str, np.ndarray]) -> float:
        return float(np.mean([dice(masks[name], truth) for name, (_, truth) in self.cases.items()]))

    def score(self, masks: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        return {
            name: {
                "dice": dice(masks[name], truth),
                "hd95_mm": hd95(masks[name], truth, self.spacing),
                "lesion_f1": lesion_f1(masks[name], truth),
            }
            for name, (_, truth) in self.cases.items()
        }


def train(arm: str, folder: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one arm; the Dice on patients after every epoch, and all scores at the chosen and at the last epoch."""
    import torch

    from nnunet_synthtumour.settings import SHORT, settings_of, with_settings
    from nnunet_synthtumour.trainers.averaging_trainer import AveragingTrainer
    from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer

    name = {"offline": OFFLINE, "supervised": SUPERVISED}.get(arm, HEALTHY)
    preprocessed = folder / "nnUNet_preprocessed" / name
    plans = json.loads((preprocessed / f"{plans_of(args)}.json").read_text(encoding="utf-8")) | {
        "continue_training": False
    }
    changes = {"paper": {"lesion": {"preset": "paper"}}, **ABLATIONS}.get(arm, {})
    alike = {"seed": seed, "epochs": args.epochs, "iterations": args.iterations,
             "mirroring": args.epochs * args.iterations > SHORT}  # fmt: skip
    changes = {**changes, "training": {**alike, **changes.get("training", {})}}
    dataset_json = json.loads((preprocessed / "dataset.json").read_text(encoding="utf-8"))
    torch.manual_seed(seed)
    np.random.seed(seed)
    patients, curve = Patients(folder, plans_of(args)), []
    with_labels = arm in ("offline", "supervised")
    base: type[Any] = AveragingTrainer if with_labels else SynthTumourTrainer

    class Watched(base):
        """The arm's trainer, which segments the patients after every epoch and learns nothing from it."""

        settings = settings_of(dataset_json)

        def _log(self, key: str) -> float:
            return float(self.logger.local_logger.my_fantastic_logging.get(key, [np.nan])[-1])

        def on_epoch_end(self) -> None:
            curve.append({
                "patients": patients.mean_dice(patients.segment(self, mirroring=False)),
                "validation": float(self.logger.get_value("mean_fg_dice", -1)),
                "in_distribution": self._log("in_distribution_dice"),
            })  # fmt: skip
            super().on_epoch_end()

    Watched.__name__ = base.__name__ if arm == "online" else arm  # pseudo-labels are asked for by the trainer's name
    dataset_json = with_settings(dataset_json, {"training": changes["training"]} if with_labels else changes)
    trainer = Watched(plans, CONFIGURATION, "all" if with_labels else 0, dataset_json, torch.device(args.device))
    trainer.num_epochs, trainer.num_iterations_per_epoch = args.epochs, args.iterations
    if with_labels:
        trainer.num_val_iterations_per_epoch = 6
    trainer.run_training()
    result: dict[str, Any] = {"curve": curve, "last": patients.score(patients.segment(trainer, mirroring=True))}
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_best.pth"))
    result["chosen_epoch"] = trainer.current_epoch - 1
    result["chosen"] = patients.score(patients.segment(trainer, mirroring=True))
    return result


def threshold(folder: Path, plans: str, value: float) -> dict[str, dict[str, float]]:
    """Voxels of the z-scored brain above `value`, opened, largest component."""
    from scipy import ndimage

    patients, masks = Patients(folder, plans), {}
    for name, (data, _) in patients.cases.items():
        found, n = ndimage.label(ndimage.binary_opening(data[0] > value))
        sizes = ndimage.sum_labels(np.ones_like(found), found, np.arange(1, n + 1)) if n else []
        masks[name] = found == 1 + int(np.argmax(sizes)) if n else found > 0
    return patients.score(masks)


def mean(scores: dict[str, dict[str, float]], metric: str) -> float:
    return float(np.nanmean([s[metric] for s in scores.values()]))


def row(arm: str, runs: list[dict[str, Any]], which: str) -> str:
    cells = []
    for metric, digits in (("dice", 3), ("hd95_mm", 1), ("lesion_f1", 3)):
        values = [mean(r[which], metric) for r in runs]
        cells.append(f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}")
    return f"| {arm} ({which}) | " + " | ".join(cells) + f" | {len(runs)} |"


def hindsight(runs: list[dict[str, Any]]) -> str:
    """How many Dice points choosing an epoch by one curve, as the trainer does, or taking the last one costs against the
    best epoch, mean over runs."""
    from nnunet_synthtumour.chosen_epoch import chosen_epoch, moved

    def chosen(curve: Curve, key: str) -> dict[str, float]:
        averages = [curve[0][key]]
        for epoch in curve[1:]:
            averages.append(moved(averages[-1], epoch[key], len(curve)))
        return curve[chosen_epoch(averages)]

    best = [max(e["patients"] for e in r["curve"]) for r in runs]
    last = [r["curve"][-1]["patients"] for r in runs]
    lines = [f"last epoch: {100 * float(np.mean(np.subtract(best, last))):.1f} points"]
    for key in ("validation", "in_distribution"):
        curves = [r["curve"] for r in runs if not np.isnan(r["curve"][-1][key])]
        if curves:
            costs = [max(e["patients"] for e in c) - chosen(c, key)["patients"] for c in curves]
            lines.append(f"{key}: {100 * float(np.mean(costs)):.1f} points")
    return ", ".join(lines)


def figure(results: dict[str, list[dict[str, Any]]], file: Path) -> None:
    import matplotlib

    matplotlib.rcdefaults()  # nnU-Net's progress.png leaves its large fonts behind
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    drawing, (bars, curves) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for i, (arm, runs) in enumerate(results.items()):
        values = [mean(r["chosen"], "dice") for r in runs]
        bars.bar(i, np.mean(values), color=f"C{i}", alpha=0.6)
        bars.plot([i] * len(values), values, "k.")
        if "curve" in runs[0]:
            curves.plot(np.mean([[e["patients"] for e in r["curve"]] for r in runs], axis=0), color=f"C{i}", label=arm)
    bars.set_xticks(range(len(results)), list(results), rotation=20)
    bars.set_ylabel("Dice on unseen patients")
    curves.set_xlabel("epoch")
    curves.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    curves.set_ylabel("Dice on unseen patients")
    curves.legend()
    for axis in (bars, curves):
        axis.set_ylim(0, 1)
    drawing.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument(
        "--arms", nargs="+", default=["threshold", *TRAINED], choices=["threshold", *TRAINED, *ABLATIONS]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--healthy", type=int, default=16)
    parser.add_argument("--test", type=int, default=12)
    parser.add_argument("--offline", type=int, default=60, help="volumes of the offline set")
    parser.add_argument("--spacing", type=float, default=4.0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--planner", default="SmallPlanner", help="or TinyPlanner, a quarter of the time")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    os.environ.setdefault("nnUNet_n_proc_DA", "2")
    os.environ.setdefault("nnUNet_def_n_proc", "2")
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in args.arms}
    best_threshold: float | None = None
    for seed in args.seeds:
        folder = args.out.resolve() / f"seed_{seed}"
        prepare_data(folder, seed, args)
        for arm in args.arms:
            file = folder / f"{arm}.json"
            if arm == "threshold":
                if best_threshold is None:
                    grid = np.arange(0.5, 3.01, 0.25)
                    best_threshold = float(max(grid, key=lambda t: mean(threshold(folder, plans_of(args), t), "dice")))
                scores = threshold(folder, plans_of(args), best_threshold)
                results[arm].append({"chosen": scores, "last": scores})
                continue
            if not file.exists():
                file.write_text(json.dumps(train(arm, folder, seed, args)), encoding="utf-8")
            results[arm].append(json.loads(file.read_text(encoding="utf-8")))
    lines = ["| arm | Dice | HD95 (mm) | lesion F1 | seeds |", "|---|---|---|---|---|"]
    for arm, runs in results.items():
        lines += [row(arm, runs, "chosen")] + ([row(arm, runs, "last")] if "curve" in runs[0] else [])
    for arm, runs in results.items():
        if "curve" in runs[0]:
            lines.append(f"\n{arm}: cost of choosing the epoch by {hindsight(runs)}")
    text = "\n".join(lines)
    print(
        f"\n{args.healthy} healthy cases, {args.test} patients, {args.epochs} x {args.iterations} iterations\n\n{text}"
    )
    (args.out / "junior.md").write_text(text + "\n", encoding="utf-8")
    (args.out / "junior.json").write_text(json.dumps(results), encoding="utf-8")
    figure(results, args.out / "junior.png")


if __name__ == "__main__":
    main()
