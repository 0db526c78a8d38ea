"""The `"synthtumour"` block of `dataset.json`, as frozen dataclasses. Every default of the package is written here,
also those that trainers choose (`null`).

nnU-Net copies `dataset.json` to the preprocessed data, to the results and into every checkpoint, so a run carries its
settings with it. Presets of lesions have their own files (`lesion_model.py`); this block names one and overrides it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_synthtumour.schema import CountRange, Range, SettingsError, leaves, merge, parse, setting, to_json

BLOCK = "synthtumour"
SHORT = 5000  # iterations up to which a training is a short one
HEALTHY, UNLABELLED, LABELLED, PSEUDO = "healthy", "unlabelled", "labelled", "pseudo-labelled"
ROLES = (HEALTHY, UNLABELLED, LABELLED, PSEUDO)


@dataclass(frozen=True)
class Intensity:
    """Mean and standard deviation per channel, in raw units, that nnU-Net's normalisation of a case uses."""

    mean: tuple[float, ...] = setting(doc="one number per channel")
    std: tuple[float, ...] = setting(low=0.0, doc="one number per channel")
    arbitrary_zero: tuple[int, ...] = setting((), low=0, doc="channels whose raw zero is some grey of the tissue")

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} numbers and std has {len(self.std)}; one per channel is needed."
            )


@dataclass(frozen=True)
class LesionSettings:
    """What is grown in healthy images."""

    preset: str = setting("glioma", doc="a preset's name ('synthtumour presets' lists them) or a JSON file")
    overrides: dict[str, Any] = setting(factory=dict, doc="fields of the preset that shall differ")
    parts: dict[str, int | str] | None = setting(
        None,
        doc="which label each part of a lesion gets, for example {'whole': 'edema', 'core': 'enhancing'}; null: by the "
        "names of the labels; labels left out get no lesion",
    )


@dataclass(frozen=True)
class TrainingSettings:
    """How a trainer draws and learns; null leaves nnU-Net's own value."""

    epochs: int | None = setting(250, low=1, doc="number of epochs")
    iterations: int | None = setting(None, low=1, doc="training iterations per epoch")
    optimizer: str | None = setting(
        None,
        choices=("sgd", "adamw"),
        doc="null: nnU-Net's SGD, but AdamW for trainings of at most 5000 iterations",
    )
    initial_lr: float | None = setting(
        None,
        low=1e-8,
        high=1.0,
        doc="learning rate of the first epoch; null: 0.01 with SGD; with AdamW 0.002, or 0.001 where images are registered",
    )
    healthy_patches: float = setting(0.03, low=0.0, high=1.0, doc="share of healthy patches in which nothing grows")
    host_centred: float = setting(0.9, low=0.0, high=1.0, doc="share of patches whose centre lies in the host")
    labelled_share: float = setting(0.5, low=0.0, high=1.0, doc="share of patches from labelled cases, if any exist")
    reuse: int | None = setting(
        None,
        low=1,
        doc="how often a patch with a lesion is used, each time augmented anew; null: 3 times where patches are small, so "
        "that growing would cost as much as augmenting, else twice; once where kept patches would take 400 MB, and in "
        f"trainings of up to {SHORT} iterations",
    )
    averaging: int | None = setting(
        None,
        low=0,
        doc="iterations over which weights are averaged; null: a tenth of the training, at most 1000; 0: none",
    )
    mirroring: bool | None = setting(
        None,
        doc="mirror images, in training and in prediction; null: as nnU-Net does, but not in trainings of up to 5000 "
        "iterations on grown lesions, and never where images are registered",
    )
    bfloat16: bool | None = setting(
        None, doc="compute convolutions in bfloat16 on a CPU; null: where it has instructions for that"
    )
    patience: int | None = setting(None, low=1, doc="epochs without a better shifted Dice before training ends")
    seed: int | None = setting(
        None,
        low=0,
        doc="of what is random; trainers that register draw nnU-Net's own patches without it. null: another one every time",
    )


@dataclass(frozen=True)
class ValidationSettings:
    """The fixed validation set with a distribution shift that chooses the epoch."""

    shift: str = setting(
        "paper",
        choices=("paper", "preset", "noise", "real"),
        doc="paper: hard mask, texture kept; preset: another preset; noise: own lesions in noisier images; "
        "real: the labelled cases of the split",
    )
    preset: str | None = setting(
        None,
        doc="the other preset, for shift 'preset', not lesion.preset; its shapes and contrasts then also serve 'paper'",
    )
    noise: Range = setting((0.1, 0.3), low=0.0, doc="standard deviation of the noise, for shift 'noise'")
    patches: int = setting(48, low=1, doc="number of fixed patches of each kind, shifted and in-distribution")
    affected: float = setting(
        0.5,
        low=0.01,
        high=1.0,
        doc="share of patches that carry a lesion, at least one; in the final validation every volume does",
    )
    seed: int = setting(20250, low=0, doc="seed of the fixed set")


