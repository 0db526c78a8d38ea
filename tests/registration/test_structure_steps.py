"""Steps towards structures that are found in two images: they meet, nothing folds, and what one image lacks pulls nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnunet_synthtumour.registration.anatomy import soft_dice_loss, there_in_both
from nnunet_synthtumour.registration.fields import jacobian_determinant, warp
from nnunet_synthtumour.registration.networks import RegistrationUNet
from nnunet_synthtumour.registration.structure_steps import drawn_together
from nnunet_synthtumour.registration.velocity import MAX_DISPLACEMENT, displacements_of
from tests.registration.plans import architecture

LIMITS = {"max_displacement": MAX_DISPLACEMENT, "outflow": 0.0, "smoothing": 1.0, "max_gradient": 1.5}


def _found(shape: tuple[int, ...], *balls: tuple[float, float] | None) -> Tensor:
    """Probabilities of balls (place along every axis as a share of it, radius as a share of the first one); None: nowhere."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) / n for n in shape], indexing="ij"))
    inside = [
        torch.zeros(shape) if ball is None else torch.sigmoid(30 * (ball[1] - (grid - ball[0]).norm(dim=0)))
        for ball in balls
    ]
    return torch.stack([1 - sum(inside, torch.zeros(shape)), *inside])[None]  # type: ignore[list-item]


def _drawn(found: tuple[Tensor, Tensor], steps: int = 8, stride: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """The velocity and both displacements on the images' grid."""
    shape = tuple(found[0].shape[2:])
    padded = tuple(-(-n // (2 * stride)) * 2 for n in shape)  # multiples of twice the stride, as a U-Net pads
    extent = [n / stride for n in shape]
    still = torch.zeros(len(found[0]), len(shape), *padded)
    velocity = drawn_together(still, found, (stride,) * len(shape), extent, steps, LIMITS)
    return (velocity, *displacements_of(velocity, (stride,) * len(shape), shape))


@pytest.mark.parametrize("shape", [(32, 32, 32), (30, 25, 33), (48, 41)])
@pytest.mark.parametrize("stride", [1, 2])
def test_structures_meet_and_nothing_folds(shape: tuple[int, ...], stride: int) -> None:
    found = _found(shape, (0.4, 0.12), (0.7, 0.1)), _found(shape, (0.47, 0.15), (0.64, 0.09))
    before = soft_dice_loss(*found)
    velocity, forward, backward = _drawn(found, stride=stride)
    assert before > 0.2
    assert soft_dice_loss(warp(found[0], forward), found[1]) < before / 3
    assert soft_dice_loss(warp(found[1], backward), found[0]) < before / 2
    assert not velocity.requires_grad
    assert all((jacobian_determinant(u) > 0).all() for u in (forward, backward))


def test_no_steps_leave_the_velocity() -> None:
    velocity = torch.rand(1, 3, 8, 8, 8)
    found = _found((16, 16, 16), (0.4, 0.1)), _found((16, 16, 16), (0.5, 0.1))
    assert torch.equal(drawn_together(velocity, found, (2, 2, 2), (8, 8, 8), 0, LIMITS), velocity)


def test_a_structure_that_one_image_lacks_pulls_nothing() -> None:
    shape = (24, 24, 24)
    both = _found(shape, (0.4, 0.12), None), _found(shape, (0.47, 0.12), None)
    more = _found(shape, (0.4, 0.12), (0.75, 0.1)), both[1]
    assert there_in_both(more).tolist() == [[True, False]]
    assert torch.equal(_drawn(more)[0], _drawn(both)[0])
    assert _drawn(both)[0].abs().max() > 0.3
    assert not _drawn((_found(shape, (0.4, 0.1)), _found(shape, None)))[0].any()


def test_every_pair_of_a_batch_as_alone() -> None:
    shape = (20, 22, 24)
    pairs = [(_found(shape, (0.4, 0.12)), _found(shape, (0.5, 0.15))), (_found(shape, (0.6, 0.2)), _found(shape, None))]
    one, other = (torch.cat(side) for side in zip(*pairs, strict=True))
    together = _drawn((one, other))[0]
    for i, pair in enumerate(pairs):
        torch.testing.assert_close(together[i : i + 1], _drawn(pair)[0])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(16, 16, 16), (3, 14, 17), (1, 12, 12), (20, 15)]), st.integers(1, 30))
def test_noise_does_not_fold_the_field(seed: int, shape: tuple[int, ...], steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    noise = tuple(torch.softmax(8 * torch.randn(1, 4, *shape, generator=generator), 1) for _ in range(2))
    velocity, forward, _ = _drawn(noise, steps, stride=1)  # type: ignore[arg-type]
    assert velocity.isfinite().all()
    assert (jacobian_determinant(forward) > 0).all()


def test_a_network_takes_its_steps_only_where_its_guide_speaks_and_they_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = RegistrationUNet.from_plans(*architecture(), structures=1, structure_steps=5).eval()
    torch.nn.init.normal_(network.head.weight, std=0.01)
    shape = (24, 24, 24)
    moving, fixed = (_found(shape, (at, 0.2))[:, 1:] for at in (0.4, 0.5))
    monkeypatch.setattr(network.guide, "forward", lambda image: torch.cat((1 - image, image), 1))
    silent = network.predict(moving, fixed)
    assert torch.equal(silent, network.predict(moving, fixed, to_structures=False))
    network.guide.say(True)
    looks, pulled = network.predict(moving, fixed, to_structures=False), network.predict(moving, fixed)

    def apart(velocity: Tensor) -> Tensor:
        return (warp(moving, network.displacement(velocity, shape)) - fixed).square().mean()

    assert apart(pulled) < apart(looks) / 3
    network.structure_steps = 0
    assert torch.equal(network.predict(moving, fixed), looks)
