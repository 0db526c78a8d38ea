"""Two processes on the CPU, joined by gloo: what `-num_gpus 2` does to data and validation, without GPUs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from nnunet_synthtumour.trainers.carried_run import digest
from nnunet_synthtumour.trainers.crossmodal_trainer import CrossModalTrainer
from nnunet_synthtumour.trainers.deepatlas_trainer import DeepAtlasTrainer
from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer
from tests.toy_dataset import make_trainer


class OnCpu(SynthTumourTrainer):
    """nnU-Net takes it that ranks have GPUs. Wrapping the network for them is torch's part and is left out here."""

    def initialize(self) -> None:
        self.device, self.grad_scaler = torch.device("cpu"), None
        self._set_batch_size_and_oversample()
        ranks, self.is_ddp = self.is_ddp, False
        batch_size = self.batch_size
        super().initialize()
        self.is_ddp, self.batch_size = ranks, batch_size
        self.loss = self._build_loss()  # the one that nnU-Net builds among ranks


OnCpu.__name__ = "SynthTumourTrainer"


class BothOnCpu:
    """Both networks wrapped as on GPUs."""

    def initialize(self: Any) -> None:
        self.device, self.grad_scaler = torch.device("cpu"), None
        self._set_batch_size_and_oversample()
        batch_size, self.is_ddp = self.batch_size, False
        super().initialize()
        self.is_ddp, self.batch_size = True, batch_size
        self.loss = self._build_loss()  # among ranks, each output counts a little
        self.network = DistributedDataParallel(self.network)
        self.registration.among_ranks(None)


class WrappedOnCpu(OnCpu):
    def initialize(self) -> None:
        super().initialize()
        if self.is_ddp:
            self.network = DistributedDataParallel(self.network)


WrappedOnCpu.__name__ = "SynthTumourTrainer"


class DeepAtlasOnCpu(BothOnCpu, DeepAtlasTrainer): ...


class CrossModalOnCpu(BothOnCpu, CrossModalTrainer): ...


UNLABELLED = dict.fromkeys([f"case_{i:03d}" for i in range(4)], "unlabelled")
OF_TRAINER: dict[str, tuple[type, dict[str, Any]]] = {
    "DeepAtlas": (DeepAtlasOnCpu, {"roles": {**UNLABELLED, "case_006": "labelled", "case_007": "labelled"},
                                   "deepatlas": {"alone": 0.5, "taught": 0.0, "fitted": 5, "pairs": [0, 0.3, 0.3, 0.4]}}),
    "CrossModal": (CrossModalOnCpu, {"roles": UNLABELLED, "source": {"dataset": "2"},
                                     "crossmodal": {"alone": 0.5, "network": "unet", "refine": 0}}),
}  # fmt: skip


def _train(rank: int, world: int, name: str, toy: str, out: str, port: int, batch_dice: bool) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    kind, settings = OF_TRAINER[name]
    training = {"epochs": 2, "iterations": 4, "seed": 1}
    trainer = make_trainer(Path(toy), kind, fold="all", training=training, **settings)
    trainer.num_val_iterations_per_epoch = 1
    trainer.configuration_manager.configuration["batch_dice"] = batch_dice
    trainer.run_training()
    trainer.perform_actual_validation()  # pairs are registered by the first rank alone
    log = trainer.logger.local_logger.my_fantastic_logging
    found = {
        "segmenter": digest(trainer.network.module.state_dict()),
        "registration": digest(trainer.registration.bare.state_dict()),
        "log": [log[key] for key in ("similarity_loss", "carried_loss", "train_losses", "val_losses", "mean_fg_dice")],
        "folder": trainer.output_folder,
    }
    Path(out, f"{rank}.json").write_text(json.dumps(found, default=float), encoding="utf-8")
    dist.destroy_process_group()


def _epoch(trainer: Any) -> dict[str, Any]:
    """One validation epoch of an untrained network, and the first training batch."""
    trainer.initialize()
    train, val = trainer.get_dataloaders()
    first = next(train)
    trainer.current_epoch = 0
    trainer.network.eval()
    with torch.no_grad():
        outputs = [trainer.validation_step(next(val)) for _ in range(trainer.num_val_iterations_per_epoch)]
    trainer.on_validation_epoch_end(outputs)
    log = trainer.logger.local_logger.my_fantastic_logging
    return {
        "dice": float(log["mean_fg_dice"][0]),
        "in_distribution": log["in_distribution_dice"][0],
        "patches": sorted(f"{i:03d} {text}" for output in outputs for i, text in output["digests"].items()),
        "first": float(first["data"].abs().sum()),
        "batch": int(first["data"].shape[0]),
    }


