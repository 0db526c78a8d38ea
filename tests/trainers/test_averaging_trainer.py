from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.trainers.averaged_weights import AveragedAdamW, AveragedSGD
from nnunet_synthtumour.trainers.deepatlas_trainer import DeepAtlasTrainer
from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer
from tests.toy_dataset import NAME, make_trainer

LONG = {"epochs": 250, "iterations": 250}
SHORT = {"epochs": 2, "iterations": 2, "seed": 1}
ROLES = {f"case_{i:03d}": "labelled" if i in (6, 7) else "unlabelled" for i in range(8)}


@pytest.mark.parametrize(
    ("trainer_class", "training", "kind", "rate"),
    [
        (SynthTumourTrainer, LONG, AveragedSGD, 0.01),
        (SynthTumourTrainer, SHORT, AveragedAdamW, 0.002),
        (SynthTumourTrainer, {**LONG, "epochs": 20}, AveragedAdamW, 0.002),
        (SynthTumourTrainer, {**LONG, "epochs": 21}, AveragedSGD, 0.01),
        (SynthTumourTrainer, {**LONG, "optimizer": "adamw"}, AveragedAdamW, 0.002),
        (DeepAtlasTrainer, LONG, AveragedSGD, 0.01),
        (DeepAtlasTrainer, SHORT, AveragedAdamW, 0.001),
        (DeepAtlasTrainer, {**SHORT, "optimizer": "sgd"}, AveragedSGD, 0.01),
        (DeepAtlasTrainer, {**SHORT, "initial_lr": 0.02}, AveragedAdamW, 0.02),
        (DeepAtlasTrainer, {**SHORT, "averaging": 0}, torch.optim.AdamW, 0.001),
    ],
)
def test_short_trainings_use_adamw_long_ones_nnunet_s_own(
    toy: Path, trainer_class: type, training: dict, kind: type, rate: float
) -> None:
    roles = {"roles": ROLES} if trainer_class is DeepAtlasTrainer else {}
    trainer = make_trainer(toy, trainer_class, training=training, **roles)
    trainer.network = torch.nn.Conv3d(1, 1, 1)
    optimizer, scheduler = trainer.configure_optimizers()
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == trainer.initial_lr == rate
    assert optimizer.param_groups[0]["weight_decay"] == trainer.weight_decay
    assert scheduler.optimizer is optimizer


@pytest.mark.parametrize(
    ("training", "device", "warns"), [(LONG, "cpu", True), (SHORT, "cpu", False), (LONG, "cuda", False)]
)
def test_a_long_training_on_a_cpu_says_how_to_shorten_it(
    toy: Path, training: dict, device: str, warns: bool, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    trainer = make_trainer(toy, DeepAtlasTrainer, training=training, roles=ROLES)
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)
    trainer.device = torch.device(device)
    trainer.on_train_start()
    line = "250 epochs of 250 iterations are many for a CPU; fewer: synthtumour settings -d Dataset001_Toy --set"
    assert (line in capsys.readouterr().out) is warns


def test_a_wrong_setting_is_refused_in_a_sentence(toy: Path) -> None:
    folder = toy / "nnUNet_preprocessed" / NAME
    plans, dataset_json = (
        json.loads((folder / f).read_text("utf-8")) for f in ("nnUNetTinyPlans.json", "dataset.json")
    )
    dataset_json["synthtumour"]["validation"] = {"affected": 0}
    with pytest.raises(Refusal, match=r"synthtumour\.validation\.affected"):
        SynthTumourTrainer(plans | {"continue_training": False}, "3d_fullres", 0, dataset_json, torch.device("cpu"))


