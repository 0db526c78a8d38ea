from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from nnunet_synthtumour.registration.networks import unet_from_plans
from nnunet_synthtumour.registration.strides import total_stride
from tests.registration.plans import architecture


@pytest.mark.parametrize(
    ("conv_op", "strides", "total"),
    [
        (nn.Conv3d, [1, 2, 2], (4, 4, 4)),
        (nn.Conv2d, [1, 2, 2], (4, 4)),
        (nn.Conv3d, [[1, 1, 1], (1, 2, 2), 2], (2, 4, 4)),
    ],
)
def test_strides_multiply_along_each_axis(conv_op: type, strides: list[Any], total: tuple[int, ...]) -> None:
    assert total_stride(SimpleNamespace(conv_op=conv_op, strides=strides)) == total


@pytest.mark.parametrize("residual", [False, True])
def test_the_encoders_of_nnunets_networks_are_understood(residual: bool) -> None:
    plans = architecture(residual=residual, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]])
    assert total_stride(unet_from_plans(*plans, 1).encoder) == (4, 8, 8)
