import pytest

from nnunet_synthtumour.trainers.case_splits import left_out, restrict, splits_by_role


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 23])
def test_every_case_is_validated_on_and_never_trained_on_in_the_same_fold(n: int) -> None:
    cases = [f"case_{i:03d}" for i in range(n)]
    splits = splits_by_role([cases])
    assert len(splits) == 5
    assert {case for split in splits for case in split["val"]} == set(cases)
    for split in splits:
        assert split["train"]
        assert not set(split["train"]) & set(split["val"])
        assert set(split["train"]) | set(split["val"]) == set(cases)


def test_one_case_is_both_trained_and_validated_on() -> None:
    assert splits_by_role([["a"]])[3] == {"train": ["a"], "val": ["a"]}


def test_every_fold_has_cases_of_every_role() -> None:
    healthy, labelled = [f"h{i}" for i in range(7)], [f"l{i}" for i in range(2)]
    for split in splits_by_role([healthy, labelled]):
        for part in ("train", "val"):
            assert {case[0] for case in split[part]} == {"h", "l"}


def test_splits_do_not_depend_on_the_order_of_cases() -> None:
    assert splits_by_role([["a", "b", "c"]]) == splits_by_role([["c", "a", "b"]])


def test_restrict_drops_what_cannot_be_used() -> None:
    assert restrict({"train": ["a", "b"], "val": ["c"]}, {"b", "c"}) == {"train": ["b"], "val": ["c"]}


def test_what_is_left_out_is_said_with_the_reason() -> None:
    roles = {
        "a": "healthy",
        "b": "healthy",
        "gone": "labelled",
        "ct_seg": "labelled",
        "u": "unlabelled",
        **dict.fromkeys("cdefgh", "healthy"),
    }
    files = {*roles, "stray"} - {"gone", "ct_seg"}
    usable = set(roles) - {"u"}
    assert left_out(usable, files, roles, [{"train": ["a"], "val": ["b"]}]) == [
        "WARNING: left out, nnU-Net takes a name that ends in _seg for that of a segmentation (rename the case): ct_seg",
        "WARNING: left out, no preprocessed file: gone",
        "WARNING: left out, no role in dataset.json: stray",
        "WARNING: left out, in no fold of splits_final.json (delete it to split anew): c, d, e, f, g and 1 more",
    ]
    assert left_out({"a", "b"}, {"a", "b"}, roles, [{"train": ["a"], "val": ["b"]}]) == []
