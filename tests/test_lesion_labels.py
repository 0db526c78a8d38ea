import pytest

from nnunet_synthtumour.lesion_labels import lesion_labels
from nnunet_synthtumour.schema import SettingsError

BRATS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3], "ignore": 4}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"background": 0, "tumour": 1, "ignore": 2}, {"whole": 1}),
        ({"background": 0, "lesion": 3}, {"whole": 3}),
        ({"background": 0, "edema": 2, "enhancing": 3, "necrosis": 1}, {"whole": 2, "core": 3, "necrosis": 1}),
        ({"background": 0, "liver": 1, "tumour core": 2}, {"whole": 1, "core": 2}),
        (BRATS, {"whole": 1, "core": 3, "necrosis": 2}),
        ({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}, {"whole": 1, "core": 2}),
    ],
)
def test_parts_find_their_labels(labels: dict, expected: dict) -> None:
    assert lesion_labels(labels) == expected


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
