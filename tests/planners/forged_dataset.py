"""A data set of which only the fingerprint exists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

NAME = "Dataset001_Toy"


def forge(folders: dict[str, Path], shape: Sequence[int], spacing: Sequence[float]) -> None:
    """Three equal cases of one channel, as nnU-Net's fingerprint extraction describes them."""
    raw, preprocessed = (folders[name] / NAME for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    raw.mkdir()
    preprocessed.mkdir()
    names = {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "tumour": 1, "ignore": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {name: {"images": [f"{name}_0000.nii.gz"], "label": f"{name}.nii.gz"} for name in "abc"},
    }
    (raw / "dataset.json").write_text(json.dumps(names), encoding="utf-8")
    statistics = {"mean": 1.0, "std": 1.0, "median": 1.0, "min": 0.0, "max": 2.0, "percentile_00_5": 0.0}
    fingerprint = {
        "spacings": [list(spacing)] * 3,
        "shapes_after_crop": [list(shape)] * 3,
        "median_relative_size_after_cropping": 0.6,
        "foreground_intensity_properties_per_channel": {"0": statistics | {"percentile_99_5": 2.0}},
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint), encoding="utf-8")
