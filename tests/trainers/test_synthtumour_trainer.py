from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_synthtumour.errors import Refusal, UserError
from nnunet_synthtumour.trainers.patch_reuse import PatchReuse
from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer
from tests.toy_dataset import NAME, make_trainer


def _short(trainer: Any, epochs: int = 2, iterations: int = 2) -> Any:
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.save_every = epochs, iterations, 1
    return trainer


def _loaders(trainer: Any) -> tuple[Any, Any]:
    if not trainer.was_initialized:
        trainer.initialize()
    return trainer.get_dataloaders()


def _logged(trainer: Any) -> list[str]:
    logs = sorted(Path(trainer.output_folder).glob("training_log*"))
    return [line for log in logs for line in log.read_text(encoding="utf-8").splitlines()]


def _hashes(trainer: Any) -> list[str]:
    return [line.split()[-1] for line in _logged(trainer) if "Fixed validation set" in line]


def _one_epoch_of_validation(trainer: Any) -> dict[int, str]:
    _, val = _loaders(trainer)
    batches = [next(val) for _ in range(trainer.num_val_iterations_per_epoch)]
    for loader in (_, val):
        if hasattr(loader, "_finish"):
            loader._finish()
    return {index: text for batch in batches for index, text in batch["digests"].items()}


def test_two_epochs_validation_resume_and_prediction(toy: Path) -> None:
    trainer = _short(make_trainer(toy, SynthTumourTrainer))
    trainer.run_training()
    out = Path(trainer.output_folder)
    assert (out / "checkpoint_final.pth").is_file()
    assert (out / "checkpoint_best.pth").is_file()
    assert (out / "progress.png").stat().st_size > 10_000
    log = trainer.logger.local_logger.my_fantastic_logging
    assert len(log["mean_fg_dice"]) == len(log["in_distribution_dice"]) == 2

    trainer.perform_actual_validation(save_probabilities=True)
    summary = json.loads((out / "validation" / "summary.json").read_text(encoding="utf-8"))
    _, val_cases = trainer.do_split()
    assert len(summary["metric_per_case"]) == len(val_cases)
    assert all(case["metrics"]["1"]["n_ref"] > 0 for case in summary["metric_per_case"])
    assert len(list((out / "validation").glob("*.npz"))) == len(val_cases)
    assert sum("nnUNetv2_find_best_configuration" in line for line in _logged(trainer)) == 1

    resumed = _short(make_trainer(toy, SynthTumourTrainer, resume=True), epochs=3)
    resumed.load_checkpoint(str(out / "checkpoint_final.pth"))
    resumed.run_training()
    assert resumed.current_epoch == 3
    assert len(resumed.logger.local_logger.my_fantastic_logging["in_distribution_dice"]) == 3
    hashes = _hashes(resumed)
    assert len(hashes) == 3
    assert len(set(hashes)) == 1


