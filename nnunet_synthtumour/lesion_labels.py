"""Which label value each part of a lesion writes, from the labels of a data set: whole tumour only, classes or regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_synthtumour.schema import SettingsError

PARTS = ("whole", "core", "necrosis")
WORDS = {
    "necrosis": ("necro", "ncr", "cyst", "net"),
    "core": ("enhanc", "core", "rim", "active"),
    "whole": ("edema", "oedema", "whole", "infiltrat"),
}


def lesion_labels(labels: Mapping[str, Any], chosen: Mapping[str, str | int] | None = None) -> dict[str, int]:
    """Part -> label value for the `labels` of a `dataset.json`; `chosen` (part -> label name or value) goes first.

    `whole` is what surrounds the nested parts: the oedema where sub-regions are labelled. A single label is the whole.
    """
    foreground = {k: v for k, v in labels.items() if k not in ("background", "ignore")}
    if not foreground:
        raise SettingsError('dataset.json declares no label for a lesion; add one, for example "tumour": 1.')
    if chosen:
        return _chosen(foreground, chosen)
    if any(isinstance(value, (list, tuple)) for value in foreground.values()):
        return _from_regions({k: tuple(v) if isinstance(v, (list, tuple)) else (v,) for k, v in foreground.items()})
    found = _from_names(foreground)
    if "whole" not in found:
        found["whole"] = next(iter(foreground.values()))
    return {part: int(found[part]) for part in PARTS if part in found}


def _chosen(foreground: Mapping[str, Any], chosen: Mapping[str, str | int]) -> dict[str, int]:
    values = {value for v in foreground.values() for value in (v if isinstance(v, (list, tuple)) else [v])}
    found = {}
    for part, label in chosen.items():
        value: Any = foreground.get(label) if isinstance(label, str) else label
        if part not in PARTS:
            raise SettingsError(f"lesion.parts.{part} is no part of a lesion; the parts are {', '.join(PARTS)}.")
        if value not in values:
            names = ", ".join(f"{name} ({value})" for name, value in foreground.items())
            raise SettingsError(f"lesion.parts.{part} is {label!r}, but a label of the data set is needed: {names}.")
        found[part] = int(value)
    if "whole" not in found:
        raise SettingsError("lesion.parts does not say which label the part 'whole' gets; add it.")
    return found


def _from_names(foreground: Mapping[str, Any]) -> dict[str, int]:
    """By the words in the names; a data set of one label has only a whole."""
    if len(foreground) == 1:
        return {"whole": next(iter(foreground.values()))}
    found: dict[str, int] = {}
    for name, value in foreground.items():
        part = next((p for p, words in WORDS.items() if any(w in name.lower() for w in words)), None)
        if part is not None:
            found.setdefault(part, value)
    return found


def _from_regions(regions: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Nested regions, largest first. What a region has beyond the next smaller one is its own part; where the smallest
    is the enhancing tumour (BraTS), it is the rim around the necrosis, not within it."""
    ordered = sorted(regions.items(), key=lambda item: -len(item[1]))
    own = []
    for i, (name, values) in enumerate(ordered):
        inner = ordered[i + 1][1] if i + 1 < len(ordered) else ()
        mine = [v for v in values if v not in inner]
        if mine:
            own.append((name, int(mine[0])))
    found = dict(zip(PARTS, (value for _, value in own), strict=False))
    if len(own) >= 3 and any(word in own[2][0].lower() for word in ("enhanc", "et")):
        found["core"], found["necrosis"] = found["necrosis"], found["core"]
    return found
