"""Senior against junior and against its alternatives on phantoms: Dice, HD95, lesion-wise F1 on patients no arm has seen.

    python benchmarks/senior.py -o OUT [--seeds 0 1 2] [--arms senior paper patients longer supervised] [--device cuda]

The junior is `online` of benchmarks/junior.py, trained there if OUT has none; it labels the patients (whose truth nobody
sees). From its weights, with the same number of iterations: `senior`: SynthTumourSeniorTrainer with its defaults. `paper`:
with the reference's mixing (same place, hard mask, nothing changed). `patients`: on the patients and their pseudo-labels
alone, no mixing. `longer`: the junior trained on. `supervised`: the upper bound, the patients with their true labels, from
scratch for as many iterations as junior and senior have together. A junior segments with the epoch that its validation
chose, all others with their last one, as `synthtumour run` does. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from junior import CONFIGURATION, HEALTHY, SUPERVISED, Patients, command, mean, plans_of, prepare_data, row, train

JUNIOR, SENIOR = "online", "Dataset110_Senior"
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

    supervised = arm == "supervised"
    preprocessed = folder / "nnUNet_preprocessed" / (SUPERVISED if supervised else SENIOR)
    plans = json.loads((preprocessed / f"{plans_of(args)}.json").read_text(encoding="utf-8")) | {
        "continue_training": False
    }
    dataset_json = json.loads((preprocessed / "dataset.json").read_text(encoding="utf-8"))
    epochs = args.senior_epochs + (args.epochs if supervised else 0)
    short = {"seed": seed, "epochs": epochs, "iterations": args.iterations}
    base: type[Any] = AveragingTrainer if supervised else SynthTumourSeniorTrainer

    class Arm(base):
        settings = settings_of(dataset_json)

    Arm.__name__ = f"{arm}_{epochs}"
    changes = {"training": short} if supervised else {**CHANGES[arm], "training": short}
    dataset_json = with_settings(dataset_json, changes)
    torch.manual_seed(seed)
    np.random.seed(seed)
    patients = Patients(folder, plans_of(args))
    trainer = Arm(plans, CONFIGURATION, "all" if supervised else 0, dataset_json, torch.device(args.device))
    trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, args.iterations
    if supervised:
        trainer.num_val_iterations_per_epoch = 6
    trainer.run_training()
    result: dict[str, Any] = {"last": patients.score(patients.segment(trainer, mirroring=True))}
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_best.pth"))
    return {**result, "chosen": patients.score(patients.segment(trainer, mirroring=True))}


def run_of(arm: str, folder: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """What the arm reached, trained if it has not been."""
    file = folder / f"{arm}.json" if arm == JUNIOR else folder / f"{arm}_senior.json"
    if not file.exists():
        if arm not in (JUNIOR, "supervised") and not (folder / "labelled").exists():
            run_of(JUNIOR, folder, seed, args)
            command("synthtumour", "pseudolabel", "-d", HEALTHY[7:10], "-o", SENIOR[7:10], "-n", SENIOR[11:], "-c",
                    CONFIGURATION, "-f", 0, "-p", plans_of(args), "-device", args.device)  # fmt: skip
            (folder / "labelled").touch()
        found = train(JUNIOR, folder, seed, args) if arm == JUNIOR else trained(arm, folder, seed, args)
        file.write_text(json.dumps(found), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def shown_epoch(arm: str) -> str:
    return "chosen" if arm == JUNIOR else "last"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=["senior", "paper", "patients", "longer", "supervised"],
                        choices=[*CHANGES, "supervised"])  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--healthy", type=int, default=16)
    parser.add_argument("--test", type=int, default=12)
    parser.add_argument("--offline", type=int, default=60, help="volumes of the fixed set of benchmarks/junior.py")
    parser.add_argument("--spacing", type=float, default=4.0)
    parser.add_argument("--epochs", type=int, default=12, help="of the junior")
    parser.add_argument("--senior-epochs", type=int, default=30)
    parser.add_argument("--iterations", type=int, default=25)
    parser.add_argument("--planner", default="SmallPlanner", help="or TinyPlanner, a quarter of the time")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    os.environ.setdefault("nnUNet_n_proc_DA", "2")
    os.environ.setdefault("nnUNet_def_n_proc", "2")
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in (JUNIOR, *args.arms)}
    for seed in args.seeds:
        folder = args.out.resolve() / f"seed_{seed}"
        prepare_data(folder, seed, args)
        for arm in results:
            results[arm].append(run_of(arm, folder, seed, args))
    lines = ["| arm | Dice | HD95 (mm) | lesion F1 | seeds |", "|---|---|---|---|---|"]
    lines += [row(arm, runs, which) for arm, runs in results.items() for which in ("chosen", "last")]
    dices = {arm: np.array([mean(r[shown_epoch(arm)], "dice") for r in runs]) for arm, runs in results.items()}
    for arm in set(dices) & {"senior"}:
        lines.append(
            f"\n{arm} - junior, by seed: {', '.join(f'{100 * d:+.1f}' for d in dices[arm] - dices[JUNIOR])} points"
        )
        if "supervised" in dices:
            lines.append(f"{arm}: {100 * dices[arm].mean() / dices['supervised'].mean():.1f} % of the supervised bound")
    text = "\n".join(lines)
    print(f"\n{args.healthy} healthy cases and as many patients, {args.test} unseen, {args.epochs} and "
          f"{args.senior_epochs} x {args.iterations} iterations\n\n{text}")  # fmt: skip
    (args.out / "senior.md").write_text(text + "\n", encoding="utf-8")
    (args.out / "senior.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
