from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_synthtumour.errors import Refusal, Unsupported
from nnunet_synthtumour.registration.structure_guide import standardised
from nnunet_synthtumour.trainers import deepatlas_labels, deepatlas_trainer
from nnunet_synthtumour.trainers.deepatlas_trainer import DeepAtlasTrainer
from tests.toy_dataset import make_trainer

ROLES = {f"case_{i:03d}": "labelled" if i in (6, 7) else "unlabelled" for i in range(8)}
SHORT = {"training": {"epochs": 2, "iterations": 2, "seed": 1}, "roles": ROLES}


def test_a_training_that_goes_on_keeps_its_relays_and_a_finished_one_fits_nothing(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(toy, DeepAtlasTrainer, fold="all", **SHORT)
    trainer.carried_folder.mkdir(parents=True)
    (trainer.carried_folder / "carried_labels.json").write_text('{"relays": 4, "cases": []}', encoding="utf-8")
    assert trainer._as_begun(2).relays is None  # a new training
    trainer.current_epoch = 1
    assert trainer._as_begun(2).relays == 4
    own = make_trainer(toy, DeepAtlasTrainer, fold="all", **SHORT, deepatlas={"relays": 3})
    own.current_epoch = 1
    assert own._as_begun(2).relays == 3
    monkeypatch.setattr(deepatlas_trainer, "LabelFitter", None)
    trainer.current_epoch = trainer.num_epochs
    trainer.fit_labels(None, ["case_006"])
    assert (trainer.carried_folder / "carried_labels.json").read_text(encoding="utf-8") == '{"relays": 4, "cases": []}'


def test_trains_both_networks_resumes_both_and_leaves_a_model_for_register(toy: Path) -> None:
    deepatlas = {"alone": 0.5, "taught": 0.0, "fitted": 5, "sources": 2, "relays": 4, "pairs": [0, 1, 1, 0]}
    trainer = make_trainer(toy, DeepAtlasTrainer, fold="all", **SHORT, deepatlas=deepatlas)
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging
    assert len(log["dice_after"]) == len(log["similarity_loss"]) == 2
    lines = next(Path(trainer.output_folder).glob("training_log*")).read_text(encoding="utf-8").splitlines()
    said = [[word for word in line.split() if word.isalpha()] for line in lines if "Losses: " in line]
    assert said == [["similarity", "regularity"], ["similarity", "regularity", "anatomy", "carried"]]
    for key in ("carried_loss", "anatomy_loss"):  # of labelled and unlabelled images, once predictions stand in
        assert np.isnan(log[key][0]) and np.isfinite(log[key][1]), key
    guide = trainer.registration.guide
    for one, other in zip(guide.network.state_dict().values(), trainer.network.state_dict().values(), strict=True):
        assert torch.equal(one, other)  # the averaged segmenter
    assert trainer.configuration_manager.use_mask_for_norm == [True] and guide.in_mask == (True,)
    whole = trainer.pair_validation.cases["case_006"]
    difference = standardised(whole.match()[None], guide.in_mask)[0] - whole.image
    assert difference.abs().mean() < 0.01, "the guide sees what the segmenter was trained on"
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder)
    report = json.loads((folder / "carried_labels" / "carried_labels.json").read_text(encoding="utf-8"))
    assert len(report["cases"]) == 6 and all(len(case["sources"]) == 2 for case in report["cases"])
    assert sorted(len(case["relays"]) for case in report["cases"]) == [3] * 4 + [4] * 2, "four relays, none its own"
    found = json.loads((folder / "validation" / "registration.json").read_text(encoding="utf-8"))
    assert found["pairs"] == 2
    assert found["mean"]["folds_percent"] <= 0.003
    for name in ("registration.pth", "progress.png", "validation/summary.json", "validation/registration_worst.png"):
        assert (folder / name).is_file(), name

    resumed = make_trainer(toy, DeepAtlasTrainer, fold="all", resume=True, **SHORT)
    resumed.load_checkpoint(str(folder / "checkpoint_final.pth"))
    assert resumed.registration.guide is not None
    for one, other in ((trainer.network, resumed.network), (trainer.registration.bare, resumed.registration.bare)):
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )
    assert resumed.registration.optimizer.state_dict()["state"].keys()

    other = {"registration": {"network": "mscgunet"}, "deepatlas": {"guided": False}}
    resumed = make_trainer(toy, DeepAtlasTrainer, fold="all", resume=True, **SHORT, **other)
    resumed.load_checkpoint(str(folder / "checkpoint_final.pth"))
    assert resumed.registration.guide is not None, "a training goes on with what it began with"
    assert (resumed.settings.registration.network, resumed.settings.deepatlas.guided) == ("unet", True)
    log = max(Path(resumed.output_folder).glob("training_log*"), key=lambda file: file.stat().st_mtime_ns)
    assert "(network=unet, guided=true)" in log.read_text(encoding="utf-8")


def test_where_all_are_labelled_an_untrained_registration_network_teaches_nobody(toy: Path) -> None:
    roles = {"case_006": "labelled", "case_007": "labelled"}
    trainer = make_trainer(toy, DeepAtlasTrainer, fold="all", training=SHORT["training"], roles=roles)
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging
    for key in ("similarity_loss", "carried_loss"):
        assert np.isnan(log[key][0]) and np.isfinite(log[key][1]), key


