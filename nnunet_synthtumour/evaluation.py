"""Predictions against the truth: Dice, HD95, lesion-wise F1 and volumes per case and label, and their summary.

2D images have areas in place of volumes, in cm2, and keys that say so.

Empty references: where truth and prediction are both empty, Dice, HD95 and F1 are undefined (null) and the case does not
enter their means, as nnU-Net has it. Where only one is empty, Dice and F1 are 0 and HD95 is undefined; how many of these
there are is stated beside the mean (`hd95_undefined`), and what was found in healthy images in `false_positive_ml`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunet_synthtumour.atomic_files import write_json
from nnunet_synthtumour.case_pool import CasePool
from nnunet_synthtumour.dataset_folders import read_dataset_json
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_checks import difference
from nnunet_synthtumour.image_files import read_or_refuse
from nnunet_synthtumour.registration.metrics import dice, hd95
from nnunet_synthtumour.volumes import AREA, VOLUME, Measure, measure_of

FILE = "evaluation.json"
MATCHING_IOU = 0.1  # intersection over union from which a found lesion is a real one
METRICS = ("dice", "hd95", "lesion_f1")
LOOSENESS = 10  # of grids, in tolerances of an image that is to be trained on


@dataclass(frozen=True)
class Pair:
    """The files of one case."""

    case: str
    prediction: Path
    reference: Path


def evaluate(predictions: Path, references: Path, dataset_json: Mapping[str, Any] | None, processes: int) -> Path:
    """Write `evaluation.json` into the folder of predictions; raises `UserError` where the two folders do not match."""
    if dataset_json is None:
        file = predictions / "dataset.json"
        if not file.is_file():
            raise UserError(
                f"{predictions} has no dataset.json, which nnU-Net writes beside predictions; give it with -d."
            )
        dataset_json, _ = read_dataset_json(file)
    absent = [key for key in ("file_ending", "labels") if key not in dataset_json]
    if absent:
        raise UserError(f"dataset.json has no '{absent[0]}'; name a data set that has it with -d.")
    ending = dataset_json["file_ending"]
    pairs = _pairs(predictions, references, ending)
    structures = structures_of(dataset_json)
    ignore = dataset_json["labels"].get("ignore")
    # one unit for all cases: a volume of one slice among others of many has a thickness that means something
    measure = (
        AREA if all(measure_of(read_or_refuse(pair.reference).GetSize()[::-1]) == AREA for pair in pairs) else VOLUME
    )
    with CasePool(processes) as pool:
        work = partial(evaluate_case, structures=structures, ignore=ignore, measure=measure)
        rows = pool.map(work, pairs, "comparing")
    found = {
        "structures": {name: list(values) for name, values in structures.items()},
        "summary": {name: summary_of([row["structures"][name] for row in rows], measure) for name in structures},
        "cases": rows,
    }
    write_json(found, predictions / FILE)
    return predictions / FILE


def structures_of(dataset_json: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> label values of every structure; with several plain labels also all of them together."""
    structures = {
        name: tuple(int(v) for v in (value if isinstance(value, (list, tuple)) else [value]))
        for name, value in dataset_json["labels"].items()
        if name not in ("background", "ignore")
    }
    everything = tuple(sorted({v for values in structures.values() for v in values}))
    if everything not in structures.values():
        structures = {"whole": everything, **structures}
    return structures


def evaluate_case(
    pair: Pair, structures: Mapping[str, Sequence[int]], ignore: int | None, measure: Measure = VOLUME
) -> dict[str, Any]:
    prediction, reference = read_or_refuse(pair.prediction), read_or_refuse(pair.reference)
    what = difference(prediction, reference, LOOSENESS)
    if what:
        raise UserError(
            f"{pair.prediction} and {pair.reference} differ in {what}; predict the images that the labels were drawn on, or "
            "resample the labels to them."
        )
    found, truth = (sitk.GetArrayFromImage(image) for image in (prediction, reference))
    declared = {
        0,
        *(value for values in structures.values() for value in values),
        *([] if ignore is None else [ignore]),
    }
    for file, labels in ((pair.prediction, found), (pair.reference, truth)):
        unknown = sorted(set(np.unique(labels).tolist()) - declared)
        if unknown:
            raise UserError(
                f"{file} holds {unknown[0]:g}, but the labels are {', '.join(map(str, sorted(declared)))}; renumber it, or "
                "name the data set that declares its labels with -d."
            )
    spacing = reference.GetSpacing()[::-1]
    known = np.ones(truth.shape, bool) if ignore is None else truth != ignore
    return {
        "case": pair.case,
        "prediction": str(pair.prediction),
        "reference": str(pair.reference),
        "structures": {
            name: compare(np.isin(found, values) & known, np.isin(truth, values) & known, spacing, measure)
            for name, values in structures.items()
        },
    }


