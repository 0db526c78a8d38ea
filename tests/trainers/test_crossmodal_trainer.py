"""Labels cross from one data set to another, a segmenter learns from them, and a killed training goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_synthtumour.errors import Refusal, Unsupported
from nnunet_synthtumour.trainers.carried_labels import fuse, to_case, trusted
from nnunet_synthtumour.trainers.crossmodal_cases import SOURCE, paired_or_drawn
from nnunet_synthtumour.trainers.crossmodal_checks import elsewhere
from nnunet_synthtumour.trainers.crossmodal_labels import Crossing
from nnunet_synthtumour.trainers.crossmodal_trainer import SEGMENTATION, TOGETHER, CrossModalTrainer
from nnunet_synthtumour.trainers.deepatlas_stages import ALONE
from nnunet_synthtumour.trainers.whole_grids import Grid, on_grid
from tests.toy_dataset import IGNORE, NAME, make_trainer

TARGETS = dict.fromkeys([f"case_{i:03d}" for i in range(4)], "unlabelled")


def trainer_of(two: Path, resume: bool = False, epochs: int = 2, **crossmodal: Any) -> CrossModalTrainer:
    settings = {
        "roles": TARGETS,
        "source": {"dataset": "2"},
        "training": {"epochs": epochs, "iterations": 2, "seed": 1},
        "crossmodal": {"alone": 0.5, "network": "unet", "refine": 0, **crossmodal},
    }
    # a block that names its roles replaces the toy's
    trainer = make_trainer(two, CrossModalTrainer, fold="all", resume=resume, **settings)
    trainer.num_val_iterations_per_epoch = 1
    return trainer


@pytest.mark.parametrize(("mode", "left"), [("sequential", 1 / 2), ("unified", 3 / 4)])
def test_registration_learns_less_and_less_over_the_epochs_in_which_it_learns(
    two: Path, mode: str, left: float
) -> None:
    trainer = trainer_of(two, epochs=4, mode=mode)
    trainer.initialize()
    assert trainer.objective().settings.anatomy == trainer.registration.passes == 1
    assert trainer.registration.structure_steps == 0
    trainer.current_epoch = 1
    trainer.on_train_epoch_start()
    rate = trainer.registration.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(trainer.settings.registration.initial_lr * left**0.9)


def test_labels_are_carried_once_and_segmentation_learns_from_them(two: Path) -> None:
    trainer = trainer_of(two)
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    report = json.loads((folder / "carried_labels" / "carried_labels.json").read_text(encoding="utf-8"))
    assert {case["case"] for case in report["cases"]} == set(TARGETS) and report["epoch"] == 1
    assert all(case["sources"] == ["case_006", "case_007"] for case in report["cases"])
    assert any(case["labels"]["tumour"]["ml"] > 0 for case in report["cases"])
    assert (folder / "carried_labels" / "report.html").stat().st_size > 10_000
    seg = np.load(folder / "carried_labels" / "case_000_seg.npy")
    assert {1, IGNORE} <= set(np.unique(seg)) <= {-1, 0, 1, IGNORE}
    log = trainer.logger.local_logger.my_fantastic_logging
    assert np.isfinite(log["similarity_loss"][0]) and np.isnan(log["similarity_loss"][1])
    assert np.isnan(log["train_losses"][0]) and np.isfinite(log["train_losses"][1])
    summary = json.loads((folder / "validation" / "summary.json").read_text(encoding="utf-8"))
    assert summary["foreground_mean"]["n_ref"] > 0
    assert "Visibility of tumour: " in next(folder.glob("training_log*")).read_text(encoding="utf-8")
    for name in ("checkpoint_best.pth", "registration.pth", "progress.png"):
        assert (folder / name).is_file(), name


def test_targets_that_no_fold_has_are_named(two: Path) -> None:
    roles = {**TARGETS, "case_004": "unlabelled"}
    split = {"train": ["case_000", "case_001"], "val": ["case_002", "case_003"]}
    (two / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(json.dumps([split] * 5), encoding="utf-8")
    settings = {"roles": roles, "source": {"dataset": "2"}, "training": {"epochs": 2, "iterations": 2}}
    trainer = make_trainer(two, CrossModalTrainer, fold=0, **settings)
    trainer.initialize()
    trainer.get_dataloaders()
    log = next(Path(trainer.output_folder).glob("training_log*")).read_text(encoding="utf-8")
    assert "left out, in no fold of splits_final.json (delete it to split anew): case_004, " in log


def test_a_new_training_does_not_take_the_labels_of_an_old_one(two: Path) -> None:
    trainer = trainer_of(two)
    folder = trainer.carried_folder
    folder.mkdir(parents=True)
    (folder / "carried_labels.json").write_text("{}", encoding="utf-8")
    trainer.run_training()
    assert len(json.loads((folder / "carried_labels.json").read_text(encoding="utf-8"))["cases"]) == len(TARGETS)


def test_a_resumed_training_keeps_both_networks_and_the_labels(two: Path) -> None:
    first = trainer_of(two)
    first.run_training()
    folder = Path(first.output_folder)
    labels = (folder / "carried_labels" / "case_001_seg.npy").stat().st_mtime_ns
    resumed = trainer_of(two, resume=True, epochs=3, alone=0.34)
    resumed.load_checkpoint(str(folder / "checkpoint_final.pth"))
    for one, other in ((first.network, resumed.network), (first.registration.bare, resumed.registration.bare)):
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    resumed.run_training()
    assert resumed.current_epoch == 3
    assert (folder / "carried_labels" / "case_001_seg.npy").stat().st_mtime_ns == labels


def test_both_learn_and_labels_are_refreshed(two: Path) -> None:
    trainer = trainer_of(two, epochs=3, mode="unified", alone=0.34, refreshes=1, refine=4)
    assert [trainer.stage(e) for e in range(3)] == [ALONE, TOGETHER, TOGETHER]
    assert trainer.refresh_epochs() == {1, 2}
    trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging
    assert np.isfinite(log["similarity_loss"]).all() and np.isfinite(log["train_losses"][1:]).all()
    report = Path(trainer.output_folder) / "carried_labels" / "carried_labels.json"
    assert json.loads(report.read_text(encoding="utf-8"))["epoch"] == 2


def test_a_segmenter_may_begin_with_warped_sources(two: Path) -> None:
    trainer = trainer_of(two, pretrain=True)
    trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging
    assert np.isfinite(log["train_losses"]).all() and np.isfinite(log["similarity_loss"][0])


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Callable[[], None]]:
    """The targets to which labels were carried; carrying dies at the third until the second value is called."""
    carry, done = Crossing.to_target, []

    def to_target(crossing: Crossing, target: str, folder: Path) -> dict[str, Any]:
        done.append(target)
        return carry(crossing, target, folder)

    def dies(crossing: Crossing, target: str, folder: Path) -> dict[str, Any]:
        if len(done) == 2:
            raise KeyboardInterrupt
        return to_target(crossing, target, folder)

    monkeypatch.setattr(Crossing, "to_target", dies)
    return done, lambda: monkeypatch.setattr(Crossing, "to_target", to_target)


def test_a_killed_run_carries_only_what_is_missing(
    two: Path, killed: tuple[list[str], Callable[[], None]]
) -> None:  # fmt: skip
    done, revive = killed
    trainer = trainer_of(two)
    trainer.initialize()
    trainer._open_cases()
    with pytest.raises(KeyboardInterrupt):
        trainer.carry_labels()
    assert not trainer.carried_folder.exists()
    kept = list(done)
    revive()
    trainer.carry_labels()
    assert done == [*kept, *(c for c in TARGETS if c not in kept)]
    assert not [file for file in trainer.carried_folder.glob("*.json") if file.name != "carried_labels.json"]
    next(iter(trainer.registration.bare.parameters())).data += 1
    trainer.carried_folder.rename(trainer.carried_folder.with_name(".carried_labels"))
    trainer.carry_labels()
    assert len(done) == 2 * len(TARGETS), "another network carries all labels anew"
    trainer.carry_labels()
    assert len(done) == 2 * len(TARGETS), "the same one does not"
    trainer.pairs_of.values = {}  # as if the source's labels had been corrected
    trainer.carry_labels()
    assert len(done) == 3 * len(TARGETS), "other labels are carried anew"


def test_a_training_that_is_killed_while_it_carries_goes_on_with_the_same_network(
    two: Path, killed: tuple[list[str], Callable[[], None]], capsys: pytest.CaptureFixture[str]
) -> None:
    done, revive = killed
    trainer = trainer_of(two)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    kept = list(done)
    revive()
    resumed = trainer_of(two, resume=True)
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 1
    assert len(resumed.logger.local_logger.my_fantastic_logging["epoch_start_timestamps"]) == 1
    resumed.run_training()
    assert "maybe some logging issue" not in capsys.readouterr().out
    assert done == [*kept, *(c for c in TARGETS if c not in kept)]


def test_a_training_that_is_killed_after_it_carried_does_not_carry_again(
    two: Path, killed: tuple[list[str], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, revive = killed
    revive()
    trainer = trainer_of(two)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CrossModalTrainer, "_target_loaders", _dies)
        trainer.run_training()
    assert sorted(done) == sorted(TARGETS)
    resumed = trainer_of(two, resume=True)
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    resumed.run_training()
    assert len(done) == len(TARGETS) and resumed.current_epoch == 2


def _dies(*_: Any) -> None:
    raise KeyboardInterrupt


def test_the_graph_network_trains(two: Path) -> None:
    trainer = trainer_of(two, network="mscgunet", sources=1)
    assert [trainer.stage(e) for e in range(2)] == [ALONE, SEGMENTATION]
    trainer.run_training()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()


def test_what_it_cannot_do_is_said_at_once(two: Path) -> None:
    with pytest.raises(Unsupported, match="slices"):
        make_trainer(two, CrossModalTrainer, "2d", roles=TARGETS, source={"dataset": "2"})
    with pytest.raises(Refusal, match="does not say where labels come from"):
        make_trainer(two, CrossModalTrainer, roles=TARGETS)
    with pytest.raises(Refusal, match="has 0 data sets of that id"):
        make_trainer(two, CrossModalTrainer, roles=TARGETS, source={"dataset": "77"})
    with pytest.raises(Refusal, match=f"{NAME} is its own source.dataset"):
        make_trainer(two, CrossModalTrainer, roles=TARGETS, source={"dataset": "1"})
    with pytest.raises(Refusal, match=r"crossmodal\.alone is 0\.9, which leaves segmentation none of 2 epochs"):
        trainer_of(two, alone=0.9)
    trainer_of(two, alone=1.0, pretrain=True)
    preprocessed = two / "nnUNet_preprocessed"
    with restored(preprocessed / "Dataset002_Source" / "dataset.json") as (file, source):
        source["channel_names"] = {"0": "T1", "1": "T2"}
        file.write_text(json.dumps(source), encoding="utf-8")
        with pytest.raises(Unsupported, match=f"but {NAME} has 1 and Dataset002_Source 2; prepare both"):
            trainer_of(two)
    with restored(preprocessed / "Dataset002_Source" / "dataset.json") as (file, source):
        source["synthtumour"]["roles"]["gone"] = "labelled"
        file.write_text(json.dumps(source), encoding="utf-8")
        with pytest.raises(Refusal, match=r"1 labelled cases of Dataset002_Source are not in .* preprocess it again"):
            trainer_of(two)
    with restored(preprocessed / NAME / "dataset.json") as (file, target):
        del target["labels"]["ignore"]
        file.write_text(json.dumps(target), encoding="utf-8")
        with pytest.raises(Refusal, match=f"Every case of {NAME} has labels, so it is a source"):
            make_trainer(two, CrossModalTrainer, roles={"case_006": "labelled"}, source={"dataset": "2"})


@contextmanager
def restored(file: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A JSON file and what is in it, which is there again afterwards."""
    text = file.read_text(encoding="utf-8")
    try:
        yield file, json.loads(text)
    finally:
        file.write_text(text, encoding="utf-8")