@pytest.mark.parametrize("workers", [1, 4])
def test_the_fixed_set_does_not_depend_on_workers(workers: int, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = _one_epoch_of_validation(make_trainer(toy, SynthTumourTrainer))
    monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    np.random.seed(123)
    assert _one_epoch_of_validation(make_trainer(toy, SynthTumourTrainer)) == alone
    assert sorted(alone) == list(range(12))


def test_training_patches_of_healthy_cases_carry_lesions_and_no_ignore_label(toy: Path) -> None:
    trainer = make_trainer(toy, SynthTumourTrainer, training={"healthy_patches": 0.0})
    loader, _ = _loaders(trainer)
    batches = [next(loader) for _ in range(6)]
    targets = torch.cat(
        [batch["target"][0] if isinstance(batch["target"], list) else batch["target"] for batch in batches]
    )
    assert set(targets.unique().tolist()) <= {0, 1}
    healthy = [case in trainer.healthy for batch in batches for case in batch["keys"]]
    assert all((target == 1).any() for target, is_healthy in zip(targets, healthy, strict=True) if is_healthy)
    assert torch.isfinite(torch.cat([batch["data"] for batch in batches])).all()


def test_outside_of_the_image_is_background_unless_a_transform_asks_for_it(toy: Path) -> None:
    loader = _loaders(make_trainer(toy, SynthTumourTrainer))[0]
    loader = getattr(loader, "data_loader", None) or loader.generator
    loader.transforms, loader.reuse = None, PatchReuse()
    case = sorted(loader.healthy)[0]
    for outside_counts, least in ((True, -1), (False, 0)):
        loader.outside_counts = outside_counts
        patches = [loader.sample(case, False)["segmentation"] for _ in range(12)]
        assert min(int(p.min()) for p in patches) == least


def test_patches_are_used_again_in_long_trainings_or_where_the_setting_says(toy: Path) -> None:
    long, short = make_trainer(toy, SynthTumourTrainer), _short(make_trainer(toy, SynthTumourTrainer))
    long.num_epochs, long.num_iterations_per_epoch = 250, 250
    told = _short(make_trainer(toy, SynthTumourTrainer, training={"reuse": 2}))
    assert [_loaders(trainer)[0].data_loader.reuse.times for trainer in (long, short, told)] == [3, 1, 2]


def test_labelled_cases_are_drawn_as_often_as_the_settings_say(toy: Path) -> None:
    """Of five cases one is labelled, so 0.2 of patches that are drawn anyhow."""
    trainer = make_trainer(toy, SynthTumourTrainer, training={"labelled_share": 0.7})
    loader, _ = _loaders(trainer)
    drawn = [case not in trainer.healthy for _ in range(300) for case in loader.data_loader.get_indices()]
    assert np.mean(drawn) == pytest.approx(0.7, abs=0.06)


def test_without_healthy_cases_there_is_one_sentence(toy: Path) -> None:
    roles = {f"case_{i:03d}": "labelled" for i in range(8)}
    with pytest.raises(UserError, match=r"has no healthy case .*synthtumour prepare --healthy"):
        make_trainer(toy, SynthTumourTrainer, roles=roles)


def _validates_as(trainer: SynthTumourTrainer, values: Iterable[float], monkeypatch: pytest.MonkeyPatch) -> None:
    coming = iter(values)

    def log_next(outputs: list[dict[str, Any]]) -> None:
        value = float(next(coming))
        for key in ("mean_fg_dice", "val_losses", "in_distribution_dice"):
            trainer.logger.log(key, value, trainer.current_epoch)
        trainer.logger.log("dice_per_class_or_region", [value], trainer.current_epoch)
        trainer.logger.get_value("ema_fg_dice", None)[-1] = value

    monkeypatch.setattr(trainer, "on_validation_epoch_end", log_next)


def test_the_best_checkpoint_is_the_last_epoch_that_is_as_good_as_the_best(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _short(make_trainer(toy, SynthTumourTrainer), epochs=2, iterations=1)
    _validates_as(trainer, [0.6, 0.7], monkeypatch)
    trainer.run_training()
    best = Path(trainer.output_folder) / "checkpoint_best.pth"
    assert torch.load(best, weights_only=False)["current_epoch"] == 2
    again = _short(make_trainer(toy, SynthTumourTrainer, resume=True), epochs=6, iterations=1)
    again.load_checkpoint(str(best))
    _validates_as(again, [0.5, 0.695, 0.68, 0.2], monkeypatch)
    again.run_training()
    assert torch.load(best, weights_only=False)["current_epoch"] == 4  # epoch 3 is within a point of epoch 1


def test_patience_ends_training_cleanly_and_resumably(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _short(make_trainer(toy, SynthTumourTrainer, training={"patience": 1}), epochs=9, iterations=1)
    _validates_as(trainer, np.linspace(0.9, 0.1, 9), monkeypatch)
    trainer.run_training()
    assert trainer.current_epoch == 2
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    assert torch.load(file, weights_only=False)["current_epoch"] == 2
    written = file.read_bytes()
    again = _short(make_trainer(toy, SynthTumourTrainer, training={"patience": 1}, resume=True), epochs=9, iterations=1)
    again.load_checkpoint(str(file))
    again.run_training()  # as nnUNetv2_train --c does for a validation that was interrupted
    assert again.current_epoch == 2 and file.read_bytes() == written


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_same_seed_gives_the_same_curve(workers: int, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", str(workers))
    curves = []
    for _ in range(2):
        trainer = _short(make_trainer(toy, SynthTumourTrainer), epochs=2)
        trainer.run_training()
        log = trainer.logger.local_logger.my_fantastic_logging
        curves.append((log["train_losses"], log["val_losses"], log["mean_fg_dice"]))
    assert curves[0] == curves[1]


def test_nothing_is_put_into_fixed_patches_of_real_cases(toy: Path) -> None:
    trainer = make_trainer(toy, SynthTumourTrainer, validation={"shift": "real", "patches": 4})
    trainer.initialize()
    _, val = trainer.get_dataloaders()
    loader, grown = val.data_loader, []
    loader.grow = lambda patch, sample: grown.append(patch.case) or sample
    seen = {case for _ in range(trainer.num_val_iterations_per_epoch) for case in next(val)["keys"]}
    assert seen - trainer.healthy
    assert set(grown) == seen & trainer.healthy


def test_more_gpus_than_fixed_patches_are_refused(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(toy, SynthTumourTrainer, validation={"patches": 1})
    trainer.batch_size = 2
    monkeypatch.setattr(SynthTumourTrainer, "ranks", property(lambda self: 3))
    with pytest.raises(Refusal, match=r"validation\.patches"):
        trainer.validation_batches(trainer.do_split()[1])


@pytest.mark.parametrize("shift", ["paper", "preset", "noise", "real"])
def test_every_shift_yields_a_fixed_set(shift: str, toy: Path) -> None:
    first = _one_epoch_of_validation(make_trainer(toy, SynthTumourTrainer, validation={"shift": shift}))
    assert first == _one_epoch_of_validation(make_trainer(toy, SynthTumourTrainer, validation={"shift": shift}))
    other = _one_epoch_of_validation(make_trainer(toy, SynthTumourTrainer, validation={"shift": shift, "seed": 1}))
    assert other != first


def test_2d_trains_and_validates(toy: Path) -> None:
    trainer = _short(make_trainer(toy, SynthTumourTrainer, "2d"), epochs=1)
    trainer.run_training()
    trainer.perform_actual_validation()
    summary = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text(encoding="utf-8"))
    assert all(case["metrics"]["1"]["n_ref"] > 0 for case in summary["metric_per_case"])


def test_patches_are_centred_in_the_host_as_often_as_the_settings_say(toy: Path) -> None:
    trainer = make_trainer(toy, SynthTumourTrainer, training={"host_centred": 0.3})
    asked: dict[str, list[bool]] = {}
    for name, augmenter in zip(("train", "val"), _loaders(trainer), strict=True):
        loader = augmenter.data_loader
        loader.transforms, loader.grow = None, lambda _, sample: sample
        cut, there = loader.patch_at, asked.setdefault(name, [])
        loader.patch_at = lambda case, in_host, oversample, cut=cut, there=there: (
            there.append(in_host) or cut(case, in_host, oversample)
        )
        case = sorted(trainer.healthy & set(loader._data.identifiers))[0]
        for i in range(200):
            _ = loader.cut(case, False) if name == "train" else loader.sample(loader.batches[i % 2][0])
    assert np.mean(asked["train"]) == pytest.approx(0.3, abs=0.1)
    assert all(asked["val"])


def test_lesions_survive_the_crop(toy: Path) -> None:
    """Small ones, in patches of which the crop leaves a fifth."""
    trainer = make_trainer(
        toy, SynthTumourTrainer, training={"healthy_patches": 0.0, "host_centred": 1.0},
        lesion={"overrides": {"shape": {"volume_ml": [0.4, 0.4]}}},
    )  # fmt: skip
    trainer.configuration_manager.configuration["patch_size"] = [8, 8, 8]
    loader = _loaders(trainer)[0].data_loader
    edge = [(n - 8) // 2 for n in loader.patch_size]
    assert min(edge) >= 2
    case = sorted(trainer.healthy & set(trainer.do_split()[0]))[0]
    for _ in range(20):
        seg = loader.cut(case, False)["segmentation"][0]
        assert (seg[tuple(slice(at, at + 8) for at in edge)] == 1).any()


def _own_copy(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(toy / "nnUNet_preprocessed", tmp_path / "own" / "nnUNet_preprocessed")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "own" / "nnUNet_preprocessed"))
    return tmp_path / "own"


def test_a_case_that_is_gone_is_left_out_and_said(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = _own_copy(toy, tmp_path, monkeypatch)
    for file in own.glob("nnUNet_preprocessed/*/*_3d_fullres/case_001*"):
        file.unlink()
    for fold in (0, 1, 2, 3, 4, "all"):
        trainer = make_trainer(own, SynthTumourTrainer, fold=fold)
        train, val = trainer.do_split()
        assert train and val and "case_001" not in {*train, *val}
        assert len(trainer.hosts_ml()) == 5
        assert any("left out, no preprocessed file: case_001" in line for line in _logged(trainer))


def test_a_case_without_a_role_is_left_out_and_said(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = _own_copy(toy, tmp_path, monkeypatch)
    for file in list(own.glob("nnUNet_preprocessed/*/*_3d_fullres/case_001*")):
        shutil.copy(file, file.with_name(file.name.replace("case_001", "stray")))
    trainer = make_trainer(own, SynthTumourTrainer, fold="all")
    assert len(trainer.do_split()[0]) == 8
    assert any("left out, no role in dataset.json: stray" in line for line in _logged(trainer))


def test_cases_that_old_splits_do_not_know_are_said(toy: Path) -> None:
    file = toy / "nnUNet_preprocessed" / NAME / "splits_final.json"
    file.write_text(json.dumps([{"train": ["case_000"], "val": ["case_001"]}]), encoding="utf-8")
    trainer = make_trainer(toy, SynthTumourTrainer)
    assert trainer.do_split() == (["case_000"], ["case_001"])
    assert any("(delete it to split anew): case_002, case_003, case_004" in line for line in _logged(trainer))


def test_preprocessed_data_without_any_healthy_case_is_refused_and_splits_nothing(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = _own_copy(toy, tmp_path, monkeypatch)
    for i in range(6):
        for file in own.glob(f"nnUNet_preprocessed/*/*_3d_fullres/case_{i:03d}*"):
            file.unlink()
    with pytest.raises(Refusal, match=r"No healthy case .* preprocess the data set again"):
        make_trainer(own, SynthTumourTrainer).do_split()
    assert not list(own.glob("nnUNet_preprocessed/*/splits_final.json"))


def test_a_training_that_never_sees_a_lesion_is_refused(toy: Path) -> None:
    training, roles = {"healthy_patches": 1.0}, {"case_006": "unlabelled", "case_007": "unlabelled"}
    assert make_trainer(toy, SynthTumourTrainer, training=training).do_split()
    with pytest.raises(Refusal, match=r"training\.healthy_patches is 1"):
        make_trainer(toy, SynthTumourTrainer, training=training, roles=roles).do_split()
    with pytest.raises(Refusal, match=r"training\.healthy_patches is 1"):
        make_trainer(toy, SynthTumourTrainer, training={**training, "labelled_share": 0.0}).do_split()


def test_the_split_is_kept_for_other_trainers(toy: Path) -> None:
    make_trainer(toy, SynthTumourTrainer).do_split()
    splits = json.loads((toy / "nnUNet_preprocessed" / NAME / "splits_final.json").read_text(encoding="utf-8"))
    assert len(splits) == 5
    assert all(split["train"] and split["val"] for split in splits)
