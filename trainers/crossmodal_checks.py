"""What CrossModalTrainer refuses, and what it warns of, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_synthtumour.errors import Refusal, Unsupported
from nnunet_synthtumour.settings import LABELLED, UNLABELLED, Settings
from nnunet_synthtumour.trainers.crossmodal_cases import SourceData, TwoModalities
from nnunet_synthtumour.trainers.crossmodal_visibility import frame_of


def refuse_target(name: str, dataset: str, labels: LabelManager, settings: Settings) -> None:
    """A target data set that the trainer `name` cannot begin with."""
    if labels.has_regions:
        raise Unsupported(f"{name} cannot train regions: carried labels exclude each other; declare plain labels.")
    if labels.ignore_label is None and settings.cases(LABELLED) and not settings.cases(UNLABELLED):
        raise Refusal(
            f"Every case of {dataset} has labels, so it is a source; train the data set without labels, and name this one "
            "as its source.dataset."
        )
    if labels.ignore_label is None:
        raise Refusal(
            f"{dataset} declares no ignore label, which untrusted voxels get; build it with 'synthtumour prepare "
            "--unlabelled FOLDER'."
        )
    if settings.source is None:
        raise Refusal(
            f"{dataset} does not say where labels come from; set it with 'synthtumour settings -d ID --set "
            "source.dataset=ID_OF_THE_LABELLED_MODALITY'."
        )


def refuse_source(
    name: str, dataset: str, dataset_json: dict[str, Any], source: SourceData, settings: Settings
) -> None:
    """A source that does not go with its target."""
    of = source.folder.name
    if of == dataset:
        raise Refusal(f"{of} is its own source.dataset; name that of the labelled modality.")
    if not source.cases():
        raise Refusal(
            f"{of} has no labelled case; build it with 'synthtumour prepare --labelled FOLDER --labels FOLDER'."
        )
    if not settings.cases(UNLABELLED, LABELLED):
        raise Refusal(
            f"{dataset} has no unlabelled case in synthtumour.roles; build it with 'synthtumour prepare --unlabelled FOLDER'."
        )
    here, there = (len(one["channel_names"]) for one in (dataset_json, source.dataset_json))
    if here != there:
        raise Unsupported(
            f"{name} compares images channel by channel, but {dataset} has {here} and {of} {there}; prepare both with as "
            "many."
        )


def refuse_pairs_without_partners(dataset: str, source: SourceData, alone: Sequence[str], settings: Settings) -> None:
    """`alone` are the targets that no source is called like."""
    if alone and len(alone) == len(settings.cases(UNLABELLED)):
        raise Refusal(
            f"source.pairing is 'paired', but no unlabelled case of {dataset} is called like a labelled one of "
            f"{source.folder.name}; give a patient's images one name, or set it to unpaired."
        )


def refuse_too_few_epochs(alone: float, pretrain: bool, epochs: int) -> None:
    """A training whose segmenter would never learn."""
    if round(alone * epochs) >= epochs and not pretrain:
        raise Refusal(f"crossmodal.alone is {alone:g}, which leaves segmentation none of {epochs} epochs; lower it.")


def elsewhere(dataset: str, source: str, pairs: TwoModalities, tolerance: float) -> str:
    """What to say where sources do not lie where targets do, as far as headers tell; mm."""
    here, there = (frame_of(side.dataset.load_case(side.cases[0])[3]) for side in (pairs.targets, pairs.sources))
    if not here or not there:
        return ""
    same_place, same_axes = (
        np.allclose(here[:3], there[:3], atol=tolerance),
        np.allclose(here[3:], there[3:], atol=0.01),
    )
    if same_place and same_axes:
        return ""
    first, other = (", ".join(f"{mm:g}" for mm in np.round(frame[:3], 1)) for frame in (there, here))
    how = f"their first voxels at {first} and {other} mm" if not same_place else "their axes point elsewhere"
    return (
        f"images of {source} lie elsewhere in space than those of {dataset} ({how}); unless headers are wrong, run "
        "'synthtumour align'."
    )
