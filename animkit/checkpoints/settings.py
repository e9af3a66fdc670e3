"""Settings that others wrote beside weights (config.json) or into their metadata: checked, sizes above all, before use."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from animkit.errors import AnimkitError

MAX_CONFIG = 1_000_000  # bytes
MOST = 4096             # heads, positions, widths: far above any model that there is
MOST_LAYERS = 32        # of one block
AGAIN = "fetch it again, with what lies beside it."


def read_table(path: Path, text: str, what: str) -> dict:
    """The table in a JSON text; what: the text's name in the message. Raises AnimkitError."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AnimkitError(f"{path}: {what} cannot be read ({error}); {AGAIN}") from None
    if not isinstance(table, dict):
        raise AnimkitError(f"{path}: {what} is not a table; {AGAIN}")
    return table


def read_config(path: Path) -> dict:
    """A config.json. Raises AnimkitError."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError("it is far too large")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise AnimkitError(f"{path}: this config cannot be read ({error}); {AGAIN}") from None
    return read_table(path, text, "this config")


def whole(path: Path, table: Mapping, key: str, default: int) -> int:
    """A whole number from 1 to MOST; a list that repeats one number counts as that number. Raises AnimkitError."""
    value = table.get(key, default)
    if isinstance(value, list) and value and all(one == value[0] for one in value):
        value = value[0]
    if type(value) is not int or not 1 <= value <= MOST:
        raise AnimkitError(f"{path}: its setting {key} is {value!r:.80}, not one whole number from 1 to {MOST}; "
                           f"{AGAIN}")
    return value


def number(path: Path, key: str, value: Any) -> float:
    """A finite number. Raises AnimkitError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e9:
        raise AnimkitError(f"{path}: its setting {key} is {value!r:.80}, not a number; {AGAIN}")
    return float(value)


def choice(path: Path, key: str, value: Any, options: tuple) -> Any:
    """One of the options. Raises AnimkitError."""
    if value not in options:
        known = ", ".join(map(str, options))
        raise AnimkitError(f"{path}: its setting {key} is {value!r:.80}, and animkit knows {known}; a newer animkit "
                           "may know it.")
    return value


def check_sizes(path: Path, config: Mapping, weights: Mapping[str, Tensor]) -> None:
    """Raises AnimkitError if a config.json asks for widths or layers that weights of this size cannot have."""
    most = max(MOST, *(max(tensor.shape, default=0) for tensor in weights.values()))

    def check(key: str, value: Any, depth: int = 0) -> None:
        limit = MOST_LAYERS if "layers" in key else most
        if isinstance(value, (list, tuple)) and len(value) <= 16 and depth < 3:
            for one in value:
                check(key, one, depth + 1)
        elif isinstance(value, (list, tuple)) or isinstance(value, (int, float)) and not abs(value) <= limit:
            raise AnimkitError(f"{path}: the config beside it asks for {key} = {value!r:.80}, more than these weights "
                               f"can have; {AGAIN}")

    for key, value in config.items():
        check(key, value)
