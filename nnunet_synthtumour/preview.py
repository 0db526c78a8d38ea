"""What training would see: healthy patches with lesions, before and after nnU-Net's own augmentation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_synthtumour.contact_sheet import Panel, middle_slice, save_page, save_sheet
from nnunet_synthtumour.dataset_folders import PREPROCESSED, channels_of, dataset_name, nnunet_folder
from nnunet_synthtumour.drawing import LesionParameters
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.intensities import normalisation
from nnunet_synthtumour.lesion_labels import lesion_labels
from nnunet_synthtumour.lesion_model import LesionModel, load_model
from nnunet_synthtumour.offline import IGNORE, check_images, load_raw
from nnunet_synthtumour.schema import to_json
from nnunet_synthtumour.settings import HEALTHY, SHORT, TrainingSettings, settings_of
from nnunet_synthtumour.synthesis import GrowLesion
from nnunet_synthtumour.volumes import measure_of

PER_ROW = 6


@dataclass(frozen=True)
class Source:
    """A healthy case, normalised: image (C, X, Y, Z), segmentation (1, X, Y, Z) with the host, normalisation."""

    name: str
    image: np.ndarray
    segmentation: np.ndarray
    normalisation: Any


@dataclass(frozen=True)
class Scene:
    """Everything a preview needs: cases, what grows in them, and how nnU-Net would crop and augment."""

    sources: tuple[Source, ...]
    grow: GrowLesion
    patch_size: tuple[int, ...]
    channels: tuple[str, ...]
    spacing: tuple[float, ...]
    use_mask_for_norm: tuple[bool, ...]
    mirrored: bool = True


def scene_of_dataset(
    dataset: str, configuration: str, plans_name: str, preset: str | None, overrides: Mapping[str, Any]
) -> Scene:
    """From a preprocessed data set, with its own settings; `preset` and `overrides` replace theirs."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = nnunet_folder(PREPROCESSED) / dataset_name(dataset)
    plans_file = folder / f"{plans_name}.json"
    if not plans_file.is_file():
        known = (
            ", ".join(sorted(p.stem for p in folder.glob("*Plans*.json")))
            or "none yet: run nnUNetv2_plan_and_preprocess"
        )
        raise UserError(f"{folder} has no plans {plans_name}; there are {known} (choose with -p).")
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    dataset_json = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    if configuration not in plans["configurations"]:
        raise UserError(
            f"{plans_name} has no configuration {configuration}; there are {', '.join(plans['configurations'])} (-c)."
        )
    manager = PlansManager(plans)
    of_configuration = manager.get_configuration(configuration)
    settings = settings_of(dataset_json)
    cases = folder / of_configuration.data_identifier
    channels = channels_of(dataset_json)
    own = {} if preset else settings.lesion.overrides
    model = load_model(preset or settings.lesion.preset, {**own, **overrides}, channels)
    healthy = [c for c in settings.cases(HEALTHY) if cases.is_dir() and list(cases.glob(f"{c}.*"))]
    if not healthy:
        raise UserError(
            f"{cases} holds no preprocessed healthy case; run nnUNetv2_preprocess, or check the roles in dataset.json."
        )
    data = infer_dataset_class(str(cases))(str(cases), healthy)
    sources = []
    for name in healthy[:24]:
        image, seg, *_ = data.load_case(name)
        sources.append(Source(name, image[:], seg[:], normalisation(settings, plans, configuration, name)))
    ignore = manager.get_label_manager(dataset_json).ignore_label
    spacing = tuple(float(s) for s in of_configuration.spacing)
    patch = tuple(int(n) for n in of_configuration.patch_size)
    labels = lesion_labels(dataset_json["labels"], settings.lesion.parts)
    grow = GrowLesion(model, labels, spacing, ignore, channels, 1.0, patch)
    in_mask = tuple(map(bool, of_configuration.use_mask_for_norm))
    return Scene(tuple(sources), grow, patch, channels, spacing, in_mask, is_mirrored(settings.training))


def is_mirrored(training: TrainingSettings) -> bool:
    """Whether SynthTumourTrainer mirrors patches; what the settings leave open is nnU-Net's."""
    short = (training.epochs or 1000) * (training.iterations or 250) <= SHORT
    return not short if training.mirroring is None else training.mirroring


def scene_of_images(
    files: Sequence[Path], channels: Sequence[str], host: Path | None, preset: str, overrides: Mapping[str, Any]
) -> Scene:
    """From one image (its channels), without any data set: normalised as nnU-Net would, patch = the whole image."""
    model: LesionModel = load_model(preset, overrides, channels)
    check_images([(files, host)])
    images, inside, (mean, std), arbitrary = load_raw(files, channels, host)
    import SimpleITK as sitk

    raw = np.stack([sitk.GetArrayFromImage(image).astype(np.float32) for image in images])
    found = np.argwhere(inside)
    box = tuple(slice(int(a), int(b) + 1) for a, b in zip(found.min(0), found.max(0), strict=True))
    shape = (-1, *[1] * inside.ndim)
    x = ((raw - mean.reshape(shape)) / std.reshape(shape)).astype(np.float32)
    x = np.where((raw != 0).any(0), x, 0)[(slice(None), *box)]
    seg = np.where(inside, IGNORE, 0)[box].astype(np.int16)[None]
    spacing = tuple(images[0].GetSpacing()[::-1])
    grow = GrowLesion(model, {"whole": 1, "core": 2, "necrosis": 3}, spacing, IGNORE, channels, 1.0)
    source = Source(files[0].name, x.astype(np.float32), seg, (np.where(arbitrary, np.nan, mean), std))
    return Scene((source,), grow, tuple(seg.shape[1:]), tuple(channels), spacing, (True,) * len(channels))


