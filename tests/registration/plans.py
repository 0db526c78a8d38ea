"""The architecture of a configuration as nnU-Net writes it into its plans, small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def architecture(
    features: Sequence[int] = (4, 8, 8, 16),
    dims: int = 3,
    residual: bool = False,
    convolutions: int = 1,
    strides: Sequence[Sequence[int]] | None = None,
) -> tuple[str, dict[str, Any], list[str]]:
    """(class name, keyword arguments, names to import): what a ConfigurationManager holds."""
    stages = len(features)
    arguments = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[3] * dims] * stages,
        "strides": strides or [[1] * dims] + [[2] * dims] * (stages - 1),
        "n_blocks_per_stage" if residual else "n_conv_per_stage": [convolutions] * stages,
        "n_conv_per_stage_decoder": [convolutions] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    return (
        f"dynamic_network_architectures.architectures.unet.{name}",
        arguments,
        ["conv_op", "norm_op", "dropout_op", "nonlin"],
    )
