"""A junior segments the unlabelled patients; what it is sure of becomes the data set that a senior trains on.

Voxels between the two thresholds, and components that are too small, too unsure, at the outer rim of the host or too
large, get the ignore label; cases with nothing left are set aside. Writes the raw data set (-o), planned like the
junior's, preprocessed, and a report with a picture per case. A second run does only what is missing: other thresholds
do not segment again. On several machines: the same command everywhere with -num_parts N -part_id 0 ... N-1.
"""

from __future__ import annotations

import argparse

from nnunet_synthtumour.processes_option import add_processes

RULES = {"lower": "--lower", "upper": "--upper", "min_ml": "--min-ml", "min_confidence": "--min-confidence"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", required=True, metavar="DATASET", help="raw data set with the unlabelled patients")
    parser.add_argument("-o", type=int, required=True, metavar="ID", help="id of the new data set")
    parser.add_argument("-n", metavar="NAME", help="its name (default: that of -d with 'Senior' behind it)")
    parser.add_argument("-tr", default="SynthTumourTrainer", metavar="TRAINER", help="junior (default: %(default)s)")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="its plans (default: %(default)s)")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: %(default)s")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds that vote (default: all that are trained)")
    parser.add_argument(
        "-chk", metavar="FILE", help="checkpoint (default: checkpoint_best.pth, of a senior checkpoint_final.pth)"
    )
    parser.add_argument(
        "--junior", metavar="DATASET", help="data set on which the junior was trained, if not -d (later rounds)"
    )
    parser.add_argument("--lower", type=float, metavar="P", help="below this probability: background")
    parser.add_argument("--upper", type=float, metavar="P", help="from this probability on: tumour")
    parser.add_argument("--min-ml", type=float, metavar="ML", help="smaller components are dropped")
    parser.add_argument("--min-confidence", type=float, metavar="P", help="less probable components are dropped")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="a setting of the new data set, for example pseudolabels.max_doubt=3; repeatable ('synthtumour settings' lists "
        "them)",
    )  # fmt: skip
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"), help="default: %(default)s")
    parser.add_argument("-num_parts", type=int, default=1, metavar="N", help="cut the work into N parts")
    parser.add_argument("-part_id", type=int, default=0, metavar="I", help="do this part, 0 to N-1")
    add_processes(parser)


def run(args: argparse.Namespace) -> None:
    import json

    from nnunet_synthtumour.junior_model import usual_checkpoint
    from nnunet_synthtumour.pseudolabels import PseudoLabelOptions, pseudolabel
    from nnunet_synthtumour.schema import parse_assignments
    from nnunet_synthtumour.senior_dataset import PROVENANCE
    from nnunet_synthtumour.settings import Settings

    options = PseudoLabelOptions(
        dataset=args.d,
        number=args.o,
        name=args.n,
        junior=args.junior,
        trainer=args.tr,
        plans=args.p,
        configuration=args.c,
        folds=tuple(args.f) if args.f else None,
        checkpoint=args.chk or usual_checkpoint(args.tr),
        rules={key: getattr(args, key) for key in RULES if getattr(args, key) is not None},
        settings=parse_assignments(args.set, "pseudolabels.max_doubt=3", Settings),
        device=args.device,
        num_parts=args.num_parts,
        part_id=args.part_id,
        processes=args.np,
    )
    done = pseudolabel(options)
    if done.raw is None:
        print(f"Part {args.part_id} of {args.num_parts} is done; another one is at work and will build the data set.")
        return
    about = json.loads((done.raw / PROVENANCE).read_text(encoding="utf-8"))
    print(f"{done.raw}: {len(about['kept'])} pseudo-labelled cases, {len(about['set_aside'])} set aside")
    print(f"report: {done.report}")
