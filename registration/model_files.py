"""A trained registration network as one file, `registration.pth` in a folder, with all that is needed to rebuild it.

A dictionary, read with `torch.load(weights_only=True)`, of

    version             5; 1 had no guides, 2 knew nothing of axis order, direction and windows, 3 nothing of passes, 4
                        nothing of structure_steps
    network             "unet" (RegistrationUNet) or "mscgunet" (MSCGUNet)
    network_class_name, arch_kwargs, kw_requires_import
                        the architecture as nnU-Net's plans give it (`networks.unet_from_plans`)
    image_channels      channels of each of the two images
    options             keyword arguments of the network beyond the plans: velocity_level, the limits of its velocity, and
                        `structures`, the number of labels that its guide finds (`structure_guide`; its weights are here),
                        `in_mask`, whether that was taught on channels normalised within a mask, `passes` and
                        `structure_steps`
    spacing             mm along the tensor axes that the network was trained at, or None
    patch_size          voxels along the tensor axes that it was trained at, or None
    transpose_forward   nnU-Net's: tensor axis a of the training is axis transpose_forward[a] of the image's array; None if
                        not known, as in older files
    direction           ITK's direction cosines of the training images (D * D numbers, row by row), None if not known or
                        not the same for all (`trained_frame` brings other images into this frame)
    moving_windows, fixed_windows
                        per channel the intensities (lower, upper) that nnU-Net clipped the images to, or None; None
                        altogether if no channel was
    state_dict          the weights

Images are given to the network as `instance.normalised` leaves them, after clipping.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nnunet_synthtumour.registration.msc_gunet import MSCGUNet
from nnunet_synthtumour.registration.networks import RegistrationUNet

FILE_NAME = "registration.pth"
VERSION, READABLE = 5, (1, 2, 3, 4, 5)
Windows = tuple[tuple[float, float] | None, ...]
NETWORKS: dict[str, type[RegistrationUNet]] = {"unet": RegistrationUNet, "mscgunet": MSCGUNet}


@dataclass(frozen=True)
class Architecture:
    """What a network is built from; see the module for every entry."""

    network: str
    network_class_name: str
    arch_kwargs: dict[str, Any]
    kw_requires_import: list[str]
    image_channels: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    spacing: tuple[float, ...] | None = None
    patch_size: tuple[int, ...] | None = None
    transpose_forward: tuple[int, ...] | None = None
    direction: tuple[float, ...] | None = None
    moving_windows: Windows | None = None
    fixed_windows: Windows | None = None

    def build(self) -> RegistrationUNet:
        return NETWORKS[self.network].from_plans(
            self.network_class_name,
            self.arch_kwargs,
            self.kw_requires_import,
            self.image_channels,
            **self.options,
        )


def save_model(folder: Path, architecture: Architecture, network: torch.nn.Module) -> Path:
    """Write `registration.pth` into the folder, which is made if need be."""
    if architecture.network not in NETWORKS:
        raise ValueError(f"A network is one of {', '.join(NETWORKS)}, not {architecture.network}.")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    path = folder / FILE_NAME
    scratch = path.with_suffix(".part")  # a killed run leaves the file that was there
    torch.save({"version": VERSION, **vars(architecture), "state_dict": weights}, scratch)
    return scratch.replace(path)


def load_model(folder: Path, device: str | torch.device = "cpu") -> tuple[RegistrationUNet, Architecture]:
    """The network, ready for prediction. A `ValueError` says in one sentence what is wrong with the folder."""
    path = folder / FILE_NAME
    if not path.is_file():
        raise ValueError(f"There is no registration model in {folder}: {FILE_NAME} is missing.")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        version = stored.pop("version")
        weights = stored.pop("state_dict")
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a registration model of this package.") from error
    if version not in READABLE or stored.get("network") not in NETWORKS:
        raise ValueError(
            f"{path} was written by another version: its format is {version}, this one reads up to {VERSION}."
        )
    architecture = Architecture(**stored)
    network = architecture.build()
    network.load_state_dict(weights)
    return network.to(device).eval(), architecture