def compare(
    found: np.ndarray, truth: np.ndarray, spacing: Sequence[float], measure: Measure = VOLUME
) -> dict[str, float | int | None]:
    """All metrics of two masks on one grid of `spacing` (mm)."""
    matched, n_found, n_real = lesions(found, truth)
    return {
        "dice": _finite(dice(found, truth)),
        "hd95": _finite(hd95(found, truth, spacing)),
        "lesion_f1": 2 * matched / (n_found + n_real) if n_found + n_real else None,
        "lesions_matched": matched,
        "lesions_found": n_found,
        "lesions_real": n_real,
        measure.unit: measure.of(found.sum(), spacing),
        f"true_{measure.unit}": measure.of(truth.sum(), spacing),
        f"false_positive_{measure.unit}": measure.of((found & ~truth).sum(), spacing),
    }


def lesions(found: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """Matched, found and real lesions: connected components, matched one to one, best overlap first."""
    everywhere = np.ones((3,) * truth.ndim)
    ours, n_found = ndimage.label(found, everywhere)
    theirs, n_real = ndimage.label(truth, everywhere)
    overlap = np.zeros((n_found + 1, n_real + 1), dtype=np.int64)
    np.add.at(overlap, (ours.ravel(), theirs.ravel()), 1)
    shared = overlap[1:, 1:]
    iou = shared / np.maximum(1, overlap.sum(1)[1:, None] + overlap.sum(0)[None, 1:] - shared)
    matched = 0
    while iou.size and iou.max() >= MATCHING_IOU:
        row, column = np.unravel_index(iou.argmax(), iou.shape)
        iou[row], iou[:, column] = 0, 0
        matched += 1
    return matched, n_found, n_real


def summary_of(rows: Sequence[Mapping[str, Any]], measure: Measure = VOLUME) -> dict[str, Any]:
    """Means over the cases where a metric is defined; volumes (or areas) as Bland and Altman compare two measurements."""
    means: dict[str, Any] = {}
    for metric in METRICS:
        values = [row[metric] for row in rows if row[metric] is not None]
        means[metric] = float(np.mean(values)) if values else None
        means[f"{metric}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        means[f"{metric}_undefined"] = len(rows) - len(values)
    unit = measure.unit
    difference = np.array([row[unit] - row[f"true_{unit}"] for row in rows])
    spread = 1.96 * float(difference.std(ddof=1)) if len(rows) > 1 else None
    mean = float(difference.mean()) if len(rows) else None
    return {
        "cases": len(rows),
        **means,
        f"{measure.name}_difference_{unit}": mean,
        f"limits_of_agreement_{unit}": None if spread is None or mean is None else [mean - spread, mean + spread],
        f"false_positive_{unit}": float(np.mean([row[f"false_positive_{unit}"] for row in rows])) if rows else None,
    }


def _pairs(predictions: Path, references: Path, ending: str) -> list[Pair]:
    for folder in (predictions, references):
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not a folder; give the folder of predictions (-i) and that of the labels (-r)."
            )
    names = sorted(file.name for file in references.glob(f"*{ending}") if file.name[0] != ".")
    if not names:
        raise UserError(f"{references} holds no label map (*{ending}).")
    missing = [name for name in names if not (predictions / name).is_file()]
    if missing:
        raise UserError(
            f"{predictions} has no prediction of {missing[0]}"
            + (f" and {len(missing) - 1} others" if len(missing) > 1 else "")
            + "; predict all images that have labels."
        )
    return [Pair(name.removesuffix(ending), predictions / name, references / name) for name in names]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
