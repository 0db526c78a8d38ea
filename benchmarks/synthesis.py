"""What a lesion costs: against the patch, against its volume, and against nnU-Net's own augmentation in the same process.

    python benchmarks/synthesis.py [-o OUT] [--repeats 40] [--no-loader]

One thread, its CPU time: other programs on the machine disturb that less. A patch of 205^3 is what nnU-Net cuts out for
a final patch of 128^3. Times in ms; `share` is the median cost of a lesion over the mean cost of nnU-Net's training
transforms on the same patch.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from nnunet_synthtumour.growth import Scene, grow_lesion
from nnunet_synthtumour.lesion_model import load_model
from nnunet_synthtumour.synthesis import GrowLesion

torch.set_num_threads(1)
IGNORE = 2
RADIUS_MM = 75.0


def patch(side: int, channels: int) -> dict[str, Any]:
    """A textured ball of a host, in a patch of `side` voxels of 1 mm."""
    axis = torch.arange(side) - side / 2
    host = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None] ** 2) < min(RADIUS_MM, side) ** 2
    image = torch.randn(channels, side, side, side, generator=torch.Generator().manual_seed(0)) * 0.3
    seg = torch.where(host, IGNORE, 0).to(torch.int16)[None]
    return {"image": image, "segmentation": seg, "normalisation": (np.full(channels, 3.0), np.ones(channels))}


def transform(
    preset: str, side: int, channels: int, volume_ml: tuple[float, float], final: int | None = None
) -> GrowLesion:
    overrides = {"shape": {"volume_ml": list(volume_ml), "volume_law": "uniform", "satellites": 0.0, "count": [1, 1]},
                 "distractors": {"probability": 0.0}}  # fmt: skip
    names, region = ["FLAIR", "T1", "T1CE", "T2"][:channels], (final or side,) * 3
    return GrowLesion(load_model(preset, overrides), {"whole": 1}, (1.0,) * 3, IGNORE, names, 1.0, region)


def timed(grow: GrowLesion, sample: dict[str, Any], repeats: int) -> np.ndarray:
    """Milliseconds per lesion: drawing it and growing it, without the pass over the patch that follows all lesions."""
    times = []
    image = sample["image"].clone()
    for i in range(repeats + 3):
        np.random.seed(i)
        seg = sample["segmentation"].clone()
        start = time.process_time()
        drawn = grow.get_parameters(image=image, segmentation=seg)["lesions"]
        scene = Scene.of(image, seg[0], IGNORE, grow.spacing, sample["normalisation"])
        for lesion in drawn.lesions:
            grow_lesion(scene, lesion, grow.labels)
        times.append(1000 * (time.process_time() - start))
        image.copy_(sample["image"])
    return np.array(times[3:])


def background_pass(sample: dict[str, Any]) -> float:
    from nnunet_synthtumour.synthesis import host_to_background

    times = []
    for _ in range(7):
        seg = sample["segmentation"][0].clone()
        start = time.process_time()
        host_to_background(seg, IGNORE)
        times.append(1000 * (time.process_time() - start))
    return float(np.median(times))


def nnunet_transforms(final: int, channels: int) -> Any:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    scales = [[1 / 2**i] * 3 for i in range(5)]
    return nnUNetTrainer.get_training_transforms(
        (final,) * 3, (-np.pi / 6, np.pi / 6), scales, (0, 1, 2), False, [True] * channels, ignore_label=IGNORE
    )


def nnunet_ms(side: int, channels: int, repeats: int) -> float:
    """Mean cost of nnU-Net's transforms from a patch of `side` to one of 128 (or as much smaller)."""
    final = round(side * 128 / 205) // 16 * 16
    transforms, times = nnunet_transforms(final, channels), []
    for i in range(repeats):
        np.random.seed(i)
        torch.manual_seed(i)
        sample = patch(side, channels)
        start = time.process_time()
        transforms(image=sample["image"], segmentation=sample["segmentation"])
        times.append(1000 * (time.process_time() - start))
    return float(np.mean(times))


def peak_extra_mb(preset: str, side: int) -> tuple[float, float]:
    """Peak memory of growing one lesion of 80 ml beyond what was there, in a process of its own, and that of its box."""
    import multiprocessing as mp

    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # so that what is freed goes back at once
    queue: Any = mp.get_context("spawn").Queue()
    child = mp.get_context("spawn").Process(target=_measure_peak, args=(preset, side, queue))
    child.start()
    peak, box = queue.get()
    child.join()
    return peak, box


