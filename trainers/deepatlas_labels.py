"""Fits labelled images to unlabelled ones, case by case, and writes the labels and the warped images beside a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_synthtumour.settings import DeepAtlasSettings, RegistrationSettings
from nnunet_synthtumour.trainers.carried_labels import Carried
from nnunet_synthtumour.trainers.carried_run import EACH, digest_of
from nnunet_synthtumour.trainers.carried_writer import CarriedWriter
from nnunet_synthtumour.trainers.deepatlas_stages import FEW_LABELS
from nnunet_synthtumour.trainers.fitted_labels import FINE, STIFFNESS, WARPED, Fitted, LabelFitter, write_warped

MOST_TIMES = 10  # that a case is listed
RELAYS = 8  # with few labels; more of them outvote errors by themselves
NO_LABEL = -2  # nothing that labels are fitted to is ignored


@dataclass(frozen=True)
class Fitting:
    """The `sources` likest of the `labelled` cases give each target its labels, on a way of their own and on one through
    each of the `relays`, which are targets, too."""

    fitter: LabelFitter
    writer: CarriedWriter
    labelled: Sequence[str]
    sources: int
    relays: Sequence[str] = ()

    def to_target(self, target: str, folder: Path) -> dict[str, Any]:
        """Write what is fitted to a target; its row of the report."""
        chosen, fitted = self._direct_to_relays.get(target) or self._direct(target)
        write_warped(folder, target, fitted, self.writer.locations(fitted.labels.numpy()))
        carried = self._relayed.get(target) or self._voted(target, fitted.carried, self._relayed)
        others = [relay for relay in self._relayed if relay != target]
        row = self.writer.write(folder, target, chosen, carried, carried.labels)
        return {**row, "relays": others}

    @cached_property
    def _direct_to_relays(self) -> dict[str, tuple[list[str], Fitted]]:
        """Fitted by every process for itself."""
        return {relay: self._direct(relay) for relay in self.relays}

    @cached_property
    def _relayed(self) -> dict[str, Carried]:
        """The labels of relays, once those of the others have been heard: better ones (hippocampi, one label, two draws:
        0.775 for 0.762, 0.795 for 0.783), which gives all others 0.2 to 0.4 points. A third round adds nothing."""
        direct = {relay: fitted.carried for relay, (_, fitted) in self._direct_to_relays.items()}
        return {relay: self._voted(relay, carried, direct) for relay, carried in direct.items()}

    def _voted(self, target: str, direct: Carried, relayed: Mapping[str, Carried]) -> Carried:
        others = {relay: carried.labels for relay, carried in relayed.items() if relay != target}
        return self.fitter.by_way_of(others, target, direct) if others else direct

    def _direct(self, target: str) -> tuple[list[str], Fitted]:
        chosen = self.fitter.most_alike(target, self.labelled, self.sources)
        return chosen, self.fitter.fit(target, chosen)


def mark_of_fits(
    cases: Any,
    labelled: Sequence[str],
    targets: Sequence[str],
    plans: str,
    configuration: str,
    manager: ConfigurationManager,
    settings: DeepAtlasSettings,
    registration: RegistrationSettings,
) -> dict[str, Any]:
    """All that fitted labels depend on: those that were made with another mark are fitted anew."""
    relays = relays_for(len(labelled), settings)
    each = (
        dict.fromkeys(targets, digest_of(cases, targets))  # any of them may be a relay
        if relays
        else {target: digest_of(cases, [target]) for target in targets}
    )
    return {"labelled": list(labelled), EACH: each, "plans": plans, "spacing": list(manager.spacing),
            "images": digest_of(cases, labelled), "normalisation": list(manager.normalization_schemes),
            "configuration": configuration, "iterations": settings.fitted, "sources": settings.sources,
            "relays": relays, "fields": [FINE.smoothing, FINE.max_gradient, STIFFNESS], "similarity": registration.similarity,
            "regularity": [registration.regularity_kind, registration.regularity]}  # fmt: skip


def relays_for(labelled: int, settings: DeepAtlasSettings) -> int:
    """Through how many unlabelled images fitted labels go."""
    if settings.relays is not None:
        return settings.relays
    return RELAYS if labelled <= FEW_LABELS else 0


def with_fitted(labelled: Sequence[str], fitted_to: Sequence[str], settings: DeepAtlasSettings) -> list[str]:
    """The cases that a segmenter's patches come from: others with fitted labels and images warped to them, as often as
    their weights say, and manually `labelled` ones so often that they are at least the share `settings.manual`."""
    carried, warped = _times(settings.carried, settings.warped)
    more = [*list(fitted_to) * carried, *[WARPED + case for case in fitted_to] * warped]
    copies = max(1, math.ceil(settings.manual / (1 - settings.manual) * len(more) / len(labelled) - 1e-9))
    return [*list(labelled) * copies, *more]


def _times(carried: float, warped: float) -> tuple[int, int]:
    """Small whole numbers in the proportion of two weights; what has a weight comes at least once."""
    least = min((weight for weight in (carried, warped) if weight > 0), default=1.0)
    one, other = (min(MOST_TIMES, round(weight / least)) for weight in (carried, warped))
    return one, other
