"""`PasteTumour`: the transform that pastes real tumours into the host of a healthy patch, as a batchgeneratorsv2 transform.

Same contract as `GrowLesion`: it draws, applies, and what was drawn can be kept and replayed. A donor costs what its box
costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunet_synthtumour import drawing
from nnunet_synthtumour.donor_bank import Crop, Donor, DonorBank, ring_limits, robust_mean_and_spread
from nnunet_synthtumour.donor_placement import Landing, Paste, PasteParameters
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.lattice import Lattice, steps_for
from nnunet_synthtumour.local_shape import tight_blocks
from nnunet_synthtumour.noise import coherent_noise
from nnunet_synthtumour.placement import Places
from nnunet_synthtumour.settings import DonorSettings
from nnunet_synthtumour.synthesis import host_to_background

BEND_MM = 24.0  # wavelength of the elastic deformation
FEWEST_RING_VOXELS = 20
LARGEST_GAIN = 1.6


Pasted = tuple[tuple[slice, ...], torch.Tensor | None]
"""A box of the patch, and where in it (bool) the donor's own label is in doubt."""


class PasteTumour(BasicTransform):
    """Paste donors into the host of a healthy patch.

    Called with `image` (C, X, Y[, Z]) float32, normalised, and `segmentation` (S, X, Y[, Z]) int16 whose first channel
    carries `ignore_label` in the host; optionally with `host_box` and `raw_corner` (see `Landing`). Both tensors are
    changed in place. A patch without host comes back as it is.

    `probability` takes the place of the setting. `region_shape` is the middle part of the patch that a later crop keeps;
    the first donor's middle lies in it.
    """

    def __init__(
        self,
        bank: DonorBank,
        settings: DonorSettings,
        spacing: Sequence[float],
        ignore_label: int,
        probability: float | None = None,
        region_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.bank = bank
        self.settings = settings
        self.spacing = tuple(float(s) for s in spacing)
        self.ignore_label = int(ignore_label)
        self.probability = float(settings.probability if probability is None else probability)
        self.region_shape = None if region_shape is None else tuple(int(n) for n in region_shape)
        cut_at = bank.index.spacing
        if len(self.spacing) != len(cut_at) or not np.allclose(self.spacing, cut_at):
            raise UserError(
                f"{bank.folder} was cut at {_mm(cut_at)}, but the patches have {_mm(self.spacing)}; build the "
                "bank from the same configuration."
            )

    def get_parameters(self, **data: Any) -> dict[str, Any]:
        """Draw what happens in this patch; the only place with randomness."""
        if not drawing.chance(self.probability):
            return {"pastes": PasteParameters()}
        places = Places(data.get("image"), data["segmentation"][0], self.ignore_label, self.spacing, self.region_shape)
        landing = Landing(places, self.spacing, data.get("host_box"), data.get("raw_corner"))
        pastes: list[Paste] = []
        for _ in range(drawing.draw_count(self.settings.count)):
            paste = landing.draw(self.bank, self.settings, in_region=not pastes)  # one that survives the crop is enough
            if paste is not None:
                pastes.append(paste)
        return {"pastes": PasteParameters(tuple(pastes))}

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Paste what was drawn. Deterministic: the same patch and parameters give the same bits."""
        image, seg = data_dict["image"], data_dict["segmentation"][0]
        if image.shape[0] != self.bank.index.channels:
            raise UserError(
                f"{self.bank.folder} has donors of {self.bank.index.channels} channels, but the patch has "
                f"{image.shape[0]}; build the bank from the same data set."
            )
        doubts = [self.paste(image, seg, paste) for paste in params["pastes"].pastes]
        host_to_background(seg, self.ignore_label)
        for box, doubt in doubts:
            if doubt is not None:
                seg[box].masked_fill_(doubt & (seg[box] == 0), self.ignore_label)
        return data_dict

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        raise TypeError("a donor needs image and segmentation together: call apply")

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        raise TypeError("a donor needs image and segmentation together: call apply")

    def paste(self, image: torch.Tensor, seg: torch.Tensor, paste: Paste) -> Pasted:
        donor = self.bank.by_name[paste.donor]
        crop, anchor = self.bank.crop(donor), donor.anchor
        if paste.slice is not None:
            part = next(s for s in donor.slices if s.index == paste.slice)
            crop = Crop(crop.image[:, part.index], crop.labels[part.index], crop.level[part.index], crop.level_mm)
            anchor = part.anchor
        if paste.paper:
            return paste_untouched(image, seg, crop, anchor, paste, self.ignore_label)
        return paste_donor(
            image, seg, donor, crop, anchor, paste, self.ignore_label, self.spacing, self.bank.index.margin_mm
        )


def paste_untouched(
    image: torch.Tensor, seg: torch.Tensor, crop: Crop, anchor: Sequence[int], paste: Paste, ignore_label: int
) -> Pasted:
    """The reference's rule, X = M X_i + (1 - M) X_j inside of the host: voxel on voxel, a hard mask."""
    corner = [round(c) - a for c, a in zip(paste.centre, anchor, strict=True)]
    box = tuple(
        slice(max(0, c), max(0, min(n, c + m))) for c, n, m in zip(corner, seg.shape, crop.labels.shape, strict=True)
    )
    within = tuple(slice(s.start - c, s.stop - c) for s, c in zip(box, corner, strict=True))
    labels = torch.from_numpy(crop.labels[within].astype(np.int16))
    mask = torch.from_numpy(crop.level[within] > 0) & (seg[box] == ignore_label)
    for channel, values in zip(image, crop.image, strict=True):
        part = channel[box]
        part[mask] = torch.from_numpy(values[within].astype(np.float32))[mask]
    doubt = mask & (labels == ignore_label)
    part_of_seg = seg[box]
    part_of_seg[mask] = labels[mask]
    return box, doubt


def paste_donor(
    image: torch.Tensor,
    seg: torch.Tensor,
    donor: Donor,
    crop: Crop,
    anchor: Sequence[int],
    paste: Paste,
    ignore_label: int,
    spacing: Sequence[float],
    margin_mm: float,
) -> Pasted:
    """x <- x + a (g (d - m_d) + m_h - x) in the host: d the donor moved there, m and g from the two rings, a = 1 in the
    tumour and falling to 0 over the seam outside of it."""
    wide_box = _box_in_patch(crop.level.shape, anchor, paste, spacing, seg.shape)
    wide = Lattice.over([s.stop - s.start for s in wide_box], steps_for(donor.radius_mm, spacing))
    affine = _voxel_matrix(paste, spacing)
    positions = [wide.positions(a) + (s.start - c) for a, (s, c) in enumerate(zip(wide_box, paste.centre, strict=True))]
    bend = _bend(wide, wide_box, paste, spacing)
    on_blocks = _mapped(affine, positions, anchor)
    if bend is not None:
        on_blocks = [at + b for at, b in zip(on_blocks, bend, strict=True)]
    level_blocks = _nearest(crop.level, on_blocks).float().mul_(crop.level_mm)
    gains = _matched(image, seg, wide_box, wide, level_blocks, donor, paste, ignore_label, margin_mm, spacing)

    slack = max(spacing)
    blocks = tight_blocks(level_blocks, -paste.seam_mm - slack - max(wide.spacing(spacing)))
    lattice, voxels = wide.cut(blocks)
    box = tuple(slice(w.start + v.start, w.start + v.stop) for w, v in zip(wide_box, voxels, strict=True))
    near = lattice.to_voxels(level_blocks[blocks]) > -paste.seam_mm - slack
    index = torch.from_numpy(np.flatnonzero((near & (seg[box] == ignore_label)).numpy()))
    if not len(index):
        return box, None
    positions = [torch.arange(s.start, s.stop) - c for s, c in zip(box, paste.centre, strict=True)]
    points = [at.reshape(-1).index_select(0, index) for at in _mapped(affine, positions, anchor)]
    if bend is not None:
        points = [
            p.add_(lattice.to_voxels(b[blocks]).reshape(-1).index_select(0, index))
            for p, b in zip(points, bend, strict=True)
        ]

    sampled = _linear(crop, points)
    level = sampled[0].mul_(crop.level_mm)
    opacity = _opacity(level, paste.seam_mm)
    for channel, values, (gain, offset) in zip(image, sampled[1:], gains, strict=True):
        x = channel[box].reshape(-1).index_select(0, index)
        x += values.mul_(gain).add_(offset).sub_(x).mul_(opacity)
        _put(channel[box], index, x)
    inside = torch.from_numpy(np.flatnonzero((level > 0).numpy()))
    index = index.index_select(0, inside)
    if len(donor.labels) == 1:
        _put(seg[box], index, torch.full((len(index),), donor.labels[0], dtype=seg.dtype))
        return box, None
    theirs = _nearest(crop.labels, [p.index_select(0, inside) for p in points]).to(seg.dtype)
    _put(seg[box], index, theirs)
    return box, _where(theirs == ignore_label, index, seg[box].shape) if ignore_label in donor.labels else None


def _put(part: torch.Tensor, index: torch.Tensor, values: torch.Tensor) -> None:
    """Write `values` at flat `index` of a part of a larger tensor."""
    flat = part.reshape(-1)
    flat.index_copy_(0, index, values)
    part.copy_(flat.reshape(part.shape))


def _where(mask: torch.Tensor, index: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """`mask` of the points with flat `index`, as a mask of a box of `shape`."""
    found = torch.zeros(tuple(shape), dtype=torch.bool)
    found.view(-1)[index] = mask
    return found


def _box_in_patch(
    shape: Sequence[int], anchor: Sequence[int], paste: Paste, spacing: Sequence[float], patch: Sequence[int]
) -> tuple[slice, ...]:
    """The part of the patch that the donor's crop comes to lie on."""
    back = np.linalg.inv(_voxel_matrix(paste, spacing))
    corners = np.stack(np.meshgrid(*[(-a, n - 1 - a) for a, n in zip(anchor, shape, strict=True)], indexing="ij"))
    reached = back @ corners.reshape(len(shape), -1) + np.array(paste.centre)[:, None]
    low = np.clip(np.floor(reached.min(1)).astype(int), 0, np.array(patch) - 1)
    high = np.clip(np.ceil(reached.max(1)).astype(int) + 1, low + 1, np.array(patch))
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def _voxel_matrix(paste: Paste, spacing: Sequence[float]) -> np.ndarray:
    mm = np.array(spacing)
    return np.array(paste.matrix) * mm[None, :] / mm[:, None]


def _mapped(affine: np.ndarray, positions: Sequence[torch.Tensor], anchor: Sequence[int]) -> list[torch.Tensor]:
    """Voxels of the donor's crop, one tensor per axis over the grid that `positions` (voxels from the centre) span."""
    dims = len(positions)
    mapped = []
    for row, start in zip(affine, anchor, strict=True):
        total: Any = float(start)
        for axis, at in enumerate(positions):
            total = total + (at * float(row[axis])).reshape([-1 if i == axis else 1 for i in range(dims)])
        mapped.append(total)
    return mapped


def _bend(
    lattice: Lattice, box: tuple[slice, ...], paste: Paste, spacing: Sequence[float]
) -> list[torch.Tensor] | None:
    """The elastic deformation in voxels, on blocks, one field per axis; 0 at the donor's anchor."""
    if paste.elastic_mm <= 0:
        return None
    generator = torch.Generator().manual_seed(paste.seed)
    middle = tuple(
        min(n - 1, max(0, int((c - s.start) // k)))
        for c, s, k, n in zip(paste.centre, box, lattice.steps, lattice.blocks, strict=True)
    )
    fields = []
    for mm in spacing:
        noise = coherent_noise(lattice.blocks, lattice.spacing(spacing), BEND_MM, 2, generator)
        fields.append(noise.sub_(float(noise[middle])).mul_(paste.elastic_mm / mm))
    return fields


def _matched(
    image: torch.Tensor,
    seg: torch.Tensor,
    box: tuple[slice, ...],
    lattice: Lattice,
    level: torch.Tensor,
    donor: Donor,
    paste: Paste,
    ignore_label: int,
    margin_mm: float,
    spacing: Sequence[float],
) -> list[tuple[float, float]]:
    """Gain and offset of each channel that take the donor's ring to the host's at the target; from one voxel per block."""
    if not paste.match:
        return [(1.0, 0.0)] * len(image)
    low, high = ring_limits(margin_mm, tuple(spacing))
    host = lattice.sample(seg[box]) == ignore_label
    ring = (host & (level > low) & (level < high)).numpy()
    if np.count_nonzero(ring) < FEWEST_RING_VOXELS:
        ring = host.numpy()
    found = []
    for channel, mean, spread in zip(image, donor.ring_mean, donor.ring_spread, strict=True):
        values = lattice.sample(channel[box]).numpy()[ring]
        if len(values) < FEWEST_RING_VOXELS:
            found.append((1.0, 0.0))
            continue
        to_mean, to_spread = robust_mean_and_spread(values)
        gain = float(np.clip(to_spread / max(spread, 1e-6), 1 / LARGEST_GAIN, LARGEST_GAIN))
        found.append((gain, to_mean - gain * mean))
    return found


def _opacity(level: torch.Tensor, seam_mm: float) -> torch.Tensor:
    """1 where level >= 0, falling smoothly to 0 at -seam."""
    if seam_mm <= 0:
        return (level > 0).float()
    t = (level / seam_mm + 1).clamp_(0, 1)
    return t * t * (3 - 2 * t)


def _nearest(values: np.ndarray, points: Sequence[torch.Tensor]) -> torch.Tensor:
    flat: Any = 0
    for at, n in zip(points, values.shape, strict=True):
        flat = flat * n + at.round().clamp_(0, n - 1).long()
    return torch.from_numpy(values.reshape(-1).take(flat.numpy()))


def _linear(crop: Crop, points: Sequence[torch.Tensor]) -> torch.Tensor:
    """Level and channels (1 + C, n) at `points`, linearly interpolated."""
    shape = crop.level.shape
    stack = torch.empty((1 + len(crop.image), *shape))
    stack[0] = torch.from_numpy(np.array(crop.level))
    stack[1:] = torch.from_numpy(np.array(crop.image))
    grid = torch.stack([p * (2 / max(1, n - 1)) - 1 for p, n in zip(points, shape, strict=True)][::-1], -1)
    grid = grid.reshape(1, -1, *[1] * (len(shape) - 1), len(shape))
    return F.grid_sample(stack[None], grid, mode="bilinear", padding_mode="border", align_corners=True)[0].flatten(1)


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{s:g}" for s in spacing) + " mm"
