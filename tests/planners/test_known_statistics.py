"""How CT is normalised where some images have no labels: air outside of a body, two organs of 110 and 75 HU in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.intensities import normalisation
from nnunet_synthtumour.planners import known_statistics
from nnunet_synthtumour.planners.known_statistics import STATISTICS, without_unlabelled
from nnunet_synthtumour.planners.small_planner import TinyPlanner
from nnunet_synthtumour.settings import settings_of

NAME = "Dataset003_CT"
IGNORE = 3


def _case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    hu = np.full((20, 24, 22), -1000.0)
    labels = np.zeros(hu.shape, np.uint8)
    hu[3:17, 3:21, 3:19] = -50
    for label, (value, where) in enumerate(((110, np.s_[5:10, 5:12, 5:12]), (75, np.s_[10:15, 12:19, 8:16])), start=1):
        hu[where], labels[where] = value, label
    return hu + np.random.default_rng(seed).normal(0, 10, hu.shape), labels


def _write(roles: dict[str, str], folders: dict[str, Path], channel: str = "CT") -> dict[str, Any]:
    raw = folders["nnUNet_raw"] / NAME
    for sub in ("imagesTr", "labelsTr"):
        (raw / sub).mkdir(parents=True)
    for i, (case, role) in enumerate(roles.items()):
        hu, labels = _case(i)
        labels = {
            "labelled": labels,
            "healthy": np.where(labels == 2, IGNORE, 0),  # the host is the organ of 75 HU
            "unlabelled": np.full_like(labels, IGNORE),
        }[role]
        sitk.WriteImage(sitk.GetImageFromArray(hu.astype(np.float32)), str(raw / "imagesTr" / f"{case}_0000.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(labels.astype(np.uint8)), str(raw / "labelsTr" / f"{case}.nii.gz"))
    dataset_json = {
        "channel_names": {"0": channel},
        "labels": {"background": 0, "liver": 1, "spleen": 2, "ignore": IGNORE},
        "numTraining": len(roles),
        "file_ending": ".nii.gz",
        "synthtumour": {"roles": roles},
    }
    (raw / "dataset.json").write_text(json.dumps(dataset_json), encoding="utf-8")
    return dataset_json


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net draws a hundred million voxels, whatever there is."""
    start = DatasetFingerprintExtractor.__init__

    def with_few_samples(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        self.num_foreground_voxels_for_intensitystats = 1e6

    monkeypatch.setattr(DatasetFingerprintExtractor, "__init__", with_few_samples)


def test_unlabelled_ct_has_no_say_in_normalisation(nnunet_folders: dict[str, Path], quick: None) -> None:
    roles = {f"l{i}": "labelled" for i in range(3)} | {f"u{i}": "unlabelled" for i in range(6)}
    dataset_json = _write(roles, nnunet_folders)
    stock = DatasetFingerprintExtractor(NAME, 1).run()
    assert stock[STATISTICS][0]["mean"] < -300 and stock[STATISTICS][0]["percentile_00_5"] < -1000
    planned = TinyPlanner(NAME).plan_experiment()
    plans = json.loads((nnunet_folders["nnUNet_preprocessed"] / NAME / "nnUNetTinyPlans.json").read_text("utf-8"))
    statistics = plans[STATISTICS]["0"]
    assert statistics == planned[STATISTICS]["0"]
    assert 75 < statistics["mean"] < 110 and statistics["std"] < 25 and statistics["percentile_00_5"] > 30
    fingerprint = nnunet_folders["nnUNet_preprocessed"] / NAME / "dataset_fingerprint.json"
    assert (
        json.loads(fingerprint.read_text("utf-8"))[STATISTICS]["0"] == stock[STATISTICS][0]
    )  # nnU-Net's is left alone
    mean, std = normalisation(settings_of(dataset_json), plans, "3d_fullres", "u0") or (None, None)
    assert mean == statistics["mean"] and std == statistics["std"]  # what trainers go by


def test_the_host_of_healthy_ct_counts(nnunet_folders: dict[str, Path], quick: None) -> None:
    dataset_json = _write({"h": "healthy", "u": "unlabelled"}, nnunet_folders)
    (nnunet_folders["nnUNet_preprocessed"] / NAME).mkdir()
    found = without_unlabelled(NAME, dataset_json, {"spacings": [], STATISTICS: {"0": {"mean": -425.0}}})
    assert found[STATISTICS]["0"]["mean"] == pytest.approx(75, abs=2)
    assert found["spacings"] == []


@pytest.mark.parametrize(
    ("roles", "channel"),
    [
        ({"a": "labelled", "b": "healthy"}, "CT"),
        ({"a": "unlabelled", "b": "unlabelled"}, "CT"),
        ({"a": "labelled", "b": "unlabelled"}, "FLAIR"),
    ],
)
def test_else_the_fingerprint_is_nnunets(
    roles: dict[str, str], channel: str, nnunet_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_json = _write(roles, nnunet_folders, channel)
    monkeypatch.setattr(known_statistics, "_statistics", lambda extractor: pytest.fail("read again"))
    fingerprint: dict[str, Any] = {STATISTICS: {"0": {"mean": 1.0}}}
    assert without_unlabelled(NAME, dataset_json, fingerprint) is fingerprint


def test_a_setting_that_is_none_is_refused_in_a_sentence() -> None:
    with pytest.raises(Refusal, match="nonsense"):
        without_unlabelled(NAME, {"channel_names": {"0": "CT"}, "synthtumour": {"nonsense": 1}}, {})
