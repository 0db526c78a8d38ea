"""One patient on the way to a pseudo-label: segment (slow, once per junior), then apply the rules (fast, at will)."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_synthtumour.atomic_files import complete, read_json, write_json
from nnunet_synthtumour.confidence import labels_inside, logits_of, mean_probabilities, tumour_probability
from nnunet_synthtumour.dataset_folders import raw_files
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.hosts import find_host
from nnunet_synthtumour.image_files import written
from nnunet_synthtumour.junior_model import stamps_of
from nnunet_synthtumour.pseudolabel_appearance import corrected
from nnunet_synthtumour.pseudolabel_picture import save_case_picture
from nnunet_synthtumour.pseudolabel_rules import DROPPED, KEPT, UNSURE, decide, label_map
from nnunet_synthtumour.schema import to_json
from nnunet_synthtumour.settings import PseudoLabelSettings
from nnunet_synthtumour.volumes import measure_of

GENERATION = 2
"""Raised whenever the same image and junior would give another result, so that older results are not taken."""


@dataclass(frozen=True)
class PatientCase:
    """A patient's images, and the files that come of them in the work folder."""

    name: str
    images: tuple[Path, ...]
    work: Path
    ending: str
    reader: str
    label_names: dict[str, Any]
    identity: dict[str, Any]

    @property
    def probabilities(self) -> Path:
        return self.work / "probabilities" / f"{self.name}.npz"

    @property
    def labels(self) -> Path:
        return self.work / "labels" / f"{self.name}{self.ending}"

    @property
    def record(self) -> Path:
        return self.work / "cases" / f"{self.name}.json"

    @property
    def picture(self) -> Path:
        return self.work / "pictures" / f"{self.name}.png"

    def read_images(self) -> tuple[np.ndarray, dict[str, Any]]:
        """(C, Z, Y, X) as nnU-Net reads it, and what it needs to write a label map of the same geometry."""
        from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

        return recursive_find_reader_writer_by_name(self.reader)().read_images(list(map(str, self.images)))

    def write_labels(self, labels: np.ndarray, properties: dict[str, Any]) -> None:
        from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

        with written(self.labels) as scratch:
            recursive_find_reader_writer_by_name(self.reader)().write_seg(labels, str(scratch), properties)


def patient_cases(
    names: Sequence[str], source: Path, dataset_json: dict[str, Any], junior: dict[str, Any], work: Path
) -> tuple[PatientCase, ...]:
    """The named cases of a raw data set, to be segmented by `junior` (its identity)."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    files = {name: raw_files(source, dataset_json, name)[0] for name in names}
    reader = determine_reader_writer_from_dataset_json(dataset_json, str(files[names[0]][0]), verbose=False)
    cases = []
    for name, images in files.items():
        missing = [image for image in images if not image.is_file()]
        if missing:
            raise UserError(f"There is no {missing[0]}, though {source / 'dataset.json'} gives a role to that case.")
        identity = {"generation": GENERATION, "junior": junior, "images": stamps_of(images)}
        cases.append(
            PatientCase(
                name, images, work, dataset_json["file_ending"], reader.__name__, dataset_json["labels"], identity
            )
        )
    return tuple(cases)


def is_predicted(case: PatientCase) -> bool:
    """Whether this junior has segmented these images."""
    try:
        with np.load(case.probabilities) as stored:
            return json.loads(str(stored["identity"])) == case.identity
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def is_decided(case: PatientCase, rules: PseudoLabelSettings) -> bool:
    """Whether these rules have been applied to what this junior segmented."""
    record = read_json(case.record)
    return bool(
        record
        and record.get("identity") == case.identity
        and record.get("rules") == to_json(rules)
        and case.labels.is_file()
        and case.picture.is_file()
    )


def predict(cases: Sequence[PatientCase], predictor: Any, processes: int) -> Iterator[PatientCase]:
    """Segment `cases`, each yielded when its probabilities are on the disk.

    While the network is at one case, others are read ahead (by `processes`) and the one before is brought back to the
    image's grid in a thread.
    """
    with ThreadPoolExecutor(1) as behind:
        waiting: tuple[PatientCase, Future[None]] | None = None
        for case, (data, properties) in zip(cases, _preprocessed(cases, predictor, processes), strict=True):
            probabilities = mean_probabilities(predictor, data)
            if waiting is not None:
                waiting[1].result()
                yield waiting[0]
            waiting = case, behind.submit(_store, case, probabilities, properties, predictor)
        if waiting is not None:
            waiting[1].result()
            yield waiting[0]


def _preprocessed(
    cases: Sequence[PatientCase], predictor: Any, processes: int
) -> Iterable[tuple[torch.Tensor, dict[str, Any]]]:
    files = [list(map(str, case.images)) for case in cases]
    managers = predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    if processes <= 1 or len(cases) == 1:
        preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
        for of_case in files:
            data, _, properties = preprocessor.run_case(of_case, None, *managers)
            yield torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32)), properties
        return
    from nnunetv2.inference.data_iterators import preprocessing_iterator_fromfiles

    plans_manager, configuration_manager, dataset_json = managers
    for item in preprocessing_iterator_fromfiles(
        files, None, None, plans_manager, dataset_json, configuration_manager, min(processes, len(cases)),
        predictor.device.type == "cuda", False,
    ):  # fmt: skip
        yield item["data"], item["data_properties"]


def _store(case: PatientCase, probabilities: torch.Tensor, properties: dict[str, Any], predictor: Any) -> None:
    """Back to the image's grid as nnU-Net does it, then one byte per voxel: the probability of any tumour in 1/255."""
    from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

    regions = predictor.label_manager.has_regions
    _, full = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits_of(probabilities, regions), predictor.plans_manager, predictor.configuration_manager,
        predictor.label_manager, properties, return_probabilities=True, num_threads_torch=torch.get_num_threads(),
    )  # fmt: skip
    full = np.asarray(full)
    tumour = np.round(np.clip(tumour_probability(full, regions), 0, 1) * 255).astype(np.uint8)
    inside = labels_inside(full, predictor.label_manager).astype(np.uint8)
    inside[tumour == 0] = 0
    with complete(case.probabilities) as scratch, scratch.open("wb") as stream:
        np.savez_compressed(stream, tumour=tumour, inside=inside, identity=json.dumps(case.identity))


