import numpy as np
import pytest
import torch

from nnunet_synthtumour.host_room import MOST_OF_HOST, fitted
from nnunet_synthtumour.lesion_model import load_model
from nnunet_synthtumour.synthesis import GrowLesion

IGNORE = 7


def _sample(radius: float, dims: int = 3, n: int = 60) -> dict[str, torch.Tensor]:
    """A ball (disc) of host with noise in it; voxels of 1 mm."""
    away = np.sqrt(sum(((np.arange(n) - n / 2) ** 2).reshape([-1 if i == d else 1 for i in range(dims)])
                       for d in range(dims)))  # fmt: skip
    host = torch.from_numpy(away < radius)
    image = torch.randn(1, *host.shape, generator=torch.Generator().manual_seed(0)) * host
    return {"image": image, "segmentation": torch.where(host, IGNORE, 0).to(torch.int16)[None]}


def _transform(preset: str, dims: int = 3, **overrides: object) -> GrowLesion:
    model = load_model(preset, {"distractors": {"probability": 0.0}, **overrides})
    return GrowLesion(model, {"whole": 1}, (1.0,) * dims, IGNORE, ["FLAIR"])


def _share(transform: GrowLesion, sample: dict[str, torch.Tensor], seed: int, **more: object) -> float:
    host = float((sample["segmentation"] == IGNORE).sum())
    np.random.seed(seed)
    out = transform(**{key: value.clone() for key, value in sample.items()}, **more)
    return float((out["segmentation"] == 1).sum()) / host


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("preset", ["glioma", "stroke", "metastases"])
def test_a_small_host_is_never_filled(preset: str, dims: int) -> None:
    sample = _sample(9.0, dims)  # 3 ml
    shares = [_share(_transform(preset, dims), sample, seed) for seed in range(10)]
    assert max(shares) <= MOST_OF_HOST * 1.03
    assert min(shares) > 0


def test_several_lesions_share_the_room() -> None:
    transform = _transform("metastases", shape={"count": [4, 4], "volume_ml": [1, 3]})
    sample = _sample(9.0)
    np.random.seed(0)
    sizes = [lesion.body.size for lesion in transform.get_parameters(**sample)["lesions"].lesions]
    assert sum(sizes) == pytest.approx(MOST_OF_HOST * float((sample["segmentation"] == IGNORE).sum()))
    assert max(sizes) <= 3.0 * min(sizes)


def test_a_host_that_is_large_enough_changes_nothing() -> None:
    transform = _transform("glioma", shape={"volume_ml": [20, 20], "satellites": 0.0})
    np.random.seed(0)
    drawn = list(transform._draw_lesions(_places(_sample(25.0))))
    for radius in (21.5, 25.0):  # 42 and 65 ml
        assert fitted(drawn, _sample(radius)["segmentation"][0], IGNORE, (1.0,) * 3) == drawn
    (smaller,) = fitted(drawn, _sample(20.0)["segmentation"][0], IGNORE, (1.0,) * 3)  # 33.5 ml
    assert smaller.body.size == pytest.approx(16_750, rel=0.02)
    assert smaller.body.radius_mm / drawn[0].body.radius_mm == pytest.approx((16.75 / 20) ** (1 / 3), rel=0.01)


def _places(sample: dict[str, torch.Tensor]) -> object:
    from nnunet_synthtumour.placement import Places

    return Places(sample["image"], sample["segmentation"][0], IGNORE, (1.0,) * 3)


def test_a_patch_that_shows_a_part_of_a_large_host_is_filled_as_a_large_lesion_would() -> None:
    transform = _transform("glioma", shape={"volume_ml": [50, 50]})
    sample = _sample(9.0)
    assert _share(transform, sample, 0) <= MOST_OF_HOST * 1.03
    assert _share(transform, sample, 0, host_voxels=1_200_000.0) == 1.0
    assert _share(transform, sample, 0, host_voxels=5_000.0) == pytest.approx(2_500 / 3_071, rel=0.05)
