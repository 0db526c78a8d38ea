"""A model's confidence: probabilities averaged over folds and mirrorings, from nnU-Net's own predictor.

nnU-Net averages logits, in which one over-confident member outvotes all others. Here every member (one fold, one
mirroring) gives probabilities, and these are averaged: where members disagree, the mean is near one half, whatever each
of them claims.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

TINY = 1e-6


def mean_probabilities(predictor: Any, data: torch.Tensor) -> torch.Tensor:
    """Probabilities (K, Z, Y, X) of a preprocessed case (C, Z, Y, X), averaged over all folds and mirrorings.

    `predictor` is an `nnUNetPredictor` with `use_mirroring=False`: the mirrorings that its training allows are done here.
    """
    nonlinearity = predictor.label_manager.apply_inference_nonlin
    members = mirrorings(predictor.allowed_mirroring_axes, data.ndim, len(predictor.configuration_manager.patch_size))
    folds = predictor.list_of_parameters
    total: torch.Tensor | None = None
    try:
        for parameters in folds:
            predictor.list_of_parameters = [parameters]
            for axes in members:
                logits = predictor.predict_logits_from_preprocessed_data(torch.flip(data, axes))
                probabilities = nonlinearity(torch.flip(logits, axes))
                total = probabilities if total is None else total.add_(probabilities)
    finally:
        predictor.list_of_parameters = folds
    assert total is not None
    return total / (len(folds) * len(members))


def mirrorings(axes: Sequence[int] | None, data_dims: int, patch_dims: int) -> list[tuple[int, ...]]:
    """Every combination of the spatial axes that may be mirrored, as axes of (C, Z, Y, X); the first is none."""
    moved = [axis + data_dims - patch_dims for axis in axes or ()]
    return [chosen for n in range(len(moved) + 1) for chosen in itertools.combinations(moved, n)]


def logits_of(probabilities: torch.Tensor, regions: bool) -> torch.Tensor:
    """Logits whose softmax (or sigmoid, for regions) is `probabilities`: what nnU-Net resamples and exports."""
    clipped = probabilities.clamp(TINY, 1 - TINY)
    return torch.logit(clipped) if regions else torch.log(clipped)


def tumour_probability(probabilities: np.ndarray, regions: bool) -> np.ndarray:
    """Probability of any foreground (Z, Y, X) from (K, Z, Y, X): the union of regions, or all that is not background."""
    return np.asarray(probabilities.max(0) if regions else probabilities[1:].sum(0))


def labels_inside(probabilities: np.ndarray, label_manager: Any) -> np.ndarray:
    """The most probable foreground label of every voxel, were it tumour: argmax, or nnU-Net's order of regions."""
    if not label_manager.has_regions:
        return np.asarray(1 + probabilities[1:].argmax(0))
    order = np.asarray(label_manager.regions_class_order)
    labels = order[probabilities.argmax(0)]
    for region, value in enumerate(order):
        labels[probabilities[region] > 0.5] = value
    return np.asarray(labels)
