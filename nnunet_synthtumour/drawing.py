"""Drawing the parameters of lesions: all randomness of a lesion happens here, in numpy's generator, and is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nnunet_synthtumour.appearance import ChannelContrast, Tissue
from nnunet_synthtumour.lesion_model import ContrastModel, DistractorModel, LesionModel, ShapeModel
from nnunet_synthtumour.schema import parse, to_json
from nnunet_synthtumour.shapes import Body, half_axes, random_rotation

EYE_SHARE = 0.4  # of leftovers
EYE_RADIUS_MM, EYE_RIM_MM = (10.0, 13.0), (2.0, 4.0)
EYE_MIDDLE = (0.2, 0.7)  # of the brightness of its rim


@dataclass(frozen=True)
class Part:
    """A drawn nested part: its share of the volume of what is around it, its surface, its contrast per channel.

    `offset` is how fast it grows along each axis beyond the other side, mm per mm: 0 is concentric.
    """

    name: str
    share: float
    roughness: float
    offset: tuple[float, ...]
    contrast: tuple[ChannelContrast, ...]
    seed: int


@dataclass(frozen=True)
class Lesion:
    """A drawn lesion. With the image it is put in, it decides every voxel."""

    law: str
    body: Body
    contrast: tuple[ChannelContrast, ...]
    parts: tuple[Part, ...]
    tissue: Tissue
    mass_effect: float


@dataclass(frozen=True)
class Distractor:
    """A drawn thing that is no lesion: `rim` (along the border of the host, inside), `leftover` (outside of it), `eye` (a
    ball there, or the middle of one), `cap` (along fluid), `spot` (a small bright ball), `shading` (a wide, smooth
    brightening)."""

    kind: str
    centre: tuple[float, ...]
    radius_mm: float
    depth_mm: float
    factor: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class LesionParameters:
    """All that was drawn for one patch; prints, pickles, and goes to JSON and back."""

    lesions: tuple[Lesion, ...] = ()
    distractors: tuple[Distractor, ...] = ()

    def to_json(self) -> str:
        return json.dumps(to_json(self))

    @staticmethod
    def from_json(text: str) -> LesionParameters:
        return parse(LesionParameters, json.loads(text))


def draw_seed() -> int:
    return int(np.random.randint(0, 2**31 - 1))


def uniform(interval: Sequence[float]) -> float:
    low, high = interval
    return float(low if low == high else np.random.uniform(low, high))


def chance(probability: float) -> bool:
    """Always draws, so that changing one probability does not shift everything that is drawn afterwards."""
    return bool(np.random.uniform() < probability)


def draw_volume_ml(model: ShapeModel) -> float:
    low, high = model.volume_ml
    if model.volume_law == "log":
        return float(np.exp(uniform((np.log(low), np.log(high)))))
    return uniform((low, high))


def draw_preference(model: ShapeModel) -> str:
    """Where the centre is sought: in calm tissue, next to fluid, or anywhere in the host (`""`)."""
    drawn = np.random.uniform()
    if drawn < model.tissue_centred:
        return "tissue"
    return "fluid" if drawn < model.tissue_centred + model.fluid_centred else ""


def draw_body(model: ShapeModel, centre: Sequence[float], volume_ml: float) -> Body:
    dims = len(centre)
    axes, size = half_axes(volume_ml, uniform(model.radii_ratio), dims)
    return Body(
        family="wedge" if model.family == "wedge" else "body",
        centre=tuple(float(c) for c in centre),
        rotation=random_rotation(dims),
        half_axes_mm=axes,
        size=size,
        roughness=uniform(model.roughness),
        wavelength=uniform(model.wavelength),
        octaves=model.octaves,
        hug_tissue=uniform(model.hug_tissue),
        seed=draw_seed(),
    )


def draw_contrast(models: Sequence[ContrastModel]) -> tuple[ChannelContrast, ...]:
    return tuple(
        ChannelContrast(factor=1.0, hu=uniform(m.hu)) if m.hu is not None else ChannelContrast(factor=uniform(m.factor))
        for m in models
    )


def draw_tissue(model: LesionModel) -> Tissue:
    look = model.appearance
    halo, specks = chance(look.halo), chance(look.specks)
    return Tissue(
        smoothing_mm=uniform(look.smoothing_mm),
        texture_kept=uniform(look.texture_kept),
        homogeneity=uniform(look.homogeneity),
        texture=uniform(look.texture),
        texture_mm=uniform(look.texture_mm),
        softness_mm=uniform(look.softness_mm),
        softness_spread=look.softness_spread,
        halo=uniform(look.halo_strength) if halo else 0.0,
        halo_share=uniform((0.15, 0.5)),
        speck_factor=uniform(look.speck_factor) if specks else 1.0,
        seed=draw_seed(),
    )


def draw_lesion(model: LesionModel, channels: Sequence[str], centre: Sequence[float], volume_ml: float) -> Lesion:
    """One lesion around `centre` (voxels of the patch)."""
    body = draw_body(model.shape, centre, volume_ml)
    parts = []
    for name, inner in model.parts.items():
        contrast = draw_contrast([model.contrast_of(name, channel) for channel in channels])
        offset = draw_direction(len(centre)) * uniform(inner.eccentricity)
        part = Part(
            name, uniform(inner.share), uniform(inner.roughness), tuple(map(float, offset)), contrast, draw_seed()
        )
        if not chance(inner.probability):
            break  # what lies inside of a part that is absent is absent too
        parts.append(part)
    return Lesion(
        law=model.appearance.law,
        body=body,
        contrast=draw_contrast([model.contrast_of("whole", channel) for channel in channels]),
        parts=tuple(parts),
        tissue=draw_tissue(model),
        mass_effect=uniform(model.appearance.mass_effect_share) if chance(model.appearance.mass_effect) else 0.0,
    )


def draw_direction(dims: int) -> np.ndarray:
    direction = np.random.normal(size=dims)
    return direction / max(1e-9, float(np.linalg.norm(direction)))


def draw_count(interval: tuple[int, int]) -> int:
    return int(np.random.randint(interval[0], interval[1] + 1))


def draw_satellites(
    model: LesionModel, channels: Sequence[str], main: Lesion, spacing: Sequence[float]
) -> list[Lesion]:
    """One to three smaller lesions within two radii of the first, which look like it."""
    if not chance(model.shape.satellites):
        return []
    found = []
    volume = main.body.size / 1000 if len(spacing) == 3 else (main.body.size / np.pi) ** 1.5 * 4 / 3 * np.pi / 1000
    for _ in range(draw_count((1, 3))):
        away = main.body.radius_mm * uniform((1.1, 2.0))
        centre = np.array(main.body.centre) + draw_direction(len(spacing)) * away / np.array(spacing)
        found.append(draw_lesion(model, channels, centre, float(volume) * uniform((0.01, 0.1))))
    return found


def draw_distractor_kind(of: DistractorModel) -> str:
    """One of `DISTRACTOR_KINDS`, or `eye`: some leftovers are eyes."""
    kinds, weights = list(of.kinds), np.array(list(of.kinds.values()))
    kind = str(np.random.choice(kinds, p=weights / weights.sum()))
    return "eye" if chance(EYE_SHARE) and kind == "leftover" else kind


def draw_distractor(of: DistractorModel, kind: str, n_channels: int, centre: Sequence[float]) -> Distractor:
    return Distractor(
        kind=kind,
        centre=tuple(float(c) for c in centre),
        radius_mm=uniform(of.radius_mm),
        depth_mm=uniform(of.depth_mm),
        factor=tuple(uniform(of.factor) for _ in range(n_channels)),
        seed=draw_seed(),
    )


def draw_eye(of: DistractorModel, n_channels: int) -> list[Distractor]:
    """An eye, still to be put somewhere: a bright ball, in every other one a darker ball that leaves a bright rim."""
    ball = replace(draw_distractor(of, "eye", n_channels, ()), radius_mm=uniform(EYE_RADIUS_MM))
    dark, rim = uniform(EYE_MIDDLE), uniform(EYE_RIM_MM)
    middle = replace(ball, radius_mm=ball.radius_mm - rim, factor=tuple(dark * f for f in ball.factor))
    return [ball, middle] if chance(0.5) else [ball]


def jsonable(parameters: LesionParameters) -> dict[str, Any]:
    """The parameters as plain dicts and lists."""
    return dict(to_json(parameters))
