"""Two folders of images in, a trained tumour segmenter and a report out.

    synthtumour run --healthy DIR --unlabelled DIR -d 100 -n NAME -o OUT [--test DIR --test-labels DIR]

Prepares, plans, preprocesses, trains a junior on lesions grown in the healthy images, lets it label the unlabelled
patients, trains a senior on real tumours pasted into the healthy images, predicts the test images and writes a report.
Every stage is an ordinary command (--dry-run prints them). Killed at any point, the same command continues; data sets
100 (junior) and 101, ... (senior of each round) are made. Folders of nnU-Net that are not set are made below OUT.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_synthtumour.processes_option import add_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--healthy", type=Path, required=True, metavar="DIR", help="healthy images")
    parser.add_argument("--unlabelled", type=Path, required=True, metavar="DIR", help="patients without annotation")
    parser.add_argument("--host-masks", type=Path, metavar="DIR", help="where in the healthy images lesions may grow")
    parser.add_argument("--test", type=Path, metavar="DIR", help="images to segment at the end")
    parser.add_argument(
        "--test-labels", type=Path, metavar="DIR", help="their truth, to evaluate with: all but 0 is tumour"
    )
    parser.add_argument("--channel", action="append", metavar="NAME", help="repeatable (default: FLAIR)")
    parser.add_argument("-d", type=int, required=True, metavar="ID", help="id of the first data set")
    parser.add_argument("-n", required=True, metavar="NAME", help="name of the data sets")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder of the run")
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"))
    parser.add_argument("-num_gpus", type=int, default=1, metavar="N")
    parser.add_argument("-c", "--config", default="3d_fullres", metavar="CONFIGURATION")
    parser.add_argument("-pl", metavar="PLANNER", help="default: nnU-Net's own, or SmallPlanner with -device cpu")
    parser.add_argument("-p", metavar="PLANS", help="name of the plans, where the planner is not one of nnU-Net's")
    parser.add_argument("--preset", default="glioma", metavar="NAME", help="what grows (default: glioma)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, for example training.epochs=100"
    )
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="seniors, each taught by the one before")
    parser.add_argument("-f", "--folds", nargs="+", default=["0"], metavar="FOLD", help="0 to 4, or all (default: 0)")
    add_processes(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the commands instead of running them")


def run(args: argparse.Namespace) -> None:

    from nnunet_synthtumour.pipeline import Run, RunOptions

    job = Run(
        RunOptions(
            healthy=args.healthy,
            unlabelled=args.unlabelled,
            number=args.d,
            name=args.n,
            out=args.out,
            channels=tuple(args.channel or ["FLAIR"]),
            host_masks=args.host_masks,
            test=args.test,
            test_labels=args.test_labels,
            device=args.device,
            num_gpus=args.num_gpus,
            configuration=args.config,
            planner=args.pl,
            plans=args.p,
            preset=args.preset,
            settings=tuple(args.set),
            rounds=args.rounds,
            folds=tuple(args.folds),
            processes=args.np,
        )
    )
    if args.dry_run:
        print(job.shell())
        return
    print(job.go())
    for line in job.scores():
        print(line)
