import itertools

import pytest
import torch

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