def test_names_that_do_not_match_and_images_that_lie_elsewhere_are_told(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with restored(two / "nnUNet_preprocessed" / "Dataset002_Source" / "dataset.json") as (file, source):
        source["labels"] = {"background": 0, "tumour": 1, "edema": 2, "ignore": 3}
        file.write_text(json.dumps(source), encoding="utf-8")
        with restored(two / "nnUNet_preprocessed" / NAME / "dataset.json") as (mine, target):
            target["labels"] = {"background": 0, "tumour": 1, "oedema": 2, "ignore": 3}
            mine.write_text(json.dumps(target), encoding="utf-8")
            trainer = trainer_of(two)
    trainer.initialize()
    trainer._open_cases()
    side = trainer.pairs_of.sources.dataset
    load = side.load_case

    def moved(case: str) -> Any:
        *data, properties = load(case)
        at = {**properties["sitk_stuff"], "origin": (150.0, 0.0, 0.0)}
        return *data, {**properties, "sitk_stuff": at}

    assert elsewhere("A", "B", trainer.pairs_of, 1.0) == ""

    def turned(case: str) -> Any:
        *data, properties = load(case)
        at = {**properties["sitk_stuff"], "direction": (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)}
        return *data, {**properties, "sitk_stuff": at}

    monkeypatch.setattr(side, "load_case", turned)
    assert "their axes point elsewhere" in elsewhere("A", "B", trainer.pairs_of, 5.0)
    monkeypatch.setattr(side, "load_case", moved)
    trainer.on_train_start()
    log = next(Path(trainer.output_folder).glob("training_log*")).read_text(encoding="utf-8")
    assert f"WARNING: Dataset002_Source has no label called oedema, and {NAME} none called edema: " in log
    assert "WARNING: images of Dataset002_Source lie elsewhere in space" in log and "at 150, 0, 0 and " in log
    assert "Nothing can be said about oedema: none of the labels looked at has it." in log


def test_targets_without_a_partner_are_named_and_a_pairing_without_pairs_is_refused(two: Path) -> None:
    source = {"dataset": "2", "pairing": "paired"}
    with pytest.raises(Refusal, match="no unlabelled case of Dataset001_"):
        make_trainer(two, CrossModalTrainer, roles=TARGETS, source=source)
    roles = {**TARGETS, "case_006": "unlabelled"}
    trainer = make_trainer(two, CrossModalTrainer, fold="all", roles=roles, source=source)
    trainer.initialize()
    trainer.get_dataloaders()
    log = next(Path(trainer.output_folder).glob("training_log*")).read_text(encoding="utf-8")
    assert "No source is called like case_000, case_001, case_002, case_003: " in log


def test_votes_are_weighted_by_likeness_and_doubt_is_ignored() -> None:
    one, other = torch.zeros(2, 4, 4, 4, dtype=torch.int16)
    one[:2], other[:] = 1, 0
    alike, unlike = torch.full((4, 4, 4), 0.01), torch.full((4, 4, 4), 0.2)
    carried = fuse([one, other], [alike, unlike], 2)
    assert (carried.labels == one).all() and (carried.agreement > 0.9).all()
    even = fuse([one, other], [alike, alike], 2)
    kept = trusted(even, 0.7, 0.0, 9)
    assert (kept[:2] == 9).all() and (kept[2:] == 0).all()


def test_labels_return_to_the_case_they_are_for() -> None:
    generator = np.random.default_rng(0)
    grid = Grid((12, 14, 16), (12, 14, 16))
    properties = {
        "shape_after_cropping_and_before_resampling": (8, 9, 10),
        "bbox_used_for_cropping": [[2, 10], [3, 12], [1, 11]],
    }
    seg = generator.integers(0, 3, (1, 8, 9, 10)).astype(np.int16)
    seg[0, :, 0] = -1
    whole = on_grid(generator.normal(size=(1, 8, 9, 10)).astype(np.float32), seg, properties, grid)
    assert (to_case(whole.seg[0].numpy(), seg, properties, grid) == seg).all()


def test_sources_of_a_target() -> None:
    assert paired_or_drawn("b", ["a", "b", "c"], True, 5, 0) == ["b"]
    drawn = paired_or_drawn("b", ["a", "b", "c", "d"], False, 2, 0)
    assert len(set(drawn)) == 2 and drawn == paired_or_drawn("b", ["a", "b", "c", "d"], False, 2, 0)
    assert SOURCE + "a" != "a"
