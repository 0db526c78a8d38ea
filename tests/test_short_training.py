from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_synthtumour.cli import main
from nnunet_synthtumour.errors import Refusal
from nnunet_synthtumour.short_training import EPOCHS, ITERATIONS, number_in
from nnunet_synthtumour.trainers.synthtumour_trainer import SynthTumourTrainer
from tests.toy_dataset import FOLDERS, make_trainer


@pytest.mark.parametrize("text", ["abc", "0", "-3", "2.5"])
def test_what_is_no_number_of_epochs_is_one_sentence(text: str) -> None:
    with pytest.raises(Refusal, match=f"{EPOCHS} is '{text}'; give a whole number"):
        number_in({EPOCHS: text}, EPOCHS)


def test_a_variable_that_is_not_set_or_empty_says_nothing() -> None:
    assert number_in({}, EPOCHS) is None
    assert number_in({EPOCHS: ""}, EPOCHS) is None
    assert number_in({EPOCHS: " 12 "}, EPOCHS) == 12


def test_a_dry_run_says_so_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in FOLDERS:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv(EPOCHS, "abc")
    given = ("--healthy", ".", "--unlabelled", ".", "-d", "301", "-n", "Run", "-device", "cpu")
    assert main(["run", *given, "-o", str(tmp_path / "out"), "--dry-run"]) == 2
    assert f"{EPOCHS} is 'abc'" in capsys.readouterr().err


@pytest.mark.parametrize("variable", [EPOCHS, ITERATIONS])
def test_trainers_refuse_it_with_the_same_sentence(toy: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "many")
    with pytest.raises(Refusal, match=f"{variable} is 'many'"):
        make_trainer(toy, SynthTumourTrainer)
