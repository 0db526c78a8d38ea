"""Both networks: any shape, any weights without folds, one state dict, friendly to autocast, compilation and DDP."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_synthtumour.registration.constructed_graph import SelfConstructingGraph
from nnunet_synthtumour.registration.fields import compose, jacobian_determinant, warp
from nnunet_synthtumour.registration.msc_gunet import GraphRegistration, MSCGUNet
from nnunet_synthtumour.registration.networks import RegistrationUNet, finest
from nnunet_synthtumour.registration.windows import gaussian_smooth
from tests.registration.plans import architecture

both = pytest.mark.parametrize("network_class", [RegistrationUNet, MSCGUNet])


def pair(shape: tuple[int, ...], channels: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    images = torch.randn(2, 1, channels, *shape, generator=torch.Generator().manual_seed(seed))
    moving, fixed = (gaussian_smooth(image, 2.0) for image in images)
    return moving / moving.std(), fixed / fixed.std()


@both
@pytest.mark.parametrize("shape", [(32, 32, 32), (33, 21, 26)])
def test_a_new_network_moves_nothing_whatever_the_shape(network_class: Any, shape: tuple[int, ...]) -> None:
    network = network_class.from_plans(*architecture(), image_channels=2).eval()
    moving, fixed = pair(shape, channels=2)
    velocity = finest(network(moving, fixed))
    assert velocity.shape == (1, 3, *[-(-size // 8) * 4 for size in shape])
    displacement = network.displacement(velocity, shape)
    assert displacement.shape == (1, 3, *shape)
    assert displacement.abs().max() < 0.05


@both
@pytest.mark.parametrize(
    ("options", "images"),
    [
        ({"dims": 2}, (40, 36)),
        ({"residual": True}, (32, 24, 16)),
        ({"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]]}, (12, 36, 40)),
    ],
    ids=["2d", "residual encoder", "anisotropic"],
)
def test_every_topology_of_the_plans(network_class: Any, options: dict[str, Any], images: tuple[int, ...]) -> None:
    network = network_class.from_plans(*architecture(**options), velocity_level=1)
    moving, fixed = pair(images)
    output = network(moving, fixed)
    forward, backward = network.displacements(finest(output), images)
    assert forward.shape == backward.shape == (1, len(images), *images)
    if isinstance(output, GraphRegistration):
        assert network.displacement(output.coarse_velocity, images).shape == forward.shape
    sum(t.square().mean() for t in (output if isinstance(output, GraphRegistration) else (output,))).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in network.parameters()), "an unused parameter stops DDP"


@both
@pytest.mark.parametrize("scale", [0.2, 0.5, 1.0, 3.0])
def test_no_weights_make_it_fold_and_the_inverse_is_one(network_class: Any, scale: float) -> None:
    """The bar: at most 0.003 % folded voxels for random weights; composed with its inverse, 0.1 voxel on average."""
    shape, folded, voxels, errors = (48, 40, 45), 0, 0, []
    for seed in range(2):
        torch.manual_seed(seed)
        network = network_class.from_plans(*architecture((4, 8, 8, 8)))
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=scale)
        with torch.no_grad():
            velocity = finest(network(*pair(shape, seed=seed)))
            forward, backward = network.displacements(velocity, shape)
        assert forward.abs().max() > 0.5, "a test of something that moves"
        for displacement in (forward, backward):
            determinant = jacobian_determinant(displacement)
            folded, voxels = folded + int((determinant <= 0).sum()), voxels + determinant.numel()
        errors += [compose(a, b).norm(dim=1).mean() for a, b in ((forward, backward), (backward, forward))]
    assert folded / voxels <= 3e-5
    assert max(errors) < 0.1


@both
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_further_passes_stay_one_flow_that_does_not_fold(network_class: Any, scale: float) -> None:
    shape = (32, 30, 25)
    torch.manual_seed(0)
    network = network_class.from_plans(*architecture((4, 8, 8, 8)), passes=3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    velocity = network.eval().predict(*pair(shape))
    forward, backward = network.displacements(velocity, shape)
    assert velocity.dtype == torch.float32 and not velocity.requires_grad and forward.abs().max() > 0.5
    assert all((jacobian_determinant(u) > 0).all() for u in (forward, backward))
    assert compose(forward, backward).norm(dim=1).mean() < 0.1


@both
def test_one_pass_is_the_network_itself(network_class: Any) -> None:
    network = network_class.from_plans(*architecture()).eval()
    torch.nn.init.normal_(network.head.weight, std=0.1)
    images = pair((24, 24, 24))
    assert torch.equal(network.predict(*images), finest(network(*images)))


@both
def test_a_compiled_network_takes_all_passes(network_class: Any) -> None:
    network = network_class.from_plans(*architecture(), structures=1, passes=2).eval()
    network.guide.say(True)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    images = pair((24, 24, 24))
    compiled = torch.compile(network, backend="eager")
    torch.testing.assert_close(network.predict(*images, compiled), network.predict(*images))


def test_a_second_pass_sees_what_the_first_one_left() -> None:
    """Of a network that finds half of every shift: three quarters after two passes, seven eighths after three."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij"))

    def ball(at: float) -> Tensor:
        return torch.exp(-((grid - at) ** 2).sum(0) / 20)[None, None]

    def centre(image: Tensor) -> Tensor:
        return (grid * image[0, 0]).sum((1, 2, 3)) / image.sum()

    def half(moving: Tensor, fixed: Tensor) -> Tensor:
        shift = (centre(moving) - centre(fixed)) / 2 / 2  # half of it, in voxels of half resolution
        return shift.reshape(1, 3, 1, 1, 1).expand(1, 3, 16, 16, 16).clone()

    moving, fixed = ball(17.0), ball(14.0)
    for passes, left in ((1, 1 / 2), (2, 1 / 4), (3, 1 / 8)):
        network = RegistrationUNet.from_plans(*architecture(), passes=passes)
        u = network.displacement(network.predict(moving, fixed, half), (32, 32, 32))
        assert torch.allclose(centre(warp(moving, u)) - centre(fixed), torch.full((3,), 3 * left), atol=0.05), passes


