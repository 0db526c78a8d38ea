"""Register two images: affine, then diffeomorphic.

The moving image is brought to the fixed one, whatever their grids: by an affine map, then by a trained network (--model)
and/or by optimising a smooth, invertible field on this very pair (--iterations). Labels are carried along, never used
for the fit. OUT gets warped.nii.gz, warped_labels.nii.gz, field.nii.gz and inverse_field.nii.gz (ITK displacement fields,
affine included, for SimpleITK, ANTs and 3D Slicer), affine.tfm, report.json and check.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for flag, name, what in (
        ("-f", "FIXED", "the image that is registered to"),
        ("-m", "MOVING", "the image that is moved"),
    ):
        parser.add_argument(
            flag, required=True, type=Path, nargs="+", metavar=name,
            help=f"{what}; with several channels one file each, of which the first is compared and --model sees all",
        )  # fmt: skip
    parser.add_argument("-o", required=True, type=Path, metavar="OUT", help="folder for the results")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="label map of the moving image")
    parser.add_argument(
        "--fixed-labels", type=Path, metavar="FILE", help="label map of the fixed image, for Dice, HD95"
    )
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="trained registration network to start from")
    parser.add_argument(
        "--iterations", type=int, metavar="N", help="of the optimisation; 0: none (default: %(default)s)", default=40
    )
    parser.add_argument(
        "--similarity",
        choices=("lncc", "mind", "nmi", "ncc", "mse"),
        default="lncc",
        help="lncc, ncc, mse: one modality; mind, nmi: two (default: %(default)s)",
    )
    parser.add_argument(
        "--regularity", choices=("diffusion", "bending"), default="diffusion", help="default: diffusion"
    )
    parser.add_argument("--regularity-weight", type=float, metavar="W", help="default: depends on the similarity")
    parser.add_argument(
        "--anatomy-weight", type=float, metavar="W",
        help="with --model: of the structures that it finds in both images (default: 0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--affine", choices=("affine", "rigid", "none"), default="affine", help="start (default: affine)"
    )
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu, cuda, cuda:1, mps (default: cpu)")


def run(args: argparse.Namespace) -> None:
    import torch

    from nnunet_synthtumour.errors import UserError
    from nnunet_synthtumour.pair_registration import Request, register
    from nnunet_synthtumour.registration.instance import InstanceSettings

    if args.iterations < 0:
        raise UserError(f"--iterations is {args.iterations}; it must be 0 or more.")
    if args.regularity_weight is not None and not args.regularity_weight >= 0:
        raise UserError(f"--regularity-weight is {args.regularity_weight}; it must be 0 or more.")
    if args.anatomy_weight is not None and args.model is None:
        raise UserError("--anatomy-weight is of what a model finds; give the model's folder with --model, too.")
    anatomy = InstanceSettings.anatomy if args.anatomy_weight is None else args.anatomy_weight
    if not anatomy >= 0:
        raise UserError(f"--anatomy-weight is {anatomy}; it must be 0 or more.")
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {args.device} is not available here; cpu always is.") from error
    report = register(
        Request(
            fixed=args.f[0],
            moving=args.m[0],
            out=args.o,
            labels=args.labels,
            fixed_labels=args.fixed_labels,
            model=args.model,
            settings=InstanceSettings(
                similarity=args.similarity,
                iterations=args.iterations,
                regularity=args.regularity,
                regularity_weight=args.regularity_weight,
                anatomy=anatomy,
            ),
            affine=args.affine,
            device=args.device,
            fixed_channels=tuple(args.f[1:]),
            moving_channels=tuple(args.m[1:]),
        )
    )
    similarity = report["similarity"]
    print(
        f"{args.o}: {args.similarity} {similarity['initial']:.3f} -> {similarity['affine']:.3f} (affine) -> "
        f"{similarity['final']:.3f} (lower is better), {report['folds_percent']:.4f} % folds"
    )
    if "structures" in report:
        found = report["structures"]
        print(f"structures that the model finds: Dice {found['affine']:.3f} (affine) -> {found['final']:.3f}")
    if "worse" in report["deformation"]:
        print(f"deformation: {report['deformation']}")
    for label, scores in report.get("labels", {}).get("final", {}).items():
        print(f"label {label}: Dice {scores['dice']:.3f}, HD95 {scores['hd95']:.2f} mm")
    print(f"look at {args.o / 'check.png'}")
