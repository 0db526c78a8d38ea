"""What pasting a donor costs: against growing a lesion on the same patch, and against nnU-Net's own augmentation.

    python benchmarks/mixing.py [-o OUT] [--repeats 40] [--no-loader]

One thread, its CPU time. Donors are ellipsoids with a rough surface of 20, 35, 50, 65 and 80 ml, in turn, at 1 mm. The
loader's figure is the batches per second of crop + paste + nnU-Net's transforms over those without the paste.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from synthesis import IGNORE, nnunet_transforms, patch, timed, transform

from nnunet_synthtumour.donor_bank import DonorBank
from nnunet_synthtumour.donor_cutting import build_bank
from nnunet_synthtumour.mixing import PasteTumour
from nnunet_synthtumour.settings import DonorSettings

VOLUMES_ML = (20.0, 35.0, 50.0, 65.0, 80.0)
SIDE = 160


def donors(folder: Path, channels: int) -> DonorBank:
    """A bank of one tumour per volume, cut out of patients drawn here."""
    chunks = (1, *[SIDE] * 3)
    for i, ml in enumerate(VOLUMES_ML):
        sample = patch(SIDE, channels)
        np.random.seed(i)
        grown = transform("glioma", SIDE, channels, (ml, ml), 40)(**sample)
        head = patch(SIDE, 1)["segmentation"].numpy() == IGNORE
        seg = np.where(head, grown["segmentation"].numpy(), -1).astype(np.int8)
        properties = {"spacing": [1.0] * 3, "bbox_used_for_cropping": [[0, SIDE]] * 3}
        nnUNetDatasetBlosc2.save_case(
            grown["image"].numpy(), seg, properties, str(folder / f"patient_{i}"), chunks, chunks, chunks, chunks
        )
    cases = [f"patient_{i}" for i in range(len(VOLUMES_ML))]
    settings = replace(DonorSettings(), smallest_ml=5.0)
    return build_bank(folder, cases, folder / "bank", settings, labels=[1], ignore_label=IGNORE, spacing=(1.0,) * 3)


def paste_of(bank: DonorBank, **changes: Any) -> PasteTumour:
    settings = replace(DonorSettings(), probability=1.0, **changes)
    return PasteTumour(bank, settings, (1.0,) * 3, IGNORE, region_shape=(128,) * 3)


def timed_pastes(paste: PasteTumour, sample: dict[str, Any], repeats: int) -> np.ndarray:
    """Milliseconds per paste, drawing included, without the pass over the patch that follows all of them."""
    side = sample["image"].shape[-1]
    image, times = sample["image"].clone(), []
    for i in range(repeats + 3):
        np.random.seed(i)
        seg = sample["segmentation"].clone()
        start = time.process_time()
        drawn = paste.get_parameters(image=image, segmentation=seg, host_box=np.array([[0.0, side]] * 3))
        for one in drawn["pastes"].pastes:
            paste.paste(image, seg[0], one)
        times.append(1000 * (time.process_time() - start))
        image.copy_(sample["image"])
    return np.array(times[3:])


def loader_ratio(put: Callable[[dict[str, Any]], dict[str, Any]], repeats: int) -> float:
    transforms, volume = nnunet_transforms(128, 1), patch(205, 1)
    seconds = {True: 0.0, False: 0.0}
    for i in range(2 * repeats):
        with_tumour = bool(i % 2)
        np.random.seed(10_000 + i)
        start = time.process_time()
        sample = {"image": volume["image"].clone(), "segmentation": volume["segmentation"].clone()}
        if with_tumour:
            sample = put(sample)
        np.random.seed(i // 2)  # the same augmentation with and without the tumour
        torch.manual_seed(i // 2)
        transforms(image=sample["image"], segmentation=sample["segmentation"])
        seconds[with_tumour] += time.process_time() - start
    return seconds[False] / seconds[True]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--no-loader", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        banks = {}
        for channels in (1, 2, 4):
            (Path(folder) / str(channels)).mkdir()
            banks[channels] = donors(Path(folder) / str(channels), channels)
        for side, channels in ((128, 1), (205, 1), (128, 2), (128, 4)):
            sample = patch(side, channels)
            kinds = {f"paste, {p}": timed_pastes(paste_of(banks[channels], placement=p), sample, args.repeats)
                     for p in ("relative", "anywhere", "paper")}  # fmt: skip
            kinds["grow, glioma"] = timed(transform("glioma", side, channels, (20, 80)), sample, args.repeats)
            rows += [
                {"patch": f"{side}^3", "channels": channels, "kind": kind, "median_ms": float(np.median(times)),
                 "p95_ms": float(np.percentile(times, 95))}
                for kind, times in kinds.items()
            ]  # fmt: skip
        if not args.no_loader:
            paste, grow = paste_of(banks[1]), transform("glioma", 205, 1, (20, 80), 128)
            around = np.array([[0.0, 205.0]] * 3)
            ratios["PasteTumour"] = loader_ratio(lambda s: paste(**s, host_box=around), args.repeats)
            ratios["GrowLesion"] = loader_ratio(lambda s: grow(**s), args.repeats)
    print("| patch | channels | 20-80 ml | median (ms) | p95 (ms) |")
    print("|---|---|---|---|---|")
    for r in rows:
        print(f"| {r['patch']} | {r['channels']} | {r['kind']} | {r['median_ms']:.1f} | {r['p95_ms']:.1f} |")
    for kind, ratio in ratios.items():
        print(f"loader, 128^3: {ratio:.3f} of the batches per second without {kind}")
    if args.out:
        args.out.write_text(json.dumps({"rows": rows, "loader": ratios}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
