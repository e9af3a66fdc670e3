"""Every error that animkit raises on bad input is an AnimkitError: one sentence, what was wrong, where, what to do."""


class AnimkitError(ValueError):
    """Bad input to animkit; the message says what was wrong, where, and what to do."""