@pytest.mark.parametrize("epochs", [1, 2])
def test_no_guide_speaks_with_which_registration_has_not_learnt(toy: Path, epochs: int) -> None:
    settings = {"training": {"epochs": epochs, "iterations": 1, "seed": 1}, "roles": ROLES}
    deepatlas = {"alone": 0.5, "taught": 0.5, "fitted": 0}  # both never learn
    trainer = make_trainer(toy, DeepAtlasTrainer, fold="all", **settings, deepatlas=deepatlas)
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    assert trainer.registration.bare.guide is not None and trainer.registration.guide is None


def test_a_fold_that_trains_on_one_image_is_refused(toy: Path) -> None:
    two = {"case_006": "labelled", "case_007": "labelled"}
    trainer = make_trainer(toy, DeepAtlasTrainer, fold=0, **SHORT | {"roles": two})
    trainer.initialize()
    with pytest.raises(Refusal, match="Fold 0 trains on one image alone"):
        trainer.get_dataloaders()


def test_structures_that_nothing_teaches_and_a_validation_that_tells_nothing_are_said(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = {case: "labelled" if case == "case_006" else "unlabelled" for case in ROLES}
    for fold, labels, said in (
        (0, {}, ["fold 0 is validated on the labelled images that it is trained on"]),
        ("all", {"stem": 2, "ignore": 3}, ["no labelled image of this training holds stem: taught as background"]),
        ("all", {}, []),
    ):
        trainer = make_trainer(toy, DeepAtlasTrainer, fold=fold, **SHORT | {"roles": roles})
        trainer.dataset_json = {**trainer.dataset_json, "labels": {**trainer.dataset_json["labels"], **labels}}
        trainer.dataset_class = deepatlas_trainer.infer_dataset_class(trainer.preprocessed_dataset_folder)
        split, lines = trainer.do_split(), []
        monkeypatch.setattr(trainer, "print_to_log_file", lines.append)
        trainer.say_what_cannot_be_known(*split)
        assert len(lines) == len(said) and all(what in line for what, line in zip(said, lines, strict=True))


def test_what_it_cannot_do_is_said_at_once(toy: Path) -> None:
    with pytest.raises(Unsupported, match="slices"):
        make_trainer(toy, DeepAtlasTrainer, "2d", **SHORT)
    with pytest.raises(Refusal, match="no labelled case"):
        make_trainer(toy, DeepAtlasTrainer, roles=dict.fromkeys(ROLES, "unlabelled"))


@pytest.mark.parametrize(("settings", "axes"), [({}, None), ({"training": {"mirroring": True}}, (0, 1, 2))])
def test_nothing_is_mirrored_unless_the_settings_say_so(
    toy: Path, settings: dict, axes: tuple[int, ...] | None
) -> None:
    trainer = make_trainer(toy, DeepAtlasTrainer, roles=ROLES, **settings)
    *_, mirrored = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert mirrored == axes
    assert trainer.inference_allowed_mirroring_axes == axes


def test_patches_come_from_labelled_images_others_with_fitted_labels_and_warped_ones(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(toy, DeepAtlasTrainer, fold="all", **SHORT, deepatlas={"fitted": 5, "manual": 0.5})
    trainer.initialize()
    trainer.get_dataloaders()
    train, val = trainer.get_tr_and_val_datasets()
    assert sorted(set(val.identifiers)) == ["case_006", "case_007"]
    assert train.identifiers.count("case_006") == 6 and len(train.identifiers) == 24
    _, seg, _, properties = train.load_case("case_000")
    assert seg.max() == 1 and seg.min() >= -1 and len(properties["class_locations"][1])  # no ignore label any more
    image, seg, *_ = train.load_case("warped to case_000")
    assert image.shape == seg.shape and np.asarray(image)[np.asarray(seg) == 1].mean() > np.asarray(image).mean()
    written = (trainer.carried_folder / "carried_labels.json").stat().st_mtime_ns
    again = make_trainer(toy, DeepAtlasTrainer, fold="all", **SHORT, deepatlas={"fitted": 5, "manual": 0.5})
    again.initialize()
    again.get_dataloaders()
    assert (trainer.carried_folder / "carried_labels.json").stat().st_mtime_ns == written

    digest = deepatlas_labels.digest_of  # as if an unlabelled image had been replaced
    monkeypatch.setattr(
        deepatlas_labels, "digest_of", lambda cases, names: digest(cases, names) + str("case_000" in names)
    )
    again.fit_labels(again.pair_validation.cases, ["case_006", "case_007"])
    assert (trainer.carried_folder / "carried_labels.json").stat().st_mtime_ns > written


@pytest.mark.parametrize("deepatlas", [{"guided": False, "fitted": 0}, {"alone": 0.0, "fitted": 0}])
def test_without_guide_or_fitted_labels_it_trains_too(toy: Path, deepatlas: dict) -> None:
    trainer = make_trainer(toy, DeepAtlasTrainer, fold="all", **SHORT, deepatlas={"taught": 0.0, **deepatlas})
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    assert np.isfinite(trainer.logger.local_logger.my_fantastic_logging["similarity_loss"]).all()
    assert not trainer.carried_folder.exists()
