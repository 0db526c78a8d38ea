"""What a device computes fastest in: float16 on CUDA as in nnU-Net, bfloat16 on CPUs that have it, and on other CPUs float32
with channels as the innermost axis of weights and activations.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether this is a CPU with bfloat16 instructions (AVX-512 BF16, which processors with AMX have, too)."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # torch has no public name for it
    return device.type == "cpu" and supported is not None and bool(supported())


def mixed_precision(device: torch.device, bfloat16: bool) -> AbstractContextManager[Any]:
    """What a forward pass runs in. `bfloat16` is for CPUs; elsewhere nnU-Net's own choice stands."""
    if device.type == "cuda":
        return torch.autocast("cuda")
    return torch.autocast("cpu", torch.bfloat16) if device.type == "cpu" and bfloat16 else nullcontext()


def in_float(output: Any) -> Any:
    """Logits, or those of all resolutions, in float32: losses and comparisons need its digits."""
    return [o.float() for o in output] if isinstance(output, (list, tuple)) else output.float()


def channels_innermost(network: torch.nn.Module, dims: int) -> None:
    """Lay out the weights of convolutions (2 or 3 `dims`) with channels innermost; activations follow them."""
    layout = torch.channels_last_3d if dims == 3 else torch.channels_last
    for parameter in network.parameters():
        if parameter.ndim == dims + 2:
            parameter.data = parameter.data.contiguous(memory_format=layout)
