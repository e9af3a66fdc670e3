"""Every error that animkit raises on bad input is an AnimkitError: one sentence, what was wrong, where, what to do."""
from argparse import ArgumentTypeError


class AnimkitError(ValueError):
    """Bad input to animkit; the message says what was wrong, where, and what to do."""


def positive(word: str) -> int:
    """argparse's type for an argument that is a whole number of at least 1; argparse reports any other word."""
    if not word.isdecimal() or int(word) < 1:
        raise ArgumentTypeError(f"{word} is no whole number of at least 1")
    return int(word)


def above_zero(**options: float | None) -> None:
    """Raises AnimkitError, in the command's words, for the first that is given and is not above 0."""
    for name, value in options.items():
        if value is not None and not value > 0:  # and nan
            raise AnimkitError(f"--{name} is above 0; got {value}.")
