"""Patches of healthy cases whose centre lies in the host, cut out of nnU-Net's preprocessed cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from nnunet_synthtumour.placement import box_of_label
from nnunet_synthtumour.trainers.orphans import end_with_parent
from nnunet_synthtumour.trainers.patches_within import latest_begin

HOST = "host"
PROBED, KEPT = 50_000, 2_000


class HostPatchLoader(nnUNetDataLoader):
    """nnU-Net's loader, in pieces: which case, where, what is cut out.

    nnU-Net draws the centres of patches from annotated voxels where a data set has an ignore label. In a healthy case
    the host carries that label, so the host would be avoided; here it is sought.
    """

    def __init__(self, *args: Any, healthy: set[str], ignore_label: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.healthy = healthy
        self.ignore_label = ignore_label
        self._hosts: dict[str, tuple[np.ndarray, np.ndarray, tuple[float, float], float]] = {}

    def padding(self) -> int:
        """What a segmentation has outside of the case; nnU-Net's value."""
        return -1

    def patch_at(self, case: str, in_host: bool, oversample: bool) -> dict[str, Any]:
        """`image` (C, X, Y[, Z]) float32 and `segmentation` (1, X, Y[, Z]) int16 around a voxel that numpy draws, moved so
        that what the crop leaves of them lies within the image.

        Healthy cases: in the host, or anywhere; they come with `host_box` and `raw_corner`, which say where the patch
        lies (`donor_placement.Landing`), with `inside`, the slices that are not padding, with `whole_voxels`
        (`Renormaliser.apply`), and with `host_voxels` (`host_room.fitted`). Other cases: where nnU-Net's own rule says.
        """
        end_with_parent()
        data, seg, _, properties = self._data.load_case(case)
        if case in self.healthy:
            voxels, host_box, whole_voxels, host_voxels = self._host_of(case, seg)
            locations = {HOST: voxels} if in_host else {}
            lower, _ = self.get_bbox(data.shape[1:], True, locations)
        else:
            lower, _ = self.get_bbox(data.shape[1:], oversample, properties["class_locations"])
        lower = np.minimum(lower, latest_begin(data.shape[1:], self.patch_size, self.need_to_pad)).tolist()
        upper = [low + n for low, n in zip(lower, self.patch_size, strict=True)]
        box = [list(bounds) for bounds in zip(lower, upper, strict=True)]
        image = torch.from_numpy(crop_and_pad_nd(data, box, 0)).float()
        segmentation = torch.from_numpy(crop_and_pad_nd(seg, box, self.padding(), cast_cropped_to=np.int16)).to(
            torch.int16
        )
        inside = part_inside(data.shape[1:], lower, upper)
        if self.patch_size_was_2d:
            image, segmentation, inside = image[:, 0], segmentation[:, 0], inside[1:]
        patch: dict[str, Any] = {"image": image, "segmentation": segmentation}
        if case in self.healthy:
            patch["inside"] = inside
            corner = np.array(lower, dtype=float)
            patch["host_box"] = host_box - corner[:, None]
            patch["whole_voxels"] = whole_voxels
            patch["host_voxels"] = host_voxels
            patch["raw_corner"] = raw_corner(properties, data.shape[1:]) - corner
        return patch

    def _host_of(self, case: str, seg: Any) -> tuple[np.ndarray, np.ndarray, tuple[float, float], float]:
        """Up to `KEPT` voxels (0, x, y, z) of the host, its box ((low, high) per axis), the voxels of the case and of its
        nonzero mask, and those of the host; found once per case and process.

        Drawn with a generator of their own, so that who looks first does not change what is drawn later.
        """
        if case not in self._hosts:
            volume = seg[:]
            generator = np.random.default_rng(len(case))
            probed = np.unique(generator.integers(0, volume.size, PROBED))
            inside = probed[volume.reshape(-1)[probed] == self.ignore_label]
            if len(inside) < KEPT:  # a small host (or image): look at every voxel
                inside = np.flatnonzero(volume == self.ignore_label)
            if len(inside) > KEPT:
                inside = np.sort(generator.choice(inside, KEPT, replace=False))
            box = box_of_label(volume[0], self.ignore_label)
            here = np.stack(np.unravel_index(inside, volume.shape), 1)
            host_voxels = float(np.count_nonzero(volume == self.ignore_label))
            self._hosts[case] = here, box, whole_voxels(volume), host_voxels
        return self._hosts[case]


def part_inside(shape: Sequence[int], lower: Sequence[int], upper: Sequence[int]) -> tuple[slice, ...]:
    """The part of the patch from `lower` to `upper` that lies in a case of `shape`."""
    return tuple(slice(int(max(0, -low)), int(max(0, min(high, n) - low)))
                 for n, low, high in zip(shape, lower, upper, strict=True))  # fmt: skip


def whole_voxels(seg: np.ndarray) -> tuple[float, float]:
    """How many voxels a preprocessed case has, and how many of them nnU-Net has not marked as outside of the image."""
    return float(seg.size), float(np.count_nonzero(seg >= 0))


def raw_corner(properties: dict[str, Any], shape: Sequence[int]) -> np.ndarray:
    """The first corner of the raw image, in voxels of the preprocessed case of `shape`."""
    cropped = np.array([low for low, _ in properties["bbox_used_for_cropping"]], dtype=float)
    return -cropped * np.array(shape) / np.array(properties["shape_after_cropping_and_before_resampling"])


def stack_targets(targets: list[Any]) -> torch.Tensor | list[torch.Tensor]:
    """Batch the targets of samples: a tensor, or with deep supervision a list of them per resolution."""
    if isinstance(targets[0], list):
        return [torch.stack(level) for level in zip(*targets, strict=True)]
    return torch.stack(targets)
