"""The errors that a user is meant to read."""


class UserError(ValueError):
    """A mistake that the user can mend: one sentence that says what is wrong, where, and what to do."""


class Refusal(UserError, SystemExit):
    """A mistake found inside one of nnU-Net's own commands.

    Python ends a program on an uncaught `SystemExit` with its text alone: the user of `nnUNetv2_train` sees the
    sentence and no traceback, while code that calls a trainer can still catch a `UserError`.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.code = sentence  # `ValueError` comes first and does not set it, and None would mean success


class Unsupported(Refusal, NotImplementedError):
    """Something that nnU-Net can do and a trainer of ours cannot; the text gives the reason."""
