"""Preprocessed cases of a senior's data set: taken over from the junior's where nothing changed, else made by nnU-Net."""

from __future__ import annotations

import filecmp
import json
from dataclasses import dataclass
from pathlib import Path

from nnunet_synthtumour.atomic_files import link
from nnunet_synthtumour.dataset_folders import raw_files

FILES = (".pkl", ".b2nd", "_seg.b2nd", ".npz", ".npy", "_seg.npy")
"""What nnU-Net's data set classes may keep of a case."""
COPIES = "gt_segmentations"  # of the label maps as nnU-Net preprocessed them


@dataclass(frozen=True)
class Recipe:
    """From the preprocessed `source` and the raw data set to the preprocessed `target`; `relabelled` have new labels."""

    source: Path
    target: Path
    raw: Path
    plans: str
    configuration: str
    relabelled: frozenset[str]


def preprocess_case(case: str, recipe: Recipe) -> None:
    """The files of one case. Relabelled cases, and those whose label map is not the one that nnU-Net preprocessed, are
    preprocessed anew, for the segmentation is cropped, marked and sampled together with the image; an image that comes out
    the same shares its file with the source."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans_manager = PlansManager(str(recipe.target / f"{recipe.plans}.json"))
    configuration = plans_manager.get_configuration(recipe.configuration)
    old, new = (folder / configuration.data_identifier for folder in (recipe.source, recipe.target))
    present = [old / f"{case}{ending}" for ending in FILES if (old / f"{case}{ending}").is_file()]
    dataset_json = json.loads((recipe.raw / "dataset.json").read_text(encoding="utf-8"))
    images, label = raw_files(recipe.raw, dataset_json, case)
    if case not in recipe.relabelled and len(present) >= 2 and _is_same(label, recipe.source / COPIES / label.name):
        for file in present:
            link(file, new / file.name)
        return
    new.mkdir(parents=True, exist_ok=True)
    preprocessor = configuration.preprocessor_class(verbose=False)
    preprocessor.run_case_save(
        str(new / case), list(map(str, images)), str(label), plans_manager, configuration, dataset_json
    )
    image = f"{case}.b2nd"
    if _is_same(old / image, new / image):
        link(old / image, new / image)


def _is_same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
