"""Images of two modalities on one grid: the targets, and the sources that have labels."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_synthtumour.dataset_labels import unmatched
from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.image_checks import same_direction
from nnunet_synthtumour.trainers.seen_images import SeenImages
from nnunet_synthtumour.trainers.whole_grids import Whole, WholeCases, sides

SOURCE = "source: "
"""Put before the names of sources, which may be those of the targets."""


class TwoModalities:
    """`WholeCases` of targets and sources as one collection; the sources' labels carry the values of the target's."""

    def __init__(self, targets: WholeCases, sources: WholeCases, values: dict[int, int]) -> None:
        same_mm = np.allclose(targets.spacing, sources.spacing, rtol=1e-2)
        if targets.grid.shape != sources.grid.shape or not same_mm:
            mine, theirs = (f"{sides(c.grid.shape)} voxels of {sides(c.spacing)} mm" for c in (targets, sources))
            raise Refusal(
                f"By their plans, the target's images have {mine} and the source's {theirs}, but registration needs one "
                "grid; run 'synthtumour align' on both with one --reference, and plan both with the same planner."
            )
        if not same_direction(targets.grid.direction, sources.grid.direction):
            raise Refusal(
                "The axes of the target's images point elsewhere than those of the source's, but registration needs one "
                "grid; run 'synthtumour align' on both with one --reference."
            )
        self.targets, self.sources, self.values = targets, sources, values
        self.grid = targets.grid
        self.cases = [*targets.cases, *(SOURCE + case for case in sources.cases)]

    def __getitem__(self, case: str) -> Whole:
        if not case.startswith(SOURCE):
            return self.targets[case]
        image, seg = self.sources[case.removeprefix(SOURCE)]
        mapped = torch.where(seg < 0, seg, torch.zeros_like(seg))
        for value, to in self.values.items():
            mapped[seg == value] = to
        return Whole(image, mapped)


class SourceData:
    """The preprocessed source data set of a target's settings block."""

    def __init__(self, dataset: str, plans_name: str, configuration: str, target_labels: dict[str, Any]) -> None:
        self.folder = _preprocessed(dataset)
        file = self.folder / f"{plans_name}.json"
        if not file.is_file():
            raise Refusal(
                f"The source data set has no {file}; run nnUNetv2_plan_and_preprocess on it with the target's planner."
            )
        self.plans = json.loads(file.read_text(encoding="utf-8"))
        if configuration not in self.plans["configurations"]:
            raise Refusal(f"{file} has no configuration {configuration}; plan source and target with the same planner.")
        self.configuration = self.plans["configurations"][configuration]
        self.dataset_json = json.loads((self.folder / "dataset.json").read_text(encoding="utf-8"))
        self.target_labels = target_labels
        self.values = _shared_labels(self.dataset_json["labels"], target_labels, self.folder.name)

    def cases(self) -> list[str]:
        """Sources with labels; a data set of this package says which, any other has labels for all."""
        roles = self.dataset_json.get("synthtumour", {}).get("roles")
        folder = self.folder / self.configuration["data_identifier"]
        if not folder.is_dir() or not any(folder.iterdir()):
            raise Refusal(f"{folder} does not exist or is empty; run nnUNetv2_preprocess on the source data set.")
        found = set(infer_dataset_class(str(folder)).get_identifiers(str(folder)))
        wanted = {file.stem for file in folder.glob("*.pkl")} if roles is None else {
            case for case, role in roles.items() if role in ("labelled", "pseudo-labelled")
        }  # fmt: skip
        if gone := sorted(wanted - found):
            raise Refusal(
                f"{len(gone)} labelled cases of {self.folder.name} are not in {folder} ({gone[0]}, for one); preprocess it "
                "again."
            )
        return sorted(wanted)

    def unmatched(self, target: str) -> str:
        """What to say about labels that only one of both data sets has, or nothing."""
        return unmatched(target, self.target_labels, self.folder.name, self.dataset_json["labels"])

    def whole(self, cases: Sequence[str]) -> WholeCases:
        folder = str(self.folder / self.configuration["data_identifier"])
        dataset = infer_dataset_class(folder)(folder, list(cases))
        return WholeCases(dataset, self.spacing, self.plans["transpose_forward"])

    def seen(self, cases: Sequence[str]) -> SeenImages:
        """How the images of these cases lie."""
        folder = self.folder / self.configuration["data_identifier"]
        return SeenImages.of(self.plans, self.configuration, folder, cases)

    @property
    def spacing(self) -> list[float]:
        return [float(v) for v in self.configuration["spacing"]]


def _preprocessed(dataset: str) -> Path:
    root = Path(os.environ.get("nnUNet_preprocessed", ""))
    pattern = f"Dataset{int(dataset):03d}_*" if dataset.isdigit() else dataset
    found = sorted(folder for folder in root.glob(pattern) if folder.is_dir())
    if len(found) != 1:
        raise Refusal(
            f"synthtumour.source.dataset is {dataset!r}, but {root} has {len(found)} data sets of that id or name; "
            "preprocess the source data set, or correct the setting."
        )
    return found[0]


def _shared_labels(source: dict[str, Any], target: dict[str, Any], name: str) -> dict[int, int]:
    """Value in the source -> value in the target, by name."""
    ignored = ("background", "ignore")
    values = {
        value: int(target[key]) for key, value in source.items()
        if key in target and key not in ignored and isinstance(value, int)  # a region is no label
    }  # fmt: skip
    if not values:
        known = ", ".join(key for key in target if key not in ignored)
        raise Refusal(f"{name} has none of the target's labels ({known}); give structures the same names in both.")
    if "ignore" in source and "ignore" in target:
        values[int(source["ignore"])] = int(target["ignore"])
    return values


def paired_or_drawn(target: str, sources: Sequence[str], paired: bool, n: int, seed: int) -> list[str]:
    """Which sources give a target their labels: its own, or `n` drawn by the target's name."""
    if paired and target in sources:
        return [target]
    generator = np.random.default_rng([seed, *target.encode()])
    return sorted(str(case) for case in generator.choice(list(sources), min(n, len(sources)), replace=False))
