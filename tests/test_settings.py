import json
from pathlib import Path

import pytest

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.settings import (
    HEALTHY,
    LABELLED,
    Settings,
    SettingsError,
    chosen_by_user,
    describe,
    settings_of,
    with_settings,
)

DATASET = {"channel_names": {"0": "FLAIR"}, "labels": {"background": 0, "tumour": 1, "ignore": 2}}


def test_a_data_set_without_the_block_has_the_defaults() -> None:
    assert settings_of(DATASET) == Settings()


def test_roles_are_checked_and_listed() -> None:
    settings = settings_of(DATASET | {"synthtumour": {"roles": {"b": "healthy", "a": "healthy", "c": "labelled"}}})
    assert settings.cases(HEALTHY) == ["a", "b"]
    assert settings.cases(HEALTHY, LABELLED) == ["a", "b", "c"]
    with pytest.raises(SettingsError, match=r"synthtumour.roles.a is 'helthy'.*Did you mean 'healthy'"):
        settings_of({"synthtumour": {"roles": {"a": "helthy"}}})


def test_mean_and_std_need_the_same_number_of_channels() -> None:
    with pytest.raises(SettingsError, match=r"intensities.a: mean has 2 numbers and std has 1"):
        settings_of({"synthtumour": {"intensities": {"a": {"mean": [1, 2], "std": [1]}}}})


def test_with_settings_changes_a_copy_and_checks_it() -> None:
    changed = with_settings(DATASET, {"training": {"epochs": 7}})
    assert settings_of(changed).training.epochs == 7
    assert "synthtumour" not in DATASET
    with pytest.raises(SettingsError, match=r"synthtumour.training.epochs is 0"):
        with_settings(DATASET, {"training": {"epochs": 0}})


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"donors": {"count": [3, 1]}}, r"donors\.count is \[3, 1\], but the first number must not exceed the second"),
        ({"validation": {"affected": 0}}, r"validation\.affected is 0\.0, but a number from 0\.01 to 1 is needed"),
    ],
)
def test_what_could_not_work_is_refused(block: dict, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        with_settings(DATASET, block)


def test_every_setting_is_documented() -> None:
    assert [key for key, doc in describe(Settings).items() if not doc and key != "source"] == []


def test_chosen_by_user() -> None:
    assert chosen_by_user({"synthtumour": {"training": {"epochs": 3}}}) == {"training.epochs"}


def test_command_shows_defaults_and_what_the_user_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "dataset.json"
    file.write_text(
        json.dumps(DATASET | {"synthtumour": {"training": {"epochs": 7}, "roles": {"a": "healthy"}}}), encoding="utf-8"
    )
    assert main(["settings", "-d", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("you") and "training.epochs = 7" in line for line in lines)
    assert any(line.startswith("default") and "training.patience = null" in line for line in lines)
    assert "cases: 1 healthy" in lines
    assert main(["settings", "-d", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["settings"]["training"]["epochs"] == 7
    assert shown["set_by_you"] == ["roles.a", "training.epochs"]


def test_command_refuses_a_wrong_setting_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps(DATASET | {"synthtumour": {"trainning": {}}}), encoding="utf-8")
    assert main(["settings", "-d", str(file)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "synthtumour settings: synthtumour.trainning is not a setting; did you mean 'training'?"
    ]


def test_command_changes_both_copies_or_neither(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        files.append(tmp_path / variable / "Dataset007_Toy" / "dataset.json")
        files[-1].parent.mkdir(parents=True)
        files[-1].write_text(json.dumps(DATASET | {"synthtumour": {"training": {"seed": 3}}}), encoding="utf-8")
    words = ["settings", "-d", "7", "--set", "source.dataset=311", "--set", "training.epochs=9"]
    words += ["--set", "roles.sub 1.v1=unlabelled"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [f"changed {file}" for file in files]
    for file in files:
        settings = settings_of(json.loads(file.read_text(encoding="utf-8")))
        assert (settings.training.epochs, settings.training.seed) == (9, 3)
        assert settings.roles == {"sub 1.v1": "unlabelled"}
        assert settings.source is not None and settings.source.dataset == "311"
    before = [file.read_bytes() for file in files]
    for wrong, sentence in (
        ("training.epoch=9", "did you mean 'epochs'"),
        ("lesion.preset=gliom", "no lesion preset"),
        ("validation.preset=foo", "no lesion preset 'foo'"),
        ("lesion.preset=liver-ct", "channel FLAIR is not CT"),
        ("validation.preset=liver-ct", "channel FLAIR is not CT"),
        ("roles={}", "change single cases"),
    ):
        assert main(["settings", "-d", "7", "--set", wrong]) == 2
        assert sentence in capsys.readouterr().err
    assert [file.read_bytes() for file in files] == before
