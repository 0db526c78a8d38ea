from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn

from nnunet_synthtumour.trainers.found_structures import bare_weights, probabilities
from nnunet_synthtumour.trainers.pair_patches import PairPatches


class _Deep(nn.Module):
    """Two labels by the sign of the image, in two resolutions as nnU-Net's networks put them out."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        assert not self.training and image.shape[2:] == (8, 8, 8)
        logits = torch.cat((-image, image), 1)
        return [logits, logits[..., ::2, ::2, ::2]]


def test_probabilities_have_the_shape_of_the_image_and_training_goes_on() -> None:
    network, image = _Deep().train(), torch.randn(2, 1, 6, 8, 7, requires_grad=True)
    found = probabilities(network, image, PairPatches((8, 8, 8), None, (4, 4, 4)), nullcontext())
    assert found.shape == (2, 2, 6, 8, 7) and not found.requires_grad and network.training
    assert torch.equal(found.argmax(1) == 1, image[:, 0] > 0)


def test_weights_are_those_of_the_network_that_was_compiled() -> None:
    network = nn.Linear(2, 1)
    assert bare_weights(torch.compile(network)).keys() == bare_weights(network).keys() == {"weight", "bias"}


def test_grids_are_padded_to_what_strides_divide_however_large_these_are() -> None:
    patches = PairPatches((28, 64, 64), None, (4, 64, 64))
    assert patches.padded(torch.zeros(1, 1, 27, 65, 352)).shape[2:] == (28, 128, 384)
    assert patches.padded(torch.zeros(1, 1, 30, 20, 64)).shape[2:] == (32, 64, 64)
