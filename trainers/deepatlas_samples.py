"""What a registered pair teaches a segmenter: labels carried to the other image, and images warped with their labels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nnunet_synthtumour.registration.fields import warp


def taught_samples(
    pair: dict[str, Any], forward: Tensor, backward: Tensor, carried: float, warped: float
) -> tuple[list[tuple[Tensor, Tensor]], list[float]]:
    """(image, labels) of whole grids and their weights, `carried` or `warped`; a weight of 0 leaves a kind out.

    `forward` is the displacement moving -> fixed, `backward` its inverse. Labels come from labelled images alone and are
    carried to unlabelled ones alone.
    """
    samples: list[tuple[Tensor, Tensor]] = []
    weights: list[float] = []
    for source, other, field in (("moving", "fixed", forward), ("fixed", "moving", backward)):
        for i in [i for i, known in enumerate(pair[source]["labelled"]) if known]:
            u = field[i : i + 1]
            labels = warp(pair[source]["seg"][i : i + 1].float(), u, "nearest").short()[0]
            if carried and not pair[other]["labelled"][i]:
                samples.append((pair[other]["image"][i], labels))
                weights.append(carried)
            if warped:
                samples.append((warp(pair[source]["image"][i : i + 1], u)[0], labels))
                weights.append(warped)
    return samples, weights
