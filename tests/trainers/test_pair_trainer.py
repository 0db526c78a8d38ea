"""The frame of a registration network beside nnU-Net's: what a training keeps, and which cases it has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.registration.model_files import load_model
from nnunet_synthtumour.trainers.deepatlas_trainer import DeepAtlasTrainer
from tests.toy_dataset import NAME, make_trainer

ROLES = {f"case_{i:03d}": "labelled" if i in (6, 7) else "unlabelled" for i in range(8)}
SHORT = {"training": {"epochs": 2, "iterations": 2, "seed": 1}, "roles": ROLES}


def test_a_training_goes_on_with_the_weight_of_anatomy_the_passes_and_the_steps_it_began_with(toy: Path) -> None:
    trainer = make_trainer(toy, DeepAtlasTrainer, fold="all", **SHORT)
    trainer.initialize()
    file = str(Path(trainer.output_folder) / "begun.pth")
    trainer.save_checkpoint(file)
    checkpoint = torch.load(file, weights_only=False)
    names = ("anatomy", "passes", "structure_steps")
    assert [checkpoint["registration"].pop(name) for name in names] == [4.0, 2, 8]
    torch.save(checkpoint, file)  # as earlier versions wrote it
    for wanted, expected in (({}, (1.0, 1, 0)), (dict(zip(names, (3.0, 2, 5), strict=True)), (3.0, 2, 5))):
        resumed = make_trainer(toy, DeepAtlasTrainer, fold="all", resume=True, **SHORT, registration=wanted)
        resumed.initialize()
        resumed.load_checkpoint(file)
        learner = resumed.registration
        assert (resumed.objective().settings.anatomy, learner.passes, learner.structure_steps) == expected
        assert learner.architecture.options.get("passes", 1) == expected[1]
        assert learner.architecture.options.get("structure_steps", 0) == expected[2]


def test_validation_with_other_settings_leaves_a_file_that_registers_as_it_did(toy: Path) -> None:
    trainer = make_trainer(toy, DeepAtlasTrainer, fold="all", **SHORT)
    trainer.initialize()
    trainer._save_registration()
    folder = Path(trainer.output_folder)
    weights = load_model(folder)[0].state_dict()
    stamp = (folder / "registration.pth").stat().st_mtime_ns
    trainer._write_how_it_registers(folder)
    assert (folder / "registration.pth").stat().st_mtime_ns == stamp
    other = make_trainer(toy, DeepAtlasTrainer, fold="all", **SHORT, registration={"structure_steps": 0, "passes": 3})
    other.initialize()  # with other weights
    other._write_how_it_registers(folder)
    network, _ = load_model(folder)
    assert (network.structure_steps, network.passes) == (0, 3)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


def test_labelled_images_that_no_fold_has_are_named(toy: Path) -> None:
    roles = {**ROLES, "case_000": "labelled"}
    split = {"train": ["case_006", "case_001"], "val": ["case_007"]}
    (toy / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(json.dumps([split] * 5), encoding="utf-8")
    trainer = make_trainer(toy, DeepAtlasTrainer, fold=0, **SHORT | {"roles": roles}, deepatlas={"fitted": 0})
    trainer.initialize()
    trainer.get_dataloaders()
    log = next(Path(trainer.output_folder).glob("training_log*")).read_text(encoding="utf-8")
    assert "left out, in no fold of splits_final.json (delete it to split anew): case_000 \n" in log


def test_a_case_that_was_removed_from_the_data_is_named(toy: Path) -> None:
    trainer = make_trainer(toy, DeepAtlasTrainer, fold="all", **SHORT | {"roles": {**ROLES, "case_099": "unlabelled"}})
    trainer.initialize()
    with pytest.raises(Refusal, match="case_099"):
        trainer.get_dataloaders()
