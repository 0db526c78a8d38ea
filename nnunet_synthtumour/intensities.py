"""The affine map from raw to normalised intensities, per case and channel: x = (raw - mean) / std."""

from __future__ import annotations

from typing import Any

import numpy as np

from nnunet_synthtumour.settings import Settings


def normalisation(
    settings: Settings, plans: dict[str, Any], configuration: str, case: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """(mean (C,), std (C,)) of a case: recorded by `prepare` if z-scored, the plan's own for CT; None if unknown."""
    block = plans["configurations"][configuration]
    while "normalization_schemes" not in block:
        block = plans["configurations"][block["inherits_from"]]
    recorded = settings.intensities.get(case)
    mean, std = [], []
    for channel, scheme in enumerate(block["normalization_schemes"]):
        if scheme == "CTNormalization":
            statistics = plans["foreground_intensity_properties_per_channel"][str(channel)]
            mean.append(float(statistics["mean"]))
            std.append(max(float(statistics["std"]), 1e-8))
        elif recorded is not None and channel < len(recorded.mean):
            mean.append(recorded.mean[channel])
            std.append(recorded.std[channel])
        else:
            return None
    return np.array(mean), np.array(std)
