"""Soft Dice: perfect, disjoint, half; missing labels on either side; ignore."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnunet_synthtumour.registration.anatomy import in_both, one_hot, soft_dice_loss


def labels(*boxes: tuple[int, int, int]) -> Tensor:
    """(1, 1, 12, 6, 6); a box is (label, first, last) along the first axis."""
    made = torch.zeros(1, 1, 12, 6, 6, dtype=torch.int64)
    for label, first, last in boxes:
        made[:, :, first:last] = label
    return made


def test_same_disjoint_and_half() -> None:
    fixed = one_hot(labels((1, 0, 4)), 2)
    assert soft_dice_loss(fixed, fixed).item() == pytest.approx(0)
    assert soft_dice_loss(one_hot(labels((1, 6, 10)), 2), fixed).item() == pytest.approx(1)
    assert soft_dice_loss(one_hot(labels((1, 2, 6)), 2), fixed).item() == pytest.approx(0.5)


def test_only_what_is_found_in_both_images_is_brought_together() -> None:
    one, other = (
        one_hot(labels(*boxes), 4) * 0.97 + 0.01 for boxes in (((1, 0, 4), (3, 5, 8)), ((3, 2, 6), (2, 8, 9)))
    )
    both = in_both((one, other))
    assert both is not None and torch.equal(both[0], one[:, [0, 3]]) and torch.equal(both[1], other[:, [0, 3]])
    assert in_both((one[:, :3], other[:, :3])) is None


@pytest.mark.parametrize("flip", [False, True])
def test_a_structure_missing_on_either_side_does_not_count(flip: bool) -> None:
    both, one = one_hot(labels((1, 0, 4), (2, 6, 9)), 3), one_hot(labels((1, 0, 4)), 3)
    pair = (one, both) if flip else (both, one)
    assert soft_dice_loss(*pair).item() == pytest.approx(0)


def test_a_structure_not_annotated_in_one_of_them_does_not_count() -> None:
    moved, fixed = one_hot(labels((1, 0, 4), (2, 6, 9)), 3), one_hot(labels((1, 0, 4), (2, 9, 12)), 3)
    assert soft_dice_loss(moved, fixed).item() == pytest.approx(0.5)
    assert soft_dice_loss(moved, fixed, labelled=torch.tensor([[True, True, False]])).item() == pytest.approx(0)


def test_nothing_left_gives_zero_and_no_gradient() -> None:
    p = one_hot(labels(), 2).requires_grad_()
    loss = soft_dice_loss(p, one_hot(labels((1, 0, 4)), 2))
    loss.backward()
    assert loss.item() == 0
    assert p.grad is not None and (p.grad == 0).all()


def test_ignored_voxels_belong_to_no_class_and_are_weighted_out() -> None:
    fixed = labels((1, 0, 4), (9, 4, 8), (-1, 8, 12))
    encoded = one_hot(fixed, 2)
    assert (encoded.sum(1) == torch.isin(fixed[:, 0], torch.tensor([0, 1]))).all()
    moved = one_hot(labels((1, 0, 8)), 2)
    weight = (encoded.sum(1, keepdim=True) > 0).float()
    assert soft_dice_loss(moved, encoded, weight).item() == pytest.approx(0)
    assert soft_dice_loss(moved, encoded).item() > 0.3


def test_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(2, 3, 3, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    q = torch.rand(2, 3, 3, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: soft_dice_loss(a, b, background=True), (p, q))
