"""For every test: no hub, no display, few threads. Set before torch, matplotlib or transformers are imported."""
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the clone."""
    return Path(__file__).resolve().parent.parent
