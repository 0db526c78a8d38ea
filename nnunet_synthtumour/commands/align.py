"""Put every case of a raw nnU-Net data set on one grid: images, labels, and a picture of each to check.

The first channel of every case is aligned to the reference; all channels and the label map follow. A run that was
interrupted goes on where it was. OUT/checks has a picture per case, OUT/alignment.json the figures, OUT/transforms the
maps from points of the new grid to points of the case (ITK).
"""

from __future__ import annotations

import argparse

from nnunet_synthtumour.processes_option import add_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-i", required=True, metavar="RAW_DATASET", help="raw data set to align: its id, name or folder"
    )
    parser.add_argument("-o", required=True, metavar="OUT", help="new data set: ID_Name, like 201_Aligned, or a folder")
    parser.add_argument(
        "--reference",
        default="auto",
        metavar="CASE|FILE|auto|template",
        help="what is aligned to: a case, an image file, the most typical case, or a mean of all (default: auto)",
    )
    parser.add_argument(
        "--onto", metavar="DATASET", help="align every case to the case of the same name in another raw data set"
    )
    parser.add_argument("--kind", choices=("rigid", "affine"), default="affine", help="default: affine")
    parser.add_argument(
        "--cross-modality", action="store_true", help="the cases are of different modalities: use mutual information"
    )
    parser.add_argument("--spacing", type=float, metavar="MM", help="voxel size (default: that of the reference)")
    add_processes(parser)


def run(args: argparse.Namespace) -> None:
    from nnunet_synthtumour.align_dataset import AlignOptions, align_dataset
    from nnunet_synthtumour.case_pool import one_thread

    one_thread()
    done = align_dataset(
        AlignOptions(
            dataset=args.i,
            out=args.o,
            reference=args.reference,
            kind=args.kind,
            cross_modality=args.cross_modality,
            spacing=args.spacing,
            onto=args.onto,
            processes=args.np,
        )
    )
    kept = f", {done.kept} kept from an earlier run" if done.kept else ""
    print(f"{done.folder}: {done.cases} cases aligned to {done.reference}{kept}")
    if done.older:
        print(
            f"{done.older} of them an earlier version had aligned, which left a rim around stripped images: they were done "
            "anew; preprocess and train again."
        )
    if done.own_settings:
        print(f"It keeps settings of its own, other than the source's: {', '.join(done.own_settings)}.")
    if done.test_images:
        print("The test images (imagesTs, labelsTs) are not aligned and not in the new data set.")
    for case, why in done.warnings.items():
        print(f"warning: {case} looks misaligned: {why}; see {done.folder / 'checks' / (case + '.png')}")
    if not done.warnings:
        print(f"No case stands out; the pictures in {done.folder / 'checks'} are worth a look all the same.")
