from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.pseudolabel_agreement import agreement


def _dataset(folder: Path, cases: dict[str, np.ndarray]) -> Path:
    (folder / "labelsTr").mkdir(parents=True)
    for name, labels in cases.items():
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / "labelsTr" / f"{name}.nii.gz"))
    about = {
        "channel_names": {"0": "FLAIR"}, "labels": {"background": 0, "edema": 1, "core": 2, "ignore": 3},
        "file_ending": ".nii.gz", "synthtumour": {"roles": dict.fromkeys(cases, "pseudo-labelled")},
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def _labels(low: int, high: int, ignored: slice | None = None) -> np.ndarray:
    labels = np.zeros((4, 8, 8), dtype=np.uint8)
    labels[:, low:high] = 1
    labels[:, low] = 2
    if ignored is not None:
        labels[:, ignored] = 3
    return labels


def test_dice_of_all_labels_without_what_either_ignores(tmp_path: Path) -> None:
    one = _dataset(tmp_path / "1", {"a": _labels(2, 6), "b": _labels(2, 6), "c": _labels(0, 8)})
    two = _dataset(tmp_path / "2", {"a": _labels(4, 8), "b": _labels(4, 8, slice(6, 8)), "d": _labels(0, 8)})
    found = agreement(one, two)
    assert found.dice == {"a": 0.5, "b": pytest.approx(2 * 2 / (4 + 2)), "c": 0.0, "d": 0.0}
    assert found.mean == pytest.approx(np.mean(list(found.dice.values())))
    assert agreement(one, one).mean == 1


def test_nothing_to_compare_is_one_sentence(tmp_path: Path) -> None:
    one = _dataset(tmp_path / "1", {})
    with pytest.raises(UserError, match="has a pseudo-labelled case to compare"):
        agreement(one, one)
    with pytest.raises(UserError, match="folder of a raw data set is needed"):
        agreement(one, tmp_path)
