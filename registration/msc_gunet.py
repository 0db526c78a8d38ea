"""MSCGUNet: a multi-scale registration U-Net with a self-constructing graph in its bottleneck."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from nnunet_synthtumour.registration.constructed_graph import SelfConstructingGraph
from nnunet_synthtumour.registration.fields import resize
from nnunet_synthtumour.registration.networks import RegistrationUNet


class GraphRegistration(NamedTuple):
    """Velocities at the chosen level and one level coarser (B, D, ...), and the graph's terms of the loss (scalars)."""

    velocity: Tensor
    coarse_velocity: Tensor
    kl: Tensor
    diagonal: Tensor


class MSCGUNet(RegistrationUNet):
    """output = network(moving, fixed), a `GraphRegistration`; everything else as in `RegistrationUNet`.

    The finer velocity is what the finer head adds to the coarser one, before both are limited:
    raw_fine + resize(raw_coarse). `displacement` takes either velocity: the coarse one is for losses at half
    resolution (or the full one). The graph has a fixed number of nodes, so any patch size will do.
    """

    def __init__(
        self,
        unet: Any,
        velocity_level: int = 1,
        nodes: int = 6,
        embedding: int = 32,
        **options: Any,
    ) -> None:
        super().__init__(unet, velocity_level, **options)
        if len(self.decoder_stages) < 2:
            raise ValueError(
                f"MSCGUNet has velocities at two levels; with this U-Net of {len(self.encoder.strides)} stages the "
                f"velocity level is at most {len(self.encoder.strides) - 3}, not {velocity_level}."
            )
        channels = self.encoder.output_channels[-1]
        self.graph = SelfConstructingGraph(self.encoder.conv_op, channels, nodes, embedding)
        self.coarse_head = self._new_head(velocity_level + 1)

    # The graph gives more than a velocity; who needs no more takes `networks.finest`.
    def forward(  # type: ignore[override]
        self, moving: Tensor, fixed: Tensor, found: tuple[Tensor, Tensor] | None = None
    ) -> GraphRegistration:
        skips = self.encoder(self._padded_pair(moving, fixed, found))
        bottleneck, kl, diagonal = self.graph(skips[-1])
        *_, coarse, fine = self._decoded(bottleneck, skips)
        raw_coarse, raw_fine = self.coarse_head(coarse), self.head(fine)
        raw_fine = raw_fine + resize(raw_coarse, raw_fine.shape[2:])
        shape = moving.shape[2:]
        return GraphRegistration(self._limited(raw_fine, shape), self._limited(raw_coarse, shape), kl, diagonal)
