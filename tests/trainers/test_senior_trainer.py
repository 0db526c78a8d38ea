from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.junior_model import file_digest
from nnunet_synthtumour.trainers.fixed_patches import PASTED, FixedPatch
from nnunet_synthtumour.trainers.senior_trainer import SynthTumourSeniorTrainer
from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer
from tests.toy_dataset import make_trainer

SHORT = {"training": {"epochs": 1, "iterations": 2, "seed": 1}, "validation": {"patches": 4}}
SCRATCH = {**SHORT, "senior": {"start": "scratch"}, "donors": {"smallest_ml": 0.01}}


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_trains_and_validates_with_pasted_and_shifted_patches(toy: Path, configuration: str) -> None:
    trainer = make_trainer(toy, SynthTumourSeniorTrainer, configuration, **SCRATCH)
    trainer.run_training()
    log = trainer.logger.local_logger.my_fantastic_logging
    assert len(log["mean_fg_dice"]) == len(log["pasted_dice"]) == len(log["shifted_dice"]) == 1
    trainer.perform_actual_validation()
    assert (Path(trainer.output_folder) / "validation" / "summary.json").is_file()
    text = next(Path(trainer.output_folder).glob("training_log*.txt")).read_text(encoding="utf-8")
    assert "Donors: " in text
    assert "pasted and shifted" in text

    # --val of another process: no loaders, and the junior and the next stage of a cascade are not there
    summary = Path(trainer.output_folder) / "validation" / "summary.json"
    scores = summary.read_text(encoding="utf-8")
    summary.unlink()
    again = make_trainer(toy, SynthTumourSeniorTrainer, configuration, resume=True, **SCRATCH | {"senior": {}})
    again.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    plans = again.plans_manager.plans["configurations"]
    plans["next"] = {**plans[configuration], "data_identifier": "never_preprocessed"}
    again.configuration_manager.configuration["next_stage"] = "next"
    again.perform_actual_validation()
    assert summary.read_text(encoding="utf-8") == scores
    assert again.configuration_manager.next_stage_names == ["next"]


def test_training_patches_show_donors_patients_and_grown_lesions_in_their_shares(toy: Path) -> None:
    trainer = make_trainer(toy, SynthTumourSeniorTrainer, **SCRATCH | {"training": {"seed": 1, "reuse": 1}})
    trainer.initialize()
    train, _ = trainer.get_dataloaders()
    loader = train.data_loader
    kinds: dict[str, int] = {"paste": 0, "grow": 0}
    paste, grow = loader.grow.paste, loader.grow.grow
    trainer_settings = trainer.settings.senior
    loader.grow.grow = lambda case, sample: kinds.__setitem__("grow", kinds["grow"] + 1) or grow(case, sample)
    loader.grow.paste = lambda **sample: kinds.__setitem__("paste", kinds["paste"] + 1) or paste(**sample)
    cases = [str(case) for _ in range(40) for case in next(train)["keys"]]
    healthy = sum(case in trainer.healthy for case in cases)
    assert abs(1 - healthy / len(cases) - trainer_settings.patients) < 0.2
    assert kinds["paste"] + kinds["grow"] == healthy
    assert abs(kinds["grow"] / healthy - trainer_settings.synthetic) < 0.2


def test_what_has_a_donor_is_z_scored_as_a_patient_is(toy: Path) -> None:
    """Patches of the toy data set show the whole case, which nnU-Net normalises inside of its mask."""
    always = {"senior": {"start": "scratch", "synthetic": 0.0}, "donors": {"smallest_ml": 0.01, "probability": 1.0}}
    trainer = make_trainer(toy, SynthTumourSeniorTrainer, **SHORT | always)
    trainer.initialize()
    train, val = (augmenter.data_loader for augmenter in trainer.get_dataloaders())
    case = sorted(trainer.healthy & set(train._data.identifiers))[0]
    data, seg, _, properties = train._data.load_case(case)
    cut = train.cut(case, False)
    fixed = val.grow(FixedPatch(0, PASTED, case, True), train.patch_at(case, True, True))
    for image, labels in (
        trainer.grow_volume(case, data[:], seg[:], properties),
        *((sample["image"].numpy(), sample["segmentation"].numpy()) for sample in (cut, fixed)),
    ):
        inside = image[labels >= 0]
        assert (labels == 1).sum() > 50
        assert inside.mean() == pytest.approx(0, abs=0.01)
        assert inside.std() == pytest.approx(1, abs=0.01)


def test_fixed_set_uses_held_out_donors_and_is_the_same_every_time(toy: Path) -> None:
    digests = []
    for _ in range(2):
        trainer = make_trainer(toy, SynthTumourSeniorTrainer, **SCRATCH)
        trainer.initialize()
        _, val = trainer.get_dataloaders()
        batches = [next(val) for _ in range(trainer.num_val_iterations_per_epoch)]
        digests.append({index: text for batch in batches for index, text in batch["digests"].items()})
        assert {batch["kind"] for batch in batches} == {"pasted", "shifted"}
        assert not {d.case for d in trainer.donors.train.donors} & {d.case for d in trainer.donors.held_out.donors}
    assert digests[0] == digests[1]


