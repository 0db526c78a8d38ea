import json
from pathlib import Path

import numpy as np
import pytest

from nnunet_synthtumour.junior_model import usual_checkpoint
from nnunet_synthtumour.pseudolabel_cases import PatientCase, is_predicted


@pytest.mark.parametrize(("share", "counts"), [(1.0, True), (0.5, False), (0.02, False), (0.0, False)])
def test_probabilities_that_were_cut_off_are_made_again(tmp_path: Path, share: float, counts: bool) -> None:
    case = PatientCase("a", (), tmp_path, ".nii.gz", "", {}, {"model": "junior"})
    case.probabilities.parent.mkdir()
    assert not is_predicted(case)
    np.savez_compressed(case.probabilities, identity=json.dumps(case.identity), p=np.random.default_rng(0).random(1000))
    content = case.probabilities.read_bytes()
    case.probabilities.write_bytes(content[: int(share * len(content))])
    assert is_predicted(case) is counts


def test_a_junior_is_its_chosen_epoch_and_a_senior_its_last() -> None:
    assert usual_checkpoint("SynthTumourTrainer") == "checkpoint_best.pth"
    assert usual_checkpoint("SynthTumourSeniorTrainer") == "checkpoint_final.pth"
