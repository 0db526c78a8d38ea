"""Write a trained model as a zip for machines that have nnU-Net, but not this package.

There: nnUNetv2_install_pretrained_model_from_zip FILE, then nnUNetv2_predict with nnU-Net's own trainer, which is what the
last line that this command prints shows. The zip holds weights, plans and labels; no settings, no names of cases.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", required=True, metavar="DATASET", help="data set that the model was trained on")
    parser.add_argument("-o", required=True, type=Path, metavar="FILE", help="the zip to write")
    parser.add_argument("-tr", default="SynthTumourTrainer", metavar="TRAINER", help="default: %(default)s")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="default: %(default)s")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="default: %(default)s")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds (default: all that are trained)")
    parser.add_argument(
        "-chk", metavar="FILE", help="checkpoint (default: checkpoint_best.pth, of a senior checkpoint_final.pth)"
    )


def run(args: argparse.Namespace) -> None:
    from nnunet_synthtumour.junior_model import Junior, usual_checkpoint
    from nnunet_synthtumour.model_export import export

    checkpoint = args.chk or usual_checkpoint(args.tr)
    model = Junior.find(args.d, args.tr, args.p, args.c, args.f, checkpoint)
    inside = export(model, args.o)
    print(f"{args.o}: {inside}, {len(model.folds)} fold(s) of {checkpoint}, {args.o.stat().st_size / 1e6:.1f} MB")
    print(shlex.join(["nnUNetv2_install_pretrained_model_from_zip", str(args.o)]))
    print(shlex.join(["nnUNetv2_predict", "-d", model.folder.parent.name, "-p", args.p, "-c", args.c,
                      "-f", *model.folds, "-i", "IN", "-o", "OUT"]))  # fmt: skip
