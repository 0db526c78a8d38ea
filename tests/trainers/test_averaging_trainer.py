from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnunet_synthtumour.trainers.averaged_weights import AveragedAdamW, AveragedSGD
from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer
from tests.toy_dataset import make_trainer

LONG = {"epochs": 250, "iterations": 250}
SHORT = {"epochs": 2, "iterations": 2, "seed": 1}


@pytest.mark.parametrize(
    ("training", "kind", "rate"),
    [
        (LONG, AveragedSGD, 0.01),
        (SHORT, AveragedAdamW, 0.001),
        ({**LONG, "optimizer": "adamw"}, AveragedAdamW, 0.001),
        ({**SHORT, "optimizer": "sgd"}, AveragedSGD, 0.01),
        ({**SHORT, "initial_lr": 0.02}, AveragedAdamW, 0.02),
        ({**SHORT, "optimizer": "adamw", "averaging": 0}, torch.optim.AdamW, 0.001),
    ],
)
def test_short_trainings_use_adamw_long_ones_nnunet_s_own(toy: Path, training: dict, kind: type, rate: float) -> None:
    trainer = make_trainer(toy, SynthTumourTrainer, training=training)
    trainer.network = torch.nn.Conv3d(1, 1, 1)
    optimizer, scheduler = trainer.configure_optimizers()
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == trainer.initial_lr == rate
    assert optimizer.param_groups[0]["weight_decay"] == trainer.weight_decay
    assert scheduler.optimizer is optimizer


def test_a_subclass_with_epochs_of_its_own_gets_what_suits_them(toy: Path) -> None:
    trainer = make_trainer(toy, SynthTumourTrainer, training=LONG)
    trainer.num_epochs = 10
    trainer.network = torch.nn.Conv3d(1, 1, 1)
    optimizer, _ = trainer.configure_optimizers()
    assert isinstance(optimizer, AveragedAdamW)
    assert optimizer.param_groups[0]["lr"] == trainer.initial_lr == 0.001


def test_a_training_goes_on_with_the_optimiser_that_it_began_with(toy: Path) -> None:
    begun = make_trainer(toy, SynthTumourTrainer, training=SHORT, validation={"patches": 4})
    begun.run_training()
    file = str(Path(begun.output_folder) / "checkpoint_final.pth")
    longer = make_trainer(toy, SynthTumourTrainer, training=LONG, resume=True)
    assert longer.optimizer_name() == "sgd"
    longer.load_checkpoint(file)
    assert isinstance(longer.optimizer, AveragedAdamW)
    assert longer.lr_scheduler.initial_lr == 0.001
    weights = begun.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in longer.network.state_dict().items())
    states = [[s["exp_avg"] for s in t.optimizer.state.values()] for t in (begun, longer)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
