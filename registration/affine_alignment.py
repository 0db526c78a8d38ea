"""Rigid or affine alignment of two images in physical space with SimpleITK: robust start, several resolutions.

Transforms map points of the fixed image to points of the moving one (mm), which is what `sitk.Resample` takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk

FINEST, COARSEST = 200_000, 3_000
"""Voxels of the finest level (twelve numbers do not need more) and below which no coarser level is made."""
SAMPLES = 40_000
LEAST_OVERLAP = 0.25
"""Share of the fixed foreground that must lie inside the moving image; a few matching voxels in a corner are no match."""
MOST_SCALING = 2.5
"""An affine map that changes volumes by more than this has run away."""
UPRIGHT = 45.0
"""Degrees up to which an image lies as its header says; no patient tilts further."""
FOR_HEADERS = 0.0125
"""Share of the similarity that a map must gain to turn the image further: what is nearly round is as like itself turned."""
KEPT_STARTS = {False: 1, True: 3}
"""Starts that the second level still compares: at the coarsest one, two modalities may look alike the wrong way round."""


@dataclass(frozen=True)
class Effort:
    """Of the optimiser: most steps, how much they shrink at a turn, and the smallest as a share of the first."""

    steps: int
    relaxation: float
    smallest: float


TRYING, REFINING = Effort(80, 0.6, 0.01), Effort(200, 0.8, 0.002)


@dataclass(frozen=True)
class Level:
    """One resolution: both images, and where the fixed one is more than constant background."""

    fixed: sitk.Image
    moving: sitk.Image
    mask: sitk.Image


def affine_transform(
    fixed: sitk.Image,
    moving: sitk.Image,
    kind: str = "affine",
    cross_modality: bool = False,
    seed: int = 0,
    threads: int = 1,
) -> sitk.Transform:
    """The "rigid" or "affine" map from fixed to moving points; 2D or 3D, any two grids.

    Each start (`_starts`) is refined rigidly at the coarsest level, the most similar ones at the next, the best of them
    goes on through all levels. Where one that turns the image is hardly better than one that does not, the headers are
    right.
    One modality is compared by correlation, two by Mattes' mutual information. The same on every run.
    """
    if kind not in ("rigid", "affine"):
        raise ValueError(f"kind is '{kind}', but must be 'rigid' or 'affine'.")
    levels = _levels(fixed, moving)
    search = _Search(cross_modality, seed, threads)
    found = [search.refined(levels[0], start, TRYING) for start in _starts(levels[0])]
    found.sort(key=lambda t: -_similarity(levels[0], t, cross_modality))
    best = found[: KEPT_STARTS[cross_modality]]
    if all(_turned(transform) for transform in best):  # the coarsest level is no judge of the headers
        best += [transform for transform in found if not _turned(transform)][:1]
    if len(levels) > 1:
        best = [search.refined(levels[1], transform, TRYING) for transform in best]
    transform = _best(levels[min(1, len(levels) - 1)], best, cross_modality)
    for level in levels[1:] if kind == "rigid" else levels[1:-1]:
        transform = search.refined(level, transform, REFINING)
    if kind == "affine":
        for level in levels[-2:]:
            transform = search.refined(level, _as_affine(transform), REFINING)
    identity = sitk.Transform(fixed.GetDimension(), sitk.sitkIdentity)
    at_rest, aligned = (_similarity(levels[-1], t, cross_modality) for t in (identity, transform))
    return transform if aligned >= at_rest else identity


def similarity_after(
    fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform, cross_modality: bool = False
) -> float:
    """How alike the images are under `transform`, in the foreground of `fixed`; higher is better.

    Correlation (-1 to 1), or across modalities the mutual information as a share of the mean entropy (0 to 1).
    -inf where less than a quarter of the foreground is inside the moving image.
    """
    return _similarity(_levels(fixed, moving)[-1], transform, cross_modality)


def faces_of(array: np.ndarray) -> np.ndarray:
    """The values on an array's border, edges several times."""
    return np.concatenate([array.take(end, axis).ravel() for axis in range(array.ndim) for end in (0, -1)])


def background_of(image: sitk.Image) -> float | None:
    """The value around a stripped or padded image: the commonest on its border, if a tenth of all voxels has it."""
    array = sitk.GetArrayViewFromImage(image)
    values, counts = np.unique(faces_of(array), return_counts=True)
    value = values[counts.argmax()]
    return float(value) if (array == value).mean() > 0.1 else None


