import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_synthtumour.dataset_labels import (
    check_named,
    dataset_labels,
    regions_class_order,
    structures,
    unmatched,
)
from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.image_folders import Case
from nnunet_synthtumour.lesion_labels import lesion_labels


def _labelled(*values: int) -> Case:
    return Case("l", "labelled", label_values=values)


HEALTHY = Case("h", "healthy", label_values=(0, 1))  # a host mask, whose values are no labels


def test_labels_from_what_the_files_hold() -> None:
    assert dataset_labels({}, [HEALTHY]) == {"background": 0, "tumour": 1, "ignore": 2}
    assert dataset_labels({}, [_labelled(0, 1)]) == {"background": 0, "tumour": 1}
    two = dataset_labels({}, [_labelled(0, 2), _labelled(0, 1), HEALTHY])
    assert two == {"background": 0, "label_1": 1, "label_2": 2, "ignore": 3}


def test_names_and_an_ignore_label_of_the_users_own() -> None:
    named = {"edema": 1, "core": 2}
    assert dataset_labels(named, [HEALTHY]) == {"background": 0, **named, "ignore": 3}
    scribbles = {"background": 0, "tumour": 1, "ignore": 2}
    assert dataset_labels(scribbles, [HEALTHY, _labelled(0, 2)]) == scribbles


def test_regions_overwrite_those_around_them() -> None:
    named = {"necrosis": 3, "core": [2, 3], "whole": [1, 2, 3]}
    check_named(named)
    labels = dataset_labels(named, [HEALTHY, _labelled(0, 1, 2)])
    assert list(labels.items()) == [
        ("background", 0), ("whole", [1, 2, 3]), ("core", [2, 3]), ("necrosis", 3), ("ignore", 4),
    ]  # fmt: skip
    order = regions_class_order(labels)
    assert order == [1, 2, 3]
    manager = LabelManager(labels, order)
    inside = np.array([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]])[..., None, None]
    assert manager.convert_probabilities_to_segmentation(inside).ravel().tolist() == [0, 1, 2, 3]
    assert lesion_labels(labels) == {"whole": 1, "core": 2, "necrosis": 3}
    assert regions_class_order({"background": 0, "whole": [1, 2], "other": 3, "ignore": 4}) == [1, 3]
    assert regions_class_order({"background": 0, "a": 1, "b": 2, "ignore": 3}) is None


def test_what_nnunet_would_stop_at() -> None:
    with pytest.raises(UserError, match="anything but 0"):
        dataset_labels({}, [_labelled(0), _labelled(0)])
    with pytest.raises(UserError, match=r"values 5, .* renumber"):
        dataset_labels({}, [_labelled(0, 5)])
    for named, said in (
        ({"a": 2}, "without a gap"),
        ({"background": 1, "a": 1}, "leave it out"),
        ({"ignore": 1, "a": 2}, "must be the highest"),
        ({"ignore": 1}, "at least one other"),
        ({"a": 1, "ignore": [2]}, "must be the highest, one value"),
        ({"a": [1, 2], "ignore": 2}, "must be the highest"),
        ({"a": [1, 3]}, "without a gap"),
        ({"a": [0, 1]}, "without a gap"),
        ({"a": 0}, "without a gap"),
        ({"background": [0, 1], "a": 2}, "leave it out"),
        ({"a": 1, "b": 1}, "a and b share values"),
        ({"a": [1, 2], "b": [2, 3]}, "share values, but neither lies within the other"),
    ):
        with pytest.raises(UserError, match=said):
            check_named(named)
    check_named({"background": 0, "a": 1, "ignore": 2})
    check_named({})


def test_structures_are_plain_labels_that_stand_for_something() -> None:
    assert structures({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}) == {"core": 2}


def test_names_that_only_one_of_two_data_sets_has() -> None:
    target = {"background": 0, "csf": 1, "wm": 2, "ignore": 3}
    assert unmatched("CT", target, "MR", {"background": 0, "wm": 1, "csf": 2, "more": 3}) == ""
    assert unmatched("CT", target, "MR", {"background": 0, "csf": 1}).startswith("MR has no label called wm: where")
    both = unmatched("CT", target, "MR", {"background": 0, "csf": 1, "white_matter": 2})
    assert both.startswith("MR has no label called wm, and CT none called white_matter: where they are, background is")
