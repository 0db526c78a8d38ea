"""What a registration network minimises on a pair, at all the resolutions that it puts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from nnunet_synthtumour.registration.fields import resize
from nnunet_synthtumour.registration.instance import REGULARITY_WEIGHTS
from nnunet_synthtumour.registration.regularity import inverse_consistency
from nnunet_synthtumour.settings import RegistrationSettings
from nnunet_synthtumour.trainers.deepatlas_losses import (
    RegistrationTerms,
    likeness,
    manual_or_predicted,
    registration_terms,
)
from nnunet_synthtumour.trainers.registration_network import RegistrationLearner

SMALLEST_SIDE = 8  # voxels of an image at half resolution


@dataclass(frozen=True)
class RegistrationObjective:
    """similarity + smooth * regularity + anatomy weight * anatomy at full resolution, and `half` times that of a coarser
    output; `half_images`: a network that has none is judged by the similarity of images at half resolution instead."""

    settings: RegistrationSettings
    classes: int
    half: float = 0.5
    half_images: bool = False
    consistency: float = 0.0

    def __call__(
        self, learner: RegistrationLearner, output: Any, pair: dict[str, Any], predicted: Sequence[Tensor | None]
    ) -> tuple[Tensor, RegistrationTerms]:
        """The loss of the network's `output`, and its parts at full resolution; `predicted` are probabilities of labels
        (B, classes, X, Y, Z) that stand in for those that the moving and the fixed images lack."""
        moving, fixed = pair["moving"], pair["fixed"]
        one, other = (
            manual_or_predicted(side, self.classes, p) for side, p in zip((moving, fixed), predicted, strict=True)
        )
        velocities, extra = learner.velocities_and_graph_loss(output)
        terms: list[RegistrationTerms] = []
        loss = moving["match"].new_zeros(()) + extra
        for velocity in velocities:
            forward, backward = learner.displacements(velocity, moving["match"].shape[2:])
            found = registration_terms(moving, fixed, forward, backward, velocity, (one, other),
                                       self.settings.similarity, self.settings.regularity_kind,
                                       learner.spacing_of(velocity, moving["match"].shape[2:]))  # fmt: skip
            loss = loss + (self.half if terms else 1.0) * self._weighted(found)
            if not terms and self.consistency:
                loss = loss + self.consistency * inverse_consistency(forward, backward)
            terms.append(found)
            if len(velocities) == 1 and self.half_images and self.half:
                loss = loss + self.half * self._half_similarity(moving["match"], fixed["match"], forward, backward)
        return loss, terms[0]

    def _weighted(self, terms: RegistrationTerms) -> Tensor:
        smooth = self.settings.regularity * REGULARITY_WEIGHTS[self.settings.similarity]
        assert self.settings.anatomy is not None, "trainers complete their settings"
        return terms.similarity + smooth * terms.regularity + self.settings.anatomy * terms.anatomy

    def _half_similarity(self, moving: Tensor, fixed: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        size = tuple(max(SMALLEST_SIDE, n // 2) for n in moving.shape[2:])
        m, f = (F.interpolate(image, size, mode="trilinear") for image in (moving, fixed))
        return likeness(self.settings.similarity, m, f, resize(forward, size), resize(backward, size))