@dataclass(frozen=True)
class PseudoLabelSettings:
    """Which voxels and which components of a junior's prediction become labels (`docs/pseudolabels.md`)."""

    appearance: float = setting(
        1.0, low=0.0, doc="weight of what the tumour looks like in its own patient; 0: the junior's probabilities alone"
    )
    lower: float = setting(0.2, low=0.0, high=1.0, doc="below this probability of any tumour a voxel is background")
    upper: float = setting(0.5, low=0.0, high=1.0, doc="from this probability on it is tumour; ignored in between")
    min_ml: float | None = setting(
        None, low=0.0, doc="smaller components are dropped; null: a third of the preset's smallest lesion"
    )
    min_confidence: float = setting(0.7, low=0.0, high=1.0, doc="components of a lower mean probability are dropped")
    closing_mm: float = setting(
        12.0,
        low=0.0,
        doc="gaps up to twice this, at most 1.5 radii of the component, are closed and holes filled",
    )
    rim_mm: float = setting(3.0, low=0.0, doc="thickness of the outer rim of the host")
    max_rim_share: float = setting(0.5, low=0.0, high=1.0, doc="components with more of them in the rim are dropped")
    max_host_share: float = setting(0.5, low=0.0, high=1.0, doc="components that fill more of the host are dropped")
    max_doubt: float = setting(
        1.0, low=0.0, doc="cases with more unsure and dropped than this, per kept, are set aside"
    )

    def __post_init__(self) -> None:
        if self.lower > self.upper:
            raise ValueError(f"lower is {self.lower} and upper is {self.upper}; lower must not exceed upper.")


@dataclass(frozen=True)
class DonorSettings:
    """How real tumours are cut out of patients and pasted into healthy images."""

    probability: float = setting(0.9, low=0.0, high=1.0, doc="share of healthy patches that receive a donor")
    count: CountRange = setting((1, 1), low=1, doc="donors in such a patch, fewest and most")
    smallest_ml: float = setting(0.1, low=0.0, doc="smallest tumour that is cut out")
    margin_mm: float = setting(6.0, low=0.0, doc="tissue around the tumour that is kept with it")
    placement: str = setting(
        "relative",
        choices=("relative", "anywhere", "paper"),
        doc="relative: where it lay in its own host; anywhere: in the host; paper: same place, hard mask, nothing changed",
    )
    jitter_mm: float = setting(10.0, low=0.0, doc="how far from there, at most, along each axis")
    undeformed: float = setting(
        0.3, low=0.0, high=1.0, doc="share not turned, scaled or bent: their texture stays sharp"
    )
    flips: str = setting("left-right", choices=("none", "left-right", "all"), doc="axes that may be flipped")
    rotation_degrees: float = setting(20.0, low=0.0, high=180.0, doc="largest rotation, about an axis drawn uniformly")
    scaling: Range = setting((0.8, 1.25), low=0.1, high=10.0, doc="factor of the diameter")
    elastic_mm: Range = setting((0.0, 2.0), low=0.0, doc="deviation of the elastic deformation")
    seam_mm: Range = setting((1.0, 5.0), low=0.0, doc="width of the blend outside of the tumour; at most the margin")
    match_intensities: bool = setting(True, doc="match mean and spread of the donor's surroundings to the host's")


@dataclass(frozen=True)
class SeniorSettings:
    """What the senior's batches are made of, and where it starts."""

    start: str = setting("junior", choices=("junior", "scratch"), doc="weights of the first epoch")
    epochs: int | None = setting(None, low=1, doc="number of epochs; null: as many as the junior")
    initial_lr: float | None = setting(
        None,
        low=1e-8,
        high=1.0,
        doc="learning rate of the first epoch from the junior's weights, unless training has one; "
        "null: the usual with AdamW, 0.3 of it with SGD",
    )
    patients: float = setting(0.3, low=0.0, high=1.0, doc="share of patches from patients with their pseudo-labels")
    synthetic: float = setting(0.3, low=0.0, high=1.0, doc="share of healthy patches that are treated as in stage one")


