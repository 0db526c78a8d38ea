"""A segmentation network inside a registration network: it tells where structures lie in the images to be registered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_synthtumour.registration.strides import total_stride


class StructureGuide(nn.Module):
    """Probabilities of labels in images (B, C, X, Y[, Z]) as registration sees them, scaled to 0 ... 1.

    `in_mask` says of each channel whether its network was trained on images that nnU-Net normalised within the nonzero
    mask only, as it does where most of an image is empty. Weights are a copy of a segmentation network's, `take` makes it
    anew; the registration network's loss never changes them. Before the first copy the guide is silent: zeros.
    """

    speaks: Tensor

    def __init__(self, network: Any, in_mask: Sequence[bool] = ()) -> None:
        super().__init__()
        self.in_mask = tuple(in_mask)
        self.network = network.requires_grad_(False)
        self.total_stride = total_stride(network.encoder)
        self.register_buffer("speaks", torch.tensor(False))
        self.talking = False  # the same where no device has to be asked for it
        self.register_load_state_dict_post_hook(lambda guide, _: guide.say(bool(guide.speaks)))

    @classmethod
    def from_plans(
        cls,
        network_class_name: str,
        arch_kwargs: Mapping[str, Any],
        kw_requires_import: Sequence[str],
        image_channels: int,
        structures: int,
        in_mask: Sequence[bool] = (),
    ) -> StructureGuide:
        """The U-Net that nnU-Net trains with these plans for `structures` labels and the background."""
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        return cls(
            get_network_from_plans(
                network_class_name,
                dict(arch_kwargs),
                list(kw_requires_import),
                input_channels=image_channels,
                output_channels=1 + structures,
                deep_supervision=False,
            ),
            in_mask,
        )

    def train(self, mode: bool = True) -> StructureGuide:
        """Always as in use: nothing is learnt here."""
        return super().train(False)

    @torch.no_grad()
    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the weights of the segmentation network, and speak from now on."""
        self.network.load_state_dict(weights)
        self.say(True)

    def say(self, something: bool) -> None:
        """Speak from now on, or be silent."""
        self.speaks.fill_(something)
        self.talking = something

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """(B, 1 + structures, X, Y[, Z]), background first."""
        shape = image.shape[2:]
        missing = [-size % stride for size, stride in zip(shape, self.total_stride, strict=True)]
        before = [m // 2 for m in missing]  # on both sides, as nnU-Net pads
        amounts = [amount for m, b in zip(reversed(missing), reversed(before), strict=True) for amount in (b, m - b)]
        logits = self.network(F.pad(standardised(image, self.in_mask), amounts))
        logits = logits[(..., *(slice(b, b + size) for b, size in zip(before, shape, strict=True)))]
        return torch.softmax(logits.float(), 1)

    def foreground(self, image: Tensor) -> Tensor:
        """What `forward` says without the background; zeros as long as the guide is silent."""
        if self.talking:
            return self(image)[:, 1:].to(image.dtype)
        labels = self.network.decoder.seg_layers[-1].out_channels
        return image.new_zeros(len(image), labels - 1, *image.shape[2:])


def standardised(image: Tensor, in_mask: Sequence[bool] = ()) -> Tensor:
    """Mean 0 and standard deviation 1 of every image and channel, close to what nnU-Net makes of most images; of what is
    not empty, with 0 around it, in the channels that `in_mask` names."""
    axes = tuple(range(2, image.ndim))
    counts = torch.ones_like(image, dtype=torch.float32)
    for channel, masked in enumerate(in_mask):
        if masked:
            counts[:, channel] = (image[:, channel] > 0).float()
    number = counts.sum(axes, keepdim=True).clamp(min=1)
    centred = (image.float() - (image.float() * counts).sum(axes, keepdim=True) / number) * counts
    return centred / (centred.square().sum(axes, keepdim=True) / number).sqrt().clamp(min=1e-8)
