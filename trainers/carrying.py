"""Registers labelled sources to a target of another modality and brings their labels along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from nnunet_synthtumour.carried_appearance import corrected
from nnunet_synthtumour.registration.fields import warp
from nnunet_synthtumour.registration.instance import (
    REGULARITY_WEIGHTS,
    InstanceSettings,
    Similarity,
    image_cost,
    optimise,
)
from nnunet_synthtumour.settings import CrossModalSettings, RegistrationSettings
from nnunet_synthtumour.trainers.carried_labels import Carried, fuse, unlikeness, vote
from nnunet_synthtumour.trainers.registration_network import RegistrationLearner
from nnunet_synthtumour.trainers.whole_grids import OUTSIDE


class LabelCarrier:
    """`images` gives a `Whole` by case, sources and targets on one grid of `spacing` mm."""

    def __init__(
        self,
        images: Any,
        learner: RegistrationLearner,
        settings: CrossModalSettings,
        registration: RegistrationSettings,
        classes: int,
        spacing: Sequence[float],
        device: torch.device,
    ) -> None:
        self.images, self.learner, self.settings, self.registration = images, learner, settings, registration
        self.classes, self.spacing, self.device = classes, tuple(float(mm) for mm in spacing), device

    def carry(self, target: str, sources: Sequence[str]) -> Carried:
        """The labels of all `sources` on the grid of `target`, fused, and corrected by what the target shows."""
        fixed = self.images[target].match()[None].to(self.device)
        labels, differences = [], []
        for source in sources:
            whole = self.images[source]
            moving = whole.match()[None].to(self.device)
            u = self.field(moving, fixed)
            labels.append(vote(whole.seg[None].to(self.device), u, self.classes))
            differences.append(unlikeness(warp(moving, u), fixed)[0, 0].cpu())
        return self._corrected(fuse(labels, differences, self.classes), target)

    def field(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """The network's displacement, fitted to this very pair; from none at all where the network's is worse."""
        if not self.settings.refine:
            return self.learner.register(moving, fixed)[0]
        similarity = cast(Similarity, self.settings.refine_similarity)
        wanted = InstanceSettings(
            similarity=similarity,
            iterations=self.settings.refine,
            regularity=self.registration.regularity_kind,  # type: ignore[arg-type]
            regularity_weight=self.registration.regularity * REGULARITY_WEIGHTS[similarity],
            symmetric=True,
        )
        learnt = self.learner.register(moving, fixed)[0]
        helps = image_cost(similarity, warp(moving, learnt), fixed) < image_cost(similarity, moving, fixed)
        initial = self.learner.velocity(moving, fixed) if helps else None
        with torch.enable_grad():  # nnU-Net predicts without
            return optimise(moving, fixed, wanted, self.spacing, initial=initial).displacement

    def _corrected(self, carried: Carried, target: str) -> Carried:
        """A voxel that changes its label is trusted if its new label is more probable than all others together."""
        image, seg = self.images[target]
        labels, probability = corrected(
            carried.labels.numpy(), image.numpy(), (seg[0] != OUTSIDE).numpy(), self.spacing, self.settings.appearance
        )
        found = torch.from_numpy(labels)
        doubtful = (found != carried.labels) & torch.from_numpy(probability < 0.5)
        agreement = torch.where(doubtful, torch.from_numpy(probability).float(), carried.agreement)
        return carried._replace(labels=found, agreement=agreement)