def test_a_subclass_with_epochs_of_its_own_gets_what_suits_them(toy: Path) -> None:
    trainer = make_trainer(toy, DeepAtlasTrainer, training=LONG, roles=ROLES)
    trainer.num_epochs, trainer.num_iterations_per_epoch = 10, 25
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
    assert longer.lr_scheduler.initial_lr == 0.002
    weights = begun.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in longer.network.state_dict().items())
    states = [[s["exp_avg"] for s in t.optimizer.state.values()] for t in (begun, longer)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize(
    ("epochs", "mirroring", "axes"),
    [(3, None, None), (2600, None, (0, 1, 2)), (3, True, (0, 1, 2)), (2600, False, None)],
)
def test_short_trainings_mirror_nothing_unless_they_are_told_to(
    toy: Path, epochs: int, mirroring: bool | None, axes: tuple[int, ...] | None
) -> None:
    training = {**SHORT, "epochs": epochs, "mirroring": mirroring}
    trainer = make_trainer(toy, SynthTumourTrainer, training=training)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    assert torch.isfinite(next(loader)["data"]).all()
    assert trainer.inference_allowed_mirroring_axes == axes


def test_a_training_that_goes_on_mirrors_as_it_began(toy: Path, tmp_path: Path) -> None:
    begun = make_trainer(toy, SynthTumourTrainer, training={**SHORT, "mirroring": True})
    begun.initialize()
    begun.get_dataloaders()
    begun.save_checkpoint(str(tmp_path / "begun.pth"))
    for mirroring, axes in ((None, (0, 1, 2)), (False, None)):
        trainer = make_trainer(toy, SynthTumourTrainer, training={**SHORT, "mirroring": mirroring}, resume=True)
        trainer.initialize()
        trainer.load_checkpoint(str(tmp_path / "begun.pth"))
        trainer.get_dataloaders()
        assert trainer.inference_allowed_mirroring_axes == axes


@pytest.mark.parametrize(("before", "after"), [(None, 0), (0, None), (10, 20)])
def test_a_training_goes_on_with_another_averaging(toy: Path, before: int | None, after: int | None) -> None:
    begun = make_trainer(toy, SynthTumourTrainer, training={**SHORT, "averaging": before}, validation={"patches": 4})
    begun.run_training()
    file = str(Path(begun.output_folder) / "checkpoint_final.pth")
    trained = [p.detach().clone() for p in begun.network.parameters()]
    if before != 0:
        trained = [
            begun.optimizer.state.get(p, {}).get("average", p).detach().clone() for p in begun.network.parameters()
        ]  # exchanged at the end
    on = make_trainer(toy, SynthTumourTrainer, training={**SHORT, "epochs": 3, "averaging": after},
                      validation={"patches": 4}, resume=True)  # fmt: skip
    on.load_checkpoint(file)
    on.on_train_epoch_start()
    for was, now in zip(trained, on.network.parameters(), strict=True):
        assert torch.equal(was, now)
    if after == 20:
        assert {group["horizon"] for group in on.optimizer.param_groups} == {20}
    on.train_step(next(on.dataloader_train) if on.dataloader_train else next(on.get_dataloaders()[0]))


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(toy, SynthTumourTrainer, training=SHORT)
    trainer.initialize()
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    (file.parent / f".123.{file.name}").write_bytes(b"left by a kill")
    trainer.save_checkpoint(str(file))
    good = file.read_bytes()

    def torn(value: object, where: str) -> None:
        Path(where).write_bytes(b"torn")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == good
    assert [f.name for f in file.parent.iterdir() if "checkpoint" in f.name] == [file.name]


class _Killed(Exception):
    pass


def _trained(toy: Path, epochs: int, killed_in: int | None = None, **training: Any) -> SynthTumourTrainer:
    """Trained with `nnUNetv2_train` (`--c` where there is a checkpoint and no seed is given), killed in an epoch."""
    training = {**SHORT, "iterations": 1, "epochs": epochs, **training}
    resume = training["seed"] == SHORT["seed"]
    trainer: Any = make_trainer(toy, SynthTumourTrainer, training=training, validation={"patches": 4}, resume=resume)
    maybe_load_checkpoint(trainer, resume, False)
    train_step = trainer.train_step

    def step(batch: dict[str, Any]) -> dict[str, Any]:
        if trainer.current_epoch == killed_in:
            raise _Killed
        return train_step(batch)

    trainer.train_step = step
    with nullcontext() if killed_in is None else pytest.raises(_Killed):
        trainer.run_training()
    return trainer


def _found_by_c(toy: Path) -> int:
    """The epoch that `--c` begins with."""
    trainer: Any = make_trainer(toy, SynthTumourTrainer, training={**SHORT, "epochs": 6}, resume=True)
    maybe_load_checkpoint(trainer, True, False)
    return int(trainer.current_epoch)


def test_a_finished_training_that_goes_on_and_is_killed_goes_on_from_there(toy: Path) -> None:
    folder = Path(_trained(toy, epochs=2).output_folder)
    final = (folder / "checkpoint_final.pth").read_bytes()
    assert _trained(toy, epochs=6, killed_in=2).current_epoch == 2
    assert (folder / "checkpoint_final.pth").read_bytes() == final  # nothing newer is there yet
    assert _trained(toy, epochs=6, killed_in=4).current_epoch == 4
    assert _found_by_c(toy) == 4
    assert (folder / "previous_1_checkpoint_final.pth").read_bytes() == final
    _trained(toy, epochs=6)
    assert torch.load(folder / "checkpoint_final.pth", weights_only=False)["current_epoch"] == 6


def test_another_training_in_the_same_folder_is_not_mistaken_for_the_first(toy: Path) -> None:
    folder = Path(_trained(toy, epochs=2).output_folder)
    first = {name: (folder / name).read_bytes() for name in ("checkpoint_best.pth", "checkpoint_final.pth")}
    _trained(toy, epochs=6, seed=2, killed_in=0)
    assert {file.name: file.read_bytes() for file in folder.glob("*.pth")} == first  # by mistake, and stopped at once
    _trained(toy, epochs=6, seed=2, killed_in=3)
    assert _found_by_c(toy) == 3
    _trained(toy, epochs=6, seed=3, killed_in=2)
    assert {name: (folder / f"previous_1_{name}").read_bytes() for name in first} == first
    assert (folder / "previous_2_checkpoint_best.pth").is_file() and _found_by_c(toy) == 2
    logs = [file.read_text(encoding="utf-8") for file in folder.glob("training_log*")]
    assert sum("renamed to previous_1_" in text for text in logs) == 1


def test_a_refused_training_leaves_the_checkpoints_of_the_last_one(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(_trained(toy, epochs=2).output_folder)
    before = sorted(folder.glob("*.pth"))
    monkeypatch.setattr(SynthTumourTrainer, "hosts_ml", lambda self: {"case_000": 0.0})
    with pytest.raises(Refusal):
        make_trainer(toy, SynthTumourTrainer, training=SHORT).run_training()
    assert sorted(folder.glob("*.pth")) == before


def test_a_finished_training_that_is_only_validated_again_keeps_its_checkpoint(toy: Path) -> None:
    folder = Path(_trained(toy, epochs=2).output_folder)
    _trained(toy, epochs=2)  # --c
    assert sorted(file.name for file in folder.glob("*.pth")) == ["checkpoint_best.pth", "checkpoint_final.pth"]


@pytest.mark.parametrize(("epochs", "every"), [(1, 1), (20, 1), (250, 12), (1000, 50)])
def test_a_kill_costs_no_more_than_a_twentieth(toy: Path, epochs: int, every: int) -> None:
    trainer = make_trainer(toy, SynthTumourTrainer, training={**SHORT, "epochs": epochs})
    trainer.disable_checkpointing = True
    trainer.on_train_start()
    assert trainer.save_every == every


def test_a_network_of_one_resolution_is_refused(toy: Path) -> None:
    trainer = make_trainer(toy, SynthTumourTrainer)
    trainer.configuration_manager.configuration["architecture"]["arch_kwargs"]["strides"] = [[1, 1, 1]]
    with pytest.raises(Refusal, match="too small for a network of more than one resolution"):
        trainer.initialize()
