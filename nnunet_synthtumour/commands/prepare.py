"""Build a raw nnU-Net data set from folders of images.

One channel: files case.nii.gz (or case_0000.nii.gz). Several channels: files case_0000.nii.gz, case_0001.nii.gz, ... in
the order of --channel, or one sub-folder per channel, named like it. Any format that SimpleITK reads; a folder of DICOM
slices (.dcm) counts as a file. Images are linked where they can stay as they are (hard links), and converted where not.
Everything is checked first; if anything is wrong, every problem is listed and nothing is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_synthtumour.processes_option import add_processes

if TYPE_CHECKING:
    from nnunet_synthtumour.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", type=int, required=True, metavar="ID", help="id of the new data set, 1 to 999")
    parser.add_argument("-n", required=True, metavar="NAME", help="its name")
    parser.add_argument(
        "--channel", action="append", required=True, metavar="NAME", help="name of a channel, repeatable"
    )
    parser.add_argument("--healthy", type=Path, metavar="DIR", help="healthy images, in which lesions will grow")
    parser.add_argument("--host-masks", type=Path, metavar="DIR", help="where in them: masks of the same names")
    parser.add_argument("--unlabelled", type=Path, metavar="DIR", help="patients without annotation")
    parser.add_argument("--labelled", type=Path, metavar="DIR", help="annotated images")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="their label maps, of the same names")
    parser.add_argument(
        "--label", action="append", default=[], metavar="NAME=VALUE[,VALUE]",
        help="name of a label, repeatable; with several values it is a region: whole=1,2,3 around core=2,3",
    )  # fmt: skip
    parser.add_argument("--test", type=Path, metavar="DIR", help="images for a test, kept apart in imagesTs")
    parser.add_argument("--test-labels", type=Path, metavar="DIR", help="their label maps, of the same names")
    parser.add_argument("--preset", metavar="NAME", help="short for --set lesion.preset=NAME")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="a setting, for example training.epochs=100; repeatable ('synthtumour settings' lists them)",
    )  # fmt: skip
    parser.add_argument("--copy", action="store_true", help="copy images instead of linking them (hard links)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the data set that an earlier run made; its settings are kept"
    )
    add_processes(parser)


def run(args: argparse.Namespace) -> None:
    import json

    from nnunet_synthtumour.datasets import PrepareOptions, about_guessed_hosts, prepare
    from nnunet_synthtumour.intensities import about_arbitrary_zeros
    from nnunet_synthtumour.lesion_model import is_ct
    from nnunet_synthtumour.orientations import about_orientations
    from nnunet_synthtumour.schema import parse_assignments
    from nnunet_synthtumour.settings import HEALTHY, UNLABELLED, Settings, settings_of

    preset = [f"lesion.preset={args.preset}"] if args.preset else []
    target = prepare(
        PrepareOptions(
            number=args.d,
            name=args.n,
            channels=tuple(args.channel),
            healthy=args.healthy,
            host_masks=args.host_masks,
            unlabelled=args.unlabelled,
            labelled=args.labelled,
            labels=args.labels,
            label_names=_label_names(args.label),
            test=args.test,
            test_labels=args.test_labels,
            settings=parse_assignments(args.set + preset, "training.epochs=100", Settings),
            copy=args.copy,
            overwrite=args.overwrite,
            processes=args.np,
        )
    )
    dataset_json = json.loads((target / "dataset.json").read_text(encoding="utf-8"))
    settings = settings_of(dataset_json)
    counts = {role: len(settings.cases(role)) for role in sorted(set(settings.roles.values()))}
    print(f"{target}: " + ", ".join(f"{n} {role}" for role, n in counts.items()))
    for about_hosts in about_guessed_hosts(dataset_json):
        print(about_hosts)
    about_zeros = about_arbitrary_zeros(settings, args.channel)
    if about_zeros:
        print(about_zeros)
    about_axes = about_orientations(_first_channels(target, settings))
    if about_axes:
        print(about_axes)
    command, planner = _next_command(args.d, target), ""
    if counts.get(UNLABELLED) and len(counts) > 1:
        name = "SynthTumour" if counts.get(HEALTHY) else "DeepAtlas"
        planner = f" -pl {name}Planner"
        if any(map(is_ct, args.channel)):
            print("nnU-Net's own planner would let unlabelled CT blur the statistics that CT is normalised by; "
                  f"{name}Planner does not (-p nnUNet{name}Plans afterwards).")  # fmt: skip
        elif name == "DeepAtlas" and "3d" in command:
            print("DeepAtlasTrainer and CrossModalTrainer register whole images, for which DeepAtlasPlanner plans "
                  "(-p nnUNetDeepAtlasPlans afterwards).")  # fmt: skip
        else:
            planner = ""
    print(f"next: {command}{planner}")


def _first_channels(target: Path, settings: Settings) -> dict[str, list[Path]]:
    """By role; images for a test are in a folder of their own."""
    files: dict[str, list[Path]] = {}
    for folder, role_of in (("imagesTr", settings.roles.get), ("imagesTs", lambda case: "test")):
        for file in sorted((target / folder).glob("*_0000.*")):
            files.setdefault(str(role_of(file.name.partition("_0000.")[0])), []).append(file)
    return files


def _next_command(number: int, target: Path) -> str:
    import os

    import SimpleITK as sitk

    from nnunet_synthtumour.dataset_folders import PREPROCESSED

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(next((target / "labelsTr").iterdir())))
    reader.ReadImageInformation()
    flat = reader.GetDimension() == 2 or 1 in reader.GetSize()  # nnU-Net plans nothing in 3D for a single slice
    configuration = "2d" if flat else "3d_fullres"
    planned_before = (Path(os.environ.get(PREPROCESSED) or ".") / target.name).exists()
    clean = " --clean" if planned_before else ""  # nnU-Net would keep the fingerprint of what was there
    return f"nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity -c {configuration}{clean}"


def _label_names(given: list[str]) -> dict[str, int | list[int]]:
    from nnunet_synthtumour.errors import UserError

    names: dict[str, int | list[int]] = {}
    for text in given:
        name, _, value = text.partition("=")
        if not name or not all(map(str.isdecimal, value.split(","))):
            raise UserError(
                f"--label {text} is not NAME=VALUE with a whole number, or several of a region, for example --label tumour=1 "
                "or --label whole=1,2."
            )
        values = sorted(set(map(int, value.split(","))))
        names[name] = values if len(values) > 1 else values[0]
    return names
