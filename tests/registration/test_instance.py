"""Instance optimisation on drawn pairs whose deformation is known."""

import pytest
import torch

from nnunet_synthtumour.registration.fields import compose, exponentiate, warp
from nnunet_synthtumour.registration.instance import (
    SIMILARITIES,
    InstanceSettings,
    image_cost,
    level_shape,
    normalised,
    optimise,
)
from nnunet_synthtumour.registration.metrics import dice, folds_percent
from nnunet_synthtumour.registration.windows import gaussian_smooth


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """moving and fixed image, moving and fixed label: a textured ball, and what a smooth flow makes of it."""
    generator = torch.Generator().manual_seed(3)
    shape = (24, 28, 26)
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) - n / 2 for n in shape], indexing="ij"))
    label = (grid.square().sum(0).sqrt() < 7).float()[None, None]
    texture = gaussian_smooth(torch.randn(1, 1, *shape, generator=generator), 1.5)
    moving = gaussian_smooth(label, 0.7) + 0.8 * texture / texture.std() * 0.3
    x, y, z = grid / 8
    velocity = 2.5 * torch.stack((torch.cos(y), torch.sin(z + 1), torch.cos(x - 1)))[None]
    truth = exponentiate(velocity * torch.exp(-(grid.square().sum(0)) / 150))
    return moving, warp(moving, truth), label, (warp(label, truth) > 0.5).float()


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_similarity_gains_dice_without_folds(pair, similarity) -> None:
    moving, fixed, label, truth = pair
    # scales differ by four orders of magnitude between scanners
    moving, fixed = normalised(moving), normalised(1e4 * fixed + 300)
    found = optimise(moving, fixed, InstanceSettings(similarity=similarity, iterations=36, levels=(2, 1)))
    before = dice(label.numpy(), truth.numpy())
    after = dice((warp(label, found.displacement) > 0.5).numpy(), truth.numpy())
    assert before < 0.9
    assert after > before + 0.5 * (1 - before)
    assert folds_percent(found.displacement) == 0
    assert image_cost(similarity, warp(moving, found.displacement), fixed) < image_cost(similarity, moving, fixed)
    assert compose(found.displacement, found.inverse).norm(dim=1).mean() < 0.1
    assert len(found.history) == 36


def test_nothing_folds_however_weak_the_regularity(pair) -> None:
    noise = torch.rand(1, 1, 24, 28, 26, generator=torch.Generator().manual_seed(1))
    settings = InstanceSettings(iterations=20, levels=(1,), regularity_weight=0.0, learning_rate=3.0)
    found = optimise(normalised(pair[0]), noise, settings)
    assert found.displacement.abs().max() > 1
    assert folds_percent(found.displacement) <= 0.003
    assert folds_percent(found.inverse) <= 0.003


@pytest.mark.parametrize("symmetric", [False, True])
def test_structures_that_were_found_are_brought_together_where_images_show_nothing(pair, symmetric) -> None:
    _, _, label, truth = pair
    noise = torch.rand(1, 1, 24, 28, 26, generator=torch.Generator().manual_seed(1))
    found = tuple(torch.cat((1 - one, one), 1) for one in (label, truth))
    wanted = InstanceSettings(iterations=30, levels=(2, 1), symmetric=symmetric, anatomy=10.0)
    by_image = optimise(noise, noise, wanted)
    by_both = optimise(noise, noise, wanted, found=found)
    after = [dice((warp(label, one.displacement) > 0.5).numpy(), truth.numpy()) for one in (by_image, by_both)]
    assert after[0] < 0.9 and after[1] > 0.95
    assert folds_percent(by_both.displacement) == folds_percent(by_both.inverse) == 0
    assert len(by_both.history) == 30


def test_a_start_is_kept_without_iterations_and_symmetric_costs_work(pair) -> None:
    moving, fixed, *_ = pair
    velocity = torch.zeros(1, 3, 24, 28, 26)
    velocity[:, 1] = 1.0
    still = optimise(moving, fixed, InstanceSettings(iterations=0), initial=velocity)
    assert still.displacement[0, 1, 8:-8, 8:-8, 8:-8].mean() == pytest.approx(1, abs=0.1)
    both = optimise(moving, fixed, InstanceSettings(iterations=4, symmetric=True, regularity="bending"))
    assert torch.isfinite(both.displacement).all()


def test_two_dimensions_and_unknown_voxels() -> None:
    x = torch.arange(40.0)
    moving = torch.exp(-((x[:, None] - 18) ** 2 + (x[None] - 20) ** 2) / 40)[None, None]
    fixed = torch.exp(-((x[:, None] - 21) ** 2 + (x[None] - 20) ** 2) / 40)[None, None]
    weight = torch.ones_like(fixed)
    weight[..., :3] = 0
    found = optimise(moving, fixed, InstanceSettings(iterations=60, similarity="mse"), weight=weight)
    assert found.displacement[0, 0, 21, 20] == pytest.approx(-3, abs=0.7)


def test_normalisation_ignores_outliers_and_survives_constants() -> None:
    image = torch.linspace(0, 1, 4096).reshape(1, 1, 16, 16, 16).clone()
    image[0, 0, 0, 0, 0] = 1e6
    assert normalised(image).median() == pytest.approx(0.5, abs=0.02)
    assert (normalised(torch.full((1, 1, 4, 4, 4), 7.0)) == 0).all()


def test_coarse_axes_are_shrunk_last() -> None:
    assert level_shape((160, 160, 24), (1.0, 1.0, 5.0), 4) == (40, 40, 24)
    assert level_shape((160, 160, 24), (1.0, 1.0, 1.0), 4) == (40, 40, 8)