@dataclass(frozen=True)
class RegistrationSettings:
    """A registration network and its losses."""

    network: str = setting(
        "unet", choices=("unet", "mscgunet"), doc="built from the plans; mscgunet has a graph inside"
    )
    similarity: str = setting("lncc", choices=("lncc", "ncc", "mse", "mind", "nmi"), doc="image similarity")
    regularity_kind: str = setting(
        "diffusion", choices=("diffusion", "bending"), doc="what is smooth about the velocity"
    )
    regularity: float = setting(1.0, low=0.0, doc="weight of the smoothness, in units of what suits the similarity")
    anatomy: float | None = setting(
        None, low=0.0, doc="weight of the overlap of warped and fixed segmentations; null: 4 in DeepAtlasTrainer, 1 in "
        "CrossModalTrainer",
    )  # fmt: skip
    passes: int | None = setting(
        None, low=1, high=4, doc="times that a trained network looks at a pair, each time at what is left of it; null: 2 in "
        "DeepAtlasTrainer, 1 in CrossModalTrainer",
    )  # fmt: skip
    structure_steps: int | None = setting(
        None, low=0, high=100, doc="steps, after its looks, towards the structures that segmentation finds in both images; "
        "null: 8 in DeepAtlasTrainer, none where registration does not see them",
    )  # fmt: skip
    initial_lr: float = setting(1e-3, low=1e-8, high=1.0, doc="learning rate of the first epoch (Adam)")
    pairs: int = setting(1, low=1, doc="pairs in a batch")

    def completed(self, anatomy: float, passes: int, structure_steps: int) -> RegistrationSettings:
        """With what a trainer takes where nothing is said."""
        return dataclasses.replace(
            self,
            anatomy=anatomy if self.anatomy is None else self.anatomy,
            passes=passes if self.passes is None else self.passes,
            structure_steps=structure_steps if self.structure_steps is None else self.structure_steps,
        )


@dataclass(frozen=True)
class DeepAtlasSettings:
    """How registration and segmentation teach each other; null: chosen by `fitted` and the number of labelled cases."""

    alone: float | None = setting(None, low=0.0, high=1.0, doc="share of the epochs in which registration learns alone")
    taught: float | None = setting(
        None, low=0.0, high=1.0, doc="share of the epochs, after that, in which registration rests and teaches"
    )
    registration_steps: int | None = setting(
        None, low=1, doc="registration steps per segmentation step when both learn"
    )  # fmt: skip
    guided: bool = setting(True, doc="registration sees where segmentation finds structures in both images")
    fitted: int = setting(
        60, low=0, doc="iterations that fit labelled images to each unlabelled one before training; their labels teach "
        "segmentation from the first epoch on; 0: only the registration network carries labels",
    )  # fmt: skip
    sources: int = setting(
        3, low=1, doc="labelled images, most alike, whose fitted labels are fused on an unlabelled one"
    )
    relays: int | None = setting(
        None, low=0, doc="unlabelled images through which fitted labels also come to each of the others, to outvote errors "
        "of the direct way; null: 8 with one or two labelled images, else none",
    )  # fmt: skip
    manual: float = setting(0.1, low=0.0, high=0.99, doc="least share of labelled images among nnU-Net's patches")
    pairs: tuple[float, float, float, float] | None = setting(
        None, low=0.0, doc="shares of pairs moving-fixed: both labelled, labelled-unlabelled, unlabelled-labelled, both "
        "unlabelled; null: all images alike, but a tenth with labels; 0.1, 0.15, 0.15, 0.6 without fitted labels",
    )  # fmt: skip
    carried: float = setting(1.0, low=0.0, doc="weight of labels carried over to unlabelled images")
    warped: float = setting(1.0, low=0.0, doc="weight of labelled images warped to others as training samples")


@dataclass(frozen=True)
class SourceSettings:
    """The labelled data set of another modality."""

    dataset: str = setting(doc="id or name of the labelled data set, preprocessed with the same planner")
    pairing: str = setting("unpaired", choices=("paired", "unpaired"), doc="whether cases of one name show one patient")


