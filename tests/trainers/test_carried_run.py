"""What is carried once is not carried again, unless something that it depends on has changed."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from nnunet_synthtumour.trainers.carried_labels import REPORT
from nnunet_synthtumour.trainers.carried_run import EACH, carry_to_all

TARGETS = ["a", "b", "c"]


class Carrying:
    """Notes what is carried; dies before the target `dies_at`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.done, self.dies_at = folder, [], ""

    def __call__(self, network: str) -> list[str]:
        before = len(self.done)
        carry_to_all(self.folder, TARGETS, {"epoch": 5, "network": network}, self.to_target)
        return self.done[before:]

    def to_target(self, target: str, scratch: Path) -> dict[str, Any]:
        if target == self.dies_at:
            raise KeyboardInterrupt
        self.done.append(target)
        (scratch / f"{target}_seg.npy").touch()
        return {"case": target}


def test_the_same_network_carries_once_and_another_anew(tmp_path: Path) -> None:
    carry = Carrying(tmp_path / "carried_labels")
    assert [carry("one"), carry("one"), carry("other"), carry("one")] == [TARGETS, [], TARGETS, TARGETS]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["carried_labels"]
    report = json.loads((carry.folder / REPORT).read_text(encoding="utf-8"))
    assert report == {"epoch": 5, "network": "one", "cases": [{"case": target} for target in TARGETS]}


def test_what_a_killed_run_left_is_of_use_to_the_same_network_alone(tmp_path: Path) -> None:
    carry = Carrying(tmp_path / "carried_labels")
    assert carry("one") == TARGETS
    carry.dies_at = "c"
    with pytest.raises(KeyboardInterrupt):
        carry("other")
    assert carry("one") == []  # all of them are still there
    with pytest.raises(KeyboardInterrupt):
        carry("other")
    carry.dies_at = ""
    assert carry("other") == ["c"]


def test_of_many_targets_those_alone_are_carried_anew_that_have_changed(tmp_path: Path) -> None:
    carry = Carrying(tmp_path / "carried_labels")

    def again(each: dict[str, str], network: str = "one") -> list[str]:
        before = len(carry.done)
        mark = {"network": network, EACH: each}
        carry_to_all(carry.folder, list(each), mark, carry.to_target, files=lambda target: [f"{target}_seg.npy"])
        return carry.done[before:]

    assert again({"a": "1", "b": "1"}) == ["a", "b"]
    assert again({"a": "1", "b": "2", "c": "1"}) == ["b", "c"]
    assert {file.name for file in carry.folder.iterdir()} == {"a_seg.npy", "b_seg.npy", "c_seg.npy", REPORT}
    assert again({"c": "1"}) == [] and [file.name for file in carry.folder.glob("*.npy")] == ["c_seg.npy"]
    assert again({"c": "1"}, network="other") == ["c"]


def test_a_killed_run_keeps_what_it_did_for_targets_that_have_not_changed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry = Carrying(tmp_path / "carried_labels")

    def again(each: dict[str, str], dies_at: str = "") -> list[str]:
        before, carry.dies_at = len(carry.done), dies_at
        with pytest.raises(KeyboardInterrupt) if dies_at else nullcontext():
            carry_to_all(carry.folder, list(each), {EACH: each}, carry.to_target, files=lambda c: [f"{c}_seg.npy"])
        return [case for case in carry.done[before:] if case != dies_at]

    assert again({"a": "1", "b": "1", "c": "1", "d": "1"}, dies_at="d") == ["a", "b", "c"]
    assert again({"a": "1", "b": "2", "d": "1", "e": "1"}) == ["b", "d", "e"]
    assert {file.name for file in carry.folder.iterdir()} == {*[f"{c}_seg.npy" for c in "abde"], REPORT}

    copy, copied = shutil.copyfile, []

    def dies_at_the_second(source: Path, target: Path) -> None:
        copied.append(source)
        if len(copied) == 2:
            raise KeyboardInterrupt
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        again({"a": "1", "b": "2", "d": "1", "e": "1", "f": "1"})
    assert again({"a": "1", "b": "2", "d": "1", "e": "1", "f": "1"}) == ["f"]
