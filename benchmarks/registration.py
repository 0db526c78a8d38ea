"""Registration of random pairs of a labelled data set: affine, ours, ANTs SyN and ConvexAdam, in one run.

    python benchmarks/registration.py DATA [--pairs 20] [--seed 0] [--threads 2] [--out figures.json]

DATA holds imagesTr/ and labelsTr/ (files of the same names). SyN (antspyx) and ConvexAdam (convexAdam) take part where
they are installed. All start from the same affine map: the others get the moving image resampled by it, so that their
seconds are those of the deformable part, as ours are. Nobody sees labels; these are moved from the original file by the
total map, nearest neighbour. CPU seconds add up over threads and, unlike seconds, hardly depend on what else the
machine does. Memory is the peak of a process that registers one pair with one method.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from nnunet_synthtumour.registration.affine_alignment import affine_transform
from nnunet_synthtumour.registration.fields import warp
from nnunet_synthtumour.registration.instance import InstanceSettings, normalised, optimise
from nnunet_synthtumour.registration.metrics import folds_percent, overlap, sd_log_jacobian
from nnunet_synthtumour.registration.pair_files import affine_matrix, total_displacement
from nnunet_synthtumour.registration.physical import Geometry, affine_displacement, voxel_map

Method = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def ours(similarity: str) -> Method:
    settings = InstanceSettings(similarity=similarity)  # type: ignore[arg-type]
    return lambda moving, fixed, weight: optimise(moving, fixed, settings, weight=weight).displacement


def syn(moving: torch.Tensor, fixed: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    import ants

    result = ants.registration(
        ants.from_numpy(fixed[0, 0].numpy()), ants.from_numpy(moving[0, 0].numpy()), "SyN", random_seed=1
    )
    # its own affine map comes along in the field: SyN is not held to our start
    field = ants.apply_transforms(
        ants.from_numpy(fixed[0, 0].numpy()),
        ants.from_numpy(moving[0, 0].numpy()),
        result["fwdtransforms"],
        compose=f"{Path(result['fwdtransforms'][0]).parent}/total_",
    )
    vectors = ants.image_read(field).numpy()
    return torch.from_numpy(vectors).movedim(-1, 0)[None].float()


def convex_adam(moving: torch.Tensor, fixed: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    from convexAdam.convex_adam_MIND import convex_adam_pt

    field = convex_adam_pt(fixed[0, 0], moving[0, 0], dtype=torch.float32, device=torch.device("cpu"))
    return torch.from_numpy(np.asarray(field, dtype=np.float32)).movedim(-1, 0)[None]


def methods() -> dict[str, Method]:
    found: dict[str, Method] = {"ours, lncc": ours("lncc"), "ours, mind": ours("mind")}
    if find_spec("ants"):
        found["ANTs SyN"] = syn
    if find_spec("convexAdam"):
        found["ConvexAdam"] = convex_adam
    return found


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def read(file: Path) -> tuple[Any, torch.Tensor, Geometry]:
    image = sitk.ReadImage(str(file))
    return image, torch.from_numpy(sitk.GetArrayFromImage(image).astype(np.float32))[None, None], Geometry.of(image)


def pairs_of(data: Path, count: int, seed: int) -> list[tuple[str, str]]:
    names = sorted(file.name for file in (data / "imagesTr").glob("*.nii.gz") if not file.name.startswith("."))
    draw = random.Random(seed)
    return [tuple(draw.sample(names, 2)) for _ in range(count)]  # type: ignore[misc]


def evaluate(data: Path, fixed_name: str, moving_name: str, chosen: dict[str, Method]) -> dict[str, dict[str, float]]:
    """{method: figures} of one pair."""
    fixed_image, fixed, fixed_grid = read(data / "imagesTr" / fixed_name)
    moving_image, moving, moving_grid = read(data / "imagesTr" / moving_name)
    truth = read(data / "labelsTr" / fixed_name)[1][0, 0].numpy()
    labels = read(data / "labelsTr" / moving_name)[1]

    def score(u: torch.Tensor, affine: torch.Tensor | None, since: tuple[float, float]) -> dict[str, float]:
        seconds, cpu = time.perf_counter() - since[0], time.process_time() - since[1]
        total = total_displacement(u, fixed_grid, moving_grid, affine)
        moved = warp(labels, total, "nearest", "zeros")[0, 0].numpy()
        per_label = overlap(moved, truth, fixed_grid.spacing[::-1]).values()
        return {
            "dice": float(np.nanmean([values["dice"] for values in per_label])),
            "hd95": float(np.nanmean([values["hd95"] for values in per_label])),
            "folds": folds_percent(u),
            "sd_log_jacobian": sd_log_jacobian(u),
            "seconds": seconds,
            "cpu": cpu,
        }

    still = torch.zeros(1, fixed.ndim - 2, *fixed.shape[2:])
    rows = {"initial": score(still, None, now())}
    started = now()
    matrix = affine_matrix(affine_transform(fixed_image, moving_image, threads=torch.get_num_threads()))
    rows["affine"] = score(still, matrix, started)
    field = affine_displacement(voxel_map(fixed_grid, moving_grid, matrix), fixed.shape[2:]).float()
    fixed, moving = normalised(fixed), normalised(moving)
    aligned, known = warp(moving, field), warp(torch.ones_like(moving), field, padding="zeros")
    for name, method in chosen.items():
        started = now()
        u = method(aligned, fixed, known)
        rows[name] = score(u, matrix, started)
    return rows


def memory_of(arguments: argparse.Namespace, method: str) -> float:
    """Peak MiB of a fresh process that registers the first pair with one method."""
    command = [sys.executable, __file__, str(arguments.data), "--seed", str(arguments.seed), "--only", method]
    command += ["--threads", str(arguments.threads)]
    return float(
        subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout.split()[-1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON with the figures of every pair")
    parser.add_argument("--only", help="register the first pair with this method and print the peak memory in MiB")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = methods()
    pairs = pairs_of(arguments.data, arguments.pairs, arguments.seed)
    if arguments.only:
        evaluate(arguments.data, *pairs[0], {arguments.only: chosen[arguments.only]})
        # getrusage would report the peak of the process that started this one if that was larger
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
        return
    results = []
    for index, (fixed, moving) in enumerate(pairs):
        results.append({"fixed": fixed, "moving": moving, **evaluate(arguments.data, fixed, moving, chosen)})
        summary = ", ".join(f"{name} {row['dice']:.3f}" for name, row in results[-1].items() if isinstance(row, dict))
        print(f"{index + 1}/{len(pairs)} {fixed} <- {moving}: {summary}", file=sys.stderr, flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(
        "| method | Dice | HD95 mm | folds % (mean, worst) | SDlogJ | seconds (median, worst) | CPU s (median) | peak MiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in ("initial", "affine", *chosen):
        column = {key: np.array([pair[name][key] for pair in results]) for key in results[0][name]}
        memory = f"{memory_of(arguments, name):.0f}" if name in chosen else ""
        print(
            f"| {name} | {column['dice'].mean():.4f} | {column['hd95'].mean():.2f} | {column['folds'].mean():.4f}, "
            f"{column['folds'].max():.4f} | {column['sd_log_jacobian'].mean():.3f} | "
            f"{np.median(column['seconds']):.2f}, {column['seconds'].max():.1f} | {np.median(column['cpu']):.1f} | {memory} |"
        )


if __name__ == "__main__":
    main()
