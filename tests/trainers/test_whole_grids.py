from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.trainers.whole_grids import OUTSIDE, common_grid, on_grid

SHAPE = (14, 18, 12)


def _case(box: tuple[slice, ...], spacing: float = 1.0) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """A case as nnU-Net leaves it without resampling: the image counts its voxels, so that every one is recognised."""
    image = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(1, *SHAPE)
    seg = (np.arange(np.prod(SHAPE)).reshape(1, *SHAPE) % 3).astype(np.int8)
    properties = {
        "spacing": [spacing] * 3,
        "shape_before_cropping": SHAPE,
        "bbox_used_for_cropping": [[s.start, s.stop] for s in box],
        "shape_after_cropping_and_before_resampling": tuple(s.stop - s.start for s in box),
    }
    return image[(slice(None), *box)], seg[(slice(None), *box)], properties


def test_differently_cropped_cases_meet_voxel_on_voxel() -> None:
    boxes = [(slice(2, 11), slice(0, 15), slice(3, 12)), (slice(4, 14), slice(5, 18), slice(0, 9))]
    cases = [_case(box) for box in boxes]
    grid = common_grid({str(i): c[2] for i, c in enumerate(cases)}, (1.0, 1.0, 1.0), (0, 1, 2))
    assert grid.shape == SHAPE
    wholes = [on_grid(image, seg, properties, grid) for image, seg, properties in cases]
    counted = torch.arange(float(np.prod(SHAPE))).reshape(SHAPE)
    for whole, box in zip(wholes, boxes, strict=True):
        assert torch.equal(whole.image[0][box], counted[box])
        outside = torch.ones(SHAPE, dtype=torch.bool)
        outside[box] = False
        assert (whole.seg[0][outside] == OUTSIDE).all() and (whole.seg[0][box] >= 0).all()
    both = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(*boxes, strict=True))
    assert torch.equal(wholes[0].image[0][both], wholes[1].image[0][both])


@pytest.mark.parametrize("to", [1.5, 0.7])
def test_resampled_crops_meet_in_space(to: float) -> None:
    """A smooth function of space, resampled per crop as nnU-Net does, is the same function on the common grid."""
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape

    axes = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    smooth = (0.3 * axes[0] + 0.2 * axes[1] - 0.4 * axes[2]).astype(np.float32)[None]
    found = []
    for box in ((slice(1, 12), slice(2, 17), slice(1, 12)), (slice(3, 14), slice(0, 16), slice(0, 11))):
        part = smooth[(slice(None), *box)]
        shape = compute_new_shape(part.shape[1:], (1.0, 1.0, 1.0), (to,) * 3)
        image = resample_data_or_seg_to_shape(part, shape, (1.0,) * 3, (to,) * 3, is_seg=False, order=1)
        properties = _case(box)[2]
        grid = common_grid({"a": properties}, (to,) * 3, (0, 1, 2))
        whole = on_grid(image, np.zeros_like(image, dtype=np.int8), properties, grid)
        raw = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(grid.shape, SHAPE, strict=True)]
        where = np.meshgrid(*raw, indexing="ij")
        wanted = 0.3 * where[0] + 0.2 * where[1] - 0.4 * where[2]
        deep = np.logical_and.reduce([(w > s.start + 1) & (w < s.stop - 2) for w, s in zip(where, box, strict=True)])
        assert np.abs(whole.image[0].numpy() - wanted)[deep].max() < 0.02
        found.append(deep)
    assert (found[0] & found[1]).sum() > 100


def test_images_without_a_common_grid_are_refused_in_one_sentence() -> None:
    box = (slice(0, 10), slice(0, 10), slice(0, 10))
    with pytest.raises(Refusal, match="synthtumour align"):
        common_grid({"a": _case(box)[2], "b": _case(box, spacing=1.2)[2]}, (1.0,) * 3, (0, 1, 2))
    directions = [(1.0, 0.0, 0.0, 0.0, sign, 0.0, 0.0, 0.0, 1.0) for sign in (1.0, 1.0, -1.0)]
    cases = {name: _case(box)[2] | {"sitk_stuff": {"direction": d}} for name, d in zip("abc", directions, strict=True)}
    with pytest.raises(Refusal, match=r"axes of c point elsewhere than those of a, .*synthtumour align"):
        common_grid(cases, (1.0,) * 3, (0, 1, 2))
    assert common_grid({case: cases[case] for case in "ab"}, (1.0,) * 3, (0, 1, 2)).shape == SHAPE


def test_what_registration_sees_is_dark_outside_whatever_normalisation_left_there() -> None:
    image = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    seg = np.zeros((1, *SHAPE), np.int8)
    seg[:, :4] = OUTSIDE
    image[:, :4] = 0.0  # the mean of the image: nnU-Net's normalisation within a mask
    properties = _case(tuple(slice(0, n) for n in SHAPE))[2]
    whole = on_grid(image, seg, properties, common_grid({"a": properties}, (1.0,) * 3, (0, 1, 2)))
    match = whole.match()
    assert match.min() == 0 and match.max() == 1
    assert (match[:, :4] == 0).all()
    assert (whole.image[:, :4] == 0).all()  # what segmentation sees is nnU-Net's
    inside = [m[0, 4:].flatten().numpy() for m in (match, whole.image)]
    assert np.corrcoef(*inside)[0, 1] > 0.99
