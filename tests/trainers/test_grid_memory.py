from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.trainers.grid_memory import gb_of_pairs, refuse_grids_beyond

ARCHITECTURE = {
    "n_stages": 6,
    "features_per_stage": (32, 64, 128, 256, 320, 320),
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 6,
    "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
    "n_conv_per_stage": (2,) * 6,
    "n_conv_per_stage_decoder": (2,) * 5,
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
PLANNED_BY_NNUNET: Any = SimpleNamespace(
    network_arch_class_name="dynamic_network_architectures.architectures.unet.PlainConvUNet",
    network_arch_init_kwargs=ARCHITECTURE,
    network_arch_init_kwargs_req_import=("conv_op", "norm_op", "dropout_op", "nonlin"),
    normalization_schemes=["ZScoreNormalization"],
)


def _loader(*grid: int, pairs: int = 1) -> Any:
    return SimpleNamespace(batch_size=pairs, cases=SimpleNamespace(grid=SimpleNamespace(shape=grid)))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A card of 11 GB, as far as anybody asks."""
    card = SimpleNamespace(total_memory=11 * 1024**3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    return torch.device("cuda")


def test_a_grid_of_nnunets_usual_patch_takes_a_sample_of_its_usual_batch() -> None:
    assert gb_of_pairs((128, 128, 128), PLANNED_BY_NNUNET, 1, 1) == pytest.approx(8 / 2, rel=0.25)


def test_a_grid_counts_as_it_is_padded() -> None:
    assert gb_of_pairs((97, 97, 97), PLANNED_BY_NNUNET, 1, 1) == gb_of_pairs((128, 128, 128), PLANNED_BY_NNUNET, 1, 1)


def test_a_brain_at_1_mm_is_refused_on_a_small_card(gpu: torch.device) -> None:
    with pytest.raises(Refusal, match=r"182 x 218 x 182 voxels takes about 13 GB .* has 11; plan with -pl DeepAtlas"):
        refuse_grids_beyond(gpu, _loader(182, 218, 182), PLANNED_BY_NNUNET)


def test_what_fits_is_not_refused_and_pairs_count(gpu: torch.device) -> None:
    refuse_grids_beyond(gpu, _loader(128, 128, 128), PLANNED_BY_NNUNET)
    with pytest.raises(Refusal, match=r"registration\.pairs"):
        refuse_grids_beyond(gpu, _loader(128, 128, 128, pairs=4), PLANNED_BY_NNUNET)


def test_a_cpu_takes_what_it_gets() -> None:
    refuse_grids_beyond(torch.device("cpu"), _loader(999, 999, 999), PLANNED_BY_NNUNET)
