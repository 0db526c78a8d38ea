"""Write the report of a 'synthtumour run': one self-contained page, its figures as PNG, and report.json beside it."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="folder of the run")


def run(args: argparse.Namespace) -> None:
    from nnunet_synthtumour.report import write_report

    print(write_report(args.out))
