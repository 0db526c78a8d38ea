"""A trained registration network on two images as they come: shown to it as those it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.pair_images import Pair, tensor
from nnunet_synthtumour.registration.affine_alignment import background_of
from nnunet_synthtumour.registration.anatomy import in_both
from nnunet_synthtumour.registration.fields import warp
from nnunet_synthtumour.registration.instance import normalised
from nnunet_synthtumour.registration.kept_background import keeping_background
from nnunet_synthtumour.registration.model_files import FILE_NAME, Architecture, Windows, load_model
from nnunet_synthtumour.registration.networks import on_image
from nnunet_synthtumour.registration.physical import affine_displacement, voxel_map
from nnunet_synthtumour.registration.trained_frame import frame_of
from nnunet_synthtumour.resampling import surrounded


class Said(NamedTuple):
    """Velocity (1, D, ...) along the axes of the fixed grid, on a grid of the same extent (see `Frame.velocity`), on the
    fixed grid the probabilities of structures, if the network has a guide that finds some in both images, and how many
    steps towards them are in the velocity."""

    velocity: Tensor
    found: tuple[Tensor, Tensor] | None
    steps: int = 0


@dataclass(frozen=True)
class PairNetwork:
    """A network and what its file says of the images that it learnt from."""

    network: Any
    architecture: Architecture

    @torch.no_grad()
    def say(self, pair: Pair, matrix: Tensor, structures: bool = True) -> Said:
        """Of the moving image, brought to the fixed grid by the affine `matrix`, and the fixed one."""
        device, about = pair.fixed.device, self.architecture
        field = affine_displacement(voxel_map(pair.fixed_grid, pair.moving_grid, matrix), pair.fixed.shape[2:])
        frame = frame_of(about, pair.fixed_grid)
        image, there = (one.to(device) for one in seen_where(pair.moving_images, about.moving_windows))
        image, there = keeping_background(image, there, partial(_warped, field.float().to(device)))
        moving, _ = keeping_background(image, there, frame.image)
        image, there = (one.to(device) for one in seen_where(pair.fixed_images, about.fixed_windows))
        fixed, _ = keeping_background(image, there, frame.image)
        known = self.network.found_in(moving, fixed)
        velocity = self.network.looked(moving, fixed, known)
        found, steps = None, 0
        if structures and known is not None:
            velocity, kept = self.network.drawn(velocity, moving, fixed, known)
            steps = self.network.structure_steps * int(kept[0])
            both, shape = in_both(known), pair.fixed.shape[2:]
            found = None if both is None else (frame.home(both[0], shape), frame.home(both[1], shape))
        return Said(frame.velocity(on_image(velocity, frame.shape, self.network.total_stride)), found, steps)


def _warped(displacement: Tensor, image: Tensor, mode: Literal["linear", "nearest"]) -> Tensor:
    return warp(image, displacement, mode)


def network_for(folder: Path, pair: Pair) -> PairNetwork:
    """The network in a folder (or that file itself), if it is one for images of that kind."""
    folder = folder.parent if folder.name == FILE_NAME else folder
    try:
        network, architecture = load_model(folder, pair.fixed.device)
    except ValueError as error:
        raise UserError(str(error)) from error
    dims, channels = pair.fixed.ndim - 2, (len(pair.fixed_images), len(pair.moving_images))
    if network.dims != dims:
        raise UserError(f"The model in {folder} registers {network.dims}D images, and these are {dims}D.")
    if set(channels) != {architecture.image_channels}:
        raise UserError(
            f"The model in {folder} registers images of {architecture.image_channels} channels, and these have "
            f"{channels[0]} (-f) and {channels[1]} (-m); give one file per channel, in the order of the training."
        )
    shape = frame_of(architecture, pair.fixed_grid).shape
    if all(n <= stride for n, stride in zip(shape, network.total_stride, strict=True)):  # one voxel is left
        sides = " x ".join(str(n) for n in shape)
        raise UserError(
            f"The fixed image has {sides} voxels at the spacing of the model in {folder}, which needs more than "
            f"{max(network.total_stride)} along one axis; register without --model."
        )
    return PairNetwork(network, architecture)


def seen_where(images: Sequence[Any], windows: Windows | None) -> tuple[Tensor, Tensor]:
    """`seen`, and 1 where an image is, 0 around stripped and padded ones."""
    masks = []
    for image in images:
        array = sitk.GetArrayFromImage(image)
        there = surrounded(array, background_of(image))
        masks.append(np.ones(array.shape, bool) if there is None else there)
    return seen(images, windows), torch.from_numpy(np.stack(masks)[None].astype(np.float32))


def seen(images: Sequence[Any], windows: Windows | None) -> Tensor:
    """(1, C, ...): every channel clipped as in training, where that clipped it, and normalised."""
    image = tensor(images)
    for channel, window in enumerate(windows or ()):
        if window is not None:
            image[:, channel].clamp_(*window)
    return normalised(image)
