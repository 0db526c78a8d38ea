"""Grow synthetic lesions in whole images and write images, labels and parameters to files.

OUT becomes a valid raw nnU-Net data set: imagesTr, labelsTr, dataset.json; what was drawn lies in OUT/parameters. Several
images are used in turn. For several channels name them, and list the files of each case one after another:
synthtumour grow a_flair.nii.gz a_t1.nii.gz b_flair.nii.gz b_t1.nii.gz --channel FLAIR --channel T1 -o OUT -n 20
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_synthtumour.processes_option import add_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="healthy images")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("-n", type=int, default=20, metavar="N", help="number of cases (default: 20)")
    parser.add_argument(
        "--channel", action="append", metavar="NAME", help="name of a channel (default: FLAIR), repeatable"
    )
    parser.add_argument(
        "--host", type=Path, action="append", metavar="MASK", help="where a lesion may grow, one per case"
    )
    parser.add_argument("--preset", default="glioma", help="lesion preset, or a JSON file of yours (default: glioma)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the preset")
    parser.add_argument(
        "--sub-regions", action="store_true", help="label oedema 1, core 2, necrosis 3 (default: tumour 1)"
    )
    parser.add_argument("--seed", type=int, default=0)
    add_processes(parser)


def run(args: argparse.Namespace) -> None:
    from nnunet_synthtumour.errors import UserError
    from nnunet_synthtumour.offline import Growth, grow_files
    from nnunet_synthtumour.schema import parse_assignments

    channels = tuple(args.channel or ["FLAIR"])
    if len(args.images) % len(channels):
        raise UserError(f"{len(args.images)} images do not divide into cases of {len(channels)} channels each.")
    cases = tuple(tuple(args.images[i : i + len(channels)]) for i in range(0, len(args.images), len(channels)))
    hosts = tuple(args.host or [None] * len(cases))
    if len(hosts) != len(cases):
        raise UserError(f"There are {len(cases)} cases and {len(hosts)} host masks; give one --host per case, or none.")
    if args.n < 1 or args.seed < 0:
        raise UserError("-n must be at least 1, and --seed must not be negative.")
    overrides = parse_assignments(args.set, "shape.volume_ml=[5,20]")
    growth = Growth(cases, channels, args.out, args.n, args.seed, args.preset, overrides, hosts,
                    args.sub_regions)  # fmt: skip
    names = grow_files(growth, args.np)
    print(f"{len(names)} cases in {args.out} (imagesTr, labelsTr, parameters)")