@both
def test_the_state_dict_makes_the_same_network_again(network_class: Any) -> None:
    moving, fixed = pair((24, 24, 24))
    network = network_class.from_plans(*architecture()).eval()
    torch.nn.init.normal_(network.head.weight, std=0.1)
    again = network_class.from_plans(*architecture()).eval()
    again.load_state_dict(network.state_dict())
    torch.testing.assert_close(finest(again(moving, fixed)), finest(network(moving, fixed)))


@both
def test_autocast_keeps_velocities_in_float32(network_class: Any) -> None:
    network = network_class.from_plans(*architecture())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(*pair((24, 24, 24)))
    assert finest(output).dtype == torch.float32
    if isinstance(output, GraphRegistration):
        assert output.kl.dtype == output.diagonal.dtype == torch.float32


@both
def test_the_whole_network_is_one_graph_for_the_compiler(network_class: Any) -> None:
    network = network_class.from_plans(*architecture()).eval()
    moving, fixed = pair((18, 16, 17))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(finest(compiled(moving, fixed)), finest(network(moving, fixed)))


def test_what_cannot_be_built_is_said() -> None:
    with pytest.raises(ValueError, match="between 0 and 2 is possible with this U-Net of 4 stages, not 3"):
        RegistrationUNet.from_plans(*architecture(), velocity_level=3)
    with pytest.raises(ValueError, match="the velocity level is at most 1, not 2"):
        MSCGUNet.from_plans(*architecture(), velocity_level=2)


def test_a_network_that_is_no_unet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Linear is no U-Net: registration needs plans with PlainConvUNet"):
        RegistrationUNet(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("shape", [(3, 4, 5), (9, 8, 7), (2, 2)])
def test_the_graph_takes_any_feature_map(shape: tuple[int, ...]) -> None:
    conv_op = torch.nn.Conv2d if len(shape) == 2 else torch.nn.Conv3d
    graph = SelfConstructingGraph(conv_op, channels=5, nodes=4, embedding=6)
    features = torch.randn(2, 5, *shape, requires_grad=True)
    output = graph(features)
    assert output.features.shape == features.shape
    assert output.kl >= 0 and output.diagonal >= 0
    (output.features.sum() + output.kl + output.diagonal).backward()
    assert all(p.grad is not None for p in graph.parameters())


def test_the_graph_draws_in_training_only_and_survives_large_features() -> None:
    graph = SelfConstructingGraph(torch.nn.Conv3d, channels=4)
    features = torch.randn(1, 4, 6, 6, 6) * 1e4
    assert not torch.equal(graph(features).features, graph(features).features)
    graph.eval()
    torch.testing.assert_close(graph(features).features, graph(features).features)
    assert all(term.isfinite().all() for term in graph(features))


def test_the_diagonal_term_asks_every_node_to_know_itself() -> None:
    alone = SelfConstructingGraph._graph(torch.zeros(1, 8, 3))[1]
    known = SelfConstructingGraph._graph(torch.ones(1, 8, 3))[1]
    assert known == 0 and alone > 1
    laplacian, _ = SelfConstructingGraph._graph(torch.ones(1, 8, 3))
    torch.testing.assert_close(laplacian.sum(2), torch.ones(1, 8))
