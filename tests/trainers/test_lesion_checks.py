from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.lesion_model import load_model
from nnunet_synthtumour.schema import SettingsError
from nnunet_synthtumour.settings import settings_of
from nnunet_synthtumour.trainers.lesion_checks import (
    labels_in_words,
    other_preset,
    refuse_unwritten,
    small_hosts_in_words,
)
from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer
from tests.toy_dataset import make_trainer

SUB_REGIONS = {"background": 0, "edema": 1, "core": 2, "necrosis": 3, "ignore": 4}
MAPPING = {"whole": 1, "core": 2, "necrosis": 3}


def _settings(**block: Any) -> Any:
    return settings_of({"synthtumour": block})


@pytest.mark.parametrize(
    ("own", "validation", "expected"),
    [
        ("glioma", {}, None),
        ("glioma", {"preset": "ms"}, "ms"),
        ("glioma", {"shift": "preset"}, "metastases"),
        ("metastases", {"shift": "preset"}, "glioma"),
        ("glioma", {"shift": "preset", "preset": "stroke"}, "stroke"),
        ("glioma", {"shift": "noise", "preset": "stroke"}, None),
    ],
)
def test_the_other_preset_is_another_one(own: str, validation: dict, expected: str | None) -> None:
    assert other_preset(_settings(lesion={"preset": own}, validation=validation)) == expected


def test_the_same_preset_is_no_shift() -> None:
    with pytest.raises(SettingsError, match=r"validation\.preset is 'ms', and so is lesion\.preset"):
        other_preset(_settings(lesion={"preset": "ms"}, validation={"shift": "preset", "preset": "ms"}))


def test_labels_that_no_lesion_gets_are_refused_unless_chosen() -> None:
    glioma, ms = load_model("glioma"), load_model("ms")
    refuse_unwritten(SUB_REGIONS, MAPPING, _settings(), glioma, glioma)
    with pytest.raises(
        SettingsError, match=r"preset 'ms' have only whole.* core or necrosis.*\{\"whole\": \"edema\"\}"
    ):
        refuse_unwritten(SUB_REGIONS, MAPPING, _settings(), ms, ms)
    with pytest.raises(SettingsError, match=r"preset 'stroke' have only whole and core.* necrosis"):
        refuse_unwritten(SUB_REGIONS, MAPPING, _settings(), load_model("stroke"), glioma)
    with pytest.raises(SettingsError, match=r"'ms' never get the label core or necrosis.*validation\.preset"):
        refuse_unwritten(SUB_REGIONS, MAPPING, _settings(), glioma, ms)
    chosen = _settings(lesion={"parts": {"whole": "edema"}})
    refuse_unwritten(SUB_REGIONS, {"whole": 1}, chosen, ms, ms)
    assert labels_in_words(SUB_REGIONS, {"whole": 1}, ms).endswith("(ms): whole -> edema (1); labels that no lesion gets: "
                                                                   "core, necrosis")  # fmt: skip


def test_shifted_lesions_have_labelled_parts_often_and_only_those_that_are_trained() -> None:
    stroke = load_model("stroke")  # core 0.2, necrosis never
    assert stroke.with_parts([], 1.0) == stroke
    more = stroke.with_parts(["core", "necrosis"], 0.5)
    assert [part.probability for part in more.parts.values()] == [0.5, 0.0]
    assert load_model("glioma").with_parts(["core"], 0.5) == load_model("glioma")
    both = load_model("glioma").with_parts(["necrosis"], 1.0)
    assert [part.probability for part in both.parts.values()] == [1.0, 1.0]


def _with_labels(toy: Path, labels: dict[str, Any], **settings: Any) -> Any:
    """A trainer of the toy data set as if it declared other labels."""

    class Declared(SynthTumourTrainer):
        def __init__(self, plans: Any, configuration: str, fold: int, dataset_json: Any, device: Any) -> None:
            some_regions = any(isinstance(value, list) for value in labels.values())
            dataset_json |= {"labels": {"background": 0, **labels, "ignore": len(labels) + 1}}
            dataset_json |= {"regions_class_order": list(range(1, len(labels) + 1))} if some_regions else {}
            super().__init__(plans, configuration, fold, dataset_json, device)

    return make_trainer(toy, Declared, **settings)


@pytest.mark.parametrize("labels", [{"ED": 1, "ET": 2, "NCR": 3}, {"WT": [1, 2, 3], "TC": [2, 3], "ET": [2]}])
def test_final_validation_has_every_label(toy: Path, labels: dict[str, Any]) -> None:
    lesions = _with_labels(toy, labels).lesions
    assert lesions.labels == {"whole": 1, "core": 2, "necrosis": 3}
    host = np.full((1, 30, 30, 30), 4, np.int16)
    image = np.random.default_rng(0).normal(size=host.shape).astype(np.float32)
    for seed in range(4):
        np.random.seed(seed)
        assert set(np.unique(lesions.in_volume("case", image, host, (3.0, 3.0, 3.0))[1])) == {0, 1, 2, 3}


def test_trainers_refuse_in_one_sentence_and_say_which_label_is_what(toy: Path) -> None:
    with pytest.raises(Refusal, match=r"lesion\.parts"):
        _with_labels(toy, {"liver": 1, "tumour": 2})
    trainer = _with_labels(toy, {"liver": 1, "tumour": 2}, lesion={"parts": {"whole": "tumour"}})
    assert trainer.lesions.describe()[0] == "Lesions (glioma): whole -> tumour (2); labels that no lesion gets: liver"


def test_hosts_that_are_too_small_for_the_preset_are_said_once(toy: Path) -> None:
    glioma = load_model("glioma")  # from 4 ml on
    assert small_hosts_in_words([], glioma) is None
    assert small_hosts_in_words([3.0, 8.1, 9.0], glioma) is None
    warning = small_hosts_in_words([3.1, 3.0, 900.0], glioma)
    assert warning is not None and warning.startswith("WARNING: hosts have 3.1 ml (median of 3)")
    override = json.loads(warning.split("lesion.overrides=")[1].split("'")[0])
    assert small_hosts_in_words([3.1], load_model("glioma", override)) is None
    trainer = make_trainer(toy, SynthTumourTrainer)
    hosts = trainer.hosts_ml()
    assert list(hosts.values()) == pytest.approx([4 / 3 * np.pi * 0.035 * 0.039 * 0.031 * 1e6] * 6, rel=0.15)
    assert len(trainer.lesions.describe(list(hosts.values()))) == 1
    assert len(trainer.lesions.describe([3.0])) == 2
    slices = make_trainer(toy, SynthTumourTrainer, "2d")
    assert slices.hosts_ml() == pytest.approx(hosts, rel=0.05)


def test_healthy_cases_without_a_host_are_refused_before_training(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(toy, SynthTumourTrainer)
    hosts = {**trainer.hosts_ml(), "case_002": 0.0}
    monkeypatch.setattr(trainer, "hosts_ml", lambda: hosts)
    with pytest.raises(Refusal, match=r"No voxel of case_002 is a host.*--host-masks"):
        trainer.run_training()
