"""A registration network that is trained beside nnU-Net's: built from the same plans, with an optimiser of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_synthtumour.registration.model_files import Architecture
from nnunet_synthtumour.registration.msc_gunet import GraphRegistration
from nnunet_synthtumour.registration.networks import on_image
from nnunet_synthtumour.registration.structure_guide import StructureGuide
from nnunet_synthtumour.settings import RegistrationSettings
from nnunet_synthtumour.trainers.gradient_step import descend
from nnunet_synthtumour.trainers.seen_images import SeenImages

GRAPH_WEIGHT = 1e-3


def _guide(configuration: ConfigurationManager, structures: int) -> dict[str, Any]:
    """Of the guide: how many labels it finds, and which channels nnU-Net normalises within a mask."""
    schemes = zip(configuration.normalization_schemes, configuration.use_mask_for_norm, strict=True)
    in_mask = [scheme == "ZScoreNormalization" and bool(masked) for scheme, masked in schemes]
    return {"structures": structures} | ({"in_mask": in_mask} if any(in_mask) else {})


def kind_of(weights: Iterable[str]) -> tuple[str, bool]:
    """What `registration.network` is whose weights have these names, and whether a guide is inside."""
    inside = {name.partition(".")[0] for name in weights}
    return "mscgunet" if "graph" in inside else "unet", "guide" in inside


class RegistrationLearner:
    """The network, its optimiser and its schedule. `rank` is given where there are several processes; `structures` is the
    number of labels that a guide inside the network finds (registration/structure_guide.py), 0 for no guide; `images` is
    noted for who registers others with the network later."""

    def __init__(
        self,
        configuration: ConfigurationManager,
        settings: RegistrationSettings,
        image_channels: int,
        device: torch.device,
        compiled: bool = False,
        rank: int | None = None,
        structures: int = 0,
        images: SeenImages | None = None,
    ) -> None:
        self.settings = settings
        arch_kwargs = dict(configuration.network_arch_init_kwargs)
        # a decoder of one stage ends at full resolution; the second output of mscgunet needs one more
        shallow = int(arch_kwargs["n_stages"]) < (4 if settings.network == "mscgunet" else 3)
        self.architecture = Architecture(
            network=settings.network,
            network_class_name=configuration.network_arch_class_name,
            arch_kwargs=arch_kwargs,
            kw_requires_import=list(configuration.network_arch_init_kwargs_req_import),
            image_channels=image_channels,
            options=({"velocity_level": 0} if shallow else {})
            | (_guide(configuration, structures) if structures else {})
            | ({"passes": settings.passes} if (settings.passes or 1) > 1 else {})
            | ({"structure_steps": settings.structure_steps} if structures and settings.structure_steps else {}),
            spacing=tuple(float(s) for s in configuration.spacing),
            patch_size=tuple(int(n) for n in configuration.patch_size),
            **({} if images is None else vars(images)),
        )
        self.bare: nn.Module = self.architecture.build().to(device)
        self._alone: Any = torch.compile(self.bare) if compiled else self.bare
        self.network: Any = self._alone
        if rank is not None:
            self.among_ranks(None if device.type == "cpu" else [rank])
        self.learnt = [p for p in self.bare.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.learnt, settings.initial_lr)
        self.grad_scaler = torch.amp.GradScaler("cuda") if device.type == "cuda" else None

    def among_ranks(self, devices: list[int] | None) -> None:
        """Gradients are averaged over the processes; each makes its guide anew, from the same averaged weights."""
        self.network = DistributedDataParallel(self._alone, device_ids=devices, broadcast_buffers=False)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """nnU-Net's polynomial decay."""
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.initial_lr * max(0.0, 1 - epoch / epochs) ** 0.9

    def step(self, loss: Tensor) -> None:
        descend(loss, self.learnt, self.optimizer, self.grad_scaler)

    def velocities_and_graph_loss(self, output: Any) -> tuple[list[Tensor], Tensor | float]:
        """Velocities, finest first, and what the graph adds to the loss."""
        if isinstance(output, GraphRegistration):
            return list(output[:2]), GRAPH_WEIGHT * (output.kl + output.diagonal)
        return [output], 0.0

    def displacements(self, velocity: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self._net.displacement(velocity, shape), self._net.displacement(-velocity, shape)

    def spacing_of(self, velocity: Tensor, shape: Sequence[int]) -> list[float] | None:
        """Between voxels of a velocity, for images of this shape, along the tensor axes."""
        spacing = self.architecture.spacing
        stride = self._net.stride_of(velocity, shape)
        return None if spacing is None else [mm * s for mm, s in zip(spacing, stride, strict=True)]

    def register(
        self,
        moving: Tensor,
        fixed: Tensor,
        precision: AbstractContextManager[Any] | None = None,
        to_structures: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Displacement moving -> fixed and its inverse, for use, not for training; other ranks need not take part. Not
        `to_structures`: for labels that will teach the segmenter, which must not hear from itself."""
        self.network.eval()
        with torch.no_grad():
            with precision or nullcontext():
                velocity = self._net.predict(moving, fixed, self._alone, to_structures)
            both = self._net.displacements(velocity, moving.shape[2:])
        self.network.train()
        return both

    def looks(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, bool]:
        """What `register` makes of one pair before its steps towards structures, and whether these are kept."""
        self.network.eval()
        found = self._net.found_in(moving, fixed)
        looked = self._net.looked(moving, fixed, found, self._alone)
        _, kept = self._net.drawn(looked, moving, fixed, found)
        self.network.train()
        return self._net.displacement(looked, moving.shape[2:]), bool(kept.all())

    def velocity(self, moving: Tensor, fixed: Tensor, to_structures: bool = True) -> Tensor:
        """The finest velocity, for use, not for training; on the grid of the images."""
        self.network.eval()
        velocity = self._net.predict(moving, fixed, self._alone, to_structures)
        self.network.train()
        return on_image(velocity, fixed.shape[2:], self._net.total_stride)

    def found_in(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the guide, if it speaks, says about both images."""
        return self._net.found_in(moving, fixed)

    @property
    def guide(self) -> StructureGuide | None:
        """What tells the network where structures lie, once it has something to say."""
        guide = self._net.guide
        return guide if guide is not None and guide.talking else None

    @property
    def passes(self) -> int:
        """Times that the network looks at a pair that it registers."""
        return int(self._net.passes)

    @property
    def structure_steps(self) -> int:
        """Steps towards what the guide finds, after that."""
        return int(self._net.structure_steps)

    @property
    def _net(self) -> Any:
        return self.bare

    def state(self) -> dict[str, Any]:
        return {
            "weights": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "grad_scaler": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
            "anatomy": self.settings.anatomy,
            "passes": self.passes,
            "structure_steps": self.settings.structure_steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.bare.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.grad_scaler is not None and state["grad_scaler"] is not None:
            self.grad_scaler.load_state_dict(state["grad_scaler"])
