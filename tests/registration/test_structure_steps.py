"""Steps towards structures that are found in two images: they meet, nothing folds, and what one image lacks pulls nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nnunet_synthtumour.registration import networks
from nnunet_synthtumour.registration.anatomy import soft_dice_loss, there_in_both
from nnunet_synthtumour.registration.fields import jacobian_determinant, warp
from nnunet_synthtumour.registration.networks import RegistrationUNet
from nnunet_synthtumour.registration.structure_steps import drawn_together
from nnunet_synthtumour.registration.velocity import MAX_DISPLACEMENT, displacements_of
from nnunet_synthtumour.registration.windows import gaussian_smooth
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


def _drawn(
    found: tuple[Tensor, Tensor], steps: int = 8, stride: int | tuple[int, ...] = 2, begin: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The velocity and both displacements on the images' grid."""
    shape = tuple(found[0].shape[2:])
    strides = (stride,) * len(shape) if isinstance(stride, int) else stride
    padded = [-(-n // (2 * s)) * 2 for n, s in zip(shape, strides, strict=True)]  # as a U-Net pads
    extent = [n / s for n, s in zip(shape, strides, strict=True)]
    still = torch.zeros(len(found[0]), len(shape), *padded) if begin is None else begin
    velocity = drawn_together(still, found, strides, extent, steps, LIMITS)
    return (velocity, *displacements_of(velocity, strides, shape))


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((32, 32, 32), 1), ((32, 32, 32), 2), ((30, 25, 33), 2), ((16, 33, 30), (1, 2, 2)), ((48, 41), 1), ((48, 41), 2)],
)
def test_structures_meet_and_nothing_folds(shape: tuple[int, ...], stride: int | tuple[int, ...]) -> None:
    found = _found(shape, (0.4, 0.12), (0.7, 0.1)), _found(shape, (0.47, 0.15), (0.64, 0.09))
    before = soft_dice_loss(*found)
    velocity, forward, backward = _drawn(found, stride=stride)
    assert before > 0.2
    assert soft_dice_loss(warp(found[0], forward), found[1]) < before / 3
    assert soft_dice_loss(warp(found[1], backward), found[0]) < 0.6 * before
    assert not velocity.requires_grad
    assert all((jacobian_determinant(u) > 0).all() for u in (forward, backward))


def test_a_step_is_no_longer_than_a_voxel_of_the_velocity() -> None:
    found = _found((32, 32, 32), (0.35, 0.2)), _found((32, 32, 32), (0.5, 0.2))
    one, eight = (_drawn(found, steps)[0].norm(dim=1).max() for steps in (1, 8))
    assert 0.4 < one <= 1.0 + 1e-5 and eight > 1.3


@pytest.mark.parametrize("stride", [1, 2])
def test_what_was_found_far_from_a_structure_stays(stride: int) -> None:
    """Where a structure would have to shrink to a speck, the limit of the gradient is met; not elsewhere."""
    shape = (32 * stride,) * 3
    grid = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij"))
    begin = torch.zeros(1, 3, 32, 32, 32)
    begin[0, 1] = 1.5 * torch.exp(-((grid - torch.tensor([24.0, 24, 24]).reshape(3, 1, 1, 1)) ** 2).sum(0) / 18)
    found = _found(shape, (0.3, 0.2)), _found(shape, (0.2, 0.04))
    after = _drawn(found, 16, stride, begin)[0]
    assert (after - begin)[..., 19:, 19:, 19:].abs().max() < 0.02
    assert (after - begin)[..., 4:12, 4:12, 4:12].abs().max() > 0.5


def test_a_structure_goes_on_where_another_is_at_the_limit() -> None:
    shape = (40, 40, 40)
    alone = _found(shape, (0.7, 0.12)), _found(shape, (0.77, 0.12))
    beside = _found(shape, (0.7, 0.12), (0.2, 0.12)), _found(shape, (0.77, 0.12), (0.14, 0.03))
    velocities = [_drawn(found, 12, 1)[0][..., 24:, 24:, 24:] for found in (alone, beside)]
    assert (velocities[0] - velocities[1]).abs().max() < 0.1 * velocities[0].abs().max()
    forward = _drawn(beside, 12, 1)[1]
    assert soft_dice_loss(*(one[:, :2] for one in (warp(beside[0], forward), beside[1]))) < 0.03


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
@given(
    st.integers(0, 2**31),
    st.sampled_from([((16, 16, 16), 1), ((3, 14, 17), (1, 2, 2)), ((1, 12, 12), 1), ((18, 15, 21), 2), ((20, 15), 2)]),
    st.integers(1, 30),
)
def test_noise_folds_nothing(seed: int, grid: tuple[tuple[int, ...], int | tuple[int, ...]], steps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    noise = tuple(torch.softmax(8 * torch.randn(1, 4, *grid[0], generator=generator), 1) for _ in range(2))
    velocity, *fields = _drawn(noise, steps, grid[1])  # type: ignore[arg-type]
    assert velocity.isfinite().all()
    assert all((jacobian_determinant(u) > 0).all() for u in fields)


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


def test_steps_that_undo_what_the_looks_have_made_alike_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guide that is wrong about one of the images; of a batch, one pair is not judged by the other."""
    network = RegistrationUNet.from_plans(*architecture(), structures=1, structure_steps=8).eval()
    shape = (24, 24, 24)
    generator = torch.Generator().manual_seed(0)
    image = gaussian_smooth(torch.rand(1, 1, *shape, generator=generator), 1.5)
    ball, other = _found(shape, (0.4, 0.2)), _found(shape, (0.55, 0.2))
    said = {id_of(image): ball, id_of(image + 1): other, id_of(image + 2): ball}
    monkeypatch.setattr(network.guide, "forward", lambda many: torch.cat([said[id_of(one)] for one in many.split(1)]))
    network.guide.say(True)
    wrong = network.predict(image, image + 1)
    assert torch.equal(wrong, network.predict(image, image + 1, to_structures=False))
    right = torch.cat((ball[:, 1:] + 0.1 * image, image)), torch.cat((other[:, 1:] + 0.1 * image, image + 1))
    said |= {id_of(right[0][:1]): ball, id_of(right[1][:1]): other}
    pulled, looks = network.predict(*right), network.predict(*right, to_structures=False)
    assert not torch.equal(pulled[0], looks[0]) and torch.equal(pulled[1], looks[1])


@pytest.mark.parametrize(("before", "looked", "after", "kept"), [
    (0.7, 0.5, 0.55, True), (0.7, 0.5, 0.62, False), (0.5, 0.499, 0.505, True), (0.5, 0.6, 0.605, True),
    (0.5, 0.6, 0.63, False),
])  # fmt: skip
def test_half_of_the_likeness_must_be_kept_or_all_but_a_little(
    monkeypatch: pytest.MonkeyPatch, before: float, looked: float, after: float, kept: bool
) -> None:
    costs = iter([before, looked, after])
    monkeypatch.setattr(networks, "lncc_loss", lambda *_: torch.tensor(next(costs)))
    network = RegistrationUNet.from_plans(*architecture()).eval()
    still = torch.zeros(1, 3, 12, 12, 12)
    assert network._still_alike(*torch.zeros(2, 1, 1, 24, 24, 24), still, still).tolist() == [kept]


def id_of(image: Tensor) -> float:
    """What an image is told from others by."""
    return round(float(image.double().sum()), 1)
