"""Lesion presets: data files in `presets/`, read into frozen dataclasses, with any field overridden by the user.

A preset is a JSON file. It may extend another (`"extends": "glioma"`), in which case it states only what differs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_synthtumour.schema import CountRange, Range, SettingsError, merge, parse, setting
from nnunet_synthtumour.settings import Settings

FOLDER = Path(__file__).parent / "presets"
DISTRACTOR_KINDS = ("rim", "leftover", "cap", "spot", "shading")
CHANCE: dict[str, Any] = {"low": 0.0, "high": 1.0}


@dataclass(frozen=True)
class ShapeModel:
    """Where and how large a lesion is. A range is drawn from uniformly unless something else is said."""

    family: str = setting(
        "body", choices=("body", "wedge", "scattered"), doc="body: star-like; wedge: a vessel's territory"
    )
    count: CountRange = setting((1, 1), low=1, doc="lesions per patch, or per cluster of scattered ones")
    volume_ml: Range = setting((20.0, 80.0), low=1e-4, doc="volume after clipping to the host")
    volume_law: str = setting("uniform", choices=("uniform", "log"), doc="law of the volume within its range")
    radii_ratio: Range = setting((1.0, 2.0), low=1.0, doc="longest over shortest half-axis")
    roughness: Range = setting((0.15, 0.35), low=0.0, high=2.0, doc="deviation of the surface, in mean radii")
    wavelength: Range = setting((0.6, 1.2), low=0.05, doc="of the coarsest surface noise, in mean radii")
    octaves: int = setting(4, low=1, high=8, doc="octaves of the surface noise")
    hug_tissue: Range = setting(
        (0.0, 0.0), low=0.0, doc="how much harder it spreads in cortex and across fluid; 0: no difference"
    )
    tissue_centred: float = setting(
        0.0, **CHANCE, doc="chance that the centre is sought in the middle of tissue, not anywhere in the host"
    )
    fluid_centred: float = setting(0.0, **CHANCE, doc="chance that it is sought in tissue next to ventricles or sulci")
    satellites: float = setting(0.0, **CHANCE, doc="chance of one to three smaller lesions around")


@dataclass(frozen=True)
class InnerModel:
    """A part nested in the lesion: its share of the volume and what it does there."""

    probability: float = setting(0.0, **CHANCE, doc="chance that a lesion has this part")
    share: Range = setting((0.05, 0.5), low=0.0, high=0.98, doc="share of the volume of the part around it")
    roughness: Range = setting((0.1, 0.3), low=0.0, high=2.0, doc="deviation of its surface, in mean radii")
    eccentricity: Range = setting(
        (0.0, 0.5), low=0.0, high=2.0, doc="0: concentric, 1: at the rim of what is around it"
    )


@dataclass(frozen=True)
class ContrastModel:
    """What a part does to one channel. `factor` multiplies raw intensities, `hu` adds (CT)."""

    factor: Range = setting((1.0, 1.0), low=0.0, doc="of the raw intensity")
    hu: Range | None = setting(None, doc="added, in Hounsfield units (CT); takes the place of the factor")


@dataclass(frozen=True)
class AppearanceModel:
    """What a lesion does to intensities, beside its contrast."""

    law: str = setting("tissue", choices=("tissue", "paper"), doc="tissue: ours; paper: the reference's stage one")
    smoothing_mm: Range = setting((2.0, 5.0), low=0.0, doc="of the tissue under the lesion")
    texture_kept: Range = setting((0.0, 0.4), low=0.0, high=1.0, doc="share of the tissue's own texture that shows")
    homogeneity: Range = setting((0.3, 1.0), low=0.0, high=1.0, doc="0: follows the tissue, 1: one level throughout")
    texture: Range = setting((0.02, 0.15), low=0.0, doc="deviation of the internal texture, as a factor")
    texture_mm: Range = setting((3.0, 12.0), low=0.1, doc="wavelength of the internal texture")
    softness_mm: Range = setting((0.5, 4.0), low=0.0, doc="width of the edge")
    softness_spread: float = setting(0.6, **CHANCE, doc="how much the width varies around the surface")
    halo: float = setting(0.0, **CHANCE, doc="chance of a dim outer zone that belongs to the lesion")
    halo_strength: Range = setting(
        (0.25, 0.7), low=0.0, high=1.0, doc="contrast of that zone, as a share of the lesion's"
    )
    specks: float = setting(0.0, **CHANCE, doc="chance of haemorrhagic specks")
    speck_factor: Range = setting((0.3, 0.8), low=0.0, doc="what a speck multiplies")
    mass_effect: float = setting(0.0, **CHANCE, doc="chance that healthy tissue around is pushed away")
    mass_effect_share: Range = setting((0.05, 0.2), low=0.0, high=0.5, doc="by how much, in mean radii")


@dataclass(frozen=True)
class DistractorModel:
    """Bright or dark things in healthy tissue, or next to it, that are no lesion and carry no label."""

    probability: float = setting(0.0, **CHANCE, doc="chance per patch")
    count: CountRange = setting((1, 3), low=1, doc="how many")
    kinds: dict[str, float] = setting(
        factory=lambda: {"rim": 1.0, "leftover": 1.0, "cap": 1.0, "spot": 1.0, "shading": 1.0},
        low=0.0,
        doc="how often, relative to the others: rim (along the host's border), leftover (outside of it: scalp, eyes), "
        "cap (along fluid), spot (a small ball), shading (a wide brightening)",
    )
    factor: Range = setting((1.2, 2.2), low=0.0, doc="of the raw intensity")
    radius_mm: Range = setting((4.0, 25.0), low=0.5, doc="extent along the border")
    depth_mm: Range = setting((1.5, 4.0), low=0.5, doc="extent across it; radius of a spot")

    def __post_init__(self) -> None:
        unknown = set(self.kinds) - set(DISTRACTOR_KINDS)
        if unknown or not sum(self.kinds.values()):
            raise ValueError(
                f"distractors.kinds has {', '.join(sorted(unknown)) or 'no weight above 0'}, but weights of "
                f"{', '.join(DISTRACTOR_KINDS)} are needed."
            )


@dataclass(frozen=True)
class LesionModel:
    """Everything that a lesion is drawn from."""

    name: str = setting("", doc="of the preset")
    description: str = setting("", doc="one line")
    sources: tuple[str, ...] = setting((), doc="where the numbers come from")
    shape: ShapeModel = setting(factory=ShapeModel)
    parts: dict[str, InnerModel] = setting(factory=dict, doc="nested parts, outermost first: core, necrosis")
    contrast: dict[str, dict[str, ContrastModel]] = setting(
        factory=dict, doc="part -> channel ('*': any other) -> contrast"
    )
    appearance: AppearanceModel = setting(factory=AppearanceModel)
    distractors: DistractorModel = setting(factory=DistractorModel)

    def drawn_parts(self) -> list[str]:
        """The parts that lesions may have, outermost first; none lies in a part that is never there."""
        drawn = ["whole"]
        for name, part in self.parts.items():
            if part.probability == 0:
                break
            drawn.append(name)
        return drawn

    def with_parts(self, names: Collection[str], least: float) -> LesionModel:
        """The same model, but those of the parts `names` that it draws, and what is around them, are there with a chance of
        at least `least`."""
        drawn = self.drawn_parts()[1:]
        last = max((i for i, name in enumerate(drawn) if name in names), default=-1)
        parts = {
            name: replace(part, probability=max(part.probability, least)) if i <= last else part
            for i, (name, part) in enumerate(self.parts.items())
        }
        return replace(self, parts=parts)

    def contrast_of(self, part: str, channel: str) -> ContrastModel:
        """The contrast of a part in a channel, by the channel's usual name; none where the preset says nothing."""
        of_part = self.contrast.get(part, {})
        return of_part.get(channel_key(channel)) or of_part.get("*") or ContrastModel()


