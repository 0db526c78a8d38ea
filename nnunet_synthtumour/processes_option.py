"""The option `-np` of every command that works through many cases."""

from __future__ import annotations

import argparse
import os

AT_MOST = 8


def add_processes(parser: argparse.ArgumentParser) -> None:
    usual = min(AT_MOST, os.cpu_count() or 1)
    parser.add_argument(
        "-np", type=_processes, default=usual, metavar="N", help=f"processes (default: all cores, at most {AT_MOST})"
    )


def _processes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of processes, which is 1 or more.")
    return int(text)
