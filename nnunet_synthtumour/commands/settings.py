"""Show or change the settings that a data set trains with, defaults included, and which of them you set.

Settings live in the data set's dataset.json. nnU-Net copies that file when it plans, and trainers read the copy: --set
changes both.
"""

from __future__ import annotations

import argparse
import json

from nnunet_synthtumour.kept_settings import PER_CASE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", metavar="DATASET", required=True, help="data set id, name, or a dataset.json")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="change a setting, for example training.epochs=100; repeatable",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--all", action="store_true", help="also list roles, hosts and intensities case by case")


def run(args: argparse.Namespace) -> None:
    from nnunet_synthtumour.dataset_folders import channels_of, read_dataset_json
    from nnunet_synthtumour.lesion_model import model_of
    from nnunet_synthtumour.schema import leaves, to_json
    from nnunet_synthtumour.settings import Settings, chosen_by_user, describe, settings_of

    if args.set:
        _change(args.d, args.set)
    dataset_json, file = read_dataset_json(args.d)
    settings = settings_of(dataset_json)
    model = model_of(settings, channels_of(dataset_json))  # complains about a wrong preset or field
    mine = chosen_by_user(dataset_json)
    if args.json:
        print(json.dumps({"file": str(file), "settings": to_json(settings), "lesion_model": to_json(model),
                          "set_by_you": sorted(mine)}, indent=2))  # fmt: skip
        return
    docs = describe(Settings)
    print(f"{file}\n\nset by   setting")
    for key, value in leaves(settings).items():
        if key.split(".")[0] in PER_CASE and not args.all:
            continue
        who = "you" if key in mine else "default"
        note = docs.get(key, "")
        print(f"{who:<8} {key} = {json.dumps(to_json(value))}" + (f"   # {note}" if note else ""))
    counts = {role: len(settings.cases(role)) for role in sorted(set(settings.roles.values()))}
    if args.d and not args.d.endswith(".json"):
        _warn_of_another_copy(args.d, dataset_json)
    print("\ncases: " + (", ".join(f"{n} {role}" for role, n in counts.items()) or "no roles recorded"))
    print(f"lesion preset '{settings.lesion.preset}': 'synthtumour presets {settings.lesion.preset}' shows its fields")


def _change(dataset: str, assignments: list[str]) -> None:
    """Every copy of dataset.json is checked before the first is written."""
    from nnunet_synthtumour.atomic_files import complete
    from nnunet_synthtumour.dataset_folders import channels_of, dataset_jsons
    from nnunet_synthtumour.errors import UserError
    from nnunet_synthtumour.lesion_model import model_of
    from nnunet_synthtumour.schema import parse_assignments
    from nnunet_synthtumour.settings import Settings, settings_of, with_settings

    changes = parse_assignments(assignments, "training.epochs=100", Settings)
    for key in PER_CASE:
        if changes.get(key) == {}:
            raise UserError(
                f"{key} says what `synthtumour prepare` found of every case; change single cases, {key}.CASE=..."
            )
    changed = {}
    for file, dataset_json in dataset_jsons(dataset).items():
        changed[file] = with_settings(dataset_json, changes)
        model_of(settings_of(changed[file]), channels_of(dataset_json))
    for file, dataset_json in changed.items():
        with complete(file) as scratch:
            scratch.write_text(json.dumps(dataset_json, indent=4) + "\n", encoding="utf-8")
        print(f"changed {file}")


def _warn_of_another_copy(dataset: str, dataset_json: dict) -> None:
    """nnU-Net copies dataset.json when it plans, and trainers read that copy: say so where the two differ."""
    import json
    import os
    from pathlib import Path

    from nnunet_synthtumour.dataset_folders import PREPROCESSED, dataset_name
    from nnunet_synthtumour.settings import BLOCK

    folder = os.environ.get(PREPROCESSED)
    if not folder or Path(dataset).is_dir():
        return
    copy = Path(folder) / dataset_name(dataset) / "dataset.json"
    if copy.is_file() and json.loads(copy.read_text(encoding="utf-8")).get(BLOCK) != dataset_json.get(BLOCK):
        print(f"\nTrainers read {copy}, whose settings differ from these: plan again, or change them there too.")