ALIASES = {"T2FLAIR": "FLAIR", "FLR": "FLAIR", "T1C": "T1CE", "T1GD": "T1CE", "T1CONTRAST": "T1CE", "T1N": "T1", "T1W": "T1",
           "T2W": "T2", "T2F": "FLAIR", "MPRAGE": "T1"}  # fmt: skip


def channel_key(name: str) -> str:
    """`"t1-ce"`, `"T1Gd"`, `"T1c"` -> `"T1CE"`; names that mean nothing to us come back in capitals."""
    key = "".join(ch for ch in name.upper() if ch.isalnum())
    return ALIASES.get(key, key)


def available_presets() -> dict[str, str]:
    """Name -> description of the presets that come with the package."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8"))["description"] for file in sorted(FOLDER.glob("*.json"))
    }


def load_model(preset: str, overrides: Mapping[str, Any] | None = None, channels: Sequence[str] = ()) -> LesionModel:
    """The model of a preset (a name, or a JSON file of the user's), with `overrides` in their places; `channels` are those
    that lesions will be grown in, where they are known: a preset for another modality is refused."""
    block = merge(_read(preset, ()), overrides or {})
    model = parse(LesionModel, {**block, "name": Path(preset).stem}, f"lesion preset {Path(preset).stem}")
    for channel in channels:
        _refuse_another_modality(model, channel)
    return model


def model_of(settings: Settings, channels: Sequence[str]) -> LesionModel:
    """The model that a data set trains with. The other preset of its validation is looked at as well, used or not."""
    if settings.validation.preset is not None:
        load_model(settings.validation.preset, channels=channels)
    return load_model(settings.lesion.preset, settings.lesion.overrides, channels)


def is_ct(channel: str) -> bool:
    """Whether a channel is CT, by the name by which nnU-Net knows it."""
    return channel.casefold() == "ct"


def _refuse_another_modality(model: LesionModel, channel: str) -> None:
    """A preset's `*` is whatever modality its author had in mind. HU added to raw MR are anything from invisible to
    blinding, and a factor about 0 HU changes fluid hardly and fat the wrong way. What is stated for a channel is meant."""
    key, by_factor_only = channel_key(channel), model.appearance.law == "paper"
    in_hu = {part: model.contrast_of(part, channel).hu is not None for part in model.drawn_parts()}
    general = [
        part for part in in_hu if key not in model.contrast.get(part, {}) and "*" in model.contrast.get(part, {})
    ]
    wrong = [part for part in general if in_hu[part] != is_ct(channel)]
    if by_factor_only and any(in_hu.values()):
        raise SettingsError(
            f"The contrast of the preset '{model.name}' in channel {channel} is in HU, but the law 'paper' knows factors "
            "only: choose another preset or appearance.law."
        )
    if wrong and is_ct(channel):
        in_words = "" if by_factor_only else f", or state {_contrasts(wrong, key, 'hu')}"
        raise SettingsError(
            f"Lesions of the preset '{model.name}' multiply intensities, which says nothing about Hounsfield units (channel "
            f"{channel}): choose another preset{in_words}."
        )
    if wrong:
        raise SettingsError(
            f"Lesions of the preset '{model.name}' add Hounsfield units, but channel {channel} is not CT: choose another "
            f"preset, name the channel CT if it is one, or state {_contrasts(wrong, key, 'factor')}."
        )


def _contrasts(parts: Sequence[str], key: str, unit: str) -> str:
    """The fields of a preset in which these parts' contrasts in a channel are stated."""
    return " and ".join(f"contrast.{part}.{key}.{unit}" for part in parts) + " (in lesion.overrides or in the preset)"


def preset_files(preset: str) -> list[Path]:
    """The JSON files of the user's that a preset is read from: none for a preset of the package."""
    found: list[Path] = []
    while preset.endswith(".json") and Path(preset).resolve() not in found and Path(preset).is_file():
        found.append(Path(preset).resolve())
        try:
            preset = str(json.loads(found[-1].read_text(encoding="utf-8")).get("extends"))
        except (ValueError, AttributeError):  # said where the preset is loaded
            break
    return found


def _read(preset: str, seen: tuple[str, ...]) -> dict[str, Any]:
    file = Path(preset) if preset.endswith(".json") else FOLDER / f"{preset}.json"
    if not file.is_file():
        raise SettingsError(
            f"There is no lesion preset '{preset}': give a JSON file or one of {', '.join(available_presets())}."
        )
    if preset in seen:
        raise SettingsError(f"Lesion preset {preset} extends itself; take 'extends' out of one of {', '.join(seen)}.")
    try:
        block = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise SettingsError(f"{file} is not valid JSON (line {error.lineno}: {error.msg}); mend it.") from error
    parent = block.pop("extends", None)
    return merge(_read(parent, (*seen, preset)), block) if parent else block
