"""What the usual names of labels mean: which part of a lesion `ED`, `enhancing_tumor` or `NCR/NET` is."""

from __future__ import annotations

import re

AROUND = "around"
"""What lies around a tumour, or all of it: the whole of a lesion, whatever else is labelled."""

WORDS = {  # looked up in this order: "necrotic core" is necrosis, "tumour core" is core
    AROUND: r"ed|o?edema(tous)?|peritumou?ral|infiltrat(ion|ive|ing|ed)|snfh|surrounding|penumbra|wt|whole|complete",
    "necrosis": r"ncr|net|netc|necro|necrosis|necrotic|nonenhancing|nonenhanced|cyst|cystic",
    "core": r"et|enhancing|enhanced|enhancement|tc|core|rim|active|solid",
    "whole": r"tumou?rs?|lesions?|metastas[ei]s|metastatic|met|mets|gliomas?|meningiomas?|schwannomas?|cancers?|carcinomas?|"
    r"stroke|infarct(ion)?s?|isch(a)?emia|h(a)?emorrhage|h(a)?ematoma|wmh|neoplasms?|mass|gtv",
}


def part_of_name(name: str) -> str | None:
    """`AROUND`, `whole`, `core`, `necrosis`, or None for a name that says nothing about lesions.

    Words count as a whole, whatever their case: `net` is one of "NCR/NET", and none of "magnet".
    """
    words = _words(name)
    return next((part for part, known in WORDS.items() if any(re.fullmatch(known, word) for word in words)), None)


def _words(name: str) -> list[str]:
    name = re.sub(r"non[\W_]*enhanc", "nonenhanc", name, flags=re.IGNORECASE)
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