@dataclass(frozen=True)
class CrossModalSettings:
    """How labels cross from one modality to another."""

    mode: str = setting(
        "sequential", choices=("sequential", "unified"), doc="registration rests once segmentation begins, or learns on"
    )
    network: str = setting("mscgunet", choices=("unet", "mscgunet"), doc="the registration network")
    similarity: str = setting("mind", choices=("mind", "nmi", "ncc", "lncc", "mse"), doc="of source and target")
    alone: float = setting(0.2, low=0.0, high=1.0, doc="share of the epochs in which registration learns alone")
    pretrain: bool = setting(False, doc="meanwhile, the segmenter learns from source images warped to their targets")
    half: float = setting(0.5, low=0.0, doc="weight of similarity and overlap at half resolution")
    consistency: float = setting(0.1, low=0.0, doc="weight of the inverse consistency of both directions")
    refine: int = setting(100, low=0, doc="iterations that fit the network's field to a pair before labels are carried")
    refine_similarity: str = setting("nmi", choices=("mind", "nmi", "ncc", "lncc", "mse"), doc="of the images in that")
    appearance: float = setting(
        1.0, low=0.0, doc="weight of the target's intensities in carried labels; 0: fields alone"
    )
    sources: int = setting(5, low=1, doc="source images whose labels are fused on a target; one where they are paired")
    trusted: float = setting(0.7, low=0.0, high=1.0, doc="least agreement of the sources, else the ignore label")
    doubtful: float = setting(0.02, low=0.0, high=0.9, doc="share of voxels, least similar of all, that are ignored")
    refreshes: int = setting(2, low=0, doc="times that labels are carried anew while both learn (unified)")


@dataclass(frozen=True)
class Settings:
    """Everything this package knows about a data set."""

    roles: dict[str, str] = setting(factory=dict, choices=ROLES, doc="role of every case")
    hosts: dict[str, str] = setting(
        factory=dict,
        choices=("mask", "nonzero", "head", "foreground"),
        doc="how the host of every healthy case was found",
    )
    intensities: dict[str, Intensity] = setting(factory=dict, doc="normalisation of every case")
    lesion: LesionSettings = setting(factory=LesionSettings)
    training: TrainingSettings = setting(factory=TrainingSettings)
    validation: ValidationSettings = setting(factory=ValidationSettings)
    pseudolabels: PseudoLabelSettings = setting(factory=PseudoLabelSettings)
    donors: DonorSettings = setting(factory=DonorSettings)
    senior: SeniorSettings = setting(factory=SeniorSettings)
    registration: RegistrationSettings = setting(factory=RegistrationSettings)
    deepatlas: DeepAtlasSettings = setting(factory=DeepAtlasSettings)
    crossmodal: CrossModalSettings = setting(factory=CrossModalSettings)
    source: SourceSettings | None = setting(None)

    def cases(self, *roles: str) -> list[str]:
        """Names of the cases that have one of `roles`, sorted."""
        return sorted(case for case, role in self.roles.items() if role in roles)


def settings_of(dataset_json: Mapping[str, Any]) -> Settings:
    """The settings of a data set; a data set without the block has all defaults. Raises `SettingsError`."""
    return parse(Settings, dataset_json.get(BLOCK), BLOCK)


def chosen_by_user(dataset_json: Mapping[str, Any]) -> set[str]:
    """Dotted keys (without the leading block name) that `dataset.json` states itself."""
    return set(leaves(dict(dataset_json.get(BLOCK) or {})))


def with_settings(dataset_json: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `dataset_json` whose block carries `changes`, checked."""
    block = merge(dataset_json.get(BLOCK) or {}, changes)
    parse(Settings, block, BLOCK)
    return {**dataset_json, BLOCK: block}


def describe(cls: type[Any]) -> dict[str, str]:
    """Dotted key -> documentation of every setting below a settings class."""
    found = {}
    for f in dataclasses.fields(cls):
        nested = f.default_factory if f.default_factory is not dataclasses.MISSING else None
        if isinstance(nested, type) and dataclasses.is_dataclass(nested):
            found |= {f"{f.name}.{key}": doc for key, doc in describe(nested).items()}
        else:
            found[f.name] = f.metadata.get("doc", "")
    return found


__all__ = [
    "BLOCK",
    "HEALTHY",
    "LABELLED",
    "PSEUDO",
    "ROLES",
    "UNLABELLED",
    "CrossModalSettings",
    "DeepAtlasSettings",
    "DonorSettings",
    "Intensity",
    "LesionSettings",
    "PseudoLabelSettings",
    "RegistrationSettings",
    "SeniorSettings",
    "Settings",
    "SettingsError",
    "SourceSettings",
    "TrainingSettings",
    "ValidationSettings",
    "chosen_by_user",
    "describe",
    "settings_of",
    "to_json",
    "with_settings",
]
