from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from nnunet_synthtumour.trainers.patch_reuse import PatchReuse


class Made:
    """Patches whose voxels all hold their number."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> dict[str, object]:
        self.number += 1
        return {"image": torch.full((1, 2, 2), float(self.number)), "case": str(self.number)}


@pytest.mark.parametrize(("times", "waiting"), [(2, 4), (4, 16)])
def test_every_patch_comes_so_many_times_and_what_waits_stays_bounded(times: int, waiting: int) -> None:
    np.random.seed(0)
    made, reuse, longest = Made(), PatchReuse(times, waiting), 0
    drawn: Counter[str] = Counter()
    for _ in range(400):
        reuse.begin_batch()
        drawn[reuse.draw(made)["case"]] += 1
        longest = max(longest, len(reuse.waiting))
    still = Counter(sample["case"] for _, sample in reuse.waiting)
    assert all(drawn[case] + still[case] == times for case in map(str, range(1, made.number + 1)))
    assert longest < waiting + times


def test_patches_come_mixed() -> None:
    np.random.seed(0)
    made, reuse = Made(), PatchReuse(4, 16)
    order = [reuse.draw(made)["case"] for _ in range(400)]
    assert np.mean([a == b for a, b in pairwise(order)]) < 0.25


@pytest.mark.parametrize("batch", [2, 12, 49])
def test_patches_of_a_batch_differ_and_are_used_again_all_the_same(batch: int) -> None:
    np.random.seed(0)
    made, reuse, longest = Made(), PatchReuse(3, 12), 0
    for _ in range(60):
        reuse.begin_batch()
        assert len({reuse.draw(made)["case"] for _ in range(batch)}) == batch
        longest = max(longest, len(reuse.waiting))
    assert longest <= 12 + 2 * batch
    assert made.number <= 60 * batch / 3 + longest


def test_what_is_done_to_a_drawn_patch_does_not_come_again() -> None:
    made, reuse = Made(), PatchReuse(4, 16)
    for _ in range(50):
        drawn = reuse.draw(made)
        assert torch.equal(drawn["image"], torch.full((1, 2, 2), float(drawn["case"])))
        drawn["image"].zero_()


def test_once_keeps_nothing_and_draws_nothing() -> None:
    made, reuse = Made(), PatchReuse(1, 16)
    state = np.random.get_state()[2]
    assert [reuse.draw(made)["case"] for _ in range(3)] == ["1", "2", "3"]
    assert not reuse.waiting
    assert np.random.get_state()[2] == state


@pytest.mark.parametrize(
    ("size", "channels", "wanted", "times"),
    [((80, 100, 80), 1, None, 3), ((80, 100, 80), 8, None, 2), ((205, 205, 205), 1, None, 2), ((96, 96), 4, None, 3),
     ((205, 205, 205), 4, None, 1), ((80, 100, 80), 1, 1, 1), ((205, 205, 205), 4, 7, 7)],
)  # fmt: skip
def test_small_patches_come_more_often_unless_the_setting_says(
    size: tuple[int, ...], channels: int, wanted: int | None, times: int
) -> None:
    reuse = PatchReuse.of_patches(size, channels, wanted)
    assert reuse.times == times
    assert times in (1, wanted) or (reuse.least + 1) * (4 * channels + 2) * np.prod(size) <= 400e6
