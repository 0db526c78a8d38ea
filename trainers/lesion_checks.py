"""What is looked at before lesions are grown: does every label get lesions, and is the shift one?"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_synthtumour.host_room import MOST_OF_HOST
from nnunet_synthtumour.lesion_labels import foreground_of, never_written, own_values
from nnunet_synthtumour.lesion_model import LesionModel
from nnunet_synthtumour.schema import SettingsError
from nnunet_synthtumour.settings import Settings


def other_preset(settings: Settings) -> str | None:
    """The preset of shifted lesions; None: the training's own."""
    shift, own = settings.validation.shift, settings.lesion.preset
    if shift not in ("paper", "preset"):
        return None
    if shift == "preset" and settings.validation.preset == own:
        raise SettingsError(
            f"validation.preset is '{own}', and so is lesion.preset: lesions would not be shifted; choose another preset "
            "to validate with, or set validation.shift to 'paper'."
        )
    default = "glioma" if own == "metastases" else "metastases"
    return settings.validation.preset or (default if shift == "preset" else None)


def refuse_unwritten(
    labels: Mapping[str, Any], mapping: Mapping[str, int], settings: Settings, own: LesionModel, other: LesionModel
) -> None:
    """A label that lesions never get would be learned as "never there", unless the user has left it out of
    `lesion.parts`; one that only the shifted lesions never get would choose the epoch by that."""
    wanted = never_written(labels, mapping) if settings.lesion.parts else []
    trained = [name for name in unwritten(labels, mapping, own) if name not in wanted]
    if trained:
        whole = {"whole": names_of(labels).get(mapping["whole"], mapping["whole"])}
        raise SettingsError(
            f"Lesions of the preset '{own.name}' have only {' and '.join(own.drawn_parts())}, so no voxel would ever get "
            f"the label {' or '.join(trained)}: choose another lesion.preset, or leave the label out on purpose, "
            f"synthtumour settings -d ID --set {shlex.quote(f'lesion.parts={json.dumps(whole)}')}."
        )
    shifted = [name for name in unwritten(labels, mapping, other) if name not in wanted]
    if shifted:
        raise SettingsError(
            f"Lesions of the preset '{other.name}' never get the label {' or '.join(shifted)}, so validation could not "
            "tell whether it is found: choose another validation.preset or validation.shift."
        )


def unwritten(labels: Mapping[str, Any], mapping: Mapping[str, int], model: LesionModel) -> list[str]:
    """The labels that no lesion of a model gets."""
    return never_written(labels, {part: value for part, value in mapping.items() if part in model.drawn_parts()})


def names_of(labels: Mapping[str, Any]) -> dict[int, str]:
    return {value: name for name, value in own_values(foreground_of(labels)).items()}


def labels_in_words(labels: Mapping[str, Any], mapping: Mapping[str, int], model: LesionModel) -> str:
    """One line for the log."""
    names = names_of(labels)
    drawn = [part for part in mapping if part in model.drawn_parts()]
    parts = ", ".join(f"{part} -> {names.get(mapping[part], 'label')} ({mapping[part]})" for part in drawn)
    left = unwritten(labels, mapping, model)
    return f"Lesions ({model.name}): {parts}" + (f"; labels that no lesion gets: {', '.join(left)}" if left else "")


def small_hosts_in_words(hosts_ml: Sequence[float], model: LesionModel) -> str | None:
    """A warning for the log where half of the hosts are too small for the smallest lesion of a model."""
    median = float(np.median(hosts_ml)) if len(hosts_ml) else np.inf
    least = model.shape.volume_ml[0]
    if least <= MOST_OF_HOST * median:
        return None
    example = {"shape": {"volume_ml": [float(f"{median * share:.1g}") for share in (0.01, 0.4)]}}
    return (
        f"WARNING: hosts have {median:.3g} ml (median of {len(hosts_ml)}), lesions of the preset '{model.name}' at least "
        f"{least:g} ml: they are cut down to {MOST_OF_HOST:.0%} of the host, all to the same share; set their size, for "
        f"example synthtumour settings -d ID --set 'lesion.overrides={json.dumps(example)}'."
    )
