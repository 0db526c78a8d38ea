import json
from pathlib import Path

import numpy as np
import pytest
from skimage.io import imsave

from nnunet_synthtumour.junior_model import usual_checkpoint
from nnunet_synthtumour.pseudolabel_cases import PatientCase, is_decided, is_predicted, patient_cases
from nnunet_synthtumour.schema import to_json
from nnunet_synthtumour.settings import PseudoLabelSettings


@pytest.mark.parametrize(("share", "counts"), [(1.0, True), (0.5, False), (0.02, False), (0.0, False)])
def test_probabilities_that_were_cut_off_are_made_again(tmp_path: Path, share: float, counts: bool) -> None:
    case = PatientCase("a", (), tmp_path, ".nii.gz", "", {}, {"model": "junior"})
    case.probabilities.parent.mkdir()
    assert not is_predicted(case)
    np.savez_compressed(case.probabilities, identity=json.dumps(case.identity), p=np.random.default_rng(0).random(1000))
    content = case.probabilities.read_bytes()
    case.probabilities.write_bytes(content[: int(share * len(content))])
    assert is_predicted(case) is counts


def test_a_slice_that_was_stated_in_ml_is_decided_anew(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    imsave(tmp_path / "imagesTr" / "a_0000.png", np.zeros((8, 8), np.uint8), check_contrast=False)
    dataset_json = {"channel_names": {"0": "MR"}, "file_ending": ".png", "labels": {}}
    (case,) = patient_cases(["a"], tmp_path, dataset_json, {"model": "junior"}, tmp_path)
    for file in (case.labels, case.picture, case.record):
        file.parent.mkdir()
        file.touch()
    rules = PseudoLabelSettings()
    for generation, counts in ((case.identity["generation"], True), (1, False)):
        record = {"identity": {**case.identity, "generation": generation}, "rules": to_json(rules)}
        case.record.write_text(json.dumps(record), encoding="utf-8")
        assert is_decided(case, rules) is counts


def test_a_junior_is_its_chosen_epoch_and_a_senior_its_last() -> None:
    assert usual_checkpoint("SynthTumourTrainer") == "checkpoint_best.pth"
    assert usual_checkpoint("SynthTumourSeniorTrainer") == "checkpoint_final.pth"
