"""The labels that a new data set declares, from what the user names and what the label files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_folders import Case
from nnunet_synthtumour.lesion_labels import foreground_of, own_values
from nnunet_synthtumour.settings import LABELLED

BACKGROUND, IGNORE = "background", "ignore"


def dataset_labels(named: Mapping[str, Any], cases: Sequence[Case]) -> dict[str, Any]:
    """`labels` of `dataset.json`. Cases whose role needs one get an ignore label, the highest, unless one is named.

    Regions come before those within them: nnU-Net lets the later ones overwrite.
    """
    named = {name: value for name, value in named.items() if name != BACKGROUND}
    labelled = [case for case in cases if case.role == LABELLED]
    found = sorted({value for case in labelled for value in case.label_values} - {0})
    if labelled and not found and len(labelled) == len(cases):
        raise UserError("No label file holds anything but 0; nnU-Net needs labelled voxels to plan.")
    outer_first = dict(sorted(named.items(), key=lambda label: -len(values_of(dict([label])))))
    labels = {BACKGROUND: 0, **(outer_first or _names_for(found))}
    if IGNORE not in labels and len(labelled) < len(cases):
        labels[IGNORE] = max(values_of(labels)) + 1
    return labels


def regions_class_order(labels: Mapping[str, Any]) -> list[int] | None:
    """What nnU-Net writes for each region, in their order: what it has beyond those within it. None without regions."""
    regions = foreground_of(labels)
    own = own_values(regions)
    order = [own.get(name, values[0]) for name, values in regions.items()]
    return order if any(len(values) > 1 for values in regions.values()) else None


def values_of(labels: Mapping[str, Any]) -> set[int]:
    """All values of `labels`, also those within regions."""
    return {
        value
        for of_label in labels.values()
        for value in (of_label if isinstance(of_label, (list, tuple)) else [of_label])
    }


def structures(labels: Mapping[str, Any]) -> dict[str, int]:
    """Name -> value of the plain labels of a `dataset.json`, without the background and the ignore label."""
    return {
        name: value for name, value in labels.items() if name not in (BACKGROUND, IGNORE) and isinstance(value, int)
    }


def unmatched(target: str, labels: Mapping[str, Any], source: str, of_source: Mapping[str, Any]) -> str:
    """What to say about labels of a target data set that a source has not by name, and the other way round; or nothing."""
    mine, theirs = structures(labels), structures(of_source)
    lacking, unknown = ", ".join(n for n in mine if n not in theirs), ", ".join(n for n in theirs if n not in mine)
    if not lacking:
        return ""
    strangers = f", and {target} none called {unknown}" if unknown else ""
    return (
        f"{source} has no label called {lacking}{strangers}: where they are, background is taught; give structures the "
        "same names in both."
    )


def check_named(named: Mapping[str, Any]) -> None:
    """Raise `UserError` where labels that a user names, a value or the values of a region each, are none for nnU-Net."""
    if named.get(BACKGROUND, 0) != 0:
        raise UserError(f"The label background is {named[BACKGROUND]}, but nnU-Net asks for 0; leave it out.")
    values = values_of(named) - {0}
    if sorted(values) != list(range(1, len(values) + 1)) or 0 in values_of(foreground_of(named)):
        raise UserError("The values of --label must be 1, 2, 3, ... without a gap: nnU-Net asks for that.")
    foreground = values_of(foreground_of(named))
    if IGNORE in named and (named[IGNORE] != len(values) or named[IGNORE] in foreground or not foreground):
        raise UserError(
            "The label ignore must be the highest, one value above at least one other; renumber the labels."
        )
    for (one, of_one), (other, of_other) in combinations(foreground_of(named).items(), 2):
        if set(of_one) & set(of_other) and not (set(of_one) < set(of_other) or set(of_other) < set(of_one)):
            raise UserError(
                f"The labels {one} and {other} share values, but neither lies within the other; give each label its own "
                "value, or nested regions, for example --label whole=1,2 --label core=2."
            )


def _names_for(values: Sequence[int]) -> dict[str, int]:
    """Names for values that nobody named: `tumour` for one, `label_1`, `label_2`, ... for several."""
    if list(values) != list(range(1, len(values) + 1)):
        shown = ", ".join(map(str, values[:12]))
        raise UserError(f"The label files hold the values {shown}, but nnU-Net asks for 1, 2, 3, ...; renumber them.")
    if len(values) <= 1:
        return {"tumour": 1}
    return {f"label_{value}": value for value in values}
