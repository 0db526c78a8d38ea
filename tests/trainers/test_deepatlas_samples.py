from __future__ import annotations

from typing import Any

import pytest
import torch

from nnunet_synthtumour.trainers.deepatlas_samples import taught_samples


def _side(labelled: bool, value: int) -> dict[str, Any]:
    shape = (1, 1, 4, 5, 6)
    seg = torch.full(shape, value, dtype=torch.int16)
    return {"image": torch.full(shape, 10.0 * value), "seg": seg, "labelled": torch.tensor([labelled])}


@pytest.mark.parametrize(
    ("moving", "fixed", "carried", "warped", "expected"),
    [
        (True, False, 0.5, 0.25, [(20.0, 1, 0.5), (10.0, 1, 0.25)]),
        (False, True, 0.5, 0.0, [(10.0, 2, 0.5)]),
        (True, True, 0.5, 0.25, [(10.0, 1, 0.25), (20.0, 2, 0.25)]),
        (True, False, 0.0, 0.0, []),
        (False, False, 0.5, 0.25, []),
    ],
)
def test_labelled_images_teach_others_and_are_warped_with_their_labels(
    moving: bool, fixed: bool, carried: float, warped: float, expected: list[tuple[float, int, float]]
) -> None:
    nowhere = torch.zeros(1, 3, 4, 5, 6)
    pair = {"moving": _side(moving, 1), "fixed": _side(fixed, 2)}
    samples, weights = taught_samples(pair, nowhere, nowhere, carried, warped)
    found = [(float(i.mean()), int(s.float().mean()), w) for (i, s), w in zip(samples, weights, strict=True)]
    assert found == expected
    assert all(image.shape == labels.shape == (1, 4, 5, 6) for image, labels in samples)
