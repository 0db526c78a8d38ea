from __future__ import annotations

import copy

import torch

from nnunet_synthtumour.trainers.averaged_weights import Averaging, horizon_of, with_averages


def _trained(steps: int, resume_at: int | None = None) -> tuple[torch.nn.Module, Averaging]:
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 3)
    plain = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    optimizer = with_averages(plain, 5)
    for step in range(steps):
        if step == resume_at:  # as a checkpoint is written: averages in the network, weights in the optimiser
            optimizer.exchange(True)
            weights, state = copy.deepcopy(network.state_dict()), copy.deepcopy(optimizer.state_dict())
            network = torch.nn.Linear(4, 3)
            optimizer = with_averages(torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True), 99)
            network.load_state_dict(weights)
            optimizer.load_state_dict(state)
            assert optimizer.averaged
            optimizer.exchange(False)
        generator = torch.Generator().manual_seed(step)
        loss = network(torch.randn(8, 4, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network, optimizer


def test_weights_are_trained_as_without_and_averaged_as_stated() -> None:
    network, optimizer = _trained(12)
    torch.manual_seed(0)
    plain = torch.nn.Linear(4, 3)
    sgd = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    average: torch.Tensor | None = None
    for step in range(12):
        loss = plain(torch.randn(8, 4, generator=torch.Generator().manual_seed(step))).square().mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        now = plain.weight.detach().clone()
        average = now if average is None else average + (now - average) / min(5, 1 + (step + 1) / 8)
    assert torch.equal(network.weight, plain.weight)
    optimizer.exchange(True)
    assert average is not None and torch.allclose(network.weight, average, atol=1e-6)
    optimizer.exchange(True)
    optimizer.exchange(False)
    assert torch.equal(network.weight, plain.weight)


def test_a_resumed_training_is_the_same() -> None:
    one, optimizer_one = _trained(12)
    other, optimizer_other = _trained(12, resume_at=7)
    for averaged in (False, True):
        optimizer_one.exchange(averaged)
        optimizer_other.exchange(averaged)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_horizon_is_a_tenth_within_limits() -> None:
    assert [horizon_of(n) for n in (1, 400, 250_000)] == [10, 40, 1000]
