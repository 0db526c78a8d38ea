"""The two environment variables that make a training short."""

from __future__ import annotations

from collections.abc import Mapping

from nnunet_synthtumour.errors import Refusal

EPOCHS, ITERATIONS = "SYNTHTUMOUR_EPOCHS", "SYNTHTUMOUR_ITERATIONS"


def number_in(environment: Mapping[str, str], variable: str) -> int | None:
    """The number that a variable holds; None where it is not set. Raises `Refusal`."""
    text = environment.get(variable, "").strip()  # `set VARIABLE=20 && ...` leaves a blank on Windows
    if not text:
        return None
    if not text.isdecimal() or not int(text):
        raise Refusal(f"The environment variable {variable} is {text!r}; give a whole number from 1 on, or unset it.")
    return int(text)