def test_starts_from_the_junior_that_labelled_the_patients(toy: Path, tmp_path: Path) -> None:
    junior = make_trainer(toy, SynthTumourTrainer, **SHORT)
    junior.run_training()
    about: dict[str, Any] = {
        "junior": str(Path(junior.output_folder_base).relative_to(tmp_path)),
        "checkpoint": "checkpoint_final.pth",
        "checkpoints": {"0": file_digest(Path(junior.output_folder) / "checkpoint_final.pth")},
    }  # fmt: skip
    senior = make_trainer(toy, SynthTumourSeniorTrainer, **SHORT)
    with pytest.raises(Refusal, match="does not say which junior"):
        senior.initialize()
    senior = make_trainer(toy, SynthTumourSeniorTrainer, **SHORT)
    senior.dataset_json["synthtumour_provenance"] = about
    senior.initialize()
    weights = junior.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in senior.network.state_dict().items())
    assert senior.optimizer.param_groups[0]["lr"] == pytest.approx(0.002)
    senior = make_trainer(toy, SynthTumourSeniorTrainer, **SHORT)
    senior.dataset_json["synthtumour_provenance"] = {**about, "checkpoint": "gone.pth"}
    with pytest.raises(Refusal, match=r"There is no .*gone\.pth"):
        senior.initialize()
    senior = make_trainer(toy, SynthTumourSeniorTrainer, **SHORT)
    senior.dataset_json["synthtumour_provenance"] = {**about, "checkpoints": {"0": "of an older junior"}}
    with pytest.raises(Refusal, match=r"checkpoint_final\.pth is another one than that which wrote"):
        senior.initialize()


def test_the_small_learning_rate_is_for_the_junior_s_weights_and_yields_to_the_user_s(toy: Path) -> None:
    for senior, optimizer, given, expected in (
        ("scratch", "sgd", None, 0.01), ("junior", "sgd", 0.02, 0.02), ("junior", "sgd", None, 0.003),
        ("scratch", None, None, 0.002), ("junior", None, None, 0.002),
    ):  # fmt: skip
        training = {**SHORT["training"], "initial_lr": given, "optimizer": optimizer}
        trainer = make_trainer(
            toy, SynthTumourSeniorTrainer, **{**SHORT, "training": training, "senior": {"start": senior}}
        )
        trainer.network = torch.nn.Conv3d(1, 1, 1)
        made, _ = trainer.configure_optimizers()
        assert made.param_groups[0]["lr"] == pytest.approx(expected)


def test_senior_and_junior_may_train_for_different_numbers_of_epochs(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"training": {"epochs": 3}, "senior": {"epochs": 7}}
    assert make_trainer(toy, SynthTumourTrainer, **settings).num_epochs == 3
    assert make_trainer(toy, SynthTumourSeniorTrainer, **settings).num_epochs == 7
    assert make_trainer(toy, SynthTumourSeniorTrainer, training={"epochs": 3}).num_epochs == 3
    monkeypatch.setenv("SYNTHTUMOUR_EPOCHS", "2")
    assert make_trainer(toy, SynthTumourSeniorTrainer, **settings).num_epochs == 2


def test_without_patients_it_says_what_to_do(toy: Path) -> None:
    roles = {f"case_{i:03d}": "healthy" for i in range(6)} | {f"case_{i:03d}": "unlabelled" for i in (6, 7)}
    with pytest.raises(Refusal, match="synthtumour pseudolabel"):
        make_trainer(toy, SynthTumourSeniorTrainer, roles=roles)


def test_without_a_donor_it_says_so(toy: Path) -> None:
    trainer = make_trainer(toy, SynthTumourSeniorTrainer, **SCRATCH | {"donors": {"smallest_ml": 500.0}})
    trainer.initialize()
    with pytest.raises(Refusal, match="has a tumour of at least"):
        trainer.get_dataloaders()


def test_a_whole_case_shows_a_donor_of_a_held_out_patient(toy: Path) -> None:
    trainer = make_trainer(toy, SynthTumourSeniorTrainer, **SCRATCH)
    trainer.initialize()
    trainer.initialize_donors()
    case = next(c for c in trainer.do_split()[1] if c in trainer.healthy)
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    folder = trainer.preprocessed_dataset_folder
    data, seg, _, properties = infer_dataset_class(folder)(folder).load_case(case)
    twice = [trainer.grow_volume(case, data[:], seg[:], properties) for _ in range(2)]
    assert np.array_equal(twice[0][0], twice[1][0])
    assert (twice[0][1] == 1).sum() > 5
    assert set(np.unique(twice[0][1])) <= {-1, 0, 1}
