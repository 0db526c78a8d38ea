import json

import pytest

from nnunet_synthtumour.lesion_labels import lesion_labels, never_written
from nnunet_synthtumour.schema import SettingsError

BRATS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3], "ignore": 4}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"background": 0, "tumour": 1, "ignore": 2}, {"whole": 1}),
        ({"background": 0, "lesion": 3}, {"whole": 3}),
        ({"background": 0, "edema": 2, "enhancing": 3, "necrosis": 1}, {"whole": 2, "core": 3, "necrosis": 1}),
        ({"background": 0, "NCR": 1, "ED": 2, "ET": 3, "ignore": 4}, {"whole": 2, "core": 3, "necrosis": 1}),
        ({"necrotic_core": 1, "edema": 2, "enhancing_tumor": 3}, {"whole": 2, "core": 3, "necrosis": 1}),
        ({"edema": 1, "non-enhancing tumor": 2, "EnhancingTumour": 3}, {"whole": 1, "core": 3, "necrosis": 2}),
        ({"NCR/NET": 1, "Oedema": 2, "ET": 4}, {"whole": 2, "core": 4, "necrosis": 1}),
        ({"edema": 1, "tumour": 2}, {"whole": 1, "core": 2}),
        ({"metastases": 1, "core": 2}, {"whole": 1, "core": 2}),
        ({"kidney": 1}, {"whole": 1}),
        ({"tumour": [1, 2]}, {"whole": 1}),
        ({"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]}, {"whole": 2, "core": 3, "necrosis": 1}),
        ({"WT": [1, 2], "edema": [1], "core": [2]}, {"whole": 1, "core": 2}),
        (BRATS, {"whole": 1, "core": 3, "necrosis": 2}),
        ({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, {"whole": 1, "core": 2}),
    ],
)
def test_parts_find_their_labels(labels: dict, expected: dict) -> None:
    assert lesion_labels(labels) == expected


@pytest.mark.parametrize(
    "names",
    [
        {"liver": 1, "tumour": 2},
        {"lesion": 1, "kidney": 2},
        {"label_1": 1, "label_2": 2, "label_3": 3},
        {"primary": 1, "node": 2},
        {"tumour": 1, "lesion": 2},
        {"core": 1, "necrosis": 2},
        {"magnet": 1, "edict": 2},
        {"liver": [1, 2], "tumour": [2]},
    ],
)
def test_names_that_leave_a_doubt_are_refused_with_an_example_that_works(names: dict) -> None:
    labels = {"background": 0, **names, "ignore": 9}
    with pytest.raises(SettingsError, match=r"do not say which part .* --set 'lesion\.parts=\{") as refused:
        lesion_labels(labels)
    example = json.loads(str(refused.value).split("lesion.parts=")[1].split("'")[0])
    assert set(lesion_labels(labels, example)) == set(example)


def test_regions_may_be_chosen_by_name() -> None:
    parts = {"whole": "whole tumor", "core": "enhancing tumor", "necrosis": "tumor core"}
    assert lesion_labels(BRATS, parts) == {"whole": 1, "core": 3, "necrosis": 2}


def test_labels_without_lesions_are_found() -> None:
    assert never_written({"background": 0, "liver": 1, "tumour": 2, "ignore": 3}, {"whole": 2}) == ["liver"]
    assert never_written(BRATS, {"whole": 1, "core": 2}) == ["enhancing tumor"]


def test_the_user_may_choose() -> None:
    labels = {"background": 0, "a": 1, "b": 2}
    assert lesion_labels(labels, {"whole": "b", "core": 1}) == {"whole": 2, "core": 1}
    with pytest.raises(SettingsError, match=r"lesion.parts.whole is 'c'.*a \(1\), b \(2\)"):
        lesion_labels(labels, {"whole": "c"})
    with pytest.raises(SettingsError, match=r"lesion.parts.rind is no part"):
        lesion_labels(labels, {"rind": "a"})
    with pytest.raises(SettingsError, match="'whole'"):
        lesion_labels(labels, {"core": "a"})


def test_a_data_set_without_labels_is_refused() -> None:
    with pytest.raises(SettingsError, match="declares no label"):
        lesion_labels({"background": 0, "ignore": 1})
