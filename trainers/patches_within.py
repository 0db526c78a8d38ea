"""Patches that end where the image ends.

nnU-Net keeps a patch around a voxel from beginning too early, but not from ending too late. Where a data set has an ignore
label all its patches are drawn around voxels, and where patches are as large as the image up to half of such a patch is
padding, while prediction shows whole images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nnunet_synthtumour.trainers.orphans import end_with_parent


def latest_begin(
    shape: Sequence[int], size: Sequence[int] | np.ndarray, padding: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Where a patch of `size` may begin at the latest in a case of `shape`; `padding` is what a crop takes off `size`."""
    needed = np.maximum(padding, np.array(size) - np.array(shape))
    return np.array(shape + needed // 2 + needed % 2 - np.array(size))


class CentresWithin:
    """A data set as nnU-Net's loader sees it, with voxels to draw patches around that leave them within the image."""

    def __init__(self, dataset: Any, size: Sequence[int], crop: Sequence[int]) -> None:
        """Patches have `size` when they are cut out of a 3D case, and `crop` in the end."""
        self.dataset = dataset
        self.identifiers = dataset.identifiers
        self.size = np.array(size)
        self.padding = self.size - np.array(crop)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        end_with_parent()
        data, seg, before, properties = self.dataset.load_case(identifier)
        latest = latest_begin(data.shape[1:], self.size, self.padding) + self.size // 2
        locations = {
            key: np.concatenate([voxels[:, :1], np.minimum(voxels[:, 1:], latest)], 1) if len(voxels) else voxels
            for key, voxels in ((key, np.asarray(voxels)) for key, voxels in properties["class_locations"].items())
        }
        return data, seg, before, {**properties, "class_locations": locations}
