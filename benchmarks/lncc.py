"""LNCC, forward and backward, against the same formula on box-kernel convolutions: seconds, ratio, difference.

python benchmarks/lncc.py [--size 96] [--windows 5 9 17] [--threads 1]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_synthtumour.registration import similarity
from nnunet_synthtumour.registration.windows import box_count, box_sum


def convolved(image: Tensor, window: int) -> Tensor:
    """What `box_sum` replaces: one 3D convolution with a box of ones, channel by channel."""
    kernel = image.new_ones(1, 1, window, window, window)
    return F.conv3d(image.transpose(0, 1), kernel, padding=window // 2).transpose(0, 1)


def forward_and_backward(warped: Tensor, fixed: Tensor, window: int, box: Callable[[Tensor, int], Tensor]) -> float:
    """The same loss with either filter; returns its value."""
    original = similarity.box_sum
    similarity.box_sum = box
    try:
        loss = similarity.lncc_loss(warped, fixed, window)
        loss.backward()
    finally:
        similarity.box_sum = original
    return float(loss.detach())


def seconds(function: Callable[[], float], repeats: int) -> float:
    """The fastest of `repeats` calls after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--windows", type=int, nargs="+", default=[5, 9, 17])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, *[arguments.size] * 3)
    fixed = box_sum(torch.rand(shape, generator=generator), 5) / box_count(shape[2:], 5, torch.ones(1))
    warped = (fixed + 0.05 * torch.rand(shape, generator=generator)).requires_grad_()
    print(f"LNCC on {arguments.size}^3, forward and backward, {arguments.threads} thread(s), torch {torch.__version__}")
    print("window  running sums [s]  convolution [s]   ratio  difference")
    for window in arguments.windows:
        values = [forward_and_backward(warped, fixed, window, f) for f in (box_sum, convolved)]
        ours, theirs = (
            seconds(lambda f=f, n=window: forward_and_backward(warped, fixed, n, f), arguments.repeats)  # type: ignore[misc]
            for f in (box_sum, convolved)
        )
        print(f"{window:6d}  {ours:16.3f}  {theirs:15.3f}  {theirs / ours:6.1f}  {abs(values[0] - values[1]):10.1e}")


if __name__ == "__main__":
    main()
