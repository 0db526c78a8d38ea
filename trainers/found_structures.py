"""What a segmentation network finds in whole images, where a registration network wants to know."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunet_synthtumour.trainers.pair_patches import PairPatches


def probabilities(
    network: Any, image: Tensor, patches: PairPatches, precision: AbstractContextManager[Any]
) -> Tensor:  # fmt: skip
    """Of all labels on whole grids, (B, classes, X, Y, Z), without gradient; the network goes on with its training."""
    network.eval()
    with torch.no_grad(), precision:
        logits = network(patches.padded(image))
    network.train()
    logits = logits[0] if isinstance(logits, (list, tuple)) else logits
    return torch.softmax(logits[(..., *(slice(n) for n in image.shape[2:]))].float(), 1)


def bare_weights(network: Any) -> dict[str, Tensor]:
    """The state of nnU-Net's network without what several processes and compiling wrap around it."""
    bare = network.module if isinstance(network, DistributedDataParallel) else network
    return dict(getattr(bare, "_orig_mod", bare).state_dict())
