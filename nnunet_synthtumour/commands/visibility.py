"""Which structures does a modality show? Ask before labels are carried over to it.

Per structure: contrast to noise against a ring around it, how well intensity and local texture tell it from that ring
(AUC, cases held out), the share of its boundary with an edge, in the target and, where there is one, in the source; a
verdict in plain words, the Dice that can be expected, and what to do instead. Labels are the target's own, those of
--labels, or those of the source data set, registered. OUT gets visibility.html, visibility.json and pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-d", required=True, metavar="TARGET", help="data set of the modality without labels: id or name"
    )
    parser.add_argument("-o", required=True, type=Path, metavar="OUT", help="folder for the report")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="label maps of the targets, named as their cases")
    parser.add_argument(
        "--source", metavar="DATASET", help="labelled data set (default: source.dataset of the settings)"
    )
    parser.add_argument("--no-registration", action="store_true", help="take the source's labels where they lie")
    parser.add_argument("-n", type=int, default=8, metavar="N", help="cases that are looked at (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    from nnunet_synthtumour.errors import UserError
    from nnunet_synthtumour.visibility import no_verdict, visibility
    from nnunet_synthtumour.visibility_dataset import Given, read_cases
    from nnunet_synthtumour.visibility_report import write_report

    if args.n < 1:
        raise UserError(f"-n {args.n} leaves no case to look at; give at least 1.")
    if args.o.exists() and not args.o.is_dir():
        raise UserError(f"{args.o} is a file; give a folder with -o.")
    cases, names, origin = read_cases(Given(args.d, args.labels, args.source, args.n, not args.no_registration))
    verdicts = visibility(cases, names)
    if not verdicts:
        raise UserError(
            f"None of {', '.join(names)} is in the labels of the {len(cases)} cases; nothing can be judged."
        )
    file = write_report(args.o, verdicts, cases, names, origin)
    for verdict in verdicts:
        print(verdict.sentence())
    if missing := no_verdict(verdicts, names):
        print(missing)
    print(file)
