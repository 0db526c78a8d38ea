"""Which label value each part of a lesion writes, from the labels of a data set: whole tumour only, classes or regions."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from nnunet_synthtumour.lesion_words import AROUND, part_of_name
from nnunet_synthtumour.schema import SettingsError

PARTS = ("whole", "core", "necrosis")

Values = tuple[int, ...]


def lesion_labels(labels: Mapping[str, Any], chosen: Mapping[str, str | int] | None = None) -> dict[str, int]:
    """Part -> label value for the `labels` of a `dataset.json`; `chosen` (part -> label name or value) goes first.

    `whole` is what surrounds the nested parts: the oedema where sub-regions are labelled. A single label is the whole.
    Several labels whose names leave a doubt are refused: lesions with the wrong label train, and nobody sees it.
    """
    foreground = foreground_of(labels)
    if not foreground:
        raise SettingsError('dataset.json declares no label for a lesion; add one, for example "tumour": 1.')
    if chosen:
        return _chosen(foreground, chosen)
    own = own_values(foreground)
    if len(foreground) == 1:
        return {"whole": next(iter(own.values()))}
    found = _from_names(foreground, own)
    unclear = [name for name in own if name not in found.values()]
    if unclear or "whole" not in found:
        example = found if "whole" in found else {"whole": (unclear or list(own))[0], **found}
        words = shlex.quote(f"lesion.parts={json.dumps(example)}")
        raise SettingsError(
            f"The names of the labels ({', '.join(foreground)}) do not say which part of a lesion each of them is; set "
            f"lesion.parts, for example synthtumour settings -d ID --set {words} "
            f"(the parts are {', '.join(PARTS)}; leave out labels that no lesion has)."
        )
    return {part: own[found[part]] for part in PARTS if part in found}


def never_written(labels: Mapping[str, Any], mapping: Mapping[str, int]) -> list[str]:
    """The names of the labels that no part of a lesion gets; of a region, none of its values."""
    written = set(mapping.values())
    return [name for name, values in foreground_of(labels).items() if not written & set(values)]


def foreground_of(labels: Mapping[str, Any]) -> dict[str, Values]:
    """Name -> label values, several for a region, without the background and the ignore label."""
    return {
        name: tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)
        for name, value in labels.items()
        if name not in ("background", "ignore")
    }


def own_values(foreground: Mapping[str, Values]) -> dict[str, int]:
    """Name -> the first value that a label has beyond the regions within it; labels without one are left out."""
    own = {}
    for name, values in foreground.items():
        within = {v for other in foreground.values() if set(other) < set(values) for v in other}
        mine = [v for v in values if v not in within]
        if mine:
            own[name] = mine[0]
    return own


def _chosen(foreground: Mapping[str, Values], chosen: Mapping[str, str | int]) -> dict[str, int]:
    own = own_values(foreground)
    values = {value for of_label in foreground.values() for value in of_label}
    found = {}
    for part, label in chosen.items():
        value = own.get(label) if isinstance(label, str) else label
        if part not in PARTS:
            raise SettingsError(f"lesion.parts.{part} is no part of a lesion; the parts are {', '.join(PARTS)}.")
        if value not in values:
            names = ", ".join(f"{name} ({', '.join(map(str, of_label))})" for name, of_label in foreground.items())
            raise SettingsError(f"lesion.parts.{part} is {label!r}, but a label of the data set is needed: {names}.")
        found[part] = int(value)
    if "whole" not in found:
        raise SettingsError("lesion.parts does not say which label the part 'whole' gets; add it.")
    return found


def _from_names(foreground: Mapping[str, Values], own: Mapping[str, int]) -> dict[str, str]:
    """Part -> label name, by the words in the names. Two names for one part are a doubt, and neither is taken.

    Next to an oedema, a tumour is what lies within it; and of a core within which the enhancing part is a region of its
    own (BraTS), the rest is the necrosis, with the enhancing part around it.
    """
    said = {name: part_of_name(name) for name in own}
    cores = [name for name, part in said.items() if part == "core"]
    for outer in cores:
        if any(set(foreground[inner]) < set(foreground[outer]) for inner in cores):
            said[outer] = "necrosis"
    if AROUND in said.values():
        said = {name: "core" if part == "whole" else part for name, part in said.items()}
    said = {name: "whole" if part == AROUND else part for name, part in said.items()}
    parts = list(said.values())
    return {part: name for name, part in said.items() if part is not None and parts.count(part) == 1}
