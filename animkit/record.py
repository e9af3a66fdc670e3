"""What a notebook found, as a file that can be compared: parameters, numbers, seconds, versions, device."""
from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .errors import AnimkitError
from .files import write_atomically

LIBRARIES = ("torch", "diffusers", "transformers", "numpy")


def record(path: str | os.PathLike, parameters: Mapping[str, Any], metrics: Mapping[str, float],
           seconds: Mapping[str, float], device: str = "cpu") -> dict[str, Any]:
    """Write a run's results as JSON and return them; the file appears only when whole.

    parameters: what the run was given; metrics: name -> number, or a table of such; seconds: name -> wall-clock time.
    Raises AnimkitError for what JSON cannot hold, also for NaN and infinity: they must not pass for numbers.
    """
    import psutil
    import torch

    import animkit
    results = {"parameters": dict(parameters), "metrics": dict(metrics),
               "seconds": {name: round(float(s), 2) for name, s in seconds.items()},
               "device": {"name": device, "threads": torch.get_num_threads(), "machine": platform.machine(),
                          "processor": _processor(), "cores": os.cpu_count(),
                          "memory_gib": round(psutil.Process().memory_info().rss / 2**30, 2)},
               "versions": {"animkit": animkit.__version__, "python": platform.python_version(),
                            **{name: version(name) for name in LIBRARIES}},
               "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    try:
        text = json.dumps(results, indent=1, allow_nan=False, default=_plain) + "\n"
    except (TypeError, ValueError) as error:
        raise AnimkitError(f"the results for {Path(path).name} cannot be written: {error}") from error
    write_atomically(path, lambda beside: Path(beside).write_text(text, encoding="utf-8"))
    return json.loads(text)


def _processor() -> str:
    """The processor's name, and whether it has avx512_bf16, which makes bf16 fast; "" if the system does not say."""
    try:
        told = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line)
    except OSError:                                    # no Linux
        return platform.processor()
    told = {name.strip(): value.strip() for name, value in told.items()}
    return told.get("model name", "") + (" with avx512_bf16" if "avx512_bf16" in told.get("flags", "").split() else "")


def _plain(value: Any) -> Any:
    """A single number of numpy or torch as a Python number."""
    if hasattr(value, "item") and not getattr(value, "shape", ()):
        return value.item()
    raise TypeError(f"{type(value).__name__} is neither a number, a text nor a table of these: {value!r}")
