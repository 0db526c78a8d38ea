from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_synthtumour.errors import UserError
from nnunet_synthtumour.schema import Range, SettingsError, leaves, merge, parse, parse_assignments, setting, to_json


@dataclass(frozen=True)
class Inner:
    volume_ml: Range = setting((1.0, 5.0), low=0.0)
    mode: str = setting("soft", choices=("soft", "hard"))


@dataclass(frozen=True)
class Outer:
    count: int = setting(3, low=1, high=9)
    rate: float = setting(0.5, low=0.0, high=1.0)
    on: bool = setting(True)
    name: str | None = setting(None)
    sizes: tuple[float, ...] = setting((1.0,))
    table: dict[str, int] = setting(factory=dict, low=0)
    free: dict[str, Any] = setting(factory=dict)
    inner: Inner = setting(factory=Inner)


def test_defaults() -> None:
    assert parse(Outer, None) == Outer() == parse(Outer, {})


def test_every_type_is_read() -> None:
    block = {
        "count": 4.0,
        "rate": 1,
        "on": False,
        "name": "x",
        "sizes": [1, 2.5],
        "table": {"a": 1},
        "free": {"b": [1]},
    }
    parsed = parse(Outer, block | {"inner": {"volume_ml": [2, 3], "mode": "hard"}})
    assert parsed == Outer(4, 1.0, False, "x", (1.0, 2.5), {"a": 1}, {"b": [1]}, Inner((2.0, 3.0), "hard"))
    assert type(parsed.count) is int
    assert type(parsed.rate) is float


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({"cuont": 3}, ["top.cuont", "did you mean 'count'"]),
        ({"zebra": 3}, ["top.zebra", "known keys", "count", "inner"]),
        ({"count": 0}, ["top.count is 0", "a whole number from 1 to 9"]),
        ({"count": 2.5}, ["top.count is 2.5", "whole number"]),
        ({"count": True}, ["top.count is True", "whole number"]),
        ({"rate": float("nan")}, ["top.rate is nan", "a number from 0 to 1"]),
        ({"rate": "0.5"}, ["top.rate is '0.5'", "a number"]),
        ({"on": 1}, ["top.on is 1", "true or false"]),
        ({"sizes": 3}, ["top.sizes is 3", "a list"]),
        ({"sizes": [1, "x"]}, ["top.sizes[1] is 'x'", "a number"]),
        ({"table": {"a": -1}}, ["top.table.a is -1", "at least 0"]),
        ({"inner": {"volume_ml": [3, 2]}}, ["top.inner.volume_ml", "must not exceed"]),
        ({"inner": {"volume_ml": [-1, 2]}}, ["top.inner.volume_ml[0] is -1", "at least 0"]),
        ({"inner": {"volume_ml": [1]}}, ["top.inner.volume_ml", "a list of 2"]),
        ({"inner": {"mode": "sofft"}}, ["top.inner.mode is 'sofft'", "'soft', 'hard'", "Did you mean 'soft'"]),
        ({"inner": 3}, ["top.inner is 3", "block"]),
    ],
)
def test_errors_name_key_value_and_what_is_allowed(block: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(Outer, block, "top")
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_without_default() -> None:
    @dataclass(frozen=True)
    class Needy:
        file: str = setting(doc="where the data lie")

    with pytest.raises(SettingsError, match=r"source.file is missing: where the data lie"):
        parse(Needy, {}, "source")


finite = st.floats(-1e6, 1e6)
blocks = st.fixed_dictionaries(
    {},
    optional={
        "count": st.integers(1, 9),
        "rate": st.floats(0, 1),
        "on": st.booleans(),
        "name": st.none() | st.text(max_size=8),
        "sizes": st.lists(finite, max_size=4),
        "table": st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 5), max_size=3),
        "inner": st.fixed_dictionaries(
            {},
            optional={
                "volume_ml": st.lists(st.floats(0, 1e5), min_size=2, max_size=2).map(sorted),
                "mode": st.sampled_from(["soft", "hard"]),
            },
        ),
    },
)


@given(blocks)
def test_what_is_allowed_is_kept_and_comes_back(block: dict[str, Any]) -> None:
    parsed = parse(Outer, block)
    assert parse(Outer, to_json(parsed)) == parsed
    for key, value in leaves(block).items():
        assert leaves(to_json(parsed)).get(key, value) == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["count", "rate", "on", "name", "sizes", "table", "inner", "free"]) | st.text(max_size=6)


@given(st.dictionaries(keys, json_values, max_size=4))
def test_any_json_is_either_read_or_refused_in_one_sentence(block: dict[str, Any]) -> None:
    try:
        parsed = parse(Outer, block, "synthtumour")
    except SettingsError as error:
        assert str(error).startswith("synthtumour.")
    else:
        assert isinstance(parsed, Outer)


def test_merge_goes_block_by_block() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": 5}) == {"a": {"b": 1, "c": 4}, "d": 3, "e": 5}


def test_an_empty_block_empties_the_one_in_its_place() -> None:
    assert merge({"a": {"b": {"c": 2}, "d": 3}}, {"a": {"b": {}}}) == {"a": {"b": {}, "d": 3}}
    assert merge({"a": {"b": 1}}, {}) == {"a": {"b": 1}}


def test_assignments_of_the_command_line_are_nested() -> None:
    parsed = parse_assignments(["a.b=[1,2]", "a.c=x", "d=3"], "a.b=1")
    assert parsed == {"a": {"b": [1, 2], "c": "x"}, "d": 3}
    with pytest.raises(UserError, match=r"for example --set a\.b=1"):
        parse_assignments(["a"], "a.b=1")


def test_names_in_a_mapping_may_have_dots() -> None:
    @dataclass(frozen=True)
    class Names:
        roles: dict[str, str] = setting(factory=dict)
        models: dict[str, Inner] = setting(factory=dict)
        free: dict[str, Any] = setting(factory=dict)
        inner: Inner = setting(factory=Inner)

    for text, parsed in {
        "roles.sub 1.v1=x": {"roles": {"sub 1.v1": "x"}},
        "roles={}": {"roles": {}},
        "models.a.b.mode=hard": {"models": {"a.b": {"mode": "hard"}}},
        "models.mode={}": {"models": {"mode": {}}},
        "models.a.b={}": {"models": {"a.b": {}}},
        "free.a.b=1": {"free": {"a": {"b": 1}}},
        "inner.mode=hard": {"inner": {"mode": "hard"}},
        "inner.mode.x=1": {"inner": {"mode": {"x": 1}}},
        "nothing.a.b=1": {"nothing": {"a": {"b": 1}}},
    }.items():
        assert parse_assignments([text], "", Names) == parsed
