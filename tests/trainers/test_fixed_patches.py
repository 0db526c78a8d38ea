import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_synthtumour.trainers.fixed_patches import (
    IN_DISTRIBUTION,
    SHIFTED,
    batches_of_rank,
    digest,
    digest_of_set,
    list_patches,
)

CASES = {IN_DISTRIBUTION: ["a", "b", "c"], SHIFTED: ["a", "b", "c"]}


def test_cases_take_turns_and_half_of_the_patches_carry_a_lesion() -> None:
    patches = list_patches(CASES, 8, 0.5)
    assert [p.index for p in patches] == list(range(16))
    for kind in CASES:
        mine = [p for p in patches if p.kind == kind]
        assert [p.case for p in mine] == ["a", "b", "c", "a", "b", "c", "a", "b"]
        assert sum(p.affected for p in mine) == 4


@pytest.mark.parametrize(("share", "affected"), [(0.0, 0), (1.0, 10), (0.3, 3), (0.75, 7)])
def test_share_of_patches_with_a_lesion(share: float, affected: int) -> None:
    assert sum(p.affected for p in list_patches(CASES, 10, share)) == 2 * affected


@pytest.mark.parametrize(("per_kind", "share"), [(1, 0.5), (1, 0.01), (5, 0.1), (48, 0.02), (49, 1 / 49)])
def test_there_is_always_a_lesion_to_choose_the_epoch_by(per_kind: int, share: float) -> None:
    patches = list_patches(CASES, per_kind, share)
    assert [sum(p.affected for p in patches if p.kind == kind) for kind in CASES] == [1, 1]


@given(
    n=st.integers(1, 8),
    per_kind=st.sampled_from([1, 5, 7, 48]),
    percent=st.one_of(st.just(50), st.integers(0, 100)),
)
def test_every_case_has_its_share_of_lesions(n: int, per_kind: int, percent: int) -> None:
    patches = list_patches({SHIFTED: [str(i) for i in range(n)]}, per_kind, percent / 100)
    assert abs(sum(p.affected for p in patches) - per_kind * percent / 100) < 1
    shown = Counter(p.case for p in patches)
    for case, count in shown.items():
        share = round(count * percent / 100, 6)
        assert math.floor(share) <= sum(p.affected for p in patches if p.case == case) <= math.ceil(share)


@pytest.mark.parametrize("n", range(1, 9))
def test_of_every_case_half_of_48_patches_have_a_lesion(n: int) -> None:
    patches = list_patches({SHIFTED: [str(i) for i in range(n)]}, 48, 0.5)
    assert sum(p.affected for p in patches) == 24
    for case in range(n):
        mine = [p.affected for p in patches if p.case == str(case)]
        assert sum(mine) in (len(mine) // 2, -(-len(mine) // 2))


@pytest.mark.parametrize(("world", "batch_size"), list(itertools.product([1, 2, 3], [1, 2, 4])))
def test_ranks_share_the_set_without_overlap_and_a_batch_has_one_kind(world: int, batch_size: int) -> None:
    patches = list_patches(CASES, 7, 0.5)
    batches = [batch for rank in range(world) for batch in batches_of_rank(patches, batch_size, rank, world)]
    assert sorted(p.index for batch in batches for p in batch) == list(range(14))
    assert all(len({p.kind for p in batch}) == 1 and 0 < len(batch) <= batch_size for batch in batches)


def test_a_digest_sees_every_bit_but_not_the_order_of_batches() -> None:
    x = torch.rand(2, 3)
    y = x.clone()
    assert digest(x) == digest(y)
    y[1, 2] += 1e-7
    assert digest(x) != digest(y)
    assert digest_of_set([{0: "a", 1: "b"}, {2: "c"}]) == digest_of_set([{2: "c"}, {1: "b"}, {0: "a"}])
    assert digest_of_set([{0: "a", 1: "b"}]) != digest_of_set([{0: "b", 1: "a"}])
