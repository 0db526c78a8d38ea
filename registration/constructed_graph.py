"""A self-constructing graph: long-range reasoning over a feature map on a fixed number of nodes."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.helper import (
    convert_conv_op_to_dim,
    get_matching_pool_op,
)
from torch import Tensor, nn


class GraphOutput(NamedTuple):
    """Features as they came in plus what the graph adds, and the two terms that go into the loss (scalars)."""

    features: Tensor
    kl: Tensor
    diagonal: Tensor


class SelfConstructingGraph(nn.Module):
    """features (B, C, X, Y[, Z]) of any size -> the same shape; nodes are the cells of a fixed `nodes`^D grid.

    The map is averaged onto the grid (n nodes). Two convolutions give each node's embedding a normal distribution
    N(mu, sigma^2) in `embedding` dimensions; z is drawn from it in training and is mu otherwise. The graph is its own
    similarity

        A = relu(z z^T),   A' = A + gamma diag(A) + I,   gamma = sqrt(1 + n / sum_i A_ii),   L = D^-1/2 A' D^-1/2

    with D the row sums of A'. Two graph convolutions h -> L h W carry messages along it; the result is interpolated
    back and added. Terms of the loss:

        kl       = -1/2 mean (1 + log sigma^2 - mu^2 - sigma^2)          the embedding keeps close to N(0, 1)
        diagonal = -gamma / n^2 sum_i log(min(A_ii, 1))                  every node is connected to itself

    Computed in float32, autocast or not: a product of embeddings overflows half precision easily.
    """

    def __init__(self, conv_op: type[nn.Module], channels: int, nodes: int = 6, embedding: int = 32) -> None:
        super().__init__()
        self.dims = convert_conv_op_to_dim(conv_op)
        self.pool = get_matching_pool_op(conv_op, adaptive=True, pool_type="avg")((nodes,) * self.dims)
        self.mean = conv_op(channels, embedding, 3, padding=1)
        self.log_sigma = conv_op(channels, embedding, 1)
        self.first = nn.Linear(channels, embedding)
        self.norm = nn.LayerNorm(embedding)
        self.second = nn.Linear(embedding, channels)

    def forward(self, features: Tensor) -> GraphOutput:
        with torch.autocast(features.device.type, enabled=False):
            pooled = self.pool(features.float())
            mean = self.mean(pooled).flatten(2).transpose(1, 2)
            # a sigma beyond e^4 is of no use and e^(2 * 45) overflows
            log_sigma = self.log_sigma(pooled).flatten(2).transpose(1, 2).clamp(max=4.0)
            embedded = mean + log_sigma.exp() * torch.randn_like(mean) if self.training else mean
            laplacian, diagonal = self._graph(embedded)
            hidden = F.leaky_relu(self.norm(laplacian @ self.first(pooled.flatten(2).transpose(1, 2))))
            messages = (laplacian @ self.second(hidden)).transpose(1, 2).reshape(pooled.shape)
            mode = "trilinear" if self.dims == 3 else "bilinear"
            spread = F.interpolate(messages, size=features.shape[2:], mode=mode, align_corners=False)
            kl = -0.5 * (1 + 2 * log_sigma - mean.square() - (2 * log_sigma).exp()).mean()
        return GraphOutput(features + spread.to(features.dtype), kl, diagonal)

    @staticmethod
    def _graph(embedded: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, C) embeddings -> the normalised adjacency L (B, n, n) and the diagonal term (scalar)."""
        nodes = embedded.shape[1]
        adjacency = F.relu(embedded @ embedded.transpose(1, 2))
        loops = adjacency.diagonal(dim1=1, dim2=2)
        gamma = (1 + nodes / (loops.sum(1, keepdim=True) + 1e-6)).sqrt()
        strengthened = adjacency + torch.diag_embed(gamma * loops + 1)
        scale = strengthened.sum(2).rsqrt()
        laplacian = scale.unsqueeze(2) * strengthened * scale.unsqueeze(1)
        diagonal = -(gamma * loops.clamp(1e-6, 1).log()).sum(1) / nodes**2
        return laplacian, diagonal.mean()
