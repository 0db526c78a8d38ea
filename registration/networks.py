"""Registration networks from nnU-Net plans: the plans' own U-Net, two images in, a velocity out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import Tensor, nn

from nnunet_synthtumour.registration.anatomy import there_in_both
from nnunet_synthtumour.registration.fields import resize, warp
from nnunet_synthtumour.registration.similarity import lncc_loss
from nnunet_synthtumour.registration.strides import padded_to, total_stride
from nnunet_synthtumour.registration.structure_guide import StructureGuide
from nnunet_synthtumour.registration.structure_steps import drawn_together
from nnunet_synthtumour.registration.velocity import (
    MAX_DISPLACEMENT,
    MAX_GRADIENT,
    OUTFLOW,
    SMOOTHING,
    added,
    displacement_of,
    displacements_of,
    limit_velocity,
)

KEPT, LITTLE = 0.5, 0.01


def on_image(velocity: Tensor, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
    """A network's velocity on the grid of its images, without the padding to multiples of its total `stride`."""
    padded = tuple(-(-size // s) * s for size, s in zip(shape, stride, strict=True))
    return resize(velocity, padded)[(slice(None), slice(None), *[slice(size) for size in shape])]


def finest(output: Any) -> Tensor:
    """The velocity of full resolution in what a network puts out."""
    return output if isinstance(output, Tensor) else output.velocity


def unet_from_plans(
    network_class_name: str, arch_kwargs: Mapping[str, Any], kw_requires_import: Sequence[str], image_channels: int
) -> Any:
    """The U-Net of a configuration with two images of `image_channels` as input (or an image and what is seen in it).

    The first three arguments are nnU-Net's `ConfigurationManager.network_arch_class_name`,
    `.network_arch_init_kwargs` and `.network_arch_init_kwargs_req_import`.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    return get_network_from_plans(
        network_class_name,
        dict(arch_kwargs),
        list(kw_requires_import),
        input_channels=2 * image_channels,
        output_channels=len(arch_kwargs["kernel_sizes"][0]),
        deep_supervision=False,
    )


class RegistrationUNet(nn.Module):
    """velocity = network(moving, fixed): the encoder and decoder of a U-Net, the decoder cut at `velocity_level`.

    Level 0 is the resolution of the images, level 1 that after the first stride, and so on. Images (B, C, X, Y[, Z]) of
    any size are padded at the far end of each axis to a multiple of the strides; the velocity (B, D, ...), float32, in
    voxels of its own grid, covers the *padded* image, and `displacement` cuts that off again. It is bounded and smooth
    by `velocity.limit_velocity`: no weights make it fold. A new network predicts (almost) no motion.

    With a `guide`, the network sees where the guide finds structures in either image, too: matching the same structure in
    two images is learnt in a fraction of the time that it takes to learn what a structure looks like.

    A network that is used (`predict`) looks at a pair `passes` times, each time at what is left of it, and then takes
    `structure_steps` steps that draw together what the guide finds in both images, if the images still agree after them.
    """

    encoder: Any

    def __init__(
        self,
        unet: Any,
        velocity_level: int = 1,
        max_displacement: float = MAX_DISPLACEMENT,
        outflow: float = OUTFLOW,
        smoothing: float = SMOOTHING,
        max_gradient: float = MAX_GRADIENT,
        guide: StructureGuide | None = None,
        passes: int = 1,
        structure_steps: int = 0,
    ) -> None:
        super().__init__()
        if not hasattr(unet, "encoder") or not hasattr(unet, "decoder"):
            raise ValueError(
                f"{type(unet).__name__} is no U-Net: registration needs plans with PlainConvUNet or ResidualEncoderUNet."
            )
        encoder, decoder = unet.encoder, unet.decoder
        stages = len(encoder.strides) - 1 - velocity_level
        if velocity_level < 0 or stages < 1:
            raise ValueError(
                f"A velocity level between 0 and {len(encoder.strides) - 2} is possible with this U-Net of "
                f"{len(encoder.strides)} stages, not {velocity_level}."
            )
        self.dims = convert_conv_op_to_dim(encoder.conv_op)
        self.velocity_level = velocity_level
        self.limits = {
            "max_displacement": max_displacement,
            "outflow": outflow,
            "smoothing": smoothing,
            "max_gradient": max_gradient,
        }
        self.total_stride = total_stride(encoder)
        self.encoder = encoder
        self.upsamplings = nn.ModuleList(decoder.transpconvs[:stages])
        self.decoder_stages = nn.ModuleList(decoder.stages[:stages])
        self.head = self._new_head(velocity_level)
        self.guide, self.passes, self.structure_steps = guide, passes, structure_steps

    @classmethod
    def from_plans(
        cls,
        network_class_name: str,
        arch_kwargs: Mapping[str, Any],
        kw_requires_import: Sequence[str],
        image_channels: int = 1,
        structures: int = 0,
        in_mask: Sequence[bool] = (),
        **options: Any,
    ) -> RegistrationUNet:
        """See `unet_from_plans`; `structures` (foreground labels) of a guide, if any, and which channels it was taught on
        `in_mask`; `options` go to the constructor."""
        plans = network_class_name, arch_kwargs, kw_requires_import
        unet = unet_from_plans(*plans, image_channels + structures)
        guide = StructureGuide.from_plans(*plans, image_channels, structures, in_mask) if structures else None
        return cls(unet, guide=guide, **options)

    def forward(self, moving: Tensor, fixed: Tensor, found: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """`found` is what the guide said about both images, where that is known already."""
        skips = self.encoder(self._padded_pair(moving, fixed, found))
        return self._limited(self.head(self._decoded(skips[-1], skips)[-1]), moving.shape[2:])

    @torch.no_grad()
    def predict(
        self, moving: Tensor, fixed: Tensor, forward: Callable[..., Any] | None = None, to_structures: bool = True
    ) -> Tensor:
        """The velocity after all passes and steps, for use, not for training; `forward` is what stands in for the network
        itself (compiled, for one). Not `to_structures`: the passes alone; they see what the guide finds, nothing pulls at
        it.

        What a pass adds is added to the velocity: one flow stays one flow, with its exact inverse, and within its limits.
        exp(v) exp(w) is exp(v + w) up to half of their commutator, which is as small as what a second pass finds.
        """
        found = self.found_in(moving, fixed)
        looks = self.looked(moving, fixed, found, forward)
        return self.drawn(looks, moving, fixed, found)[0] if to_structures else looks

    @torch.no_grad()
    def drawn(
        self, velocity: Tensor, moving: Tensor, fixed: Tensor, found: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """The velocity after all steps towards what was `found`, and of which pairs (B) they were kept."""
        shape, none = moving.shape[2:], torch.zeros(len(moving), dtype=torch.bool, device=moving.device)
        if found is None or not self.structure_steps:
            return velocity, none
        stride, extent = self.stride_of(velocity, shape), self._extent(velocity, shape)
        drawn = drawn_together(velocity, found, stride, extent, self.structure_steps, self.limits)
        kept = self._still_alike(moving, fixed, velocity, drawn) & there_in_both(found).any(1)
        return torch.where(kept.reshape(-1, *[1] * (moving.ndim - 1)), drawn, velocity), kept

    @torch.no_grad()
    def looked(
        self,
        moving: Tensor,
        fixed: Tensor,
        found: tuple[Tensor, Tensor] | None,
        forward: Callable[..., Any] | None = None,
    ) -> Tensor:
        """The velocity after all passes, with what was `found` in both images."""
        forward = self if forward is None else forward  # a compiled network has no truth value
        velocity, shape = finest(forward(moving, fixed, *(() if found is None else (found,)))), moving.shape[2:]
        for _ in range(self.passes - 1):
            u = self.displacement(velocity, shape)
            # what was found moves along: the guide has not learnt what interpolation does to an image
            now = () if found is None else ((warp(found[0], u), found[1]),)
            more = finest(forward(warp(moving, u), fixed, *now))
            velocity = added(velocity, more, self._extent(velocity, shape), **self.limits)
        return velocity

    def _still_alike(self, moving: Tensor, fixed: Tensor, looks: Tensor, drawn: Tensor) -> Tensor:
        """(B): whether steps from `looks` to `drawn` leave half of what the looks have made of images' likeness.

        A guide that is right costs a tenth of it, or nothing; one that is wrong undoes it. Where looks have made little of
        it, a loss that is as little says nothing.
        """
        shape = moving.shape[2:]
        fields = [None, *(self.displacement(velocity, shape) for velocity in (looks, drawn))]
        before, looked, after = (
            torch.stack([lncc_loss(m[None], f[None]) for m, f in zip(image, fixed, strict=True)])
            for image in (moving if u is None else warp(moving, u) for u in fields)
        )
        return after <= looked + (KEPT * (before - looked)).clamp(min=LITTLE)

    def found_in(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the guide says about both images, once it speaks."""
        return (self.guide(moving), self.guide(fixed)) if self.guide is not None and self.guide.talking else None

    def displacement(self, velocity: Tensor, shape: Sequence[int]) -> Tensor:
        """exp(v) on the images' own grid: (B, D, *shape), for warp(moving, u); with -v, for warp(fixed, u)."""
        return displacement_of(velocity, self.stride_of(velocity, shape), shape)

    def displacements(self, velocity: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """exp(v) and its inverse, the latter corrected once (`velocity.displacements_of`): both (B, D, *shape)."""
        return displacements_of(velocity, self.stride_of(velocity, shape), shape)

    def _padded_pair(self, moving: Tensor, fixed: Tensor, found: tuple[Tensor, Tensor] | None) -> Tensor:
        pair, shape = [moving, fixed], moving.shape[2:]
        if self.guide is not None:
            seen = [self.guide.foreground(image) for image in pair] if found is None else [f[:, 1:] for f in found]
            pair = [moving, seen[0].to(moving.dtype), fixed, seen[1].to(fixed.dtype)]
        return padded_to(torch.cat(pair, dim=1), self._padded_shape(shape))

    def _padded_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(-(-size // stride) * stride for size, stride in zip(shape, self.total_stride, strict=True))

    def _decoded(self, bottleneck: Tensor, skips: Sequence[Tensor]) -> list[Tensor]:
        """The features of every decoder stage, coarse to fine."""
        features = [bottleneck]
        for upsampling, stage, skip in zip(self.upsamplings, self.decoder_stages, skips[-2::-1], strict=False):
            features.append(stage(torch.cat((upsampling(features[-1]), skip), dim=1)))
        return features[1:]

    def _new_head(self, level: int) -> Any:
        head: Any = self.encoder.conv_op(self.encoder.output_channels[level], self.dims, 3, padding=1)
        nn.init.normal_(head.weight, std=1e-5)
        nn.init.zeros_(head.bias)
        return head

    def _limited(self, raw: Tensor, shape: Sequence[int]) -> Tensor:
        return limit_velocity(raw, self._extent(raw, shape), **self.limits)

    def _extent(self, field: Tensor, shape: Sequence[int]) -> list[float]:
        return [size / along for size, along in zip(shape, self.stride_of(field, shape), strict=True)]

    def stride_of(self, field: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
        """Image voxels per voxel of a field that covers the padded image."""
        return tuple(padded // size for padded, size in zip(self._padded_shape(shape), field.shape[2:], strict=True))
