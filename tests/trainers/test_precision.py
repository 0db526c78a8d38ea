from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_synthtumour.trainers.precision import channels_innermost, has_bfloat16, in_float, mixed_precision
from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer
from tests.toy_dataset import make_trainer

CPU = torch.device("cpu")
SHORT = {"epochs": 1, "iterations": 1, "seed": 1}


@pytest.mark.parametrize(("bfloat16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_convolutions_run_in_what_was_asked_for(bfloat16: bool, dtype: torch.dtype) -> None:
    with mixed_precision(CPU, bfloat16):
        assert torch.nn.Conv3d(1, 1, 1)(torch.zeros(1, 1, 2, 2, 2)).dtype == dtype


def test_outputs_are_float_whether_one_or_many() -> None:
    half = torch.zeros(2, dtype=torch.bfloat16)
    assert in_float(half).dtype == torch.float32
    assert [o.dtype for o in in_float([half, half])] == [torch.float32] * 2


def test_other_devices_have_no_bfloat16_of_a_cpu() -> None:
    assert not has_bfloat16(torch.device("cuda"))
    assert not has_bfloat16(torch.device("mps"))


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_are_innermost_in_weights_and_activations_and_change_nothing(dims: int) -> None:
    convolution, layout = [(torch.nn.Conv2d, torch.channels_last), (torch.nn.Conv3d, torch.channels_last_3d)][dims - 2]
    torch.manual_seed(0)
    network = torch.nn.Sequential(convolution(1, 4, 3), torch.nn.LeakyReLU(), convolution(4, 4, 3))
    image = torch.randn(2, 1, *[8] * dims)
    before = network(image)
    channels_innermost(network, dims)
    after = network(image)
    assert network[2].weight.is_contiguous(memory_format=layout) and after.is_contiguous(memory_format=layout)
    assert not before.is_contiguous(memory_format=layout)
    assert torch.allclose(before, after, atol=1e-5)


def test_a_trainer_of_a_cpu_has_channels_innermost_and_its_checkpoint_suits_other_networks(toy: Path) -> None:
    trainer = make_trainer(toy, SynthTumourTrainer, training={**SHORT, "bfloat16": False})
    trainer.initialize()
    weights = [p for p in trainer.network.parameters() if p.ndim == 5 and min(p.shape[1:]) > 1]
    assert weights and all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in weights)
    file = toy / "some.pth"
    trainer.save_checkpoint(str(file))
    saved = torch.load(file, weights_only=False)["network_weights"]
    other = make_trainer(toy, SynthTumourTrainer, training={**SHORT, "bfloat16": True})
    other.initialize()
    other.network.load_state_dict(saved)
    assert all(torch.equal(saved[name], value) for name, value in other.network.state_dict().items())


@pytest.mark.parametrize("bfloat16", [True, False])
def test_a_trainer_computes_its_loss_in_float(toy: Path, bfloat16: bool) -> None:
    trainer = make_trainer(toy, SynthTumourTrainer, training={**SHORT, "bfloat16": bfloat16})
    trainer.initialize()
    assert trainer.bfloat16() is bfloat16
    seen = []
    loss = trainer.loss
    trainer.loss = lambda output, target: (seen.append(output[0].dtype), loss(output, target))[1]
    size = trainer.configuration_manager.patch_size
    target = [torch.zeros(2, 1, *(round(n * s) for n, s in zip(size, scale, strict=True)))
              for scale in trainer._get_deep_supervision_scales()]  # fmt: skip
    result = trainer.train_step({"data": torch.randn(2, 1, *size), "target": target})
    assert np.isfinite(result["loss"])
    assert seen == [torch.float32]


def test_null_takes_what_the_cpu_has(toy: Path) -> None:
    assert make_trainer(toy, SynthTumourTrainer, training=SHORT).bfloat16() is has_bfloat16(CPU)
