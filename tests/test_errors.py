"""What a user sees of our errors when nothing catches them."""

import pickle
import subprocess
import sys

import pytest

from nnunet_synthtumour.errors import Refusal, Unsupported, UserError


@pytest.mark.parametrize("name", ["Refusal", "Unsupported"])
def test_an_uncaught_refusal_is_its_sentence_and_a_failure(name: str) -> None:
    code = f"from nnunet_synthtumour.errors import {name}; raise {name}('Something is missing.')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stderr, done.stdout) == (1, "Something is missing.\n", "")


def test_a_refusal_is_caught_as_what_it_is() -> None:
    with pytest.raises(UserError, match="missing"):
        raise Refusal("missing")
    with pytest.raises(NotImplementedError, match="reason"):
        raise Unsupported("reason")


def test_a_refusal_travels_between_processes() -> None:
    assert str(pickle.loads(pickle.dumps(Unsupported("reason")))) == "reason"
