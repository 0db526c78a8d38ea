"""Draw what training would see: lesions as they are grown, and the same after nnU-Net's augmentation.

Of a preprocessed data set: synthtumour preview -d 100 -o preview/
Of any image, without a data set: synthtumour preview --image flair.nii.gz -o preview/
Writes preview.png, augmented.png, preview.html (self-contained) and preview.json (every lesion's parameters).
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-d", metavar="DATASET", help="id or name of a preprocessed data set")
    source.add_argument("--image", type=Path, action="append", metavar="FILE", help="an image; repeat for its channels")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("-n", type=int, default=12, metavar="N", help="number of samples (default: 12)")
    parser.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", help="with -d (default: 3d_fullres)")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="with -d (default: nnUNetPlans)")
    parser.add_argument(
        "--channel", action="append", metavar="NAME", help="with --image: its channels (default: FLAIR)"
    )
    parser.add_argument("--host", type=Path, metavar="MASK", help="with --image: where lesions may grow")
    parser.add_argument("--preset", default=None, help="another lesion preset than the data set's (default: glioma)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the preset")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> None:
    from nnunet_synthtumour.errors import UserError
    from nnunet_synthtumour.preview import draw_preview, scene_of_dataset, scene_of_images
    from nnunet_synthtumour.schema import parse_assignments

    if args.n < 1:
        raise UserError("-n must be at least 1.")
    overrides = parse_assignments(args.set, "shape.volume_ml=[5,20]")
    if args.image:
        channels = args.channel or ["FLAIR"]
        if len(channels) != len(args.image):
            raise UserError(
                f"There are {len(args.image)} images and {len(channels)} channels; name one --channel per --image."
            )
        scene = scene_of_images(args.image, channels, args.host, args.preset or "glioma", overrides)
    else:
        scene = scene_of_dataset(args.d, args.c, args.p, args.preset, overrides)
    page = draw_preview(scene, args.out, args.n, args.seed)
    print(f"{args.n} samples: {page}, {page.with_name('preview.png')}, {page.with_name('augmented.png')}")
