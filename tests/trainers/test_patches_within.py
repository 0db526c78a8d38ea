import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_synthtumour.trainers.crossmodal_trainer import CrossModalTrainer
from nnunet_synthtumour.trainers.deepatlas_trainer import DeepAtlasTrainer
from nnunet_synthtumour.trainers.patches_within import CentresWithin
from tests.toy_dataset import make_trainer

ANNOTATED = (-1, 0, 1)  # nnU-Net's key for all annotated voxels


class _Cases:
    identifiers = ("case",)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        data = np.zeros((1, *self.shape), np.float32)
        locations = {1: np.argwhere(data == 0), 2: [], ANNOTATED: np.argwhere(data == 0)}
        return data, data.astype(np.int16), None, {"class_locations": locations, "spacing": (1, 1, 1)}


def _loader(cases: Any, size: tuple[int, ...], crop: tuple[int, ...]) -> nnUNetDataLoader:
    labels = SimpleNamespace(has_ignore_label=True, all_labels=[0, 1])
    return nnUNetDataLoader(cases, 1, size, crop, labels, 0.5)


@given(
    st.tuples(*[st.integers(3, 16)] * 3), st.tuples(*[st.integers(3, 14)] * 3), st.tuples(*[st.integers(0, 5)] * 3),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_what_a_crop_leaves_lies_within_the_image_or_shows_all_of_it(
    shape: tuple[int, ...], crop: tuple[int, ...], more: tuple[int, ...], oversample: bool, seed: int
) -> None:
    size = tuple(a + b for a, b in zip(crop, more, strict=True))
    cases = CentresWithin(_Cases(shape), size, crop)
    loader = _loader(cases, size, crop)
    np.random.seed(seed)
    data, _, _, properties = cases.load_case("case")
    low, _ = loader.get_bbox(data.shape[1:], oversample, properties["class_locations"])
    for begin, n, patch, left in zip(low, shape, size, crop, strict=True):
        first = begin + (patch - left) // 2
        slack = (patch - left) % 2  # a crop from the middle of an even number of voxels has no middle
        assert first >= -((max(0, left - n) + 1) // 2) - slack
        assert first + left <= n + (max(0, left - n) + 1) // 2 + slack


def test_nnunets_own_patches_end_beyond_the_image() -> None:
    """If this fails nnU-Net has mended it, and `CentresWithin` can go."""
    loader = _loader(_Cases((16, 16, 16)), (16, 16, 16), (16, 16, 16))
    np.random.seed(0)
    locations = _Cases((16, 16, 16)).load_case("case")[3]["class_locations"]
    assert max(max(loader.get_bbox((16, 16, 16), False, locations)[0]) for _ in range(50)) > 4


def test_the_rest_of_a_case_is_what_it_was_also_in_another_process() -> None:
    within = pickle.loads(pickle.dumps(CentresWithin(_Cases((9, 8, 7)), (6, 6, 6), (4, 4, 4))))
    data, seg, before, properties = within.load_case("case")
    assert (data.shape, seg.shape, before) == ((1, 9, 8, 7), (1, 9, 8, 7), None)
    assert properties["spacing"] == (1, 1, 1)
    assert properties["class_locations"][2].tolist() == []
    assert within.identifiers == ("case",)


def test_trainers_that_register_draw_such_patches(toy: Path) -> None:
    assert CrossModalTrainer.get_tr_and_val_datasets is DeepAtlasTrainer.get_tr_and_val_datasets
    trainer = make_trainer(toy, DeepAtlasTrainer)
    trainer.initialize()
    trainer.dataset_class = infer_dataset_class(trainer.preprocessed_dataset_folder)
    patch = tuple(trainer.configuration_manager.patch_size)
    train, val = trainer.get_tr_and_val_datasets()
    assert isinstance(train, CentresWithin)
    assert isinstance(val, CentresWithin)
    assert tuple(train.size - train.padding) == tuple(val.size) == patch
