"""How far the pseudo-labels of two rounds agree: when they no longer change, another round brings nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_synthtumour.atomic_files import read_json
from nnunet_synthtumour.dataset_folders import raw_files
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.settings import PSEUDO, settings_of


@dataclass(frozen=True)
class Agreement:
    """Dice of every patient's tumour (all labels together) in two rounds; 0 where only one of them kept the patient."""

    dice: dict[str, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.dice.values())))


def agreement(one: Path, other: Path) -> Agreement:
    """Compare the pseudo-labelled cases of two raw data sets. Voxels that either round ignores do not count."""
    first, second = (_pseudo_labelled(folder) for folder in (one, other))
    if not first and not second:
        raise UserError(f"Neither {one} nor {other} has a pseudo-labelled case to compare.")
    dice = dict.fromkeys(sorted(set(first) | set(second)), 0.0)
    for case in set(first) & set(second):
        dice[case] = _dice(*first[case], *second[case])
    return Agreement(dice)


def _pseudo_labelled(folder: Path) -> dict[str, tuple[Path, int]]:
    """Case -> label file and ignore label."""
    dataset_json = read_json(folder / "dataset.json")
    if dataset_json is None:
        raise UserError(f"There is no readable {folder / 'dataset.json'}; the folder of a raw data set is needed.")
    ignore = int(dataset_json["labels"]["ignore"])
    return {
        case: (raw_files(folder, dataset_json, case)[1], ignore) for case in settings_of(dataset_json).cases(PSEUDO)
    }


def _dice(one: Path, ignore_one: int, other: Path, ignore_other: int) -> float:
    a, b = (_array(file) for file in (one, other))
    if a.shape != b.shape:
        raise UserError(f"{one} and {other} are of different sizes, so they are not of one patient's image.")
    known = (a != ignore_one) & (b != ignore_other)
    a, b = (a > 0) & known, (b > 0) & known
    both = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / both if both else 0.0


def _array(file: Path) -> Any:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
