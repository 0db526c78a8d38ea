"""Compare predictions with label maps: Dice, HD95, lesion-wise F1 and volumes (of 2D images, areas), per case and label.

Writes evaluation.json into the folder of predictions and prints the means. Where truth and prediction are both empty, a
case does not enter the means; where one of them is, its Dice and F1 are 0 and its HD95 is left out and counted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_synthtumour.processes_option import add_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", type=Path, required=True, metavar="DIR", help="predictions of nnUNetv2_predict")
    parser.add_argument("-r", type=Path, required=True, metavar="DIR", help="label maps of the same names")
    parser.add_argument("-d", metavar="DATASET", help="data set that names the labels (default: dataset.json in -i)")
    add_processes(parser)


def run(args: argparse.Namespace) -> None:
    import json

    from nnunet_synthtumour.dataset_folders import read_dataset_json
    from nnunet_synthtumour.evaluation import evaluate
    from nnunet_synthtumour.volumes import measure_in

    dataset_json = read_dataset_json(args.d)[0] if args.d else None
    file = evaluate(args.i, args.r, dataset_json, args.np)
    summary = json.loads(file.read_text(encoding="utf-8"))["summary"]
    measure = measure_in(next(iter(summary.values())))
    print(
        f"structure        cases    Dice   HD95 (mm)   lesion F1   {f'{measure.name} difference ({measure.shown})':>22}"
    )
    for name, s in summary.items():
        difference = s[f"{measure.name}_difference_{measure.unit}"]
        print(f"{name:<16} {s['cases']:>5} {_number(s['dice'], 3):>7} {_number(s['hd95'], 1):>11} "
              f"{_number(s['lesion_f1'], 3):>11} {_number(difference, 1):>24}")  # fmt: skip
    print(file)


def _number(value: float | None, digits: int) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"
