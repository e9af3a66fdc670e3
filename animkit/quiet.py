"""Silences diffusers and transformers: animkit itself says what matters, and refuses what they would only log."""
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries(progress_bars: bool = False) -> Iterator[None]:
    """Inside, diffusers and transformers log errors only, draw no progress bars (unless asked to) and announce no API
    changes; afterwards they are as before."""
    import diffusers.utils.logging
    import transformers.utils.logging
    logs = [diffusers.utils.logging, transformers.utils.logging]
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    try:
        for log in logs:
            log.set_verbosity_error()
            if not progress_bars:
                log.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars and not progress_bars:
                log.enable_progress_bar()
