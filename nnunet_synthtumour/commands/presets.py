"""List the lesion presets, or show every field of one and where its numbers come from."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", nargs="?", metavar="PRESET", help="a preset's name, or a JSON file of yours")
    parser.add_argument("--json", action="store_true", help="print it as JSON: a start for a preset of your own")


def run(args: argparse.Namespace) -> None:
    from nnunet_synthtumour.lesion_model import available_presets, load_model
    from nnunet_synthtumour.schema import leaves, to_json

    if args.preset is None:
        presets = available_presets()
        width = max(map(len, presets))
        for name, description in presets.items():
            print(f"{name:<{width}}  {description}")
        print(
            "\nChoose one with lesion.preset in dataset.json's synthtumour block; lesion.overrides changes any field."
        )
        return
    model = load_model(args.preset)
    if args.json:
        print(json.dumps(to_json(model), indent=2))
        return
    print(f"{model.name}: {model.description}\n")
    for source in model.sources:
        print(f"  from: {source}")
    print()
    for key, value in leaves(model).items():
        if key not in ("name", "description", "sources"):
            print(f"{key} = {json.dumps(to_json(value))}")
