"""Senior against junior and against its alternatives on phantoms: Dice, HD95, lesion-wise F1 on patients no arm has seen.

    python benchmarks/senior.py -o OUT [--seeds 3] [--arms senior paper patients supervised]

Per seed, one junior is trained and labels the patients (whose truth nobody sees). From its weights, with the same number
of iterations: `senior`: SynthTumourSeniorTrainer with its defaults. `paper`: with the reference's mixing (same place, hard
mask, nothing changed). `patients`: on the patients and their pseudo-labels alone, no mixing. `longer`: the junior trained
on. `supervised`: the upper bound, the patients with their true labels, from scratch for as many iterations as junior and
senior have together. Data and metrics are those of benchmarks/junior.py; finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from junior import CONFIGURATION, HEALTHY, PLANS, SUPERVISED, Patients, command, mean, prepare_data, row

SENIOR = "Dataset110_Senior"
CHANGES: dict[str, dict[str, Any]] = {
    "senior": {},
    "paper": {"donors": {"placement": "paper"}, "senior": {"synthetic": 0.0}},
    "patients": {"senior": {"patients": 1.0}},
    "longer": {"senior": {"patients": 0.0, "synthetic": 1.0}},
}


def trained(arm: str, folder: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Scores on the patients at the chosen and at the last epoch."""
    import torch

    from nnunet_synthtumour.settings import settings_of, with_settings
    from nnunet_synthtumour.trainers.averaging_trainer import AveragingTrainer
    from nnunet_synthtumour.trainers.senior_trainer import SynthTumourSeniorTrainer
    from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer

    name = {"junior": HEALTHY, "supervised": SUPERVISED}.get(arm, SENIOR)
    preprocessed = folder / "nnUNet_preprocessed" / name
    plans = json.loads((preprocessed / f"{PLANS}.json").read_text(encoding="utf-8")) | {"continue_training": False}
    dataset_json = json.loads((preprocessed / "dataset.json").read_text(encoding="utf-8"))
    epochs = 2 * args.epochs if arm == "supervised" else args.epochs
    short = {"seed": seed, "epochs": epochs, "iterations": args.iterations}
    base: type[Any] = {"junior": SynthTumourTrainer, "supervised": AveragingTrainer}.get(arm, SynthTumourSeniorTrainer)

    class Arm(base):
        settings = settings_of(dataset_json)

    Arm.__name__ = base.__name__ if arm == "junior" else arm
    if arm != "supervised":
        changes = {**CHANGES.get(arm, {}), "training": short, "validation": {"patches": 24}}
        dataset_json = with_settings(dataset_json, changes)
    torch.manual_seed(seed)
    np.random.seed(seed)
    patients = Patients(folder)
    fold = "all" if arm == "supervised" else 0
    trainer = Arm(plans, CONFIGURATION, fold, dataset_json, torch.device(args.device))
    trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, args.iterations
    if arm == "supervised":
        trainer.num_val_iterations_per_epoch = 6
    trainer.run_training()
    result: dict[str, Any] = {"last": patients.score(patients.segment(trainer, mirroring=True))}
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_best.pth"))
    return {**result, "chosen": patients.score(patients.segment(trainer, mirroring=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=["senior", "paper", "patients", "supervised"],
                        choices=[*CHANGES, "supervised"])  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--healthy", type=int, default=16)
    parser.add_argument("--test", type=int, default=12)
    parser.add_argument("--spacing", type=float, default=3.0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    args.offline = 1  # the fixed set of benchmarks/junior.py is not needed here
    os.environ.setdefault("nnUNet_n_proc_DA", "2")
    os.environ.setdefault("nnUNet_def_n_proc", "2")
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ("junior", *args.arms)}
    for seed in range(args.seeds):
        folder = args.out.resolve() / f"seed_{seed}"
        prepare_data(folder, seed, args, with_unlabelled=True)
        for arm in results:
            file = folder / f"{arm}.json"
            if not file.exists():
                if arm not in ("junior", "supervised") and not (folder / "labelled").exists():
                    command("synthtumour", "pseudolabel", "-d", 100, "-o", 110, "-n", SENIOR[11:], "-c", CONFIGURATION,
                            "-f", 0, "-p", PLANS, "-device", args.device)  # fmt: skip
                    (folder / "labelled").touch()
                file.write_text(json.dumps(trained(arm, folder, seed, args)), encoding="utf-8")
            results[arm].append(json.loads(file.read_text(encoding="utf-8")))
    lines = ["| arm | Dice | HD95 (mm) | lesion F1 | seeds |", "|---|---|---|---|---|"]
    lines += [row(arm, runs, "chosen") for arm, runs in results.items()]
    if "supervised" in results:
        bound = np.mean([mean(r["chosen"], "dice") for r in results["supervised"]])
        share = np.mean([mean(r["chosen"], "dice") for r in results["senior"]]) / bound
        lines.append(f"\nsenior: {100 * share:.1f} % of the supervised bound")
    text = "\n".join(lines)
    print(f"\n{args.healthy} healthy cases and as many patients, {args.test} unseen, {args.epochs} x {args.iterations} "
          f"iterations per stage\n\n{text}")  # fmt: skip
    (args.out / "senior.md").write_text(text + "\n", encoding="utf-8")
    (args.out / "senior.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
