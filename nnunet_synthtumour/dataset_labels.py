"""The labels that a new data set declares, from what the user names and what the label files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_folders import Case
from nnunet_synthtumour.settings import LABELLED

BACKGROUND, IGNORE = "background", "ignore"


def dataset_labels(named: Mapping[str, int], cases: Sequence[Case]) -> dict[str, int]:
    """`labels` of `dataset.json`. Cases whose role needs one get an ignore label, the highest, unless one is named."""
    named = {name: value for name, value in named.items() if name != BACKGROUND}
    labelled = [case for case in cases if case.role == LABELLED]
    found = sorted({value for case in labelled for value in case.label_values} - {0})
    if labelled and not found and len(labelled) == len(cases):
        raise UserError("No label file holds anything but 0; nnU-Net needs labelled voxels to plan.")
    labels = {BACKGROUND: 0, **(named or _names_for(found))}
    if IGNORE not in labels and len(labelled) < len(cases):
        labels[IGNORE] = max(labels.values()) + 1
    return labels


def structures(labels: Mapping[str, Any]) -> dict[str, int]:
    """Name -> value of the plain labels of a `dataset.json`, without the background and the ignore label."""
    return {
        name: value for name, value in labels.items() if name not in (BACKGROUND, IGNORE) and isinstance(value, int)
    }


def check_named(named: Mapping[str, int]) -> None:
    """Raise `UserError` where labels that a user names are none that nnU-Net takes."""
    foreground = {name: value for name, value in named.items() if name != BACKGROUND}
    if named.get(BACKGROUND, 0) != 0:
        raise UserError(f"The label background is {named[BACKGROUND]}, but nnU-Net asks for 0; leave it out.")
    if sorted(foreground.values()) != list(range(1, len(foreground) + 1)):
        raise UserError("The values of --label must be 1, 2, 3, ... without a gap: nnU-Net asks for that.")
    if IGNORE in foreground and (len(foreground) == 1 or foreground[IGNORE] != max(foreground.values())):
        raise UserError("The label ignore must be the highest, above at least one other; renumber the labels.")


def _names_for(values: Sequence[int]) -> dict[str, int]:
    """Names for values that nobody named: `tumour` for one, `label_1`, `label_2`, ... for several."""
    if list(values) != list(range(1, len(values) + 1)):
        shown = ", ".join(map(str, values[:12]))
        raise UserError(f"The label files hold the values {shown}, but nnU-Net asks for 1, 2, 3, ...; renumber them.")
    if len(values) <= 1:
        return {"tumour": 1}
    return {f"label_{value}": value for value in values}