def draw_preview(scene: Scene, out: Path, n: int, seed: int) -> Path:
    """`n` samples as `preview.png` (grown), `augmented.png` (as nnU-Net augments them), `preview.html`, `preview.json`."""
    out.mkdir(parents=True, exist_ok=True)
    np.random.seed(seed)
    torch.manual_seed(seed)
    augment = _augmentation(scene)
    grown: list[list[Panel]] = [[] for _ in scene.channels]
    augmented: list[list[Panel]] = [[] for _ in scene.channels]
    records = []
    for i in range(n):
        source = scene.sources[i % len(scene.sources)]
        sample = _patch(scene, source)
        drawn = scene.grow.get_parameters(**sample)
        sample = scene.grow.apply(sample, **drawn)
        lesions: LesionParameters = drawn["lesions"]
        measure = measure_of(sample["segmentation"].shape[1:])
        size = measure.of(int((sample["segmentation"] > 0).sum()), scene.spacing)
        records.append(
            {"case": source.name, measure.key: size, "lesions": len(lesions.lesions), "drawn": to_json(lesions)}
        )
        _add(grown, sample, f"{i}: {source.name}, {size:.1f} {measure.shown}")
        seen = augment(image=sample["image"].clone(), segmentation=sample["segmentation"].clone())
        _add(augmented, seen, f"{i}: augmented")
    sheets = [("Lesions as they are grown", out / "preview.png", grown),
              ("The same after nnU-Net's augmentation and crop", out / "augmented.png", augmented)]  # fmt: skip
    for name, file, panels in sheets:
        rows = [row[k : k + PER_ROW] for k in range(0, n, PER_ROW) for row in panels]
        save_sheet(rows, file, f"{name} ({scene.grow.model.name}; {', '.join(scene.channels)})")
    save_page([(name, file) for name, file, _ in sheets], records, out / "preview.html", "What training sees")
    (out / "preview.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    return out / "preview.html"


def _add(rows: list[list[Panel]], sample: dict[str, Any], title: str) -> None:
    labels = sample["segmentation"][0].numpy()
    for channel, row in enumerate(rows):
        row.append(Panel(*middle_slice(sample["image"][channel].numpy(), labels), title if channel == 0 else ""))


def _geometry(scene: Scene) -> tuple[tuple[int, ...], Any, bool]:
    """nnU-Net's initial patch size, rotation and whether it augments slice by slice, asked of its own trainer."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class Asked:
        configuration_manager = type("Configuration", (), {"patch_size": scene.patch_size})
        inference_allowed_mirroring_axes = None

        def print_to_log_file(self, *_: Any, **__: Any) -> None:
            pass

    rotation, dummy_2d, initial, _ = nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size(Asked())
    return tuple(int(n) for n in initial), rotation, bool(dummy_2d)


def _augmentation(scene: Scene) -> Any:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    _, rotation, dummy_2d = _geometry(scene)
    axes = tuple(range(len(scene.patch_size))) if scene.mirrored else None
    return nnUNetTrainer.get_training_transforms(
        scene.patch_size, rotation, None, axes, dummy_2d, use_mask_for_norm=list(scene.use_mask_for_norm)
    )


def _patch(scene: Scene, source: Source) -> dict[str, Any]:
    """A patch of nnU-Net's initial size around a voxel of the host."""
    from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

    initial, _, _ = _geometry(scene)
    image, seg = source.image, source.segmentation
    host = np.argwhere(seg[0] == scene.grow.ignore_label)
    centre = host[np.random.randint(len(host))]
    if len(initial) == 2 and image.ndim == 4:
        image, seg, centre = image[:, centre[0]], seg[:, centre[0]], centre[1:]
    box = []
    for c, n, size in zip(centre, initial, image.shape[1:], strict=True):
        # nnU-Net keeps patches inside of the image as far as they fit, so that the host is not half empty.
        low = (size - n) // 2 if n >= size else int(np.clip(c - n // 2, -(n // 8), size - n + n // 8))
        box.append([low, low + n])
    return {
        "image": torch.from_numpy(np.ascontiguousarray(crop_and_pad_nd(image, box, 0))).float(),
        "segmentation": torch.from_numpy(np.ascontiguousarray(crop_and_pad_nd(seg, box, -1))).to(torch.int16),
        "normalisation": source.normalisation,
    }
