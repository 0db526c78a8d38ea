from __future__ import annotations

import pytest
import torch

from nnunet_synthtumour.registration.instance import normalised
from nnunet_synthtumour.registration.networks import RegistrationUNet
from nnunet_synthtumour.registration.structure_guide import StructureGuide
from tests.registration.plans import architecture


def test_a_guide_is_silent_until_it_has_weights_and_learns_nothing() -> None:
    torch.manual_seed(0)
    guide, segmenter = (StructureGuide.from_plans(*architecture(), 1, 2) for _ in range(2))
    image = torch.rand(2, 1, 13, 18, 16)
    assert guide.foreground(image).shape == (2, 2, 13, 18, 16) and not guide.foreground(image).any()
    guide.take(segmenter.network.state_dict())
    found = guide(image)
    assert torch.allclose(found.sum(1), torch.ones(2, 13, 18, 16), atol=1e-5)
    assert torch.equal(guide.foreground(image), found[:, 1:])
    assert not guide.train().training and not any(p.requires_grad for p in guide.parameters())


def test_brightness_and_contrast_of_an_image_do_not_matter_to_a_guide() -> None:
    torch.manual_seed(0)
    guide = StructureGuide.from_plans(*architecture(), 1, 1)
    image = torch.rand(1, 1, 16, 16, 16)
    assert torch.allclose(guide(image), guide(0.2 + 0.5 * image), atol=1e-4)


@pytest.mark.parametrize("in_mask", [True, False])
def test_a_guide_sees_what_its_network_was_trained_on(in_mask: bool) -> None:
    torch.manual_seed(0)
    guide = StructureGuide.from_plans(*architecture(), 1, 1, [in_mask])
    raw = 50 + 20 * torch.rand(1, 1, 16, 16, 16)
    mask = torch.ones_like(raw, dtype=torch.bool)
    if in_mask:
        mask[..., :5] = False
        raw[~mask] = 0
    trained_on = torch.where(mask, (raw - raw[mask].mean()) / raw[mask].std(unbiased=False), torch.zeros(()))
    expected = torch.softmax(guide.network(trained_on), 1)
    assert torch.allclose(guide(normalised(raw)), expected, atol=2e-3)


def test_a_guided_network_registers_by_what_its_guide_says() -> None:
    torch.manual_seed(0)
    network = RegistrationUNet.from_plans(*architecture(), structures=2)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    images = torch.rand(2, 1, 1, 13, 18, 16)
    silent = network(*images)
    network.guide.take(StructureGuide.from_plans(*architecture(), 1, 2).network.state_dict())
    assert (network(*images) - silent).abs().max() > 1e-4
    network(*images).square().sum().backward()
    assert all(p.grad is None for p in network.guide.parameters())
