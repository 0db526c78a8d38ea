"""The affine map from raw to normalised intensities, per case and channel: x = (raw - mean) / std.

Nothing of nnU-Net's normalisation is repeated here: nnU-Net's own code is run, and the map is read off its result.

With the map one knows where the raw zero lies, about which contrasts are factors. In files that an earlier pipeline has
z-scored, zero is some grey in the middle of the tissue, and a factor about it changes nothing on average; it counts as
unknown then, and as its mean, which nobody else may need, NaN is handed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from nnunet_synthtumour.settings import HEALTHY, Settings

BELOW_ZERO = 0.05
"""Share of voxels below zero, and how far below (in bright voxels), from which on zero is not that of a magnitude: 0.0004
in skull-stripped FLAIR, T1 and T2, whose interpolation rings; 0.3 and more once they are z-scored or run from -1 to 1."""

UNKNOWN = (0.0, 1.0)
"""Recorded for CT, whose normalisation is known only from the plans."""


def crop(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """nnU-Net's crop of (C, Z, Y, X) to the nonzero box: cropped images, labels (negative outside), relative size."""
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

    cropped, seg, _ = crop_to_nonzero(images, labels.astype(np.int16)[None])
    return cropped, seg, float(np.prod(cropped.shape[1:]) / np.prod(images.shape[1:]))


def recorded(cropped: np.ndarray, seg: np.ndarray, channel_names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Mean and std of each channel, for both answers to nnU-Net's question whether to normalise in the mask only.

    Which answer a data set gets is known when all its cases are. CT has no statistics of its own: `UNKNOWN` is put in.
    Channels with an arbitrary zero, if there are any, are listed beside.
    """
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

    maps: dict[str, dict[str, list[float]]] = {}
    schemes = [get_normalization_scheme(name) for name in channel_names]
    arbitrary: list[float] = [c for c, s in enumerate(schemes) if not _is_ct(s) and has_arbitrary_zero(cropped[c])]
    for use_mask in (False, True):
        mean, std = [], []
        for channel, scheme in enumerate(schemes):
            masked = use_mask and scheme.leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true
            m, s = _affine(scheme, cropped[channel], seg[0], bool(masked))
            mean.append(m)
            std.append(s)
        maps[str(use_mask)] = {"mean": mean, "std": std, **({"arbitrary_zero": arbitrary} if arbitrary else {})}
    return maps


def has_arbitrary_zero(image: np.ndarray) -> bool:
    """Whether a good part of what is not exactly 0 (stripped, or padding) lies clearly below it."""
    values = image[image != 0]
    if not values.size:
        return False
    return bool((values < -BELOW_ZERO * np.percentile(np.abs(values), 95)).mean() > BELOW_ZERO)


def _is_ct(scheme: Any) -> bool:
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    return issubclass(scheme, CTNormalization)


def _affine(scheme: Any, image: np.ndarray, seg: np.ndarray, use_mask: bool) -> tuple[float, float]:
    """(m, s) with normalised = (raw - m) / s, from the darkest and the brightest voxel that are normalised."""
    if _is_ct(scheme):
        return UNKNOWN
    normaliser = scheme(use_mask_for_norm=use_mask, intensityproperties={})
    x = normaliser.run(image.astype(np.float32), seg)
    inside = seg >= 0 if use_mask else np.ones(image.shape, dtype=bool)
    raw, out = image[inside].astype(np.float64), np.asarray(x)[inside].astype(np.float64)
    low, high = int(raw.argmin()), int(raw.argmax())
    if out[high] == out[low]:
        return float(raw[low]), 1.0
    s = (raw[high] - raw[low]) / (out[high] - out[low])
    return float(f"{raw[low] - out[low] * s:.8g}"), float(f"{s:.8g}")


def uses_mask(relative_sizes: Sequence[float]) -> bool:
    """Whether nnU-Net will normalise in the nonzero mask only, from the relative sizes of all cases after its crop.

    Its planner is asked, as it will be when the data set is planned.
    """
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    asked: Any = SimpleNamespace(
        dataset_json={"channel_names": {"0": "any that is z-scored"}},
        dataset_fingerprint={"median_relative_size_after_cropping": float(np.median(relative_sizes))},
    )
    _, answer = ExperimentPlanner.determine_normalization_scheme_and_whether_mask_is_used_for_norm(asked)
    return bool(answer[0])


def normalisation(
    settings: Settings, plans: dict[str, Any], configuration: str, case: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """(mean (C,), std (C,)) of a case: recorded by `prepare` if z-scored, the plan's own for CT; None if unknown.

    The mean is NaN where the raw zero is arbitrary.
    """
    block = plans["configurations"][configuration]
    while "normalization_schemes" not in block:
        block = plans["configurations"][block["inherits_from"]]
    of_case = settings.intensities.get(case)
    recorded_maps = [] if of_case is None else list(zip(of_case.mean, of_case.std, strict=True))
    maps = []
    for channel, scheme in enumerate(block["normalization_schemes"]):
        if scheme == "CTNormalization":
            statistics = plans["foreground_intensity_properties_per_channel"][str(channel)]
            maps.append((float(statistics["mean"]), max(float(statistics["std"]), 1e-8)))
        elif channel >= len(recorded_maps):
            return None
        elif scheme == "ZScoreNormalization" and recorded_maps[channel] == UNKNOWN:
            return None  # a channel named CT whose plans were changed
        else:
            maps.append(recorded_maps[channel])
        if of_case is not None and channel in of_case.arbitrary_zero and scheme != "CTNormalization":
            maps[-1] = (np.nan, maps[-1][1])
    mean, std = np.array(maps).T
    return mean, std


def about_arbitrary_zeros(settings: Settings, channel_names: Sequence[str]) -> str | None:
    """One line on the healthy cases whose raw zero is arbitrary, if there are any."""
    healthy = [settings.intensities[case] for case in settings.cases(HEALTHY) if case in settings.intensities]
    found = [intensity for intensity in healthy if intensity.arbitrary_zero]
    if not found:
        return None
    names = [n for c, n in enumerate(channel_names) if any(c in intensity.arbitrary_zero for intensity in found)]
    return (
        f"{' and '.join(names)}: the zero of {len(found)} of {len(healthy)} healthy images lies within the tissue (z-scored "
        "before?), so contrasts of lesions are taken in deviations of the host instead of as factors of raw intensities."
    )
