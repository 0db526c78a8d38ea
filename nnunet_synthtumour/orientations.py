"""Which way the axes of a data set's images point. nnU-Net turns no image: what lies otherwise is another sight to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import SimpleITK as sitk

OPPOSITES = str.maketrans("RAI", "LPS")


def orientation_of(image: Path) -> str | None:
    """Three letters such as LPS, from the header; None for 2D."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(image))
    reader.ReadImageInformation()
    if reader.GetDimension() != 3:
        return None
    return str(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(reader.GetDirection()))


def about_orientations(images: Mapping[str, list[Path]]) -> str | None:
    """One line where the images, by role, do not all lie alike."""
    found = {role: Counter(filter(None, map(orientation_of, files))) for role, files in images.items()}
    if len({letters for counts in found.values() for letters in counts}) < 2:
        return None
    listed = "; ".join(
        f"{role}: " + ", ".join(f"{n} {letters}" for letters, n in counts.most_common())
        for role, counts in found.items()
        if counts
    )
    axes = {letters.translate(OPPOSITES) for counts in found.values() for letters in counts}
    only_flipped = ", or set training.mirroring=true" if len(axes) == 1 else ""
    return (
        f"The axes of the images do not all point the same way ({listed}), and nnU-Net turns no image: bring them to one "
        f"orientation before ('synthtumour align' does){only_flipped}."
    )
