"""Every cost: zero (or its stated floor) for a perfect match, the invariances it promises, and its gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_synthtumour.registration.mind import mind_loss, mind_ssc
from nnunet_synthtumour.registration.mutual_information import joint_histogram, nmi_loss
from nnunet_synthtumour.registration.similarity import global_ncc_loss, lncc_loss, mse_loss
from nnunet_synthtumour.registration.windows import gaussian_smooth

COSTS: dict[str, Callable[..., Tensor]] = {
    "mse": mse_loss,
    "ncc": global_ncc_loss,
    "lncc": lambda m, f, weight=None: lncc_loss(m, f, 5, weight),
    "nmi": lambda m, f, weight=None: nmi_loss(m, f, 16, weight),
    "mind": lambda m, f, weight=None: mind_loss(m, f, weight, dilation=1),
}
every_cost = pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS.keys())


def texture(shape: tuple[int, ...] = (20, 22, 18), seed: int = 0, sigma: float = 1.5) -> Tensor:
    noise = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    smooth = gaussian_smooth(noise, sigma)
    return (smooth - smooth.mean()) / smooth.std()


@every_cost
@pytest.mark.parametrize("shape", [(20, 22, 18), (40, 36)])
def test_a_match_costs_less_than_a_shift_and_the_cost_grows_with_it(
    cost: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    image = texture(shape)
    values = [float(cost(torch.roll(image, shift, 2), image)) for shift in range(3)]
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("name", ["mse", "ncc", "lncc", "mind"])
def test_a_perfect_match_costs_nothing(name: str) -> None:
    image = texture()
    assert COSTS[name](image, image) == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("name", ["ncc", "lncc", "nmi", "mind"])
def test_brightness_and_contrast_do_not_matter(name: str) -> None:
    image, other = texture(), texture(seed=1)
    torch.testing.assert_close(COSTS[name](3 * image + 100, other), COSTS[name](image, other), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["lncc", "nmi", "mind"])
def test_an_inverted_image_still_matches(name: str) -> None:
    image = texture()
    shifted = torch.roll(image, 2, 3)
    assert COSTS[name](-image, image) < COSTS[name](shifted, image)


@every_cost
def test_what_the_weight_leaves_out_does_not_count(cost: Callable[..., Tensor]) -> None:
    image, other = texture(), texture(seed=1)
    weight = torch.zeros_like(image)
    weight[:, :, 4:14, 5:16, 4:14] = 1
    far = torch.zeros_like(image)
    far[:, :, :1] = 1  # further away than any window or neighbour reaches
    torch.testing.assert_close(cost(other + 5 * far, image, weight), cost(other, image, weight), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cost(other, image, torch.ones_like(image)), cost(other, image), rtol=1e-4, atol=1e-4)


@every_cost
def test_gradients(cost: Callable[..., Tensor]) -> None:
    image, other = texture((6, 5, 7), sigma=0.5).double(), texture((6, 5, 7), 1, sigma=0.5).double()
    weight = torch.rand(1, 1, 6, 5, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.1
    ordered = other.flatten().sort().values
    free = (other > ordered[1]) & (other < ordered[-2])  # NMI's range of bins is no part of its gradient
    change = torch.zeros_like(other).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: cost(other + d * free, image, weight), (change,), eps=1e-7, atol=1e-5)


@every_cost
def test_autocast_does_not_touch_the_precision(cost: Callable[..., Tensor]) -> None:
    image, other = texture(), texture(seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        computed = cost(other, image)
    torch.testing.assert_close(computed, cost(other, image))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_lncc_is_the_one_computed_with_box_convolutions_in_double_precision(offset: float) -> None:
    m, f = texture() + offset, texture(seed=1) + 0.5 * texture() + offset
    kernel = torch.ones(1, 1, 9, 9, 9, dtype=torch.float64)

    def mean(image: Tensor) -> Tensor:
        count = F.conv3d(torch.ones_like(image), kernel, padding=4)
        return F.conv3d(image, kernel, padding=4) / count

    a, b = ((image.double() - image.double().mean()) / image.double().std(correction=0) for image in (m, f))
    covariance = mean(a * b) - mean(a) * mean(b)
    variances = (mean(a * a) - mean(a) ** 2 + 1e-5) * (mean(b * b) - mean(b) ** 2 + 1e-5)
    expected = 1 - (covariance**2 / variances).mean()
    assert float(lncc_loss(m, f, 9)) == pytest.approx(float(expected), abs=1e-4)


def test_lncc_of_flat_images_is_no_match_and_has_a_finite_gradient() -> None:
    flat = torch.zeros(1, 1, 10, 10, 10, requires_grad=True)
    loss = lncc_loss(flat, torch.ones(1, 1, 10, 10, 10))
    loss.backward()
    assert loss.item() == pytest.approx(1)
    assert flat.grad is not None and flat.grad.isfinite().all()


@pytest.mark.parametrize("cost", [lncc_loss, global_ncc_loss, nmi_loss], ids=["lncc", "ncc", "nmi"])
def test_a_weight_of_zero_everywhere_is_finite(cost: Callable[..., Tensor]) -> None:
    image = texture()
    assert cost(texture(seed=1), image, weight=torch.zeros_like(image)).isfinite()


def test_the_joint_histogram_sums_to_one_in_chunks_or_at_once() -> None:
    m, f = (1 + 13 * torch.rand(2, 1000, generator=torch.Generator().manual_seed(0))).requires_grad_()
    whole, chunked = joint_histogram(m, f, 16), joint_histogram(m, f, 16, chunk=128)
    assert whole.sum().item() == pytest.approx(1)
    torch.testing.assert_close(whole, chunked)
    gradients = [torch.autograd.grad(h.square().sum(), m, retain_graph=True)[0] for h in (whole, chunked)]
    torch.testing.assert_close(*gradients)


def test_nmi_of_independent_images_is_near_one() -> None:
    m, f = torch.rand(2, 1, 1, 40, 40, 40, generator=torch.Generator().manual_seed(0))
    assert nmi_loss(m, f, 16) > 0.98
    assert nmi_loss(m, m, 16) < 0.7  # above 0: the kernel reaches into the neighbouring bins


def test_mind_has_the_stated_channels_in_the_stated_range() -> None:
    for shape, channels in (((12, 10, 9), 12), ((12, 10), 4)):
        descriptor = mind_ssc(texture(shape))
        assert descriptor.shape == (1, channels, *shape)
        assert descriptor.min() >= 0 and descriptor.max() == 1
    assert mind_ssc(torch.zeros(1, 1, 8, 8, 8)).isfinite().all()


def test_mind_reads_the_neighbours_it_says() -> None:
    """One bright voxel: patches of radius 0 differ exactly where one neighbour of a pair hits it."""
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 1
    descriptor = mind_ssc(image, radius=0, dilation=2)[0]
    assert (descriptor[:, 4, 4] == 1).all()
    assert (descriptor[:, 2, 4] < 1).sum() == 2, "the neighbour below is in two of the four pairs"