def turn_of(matrix: np.ndarray) -> float:
    """By how many degrees a linear map turns: the angle of the rotation next to it."""
    u, _, v = np.linalg.svd(matrix)
    turn = u @ v
    cosine = turn[0, 0] if len(turn) == 2 else (np.trace(turn) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _turned(transform: Any) -> bool:
    return turn_of(_matrix(transform)) > UPRIGHT


def _best(level: Level, transforms: Sequence[Any], cross_modality: bool) -> Any:
    """The most similar; one that agrees with the headers unless it is clearly less so."""
    values = [_similarity(level, t, cross_modality) for t in transforms]
    handicap = FOR_HEADERS * max(0.0, *values)
    merits = [value - handicap * _turned(t) for value, t in zip(values, transforms, strict=True)]
    return transforms[int(np.argmax(merits))]


def _similarity(level: Level, transform: sitk.Transform, cross_modality: bool) -> float:
    warped = sitk.Resample(level.moving, level.fixed, transform, sitk.sitkLinear, math.nan)
    values = sitk.GetArrayFromImage(warped)
    mask = sitk.GetArrayFromImage(level.mask) > 0
    inside = mask & np.isfinite(values)
    if inside.sum() < max(8, LEAST_OVERLAP * mask.sum()):
        return -math.inf
    a, b = sitk.GetArrayFromImage(level.fixed)[inside], values[inside]
    if a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    if not cross_modality:
        return float(np.corrcoef(a, b)[0, 1])
    # the cube root of the count keeps the bias of sparse histograms away from small images
    bins = int(np.clip(len(a) ** (1 / 3), 8, 32))
    joint = np.histogram2d(a, b, bins)[0] / len(a)
    each = (_entropy(joint.sum(0)), _entropy(joint.sum(1)))
    return float(2 * (sum(each) - _entropy(joint)) / max(sum(each), 1e-9))


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


class _Search:
    """ITK's optimiser with one metric."""

    def __init__(self, cross_modality: bool, seed: int, threads: int) -> None:
        self.cross_modality, self.seed, self.threads = cross_modality, seed, threads

    def refined(self, level: Level, start: sitk.Transform, effort: Effort) -> sitk.Transform:
        """The optimum near `start`; `start` itself where the optimiser leaves the image or makes things worse."""
        result = type(start)(start)
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(self.threads)
        if self.cross_modality:
            method.SetMetricAsMattesMutualInformation(32)
        else:
            method.SetMetricAsCorrelation()
        method.SetMetricFixedMask(level.mask)
        method.SetInterpolator(sitk.sitkLinear)
        share = SAMPLES / level.fixed.GetNumberOfPixels()
        if share < 1:
            method.SetMetricSamplingStrategy(method.RANDOM)
            method.SetMetricSamplingPercentage(share, self.seed + 1)  # 0 would be the clock
        step = min(level.fixed.GetSpacing())
        method.SetOptimizerAsRegularStepGradientDescent(
            step, effort.smallest * step, effort.steps, relaxationFactor=effort.relaxation
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(result, inPlace=True)
        try:
            method.Execute(level.fixed, level.moving)
        except RuntimeError:  # all samples outside of the moving image
            return start
        if not 1 / MOST_SCALING < _determinant(result) < MOST_SCALING:
            return start
        before, after = (_similarity(level, t, self.cross_modality) for t in (start, result))
        return result if after >= before else start


def _determinant(transform: Any) -> float:
    return float(np.linalg.det(_matrix(transform)))


def _matrix(transform: Any) -> np.ndarray:
    dims = transform.GetDimension()
    return np.array(transform.GetMatrix()).reshape(dims, dims)


def _as_affine(transform: Any) -> sitk.AffineTransform:
    affine = sitk.AffineTransform(transform.GetDimension())
    affine.SetCenter(transform.GetCenter())
    affine.SetMatrix(transform.GetMatrix())
    affine.SetTranslation(transform.GetTranslation())
    return affine


def _levels(fixed: sitk.Image, moving: sitk.Image) -> list[Level]:
    """Coarse to fine; voxels nearly cubic, and about as large in both images."""
    for name, image in (("fixed", fixed), ("moving", moving)):
        if image.GetNumberOfComponentsPerPixel() != 1:
            raise ValueError(f"The {name} image has several values per voxel; give one channel.")
    background = background_of(fixed)
    mask = fixed * 0 + 1 if background is None else fixed != background
    mask = sitk.Cast(mask, sitk.sitkFloat32)
    fixed, moving = _standardised(fixed, "fixed"), _standardised(moving, "moving")
    dims = fixed.GetDimension()
    extent = math.prod(n * s for n, s in zip(fixed.GetSize(), fixed.GetSpacing(), strict=True))
    side = max(min(fixed.GetSpacing()), min(moving.GetSpacing()), (extent / FINEST) ** (1 / dims))
    levels: list[Level] = []
    while not levels or (len(levels) < 4 and extent / side**dims >= COARSEST ** (dims / 3)):
        # the outline is the strongest feature of a stripped image, so some of the background stays in
        near = sitk.Cast(_shrunk(mask, side) > 0.05, sitk.sitkUInt8)
        near = sitk.BinaryDilate(near, [2] * dims)
        levels.append(Level(_shrunk(fixed, side), _shrunk(moving, side), near))
        side *= 2
    return levels[::-1]


def _standardised(image: sitk.Image, name: str) -> sitk.Image:
    """float32 with a mean of 0 and a deviation of 1, without the outermost half per cent."""
    array = np.nan_to_num(sitk.GetArrayFromImage(image).astype(np.float32))
    array = np.clip(array, *np.quantile(array, [0.005, 0.995]))
    if array.max() <= array.min():
        raise ValueError(f"The {name} image is constant; there is nothing to align it by.")
    out = sitk.GetImageFromArray((array - array.mean()) / array.std())
    out.CopyInformation(image)
    return out


def _shrunk(image: sitk.Image, side: float) -> sitk.Image:
    """Smoothed and shrunk to voxels of about `side` mm; an axis that is coarser already, or short, stays."""
    factors = [max(1, min(round(side / s), n // 6)) for s, n in zip(image.GetSpacing(), image.GetSize(), strict=True)]
    if max(factors) == 1:
        return image
    sigmas = [max(0.5 * f if f > 1 else 0.0, 1e-3) * s for f, s in zip(factors, image.GetSpacing(), strict=True)]
    return sitk.Shrink(sitk.DiscreteGaussian(image, [s**2 for s in sigmas]), factors)


def _starts(level: Level) -> Iterator[sitk.Transform]:
    """Rigid maps: none, centres of the grids, centres of mass, and principal axes in each of their orientations."""
    centre_f, centre_m = grid_centre(level.fixed), grid_centre(level.moving)
    dims = len(centre_f)
    turn = np.eye(dims)
    yield _rigid(turn, centre_f, centre_f)
    yield _rigid(turn, centre_f, centre_m)
    (mass_f, axes_f), (mass_m, axes_m) = moments(level.fixed), moments(level.moving)
    yield _rigid(turn, mass_f, mass_m)
    for signs in np.ndindex(*[2] * dims):
        turn = axes_m @ np.diag(1.0 - 2 * np.array(signs)) @ axes_f.T
        if np.linalg.det(turn) > 0:
            yield _rigid(turn, mass_f, mass_m)


def _rigid(turn: np.ndarray, origin: np.ndarray, target: np.ndarray) -> sitk.Transform:
    """p -> R (p - origin) + target."""
    transform = sitk.Euler3DTransform() if len(origin) == 3 else sitk.Euler2DTransform()
    transform.SetCenter(origin.tolist())
    transform.SetMatrix(turn.ravel().tolist(), 1e-5)
    transform.SetTranslation((target - origin).tolist())
    return transform


def grid_centre(image: sitk.Image) -> np.ndarray:
    return np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))


def moments(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Centre of mass (mm) and principal axes (columns of a rotation, by rising spread) of what is above the darkest."""
    array = sitk.GetArrayFromImage(image).astype(np.float64)
    mass = array.ravel() - array.min()
    dims = array.ndim
    steps = np.array(image.GetDirection()).reshape(dims, dims) * np.array(image.GetSpacing())
    points = np.indices(array.shape).reshape(dims, -1)[::-1].T @ steps.T + np.array(image.GetOrigin())
    share = mass / max(mass.sum(), 1e-12)
    centre = share @ points
    away = points - centre
    _, axes = np.linalg.eigh((away * share[:, None]).T @ away)
    if np.linalg.det(axes) < 0:
        axes[:, 0] *= -1
    return centre, axes