def _measure_peak(preset: str, side: int, queue: Any) -> None:
    sample = patch(side, 1)
    grow = transform(preset, side, 1, (80, 80))
    # What is loaded, cached or kept as a workspace of matrix products on first use is the process's, not a lesion's: one
    # per worker, however many lesions it grows.
    timed(grow, patch(side, 1), 2)
    np.random.seed(1)
    lesion = grow.get_parameters(**sample)["lesions"].lesions[0]
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew here (Linux)
    before = _kb("VmRSS")
    scene = Scene.of(sample["image"], sample["segmentation"][0], IGNORE, grow.spacing, sample["normalisation"])
    shape = grow_lesion(scene, lesion, grow.labels)
    peak = (_kb("VmHWM") - before) / 1024
    assert shape is not None
    queue.put((peak, shape.mask.numel() * 4 / 2**20))


def _kb(what: str) -> int:
    return int(
        next(
            line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith(what)
        ).split()[1]
    )


def loader_ratio(repeats: int) -> float:
    """Batches per second of crop + GrowLesion + nnU-Net's transforms over those without GrowLesion, 128^3, one worker."""
    transforms, grow = nnunet_transforms(128, 1), transform("glioma", 205, 1, (20, 80), 128)
    volume = patch(205, 1)
    seconds = {True: 0.0, False: 0.0}
    for i in range(2 * repeats):
        with_lesion = bool(i % 2)
        np.random.seed(10_000 + i)
        start = time.process_time()
        sample = {"image": volume["image"].clone(), "segmentation": volume["segmentation"].clone()}
        if with_lesion:
            grown = grow(**sample, normalisation=volume["normalisation"])
            sample = {"image": grown["image"], "segmentation": grown["segmentation"]}
        np.random.seed(i // 2)  # the same augmentation with and without the lesion
        torch.manual_seed(i // 2)
        transforms(**sample)
        seconds[with_lesion] += time.process_time() - start
    return seconds[False] / seconds[True]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--no-loader", action="store_true")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for side, channels in ((64, 1), (128, 1), (205, 1), (128, 2), (128, 4)):
        sample, stock = patch(side, channels), nnunet_ms(side, channels, max(10, args.repeats // 2))
        for preset in ("glioma", "paper"):
            times = timed(transform(preset, side, channels, (20, 80)), sample, args.repeats)
            rows.append({"patch": f"{side}^3", "channels": channels, "preset": preset, "volume_ml": "20-80",
                         "median_ms": float(np.median(times)), "p95_ms": float(np.percentile(times, 95)),
                         "share": float(np.median(times)) / stock, "nnunet_ms": stock,
                         "background_pass_ms": background_pass(sample)})  # fmt: skip
    sample = patch(205, 1)
    for volume in (1.0, 5.0, 20.0, 80.0, 160.0):
        times = timed(transform("glioma", 205, 1, (volume, volume)), sample, args.repeats // 2)
        rows.append({"patch": "205^3", "channels": 1, "preset": "glioma", "volume_ml": f"{volume:g}",
                     "median_ms": float(np.median(times)), "p95_ms": float(np.percentile(times, 95))})  # fmt: skip
    fixed = {}
    for side in (64, 128, 205):
        fixed[side] = float(np.median(timed(transform("glioma", side, 1, (20, 20), 24), patch(side, 1), args.repeats)))
    memory = {preset: peak_extra_mb(preset, 205) for preset in ("glioma", "paper")}
    print("| patch | channels | preset | volume (ml) | median (ms) | p95 (ms) | of nnU-Net's transforms |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        share = f"{100 * r['share']:.0f} % of {r['nnunet_ms']:.0f} ms" if "share" in r else ""
        print(
            f"| {r['patch']} | {r['channels']} | {r['preset']} | {r['volume_ml']} | "
            f"{r['median_ms']:.1f} | {r['p95_ms']:.1f} | {share} |"
        )
    print(
        f"\n20 ml in 64^3, 128^3, 205^3: {fixed[64]:.1f}, {fixed[128]:.1f}, {fixed[205]:.1f} ms "
        f"({fixed[205] / fixed[64]:.2f}x)"
    )
    print(f"host to background, once per patch of 205^3: {background_pass(sample):.1f} ms")
    for preset, (peak, box) in memory.items():
        print(f"{preset}, 80 ml: {peak:.1f} MB at the peak for a box of {box:.1f} MB ({peak / box:.1f}x)")
    ratio = None if args.no_loader else loader_ratio(args.repeats)
    if ratio is not None:
        print(f"loader, 128^3: {ratio:.3f} of the batches per second without GrowLesion")
    if args.out:
        args.out.write_text(
            json.dumps({"rows": rows, "fixed_20ml": fixed, "memory_mb": memory, "loader": ratio}, indent=1),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
