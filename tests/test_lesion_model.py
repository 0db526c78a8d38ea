import json
from pathlib import Path

import pytest

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.lesion_model import available_presets, channel_key, load_model
from nnunet_synthtumour.schema import SettingsError, to_json


def test_presets_are_there_and_say_where_their_numbers_come_from() -> None:
    assert {"glioma", "stroke", "ms", "metastases", "liver-ct", "paper"} <= set(available_presets())
    for name in available_presets():
        model = load_model(name)
        assert model.name == name
        assert model.sources
        assert "whole" in model.contrast


def test_paper_is_the_reference_to_the_letter() -> None:
    model = load_model("paper")
    assert model.appearance.law == "paper"
    assert model.shape.volume_ml == (20, 80)
    assert model.shape.radii_ratio == (1, 2)
    assert model.shape.octaves == 4
    assert model.contrast_of("whole", "FLAIR").factor == (1.5, 5)
    assert model.parts["core"].probability == 0.1
    assert model.contrast_of("core", "FLAIR").factor == (0.8, 1.2)


def test_any_field_can_be_overridden_and_mistakes_are_named() -> None:
    model = load_model("glioma", {"shape": {"volume_ml": [1, 2]}, "contrast": {"whole": {"FLAIR": {"factor": [3, 4]}}}})
    assert model.shape.volume_ml == (1, 2)
    assert model.contrast_of("whole", "flair").factor == (3, 4)
    assert model.contrast_of("whole", "T2").factor == load_model("glioma").contrast_of("whole", "T2").factor
    with pytest.raises(
        SettingsError, match=r"lesion preset glioma.shape.volumeml is not a setting; did you mean 'volume_ml'"
    ):
        load_model("glioma", {"shape": {"volumeml": [1, 2]}})
    with pytest.raises(SettingsError, match=r"distractors.kinds has eye, but weights of rim, leftover"):
        load_model("glioma", {"distractors": {"kinds": {"eye": 1}}})
    for block in ("shape", "distractors"):
        with pytest.raises(SettingsError, match=rf"{block}\.count is \[3, 1\], but the first number must not exceed"):
            load_model("glioma", {block: {"count": [3, 1]}})
    with pytest.raises(SettingsError, match=r"There is no lesion preset 'gliom'.*glioma"):
        load_model("gliom")


CT_FACTOR = {"contrast": {part: {"CT": {"factor": [1.1, 1.2]}} for part in ("whole", "core")}}
MR_FACTOR = {"contrast": {part: {"T1CE": {"factor": [1.1, 1.2]}} for part in ("whole", "core", "necrosis")}}


@pytest.mark.parametrize(
    ("preset", "overrides", "channel", "sentence"),
    [
        (
            "liver-ct",
            {},
            "T1",
            r"add Hounsfield units, but channel T1 is not CT.*contrast\.whole\.T1\.factor and contrast\.core",
        ),
        ("liver-ct", {}, "CT portal", r"name the channel CT if it is one"),
        (
            "liver-ct",
            {"contrast": {"whole": MR_FACTOR["contrast"]["whole"]}},
            "T1Gd",
            r"state contrast\.core\.T1CE\.factor",
        ),
        ("ms", {}, "ct", r"multiply intensities.*channel ct.*choose another preset, or state contrast\.whole\.CT\.hu "),
        ("paper", {}, "CT", r"multiply intensities.*channel CT\): choose another preset\.$"),
        ("liver-ct", {"appearance": {"law": "paper"}}, "CT", r"is in HU, but the law 'paper' knows factors only"),
    ],
)
def test_a_preset_for_another_modality_is_refused(preset: str, overrides: dict, channel: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load_model(preset, overrides, ["FLAIR"] * (preset != "liver-ct") + [channel])


@pytest.mark.parametrize(
    ("preset", "overrides", "channels"),
    [
        ("glioma", {}, ["CT", "T1", "anything"]),
        ("stroke", {}, ["ct"]),
        ("metastases", {}, ["CT"]),
        ("liver-ct", {}, ["CT"]),
        ("liver-ct", MR_FACTOR, ["CT", "T1-CE"]),
        ("ms", CT_FACTOR, ["CT", "FLAIR"]),
        ("paper", CT_FACTOR, ["CT"]),
        ("liver-ct", {"parts": {"core": {"probability": 0}}, "contrast": {"whole": {"PET": {"hu": [1, 2]}}}}, ["PET"]),
    ],
)
def test_what_is_stated_for_a_channel_is_meant(preset: str, overrides: dict, channels: list[str]) -> None:
    assert load_model(preset, overrides, channels) == load_model(preset, overrides)


def test_a_users_own_preset_is_a_file_that_may_extend_another(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps({"extends": "stroke", "description": "mine", "shape": {"volume_ml": [5, 6]}}), encoding="utf-8"
    )
    model = load_model(str(file))
    assert model.shape.volume_ml == (5, 6)
    assert model.shape.family == "wedge"
    assert model.name == "mine"
    file.write_text(json.dumps({"extends": str(file)}), encoding="utf-8")
    with pytest.raises(SettingsError, match="extends itself"):
        load_model(str(file))
    file.write_text("{", encoding="utf-8")
    with pytest.raises(SettingsError, match="not valid JSON"):
        load_model(str(file))


@pytest.mark.parametrize(
    ("name", "key"), [("flair", "FLAIR"), ("T2-FLAIR", "FLAIR"), ("t1 gd", "T1CE"), ("T1c", "T1CE"), ("CT", "CT")]
)
def test_channels_are_known_by_their_usual_names(name: str, key: str) -> None:
    assert channel_key(name) == key


def test_command_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    assert "metastases" in capsys.readouterr().out
    assert main(["presets", "ms"]) == 0
    shown = capsys.readouterr().out
    assert "shape.volume_ml = [0.008, 1.5]" in shown
    assert "from: " in shown
    assert main(["presets", "ms", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == to_json(load_model("ms"))
    assert main(["presets", "nothing"]) == 2
