"""Stripped images keep their outline when they are moved."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_synthtumour.registration.fields import warp
from nnunet_synthtumour.registration.kept_background import keeping_background


def _images() -> Tensor:
    """A stripped image of 0.5 ... 0.9 in a ball, and one that has something everywhere."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(20.0)] * 3, indexing="ij"))
    inside = ((grid - 10) ** 2).sum(0) < 50
    ramp = 0.5 + grid[2] / 50
    return torch.stack((torch.where(inside, ramp, torch.zeros_like(ramp)), ramp))[None]


def test_what_is_stripped_gets_no_rim_and_the_rest_is_interpolated_as_ever() -> None:
    images, u = _images(), 0.4 * torch.ones(1, 3, 20, 20, 20)
    moved, there = keeping_background(images, (images > 0).float(), lambda image, mode: warp(image, u, mode))
    plain = warp(images, u)
    assert torch.equal(there > 0, moved > 0)
    stripped = moved[0, 0][moved[0, 0] > 0]
    assert plain[0, 0][plain[0, 0] > 0].min() < 0.1
    assert stripped.min() > 0.5 and stripped.max() < 0.95
    assert abs(len(stripped) / (images[0, 0] > 0).sum() - 1) < 0.03
    torch.testing.assert_close(moved[0, 1], plain[0, 1])
    deep = -F.max_pool3d(-(images[:, :1] > 0).float(), 5, 1, 2)[0, 0] > 0
    torch.testing.assert_close(moved[0, 0][deep], plain[0, 0][deep])


def test_an_image_that_stays_where_it_is_is_not_changed() -> None:
    images = _images()
    none = torch.zeros(1, 3, 20, 20, 20)
    still, _ = keeping_background(images, (images > 0).float(), lambda image, mode: warp(image, none, mode))
    torch.testing.assert_close(still, images)
    assert torch.equal(still > 0, images > 0)


def test_what_is_nothing_may_be_bright() -> None:
    image = 1 - _images()[:, :1]  # padded with 1
    u = 0.4 * torch.ones(1, 3, 20, 20, 20)
    moved, there = keeping_background(image, (image < 1).float(), lambda one, mode: warp(one, u, mode))
    assert (moved[there == 0] == 1).all() and moved[there == 1].max() < 0.5
