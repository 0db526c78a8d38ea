"""Write the embedded data set: procedural brains, healthy and with tumours, and the truth about them.

OUT/healthy, OUT/unlabelled and OUT/test hold FLAIR-like images (OUT/t1 or OUT/ct the same subjects in a second modality),
OUT/test_labels the tumours of the test patients, OUT/truth everything that a trainer must not see. A run that was
interrupted continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_synthtumour.processes_option import add_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write to")
    parser.add_argument("--healthy", type=int, default=12, metavar="N", help="healthy subjects (default: 12)")
    parser.add_argument("--unlabelled", type=int, default=6, metavar="N", help="patients to train on (default: 6)")
    parser.add_argument("--test", type=int, default=6, metavar="N", help="patients to test on (default: 6)")
    parser.add_argument("--spacing", type=float, default=2.4, metavar="MM", help="1.5 to 4 mm (default: 2.4)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other subjects (default: 0)")
    parser.add_argument("--second-modality", choices=("none", "t1", "ct"), default="none", help="of the same subjects")
    parser.add_argument(
        "--visibility", type=float, default=1.0, metavar="V", help="contrast of tumours in it, 0 to 1 (default: 1)"
    )
    add_processes(parser)


def run(args: argparse.Namespace) -> None:
    from nnunet_synthtumour.errors import UserError
    from nnunet_synthtumour.phantom_files import PhantomSet, write_phantoms

    if not 1.5 <= args.spacing <= 4:
        raise UserError(f"--spacing is {args.spacing:g}, but phantoms are made at 1.5 to 4 mm.")
    if not 0 <= args.visibility <= 1:
        raise UserError(f"--visibility is {args.visibility:g}, but it runs from 0 (invisible) to 1 (full contrast).")
    if min(args.healthy, args.unlabelled, args.test) < 0 or args.seed < 0:
        raise UserError("Numbers of cases and the seed must not be negative.")
    wanted = PhantomSet(
        args.healthy, args.unlabelled, args.test, args.spacing, args.seed, args.second_modality, args.visibility
    )
    manifest = write_phantoms(args.out, wanted, args.np)
    print(f"{args.healthy + args.unlabelled + args.test} phantoms in {args.out}; {manifest.name} says which is which.")
