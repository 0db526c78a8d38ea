"""What the rules of `synthtumour pseudolabel` do to the pseudo-labels of patients whose truth is known.

python benchmarks/pseudolabel_rules.py WORK TRUTH --images IMAGES

WORK is the junior's `pseudolabels/DATASET` folder, TRUTH holds label maps of the cases' names. Prints how often a voxel of
a given probability is tumour, and for several rules what a senior would be told.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_synthtumour.hosts import find_host
from nnunet_synthtumour.pseudolabel_appearance import corrected
from nnunet_synthtumour.pseudolabel_rules import KEPT, decide
from nnunet_synthtumour.schema import parse
from nnunet_synthtumour.settings import PseudoLabelSettings

ALONE = {"appearance": 0.0, "closing_mm": 0.0}
VARIANTS: tuple[tuple[str, dict[str, float]], ...] = (
    ("one threshold", {**ALONE, "lower": 0.5, "min_ml": 0.0, "min_confidence": 0.0, "max_doubt": 1e9}),
    ("components dropped", {**ALONE, "lower": 0.5, "max_doubt": 1e9}),
    ("ignored from 0.05", {**ALONE, "lower": 0.05, "max_doubt": 1e9}),
    ("gaps closed", {"appearance": 0.0, "lower": 0.05, "max_doubt": 1e9}),
    ("doubtful cases set aside", {"appearance": 0.0, "lower": 0.05}),
    ("appearance, from 0.2", {"max_doubt": 1e9}),
    ("defaults", {}),
)
EDGES = (0.0, 0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 1.01)


def load(work: Path, truth: Path, images: Path) -> list[dict[str, Any]]:
    cases = []
    for file in sorted((work / "probabilities").glob("*.npz")):
        name = file.stem
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(images / f"{name}_0000.nii.gz")))
        label = sitk.ReadImage(str(truth / f"{name}.nii.gz"))
        with np.load(file) as stored:
            tumour = stored["tumour"].astype(np.float32) / 255
        cases.append(
            {"tumour": tumour, "truth": sitk.GetArrayFromImage(label) > 0, "host": find_host([image])[0],
             "intensities": image[None], "image": image != 0, "spacing": label.GetSpacing()[::-1]}
        )  # fmt: skip
    return cases


def print_reliability(cases: list[dict[str, Any]]) -> None:
    p = np.concatenate([case["tumour"][case["image"]] for case in cases])
    truth = np.concatenate([case["truth"][case["image"]] for case in cases])
    print("probability    voxels   of them tumour")
    for low, high in itertools.pairwise(EDGES):
        here = (p >= low) & (p < high)
        if here.any():
            print(f"{low:.2f} to {min(high, 1):.2f}  {here.sum():9d}   {100 * truth[here].mean():5.1f} %")


def print_variant(name: str, rules: PseudoLabelSettings, cases: list[dict[str, Any]]) -> None:
    """Dice, then that of tumour and background as the senior is told them, in which what is ignored does not count."""
    dice, precision, missed, ignored, whole = [], [], [], [], []
    for case in cases:
        junior, host, spacing = case["tumour"], case["host"], case["spacing"]
        probability = corrected(junior, case["intensities"], host, spacing, rules.upper, rules.appearance)
        decision = decide(probability, junior, host, case["image"], spacing, rules)
        if decision.reason is not None:
            continue
        kept, background, truth = decision.state == KEPT, decision.state == 0, case["truth"]
        hit, size = (kept & truth).sum(), truth.sum()
        whole.append(2 * hit / (kept.sum() + size))
        dice.append(2 * hit / (kept.sum() + (truth & (kept | background)).sum()))
        precision.append(hit / kept.sum())
        missed.append((truth & background).sum() / size)
        ignored.append((truth & ~kept & ~background).sum() / size)
    values = "  ".join(f"{np.mean(x):.3f}" for x in (whole, dice, precision, missed, ignored))
    print(f"{name:<26} {len(dice):3d}   {values}   {min(dice):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="imagesTr of the raw data set with the patients")
    args = parser.parse_args()
    cases = load(args.work, args.truth, args.images)
    record = json.loads(next((args.work / "cases").glob("*.json")).read_text(encoding="utf-8"))
    print_reliability(cases)
    print(
        f"\n{len(cases)} patients: cases, Dice, of what is known, precision, truth called background, ignored, worst Dice"
    )
    for name, changes in VARIANTS:
        fixed = {"min_ml": record["rules"]["min_ml"]}
        print_variant(name, parse(PseudoLabelSettings, {**fixed, **changes}), cases)


if __name__ == "__main__":
    main()
