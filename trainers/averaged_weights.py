"""Optimisers that keep a running average of the weights, which is what is validated, saved and used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

HORIZONS = (10, 1000)


class Averaging:
    """Mixed into an optimiser: for every parameter p the average a <- a + (p - a) / h(t), h(t) = min(horizon, 1 + t / 8).

    `exchange` puts the averages in the place of the weights and back. Both belong to the optimiser's state, so nnU-Net's
    checkpoints hold both: the network's weights are the averaged ones, the optimiser's state has the others.
    """

    param_groups: list[dict[str, Any]]
    state: Any

    def begin(self, horizon: int) -> None:
        for group in self.param_groups:
            group.update(horizon=horizon, steps=0, averaged=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = super().step(closure)  # type: ignore[misc]
        for group in self.param_groups:
            group["steps"] += 1
            share = 1 / min(group["horizon"], 1 + group["steps"] / 8)
            moved = [p for p in group["params"] if p.grad is not None]
            for p in moved:
                if "average" not in self.state[p]:
                    self.state[p]["average"] = p.detach().clone()
            if moved:
                torch._foreach_lerp_([self.state[p]["average"] for p in moved], moved, share)
        return loss

    @property
    def averaged(self) -> bool:
        """Whether the averages stand in the place of the weights."""
        return bool(self.param_groups[0]["averaged"])

    @torch.no_grad()
    def exchange(self, averaged: bool) -> None:
        """Bring the averages (or the weights that are trained) into the network, if they are not there."""
        if averaged == self.averaged:
            return
        for group in self.param_groups:
            group["averaged"] = averaged
            for p in group["params"]:
                if "average" in self.state.get(p, {}):
                    kept = p.detach().clone()
                    p.copy_(self.state[p]["average"])
                    self.state[p]["average"].copy_(kept)


class AveragedSGD(Averaging, torch.optim.SGD):
    """SGD with averages."""


class AveragedAdamW(Averaging, torch.optim.AdamW):
    """AdamW with averages."""


def with_averages(optimizer: torch.optim.Optimizer, horizon: int) -> AveragedSGD | AveragedAdamW:
    """An optimiser with all that another has, which averages besides."""
    kind = AveragedAdamW if isinstance(optimizer, torch.optim.AdamW) else AveragedSGD
    averaging = kind(optimizer.param_groups, lr=optimizer.defaults["lr"])
    averaging.begin(horizon)
    return averaging


def horizon_of(iterations: int) -> int:
    """A tenth of a training, within limits."""
    return min(max(iterations // 10, HORIZONS[0]), HORIZONS[1])