def _rank(rank: int, world: int, toy: str, out: str, port: int, configuration: str, patches: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    np.random.seed(7)
    found = _epoch(make_trainer(Path(toy), OnCpu, configuration, validation={"patches": patches, "affected": 1.0}))
    Path(out, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


@pytest.mark.parametrize(("configuration", "patches"), [("3d_fullres", 7), ("2d", 5)])  # 2d: Dice over the batch
def test_two_ranks_share_the_validation_set_and_agree_with_one_process(
    toy: Path, tmp_path: Path, configuration: str, patches: int
) -> None:
    from nnunetv2.run.run_training import find_free_network_port

    make_trainer(toy, SynthTumourTrainer).do_split()
    port = find_free_network_port()
    mp.spawn(_rank, args=(2, str(toy), str(tmp_path), port, configuration, patches), nprocs=2)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    alone = _epoch(make_trainer(toy, OnCpu, configuration, validation={"patches": patches, "affected": 1.0}))

    assert len(alone["patches"]) == 2 * patches
    assert sorted(ranks[0]["patches"] + ranks[1]["patches"]) == alone["patches"]  # bit for bit
    for key in ("dice", "in_distribution"):
        # An untrained network has near-ties, which fall one way in a batch of one and the other in a batch of two.
        assert ranks[0][key] == ranks[1][key] == pytest.approx(alone[key], abs=5e-3)
    assert alone["dice"] >= 0
    assert ranks[0]["first"] != ranks[1]["first"]
    assert ranks[0]["batch"] + ranks[1]["batch"] == alone["batch"]


def _validate(rank: int, world: int, toy: str, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    trainer = make_trainer(Path(toy), WrappedOnCpu)
    trainer.initialize()
    trainer.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))  # as --val does
    trainer.perform_actual_validation()
    dist.destroy_process_group()


def test_two_ranks_share_the_final_validation_and_agree_with_one_process(toy: Path) -> None:
    from nnunetv2.run.run_training import find_free_network_port

    trainer = make_trainer(toy, WrappedOnCpu, training={"epochs": 1, "iterations": 1, "seed": 1})
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder) / "validation"
    alone = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    segmented = {file.name: file.read_bytes() for file in folder.glob("*.nii.gz")}
    (folder / "summary.json").unlink()
    for name in segmented:
        (folder / name).unlink()
    mp.spawn(_validate, args=(2, str(toy), find_free_network_port()), nprocs=2)
    assert len(segmented) == len(trainer.do_split()[1]) > 1
    assert {file.name: file.read_bytes() for file in folder.glob("*.nii.gz")} == segmented
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8")) == alone


@pytest.mark.parametrize(("name", "batch_dice"), [("DeepAtlas", False), ("DeepAtlas", True), ("CrossModal", True)])
def test_two_ranks_keep_the_same_two_networks(name: str, batch_dice: bool, two: Path, tmp_path: Path) -> None:
    """Though one has more warped samples than the other: a Dice over the batches of both would wait for ever."""
    from nnunetv2.run.run_training import find_free_network_port

    mp.spawn(_train, args=(2, name, str(two), str(tmp_path), find_free_network_port(), batch_dice), nprocs=2)
    texts = [(tmp_path / f"{rank}.json").read_text(encoding="utf-8") for rank in range(2)]
    assert texts[0] == texts[1]
    found = json.loads(texts[0])
    similarity, carried, train, *_ = found["log"]
    assert np.isfinite(similarity[0]) and np.isfinite(train[-1])
    if name == "DeepAtlas":
        assert np.isfinite(carried[-1])  # though some pairs of a rank have no labelled image
        assert (Path(found["folder"]) / "registration.pth").is_file()
    else:  # each rank carried its share of the labels
        folder = Path(found["folder"]) / "carried_labels"
        report = json.loads((folder / "carried_labels.json").read_text(encoding="utf-8"))
        names = sorted(UNLABELLED)
        assert sorted(file.name[:8] for file in folder.glob("*_seg.npy")) == names
        assert [case["case"] for case in report["cases"]] == names
