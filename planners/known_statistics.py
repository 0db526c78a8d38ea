"""CT statistics from the cases whose foreground is known.

nnU-Net clips and normalises CT by the intensities of all foreground voxels, and takes the ignore label for foreground. An
unlabelled image is ignored everywhere, so its air and its table would count as much as the organs of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

from nnunetv2.configuration import default_num_processes
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

from nnunet_synthtumour.errors import Refusal, UserError
from nnunet_synthtumour.settings import UNLABELLED, settings_of

STATISTICS = "foreground_intensity_properties_per_channel"


def without_unlabelled(
    dataset_name: str, dataset_json: Mapping[str, Any], fingerprint: dict[str, Any]
) -> dict[str, Any]:
    """`fingerprint` with the statistics of CT channels over all cases but the unlabelled, where there are both kinds."""
    unlabelled = _unlabelled(dataset_json)
    ct = [number for number, name in dataset_json["channel_names"].items() if _is_ct(name)] if unlabelled else []
    if not ct:
        return fingerprint
    extractor = DatasetFingerprintExtractor(dataset_name, default_num_processes)
    extractor.dataset = {case: files for case, files in extractor.dataset.items() if case not in unlabelled}
    if not extractor.dataset:
        return fingerprint
    print(f"CT statistics come from the {len(extractor.dataset)} cases that are not unlabelled.")
    found = _statistics(extractor)
    return fingerprint | {STATISTICS: fingerprint[STATISTICS] | {number: found[number] for number in ct}}


def _is_ct(channel_name: str) -> bool:
    return issubclass(get_normalization_scheme(channel_name), CTNormalization)


def _unlabelled(dataset_json: Mapping[str, Any]) -> set[str]:
    try:
        return set(settings_of(dataset_json).cases(UNLABELLED))
    except UserError as error:
        raise Refusal(str(error)) from error


def _statistics(extractor: DatasetFingerprintExtractor) -> dict[str, dict[str, float]]:
    """By channel number, over the extractor's cases; it writes a fingerprint, which must not be the data set's."""
    with TemporaryDirectory() as scratch:
        extractor.dataset_name = scratch  # an absolute path: joined to nnU-Net's folder, it remains itself
        found = extractor.run(overwrite_existing=True)
    return {str(number): statistics for number, statistics in found[STATISTICS].items()}
