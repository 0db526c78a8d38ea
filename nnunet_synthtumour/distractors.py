"""Things in healthy tissue, and next to it, that look a little like lesions and carry no label.

Real images of other scanners have bright rims where the skull was not stripped well, eyes and scalp left outside of the
brain, caps along ventricles, bright spots, uneven coils. A network that has only seen lesions on clean tissue marks them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nnunet_synthtumour.drawing import Distractor
from nnunet_synthtumour.growth import Scene
from nnunet_synthtumour.infiltration import effort
from nnunet_synthtumour.lattice import Lattice
from nnunet_synthtumour.noise import coherent_noise
from nnunet_synthtumour.smoothing import gaussian

BLOCK_MM = 2.0
OUTSIDE = ("leftover", "eye")
REACH = {"shading": 2.2, "eye": 2.2}  # in radii; what lies around an eye says how bright the host is
SHADING = 0.25  # contrast of an uneven coil, as a share of what is drawn for the other kinds


def distract(scene: Scene, it: Distractor) -> None:
    """Brighten or darken the image; labels, and real lesions if there are any, are left alone.

    What lies outside of the host turns nnU-Net's -1 (outside of the image) into background: what was not stripped away is
    in the image, and nnU-Net, which blanks what is not, must not blank it.
    """
    reach = it.radius_mm * REACH.get(it.kind, 1.0) if it.kind != "spot" else it.depth_mm + 1
    box = tuple(
        slice(int(max(0, c - reach / mm - 1)), int(min(n, c + reach / mm + 2)))
        for c, mm, n in zip(it.centre, scene.spacing, scene.seg.shape, strict=True)
    )
    labels = scene.seg[box]
    host = labels == scene.ignore_label
    if not bool(host.any()):
        return
    shape = tuple(host.shape)
    steps = (1,) * len(shape) if it.kind == "spot" else tuple(max(1, int(BLOCK_MM // mm)) for mm in scene.spacing)
    lattice = Lattice.over(shape, steps)
    weight = lattice.to_voxels(_pattern(scene, it, box, lattice, host)).clamp(0, 1)
    if it.kind in OUTSIDE:
        weight = weight.mul_(labels <= 0)
        labels.masked_fill_((weight > 0).logical_and_(labels < 0), 0)
    else:
        weight = weight.mul_(host)
    for channel in range(scene.image.shape[0]):
        u, _ = scene.rebased(channel, box, host)
        if it.kind in OUTSIDE:  # what is stripped away is 0 and cannot be multiplied
            level = float(u[host].mean()) * it.factor[channel]
            scene.image[channel][box] += weight * (level - u)
        else:
            contrast = it.factor[channel] - 1
            scene.image[channel][box] += u.mul_(weight).mul_(contrast * (SHADING if it.kind == "shading" else 1))


def _pattern(
    scene: Scene, it: Distractor, box: tuple[slice, ...], lattice: Lattice, host: torch.Tensor
) -> torch.Tensor:
    """Opacity on blocks, before it is limited to the host or to what lies outside."""
    mm = lattice.spacing(scene.spacing)
    distance = _distance(it.centre, box, lattice, scene.spacing)
    if it.kind == "spot":
        return (it.depth_mm - distance) / max(0.5, min(mm)) + 0.5
    if it.kind == "shading":
        return torch.exp(-0.5 * (distance / it.radius_mm) ** 2)
    generator = torch.Generator().manual_seed(it.seed)
    wobble = coherent_noise(distance.shape, mm, 0.7 * it.radius_mm, 2, generator)
    texture = coherent_noise(distance.shape, mm, 8.0, 2, generator).mul_(0.3).add_(0.85).clamp_(0, 1)
    if it.kind == "eye":
        within = (it.radius_mm - distance).add_(wobble, alpha=0.07 * it.radius_mm)
        return within.div_(max(1.0, min(mm))).add_(0.5).clamp_(0, 1).mul_(texture)
    inside = lattice.mean(host.float())
    if it.kind == "cap":
        per_mm = effort(lattice.sample(scene.image[0][box]), inside > 0.5, mm)
        strip = gaussian((per_mm > 1.5).float(), [it.depth_mm / s for s in mm]).sub_(0.2).mul_(4)
    else:
        border = gaussian(inside, [it.depth_mm / s for s in mm])
        strip = (0.85 - border).mul_(3.3) if it.kind == "rim" else (border - 0.12).mul_(3.3)
    near = (1 - distance / it.radius_mm).add_(wobble, alpha=0.35).mul_(2.5)
    return strip.clamp_(0, 1).mul_(near.clamp_(0, 1)).mul_(texture)


def _distance(
    centre: Sequence[float], box: tuple[slice, ...], lattice: Lattice, spacing: Sequence[float]
) -> torch.Tensor:
    """Distance (mm) of every block from `centre` (voxels of the patch)."""
    square: torch.Tensor | float = 0.0
    for axis, (c, s, mm) in enumerate(zip(centre, box, spacing, strict=True)):
        at = ((lattice.positions(axis) + (s.start - c)) * mm) ** 2
        square = square + at.reshape([-1 if i == axis else 1 for i in range(len(box))])
    assert isinstance(square, torch.Tensor)
    return square.sqrt_()
