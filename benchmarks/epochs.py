"""What SynthTumourTrainer's loader costs against nnU-Net's with the same plan and data, and whether its memory grows.

    python benchmarks/epochs.py -o OUT [--batches 60] [--memory 1000] [--trainer SynthTumourTrainer]

An epoch lasts as long as its loader where that is the bottleneck, so what is compared is the CPU time of a batch, in this
process, both trainers in turn: with SmallPlanner's plan and with patches of 128^3. Then the resident memory of a process
that draws `--memory` batches of the small plan, after a tenth of them and at the end.
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

NAME, PLANS = "Dataset100_Epochs", "nnUNetSmallPlans"
LARGE = "3d_128"


def prepare(out: Path) -> None:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(out / variable)
        (out / variable).mkdir(parents=True, exist_ok=True)
    if (out / "prepared").exists():
        return

    def command(*words: object) -> None:
        subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL)

    command(
        "synthtumour", "phantom", out / "phantoms", "--spacing", 1.5, "--healthy", 4, "--unlabelled", 1, "--test", 1
    )
    command("synthtumour", "prepare", "-d", 100, "-n", "Epochs", "--healthy", out / "phantoms" / "healthy", "--channel",
            "FLAIR", "--overwrite")  # fmt: skip
    command("nnUNetv2_extract_fingerprint", "-d", 100, "-np", 1)
    command("nnUNetv2_plan_experiment", "-d", 100, "-pl", "SmallPlanner")
    file = out / "nnUNet_preprocessed" / NAME / f"{PLANS}.json"
    plans = json.loads(file.read_text(encoding="utf-8"))
    plans["configurations"][LARGE] = {
        "inherits_from": "3d_fullres", "data_identifier": f"{PLANS}_{LARGE}", "spacing": [1.0] * 3,
        "patch_size": [128] * 3,
    }  # fmt: skip
    file.write_text(json.dumps(plans), encoding="utf-8")
    command("nnUNetv2_preprocess", "-d", 100, "-plans_name", PLANS, "-c", "3d_fullres", LARGE, "-np", 1, 1)
    (out / "prepared").touch()


class Alike:
    """Transforms that draw the same for the same call: augmentation costs far more on some draws than on others."""

    def __init__(self, transforms: Any) -> None:
        self.transforms, self.calls = transforms, 0

    def __call__(self, **sample: Any) -> Any:
        import torch

        self.calls += 1
        np.random.seed(self.calls)
        torch.manual_seed(self.calls)
        return self.transforms(**sample)


def loader_of(trainer: type[Any], configuration: str) -> Any:
    import torch

    folder = Path(os.environ["nnUNet_preprocessed"]) / NAME
    plans = json.loads((folder / f"{PLANS}.json").read_text(encoding="utf-8")) | {"continue_training": False}
    dataset_json = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    made = trainer(plans, configuration, "all", dataset_json, torch.device("cpu"))
    made.initialize()
    loader = made.get_dataloaders()[0]
    loader.data_loader.transforms = Alike(loader.data_loader.transforms)
    return loader


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--memory", type=int, default=1000)
    args = parser.parse_args()
    args.out = args.out.resolve()
    os.environ["nnUNet_n_proc_DA"] = "1"
    prepare(args.out)
    os.environ["nnUNet_n_proc_DA"] = "0"
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer

    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for configuration in ("3d_fullres", LARGE):
        loaders = {base.__name__: loader_of(base, configuration) for base in (nnUNetTrainer, SynthTumourTrainer)}
        spent: dict[str, list[float]] = {name: [] for name in loaders}
        for i in range(args.batches + 2):
            for name, loader in loaders.items():
                np.random.seed(i)
                torch.manual_seed(i)
                begun = time.process_time()
                batch = next(loader)
                if i > 1:
                    spent[name].append(time.process_time() - begun)
        shape = "x".join(map(str, batch["data"].shape[2:]))
        mean = {name: 1000 * float(np.mean(values)) for name, values in spent.items()}
        ratio = mean["SynthTumourTrainer"] / mean["nnUNetTrainer"]
        results[configuration] = {"patch": shape, "ms": mean, "ratio": ratio}
        print(f"{shape}, batch of {len(batch['data'])}: nnU-Net {mean['nnUNetTrainer']:.0f} ms, SynthTumourTrainer "
              f"{mean['SynthTumourTrainer']:.0f} ms, {ratio:.3f}x")  # fmt: skip
    loader, early = loader_of(SynthTumourTrainer, "3d_fullres"), 0.0
    for i in range(args.memory):
        next(loader)
        if i + 1 == args.memory // 10:
            early = resident_mb()
    results["memory_mb"] = [early, resident_mb()]
    print(
        f"memory after {args.memory // 10} batches {early:.0f} MB, after {args.memory} {results['memory_mb'][1]:.0f} MB"
    )
    (args.out / "epochs.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