def apply_rules(case: PatientCase, rules: PseudoLabelSettings) -> dict[str, Any]:
    """Label map, picture and record of a segmented case; the record, written last, says that the others are there."""
    with np.load(case.probabilities) as stored:
        tumour, inside = stored["tumour"].astype(np.float32) / 255, stored["inside"]
    images, properties = case.read_images()
    spacing = spacing_mm(properties["spacing"], images.shape[1:])
    flat = [image[0] if image.shape[0] == 1 else image for image in images]
    host = find_host(flat)[0].reshape(tumour.shape)
    from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask

    not_empty = create_nonzero_mask(images if images.shape[1] > 1 else images[:, 0]).reshape(tumour.shape)
    probability = corrected(tumour, images, host, spacing, rules.upper, rules.appearance)
    decision = decide(probability, tumour, host, not_empty, spacing, rules)
    ignore = int(case.label_names["ignore"])
    labels = label_map(decision.state, inside, ignore)
    case.write_labels(labels, properties)
    kept = decision.reason is None

    measure = measure_of(tumour.shape)

    def size(mask: np.ndarray, digits: int = 3) -> float:
        return round(measure.of(mask.sum(), spacing), digits)

    record = {
        "case": case.name,
        "kept": kept,
        "reason": decision.reason,
        "doubt": decision.doubt,
        measure.unit: {
            name: size(decision.state == state)
            for name, state in (("tumour", KEPT), ("unsure", UNSURE), ("dropped", DROPPED))
        },
        f"{measure.unit}_per_label": {
            name_of(case.label_names, value): size(labels == value) for value in np.unique(inside[inside > 0]).tolist()
        },
        f"host_{measure.unit}": size(host, 1),
        "components": [asdict(component) for component in decision.components],
        "rules": to_json(rules),
        "identity": case.identity,
    }
    save_case_picture(case.picture, images, decision.state, probability, spacing)
    write_json(record, case.record)
    return record


def name_of(labels: dict[str, Any], value: int) -> str:
    """The name of a label; where regions are declared, the smallest region that has it."""
    named = {name: v if isinstance(v, (list, tuple)) else [v] for name, v in labels.items()}
    having = [name for name, values in named.items() if value in values]
    return min(having, key=lambda name: len(named[name])) if having else str(value)


def spacing_mm(spacing: Sequence[float], shape: Sequence[int]) -> tuple[float, ...]:
    """nnU-Net's spacing (z, y, x); the slice of a 2D image, 999 pixels thick to nnU-Net, is 1 mm thick for distances."""
    return (1.0 if shape[0] == 1 else float(spacing[0]), *map(float, spacing[1:]))
