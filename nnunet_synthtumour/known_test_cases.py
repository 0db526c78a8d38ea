"""Test cases of a raw data set that are no test, because training had their images."""

from __future__ import annotations

import filecmp
from collections import defaultdict
from pathlib import Path

from nnunet_synthtumour.case_writing import ENDING


def known_test_cases(raw: Path) -> list[str]:
    """The cases of `imagesTs` of which a file is also, under whatever name, one of `imagesTr`.

    Only files of the same size are read.
    """
    training = defaultdict(list)
    for file in (raw / "imagesTr").glob(f"*{ENDING}"):
        training[file.stat().st_size].append(file)
    return sorted(
        {
            file.name[: -len(f"_0000{ENDING}")]
            for file in (raw / "imagesTs").glob(f"*{ENDING}")
            if any(_same(file, other) for other in training[file.stat().st_size])
        }
    )


def _same(one: Path, other: Path) -> bool:
    return one.samefile(other) or filecmp.cmp(one, other, shallow=False)
