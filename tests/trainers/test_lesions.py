from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.trainers.fixed_patches import IN_DISTRIBUTION, SHIFTED, FixedPatch
from nnunet_synthtumour.trainers.lesions import Lesions
from nnunet_synthtumour.trainers.random_streams import seeded
from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer
from tests.toy_dataset import IGNORE, make_trainer

CASE = "case_000"
BRIGHT = {"overrides": {"shape": {"volume_ml": [40, 50]}, "distractors": {"probability": 0}}}
Grown = tuple[np.ndarray, np.ndarray]


def _trainer(toy: Path, **validation: Any) -> Any:
    training = {"seed": 1, "healthy_patches": 0.0, "host_centred": 1.0}
    trainer = make_trainer(toy, SynthTumourTrainer, lesion=BRIGHT, training=training, validation=validation)
    trainer.initialize()
    return trainer


def _training_patch(trainer: Any) -> Grown:
    sample = trainer.get_dataloaders()[0].data_loader.cut(CASE, False)
    return sample["image"].numpy(), sample["segmentation"].numpy()


def _fixed_patch(kind: str) -> Callable[[Any], Grown]:
    def grown(trainer: Any) -> Grown:
        loader = trainer.get_dataloaders()[1].data_loader
        sample = loader.grow(FixedPatch(0, kind, CASE, True), loader.patch_at(CASE, True, True))
        return sample["image"].numpy(), sample["segmentation"].numpy()

    return grown


def _volume(trainer: Any) -> Grown:
    dataset = trainer.get_dataloaders()[0].data_loader._data
    data, seg, _, properties = dataset.load_case(CASE)
    grown: Grown = trainer.grow_volume(CASE, data[:], seg[:], properties)
    return grown


@pytest.mark.parametrize("grown", [_training_patch, _fixed_patch(IN_DISTRIBUTION), _fixed_patch(SHIFTED), _volume])
def test_what_has_a_lesion_is_z_scored_as_a_patient_is(grown: Callable[[Any], Grown], toy: Path) -> None:
    """Patches of the toy data set show the whole case, which nnU-Net normalises inside of its mask."""
    image, seg = grown(_trainer(toy))
    assert (seg == 1).sum() > 500
    inside = image[seg >= 0]
    assert inside.mean() == pytest.approx(0, abs=0.03)
    assert inside.std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("settings", [{"lesion": {"preset": "liver-ct"}}, {"validation": {"preset": "liver-ct"}}])
def test_a_preset_for_another_modality_is_refused(toy: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match="channel FLAIR is not CT"):
        make_trainer(toy, SynthTumourTrainer, **settings)


def _half_masked(trainer: Any) -> tuple[Lesions, dict[str, Any]]:
    seg = torch.full((1, 16, 16, 16), -1, dtype=torch.int16)
    seg[:, 8:] = IGNORE
    image = torch.randn(1, 16, 16, 16) * (seg >= 0)
    return trainer.lesions, {"image": image, "segmentation": seg, "inside": (), "whole_voxels": (4096.0, 2048.0)}


def test_the_noisy_shift_leaves_padding_and_the_outside_of_the_mask_as_they_are(toy: Path) -> None:
    lesions, sample = _half_masked(_trainer(toy, shift="noise", noise=[0.5, 0.5]))
    quiet = sample["image"].clone()
    patch = FixedPatch(0, SHIFTED, CASE, False)
    noisy = lesions.for_validation((16, 16, 16))(patch, sample)["image"]
    assert (noisy[:, :8] == 0).all()
    assert float((noisy - quiet)[:, 8:].std()) == pytest.approx(0.5, abs=0.05)

    volumes = []
    for deviation in (0.0, 0.5):
        lesions, sample = _half_masked(_trainer(toy, shift="noise", noise=[deviation, deviation]))
        case = quiet.numpy(), sample["segmentation"].numpy()
        with seeded(1):
            volumes.append(lesions.in_volume(CASE, *case, (3.0, 3.0, 3.0))[0])
    assert (volumes[1][:, :8] == 0).all()
    assert (volumes[1] - volumes[0])[:, 8:].std() == pytest.approx(0.5, abs=0.05)
