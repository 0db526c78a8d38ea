"""From images and labels on whole grids to batches that nnU-Net's segmentation network and loss take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_synthtumour.trainers.host_patches import stack_targets


class PairPatches:
    """Crops (at a random place) or pads to the patch; `transforms` are nnU-Net's for validation: labels as the loss
    takes them, in all resolutions; `stride` divides the sizes that the network takes."""

    def __init__(self, patch_size: Sequence[int], transforms: Any, stride: Sequence[int]) -> None:
        self.patch_size = tuple(int(n) for n in patch_size)
        self.transforms = transforms
        self.stride = tuple(int(n) for n in stride)

    def batch(self, samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Any]:
        """`samples`: (image (C, X, Y, Z), labels (1, X, Y, Z)) on one device."""
        done = [self._sample(image, labels) for image, labels in samples]
        return torch.stack([d["image"] for d in done]), stack_targets([d["segmentation"] for d in done])

    def _sample(self, image: Tensor, labels: Tensor) -> dict[str, Any]:
        spare = [n - m for n, m in zip(image.shape[1:], self.patch_size, strict=True)]
        begin = [int(np.random.randint(s + 1)) if s > 0 else 0 for s in spare]
        window = (slice(None), *(slice(b, b + m) for b, m in zip(begin, self.patch_size, strict=True)))
        amounts = [a for s in reversed(spare) for a in (max(0, -s) // 2, max(0, -s) - max(0, -s) // 2)]
        image, labels = F.pad(image[window], amounts), F.pad(labels[window].float(), amounts, value=-1).short()
        return self.transforms(image=image, segmentation=labels)

    def padded(self, image: Tensor) -> Tensor:
        """A whole grid (B, C, X, Y, Z), padded at its far ends to the patch, or to what the network's strides divide."""
        sizes = zip(image.shape[2:], self.patch_size, self.stride, strict=True)
        missing = [max(-n % along, m - n) for n, m, along in sizes]
        return F.pad(image, [a for m in reversed(missing) for a in (0, m)]) if any(missing) else image
