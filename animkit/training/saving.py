"""Checkpoints that a kill or a full disk at any moment cannot spoil.

A checkpoint is written whole beside the old one (checkpoint.tmp), then the two change places by renaming. Between the
two renames the old one is called checkpoint.old, which `read` also finds; so there is a valid one at every moment.
"""
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from animkit.errors import AnimkitError


def write(folder: Path, log: TextIO, tensors: dict[str, dict[str, Tensor]], torch_state: dict[str, Any],
          state: dict) -> None:
    """Write folder/checkpoint: a safetensors file per entry of `tensors`, optimizer.pt, state.json; the log first.

    Raises AnimkitError if the disk refuses; the checkpoint from before is then untouched.
    """
    new, here, old = (folder / f"checkpoint{end}" for end in (".tmp", "", ".old"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        log.flush()
        os.fsync(log.fileno())  # the curve up to this step, before the step counts as done
        new.mkdir(parents=True)
        for name, content in tensors.items():
            save_file({k: t.detach().cpu().contiguous() for k, t in content.items()}, new / f"{name}.safetensors")
        torch.save(torch_state, new / "optimizer.pt")
        (new / "state.json").write_text(json.dumps(state, indent=1))
        for file in new.iterdir():
            with open(file, "rb+") as f:  # Windows syncs no file that is open for reading alone
                os.fsync(f.fileno())  # a disk that is full says so here at the latest, before the old one goes
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        kept = read_state(folder)
        raise AnimkitError(
            f"The checkpoint of step {state['step']} could not be written to {folder} ({error}; "
            f"{shutil.disk_usage(folder).free / 1e6:.0f} MB are free there); "
            + (f"the one of step {kept['step']} is intact" if kept else "there was none before")
            + ": free some disk space and start the same call again to go on."
        ) from error
    if here.exists():
        shutil.rmtree(old, ignore_errors=True)
        here.rename(old)
    new.rename(here)
    shutil.rmtree(old, ignore_errors=True)


def read_state(folder: Path) -> dict | None:
    """state.json of the checkpoint in a run's folder; None if there is no checkpoint."""
    found = _find(folder)
    if found is None:
        return None
    with _readable(found):
        return json.loads((found / "state.json").read_text())


def read(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], dict] | None:
    """(tensors, torch_state, state) as given to `write`; None without a checkpoint. Raises AnimkitError if damaged."""
    found = _find(folder)
    if found is None:
        return None
    with _readable(found):
        tensors = {f.stem: load_file(f) for f in sorted(found.glob("*.safetensors"))}
        torch_state = torch.load(found / "optimizer.pt", map_location="cpu", weights_only=True)
        return tensors, torch_state, json.loads((found / "state.json").read_text())


@contextmanager
def _readable(found: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise AnimkitError(f"The checkpoint {found} cannot be read ({error}); delete it to train from the start."
                           ) from error


def remove(folder: Path) -> None:
    """Delete the checkpoint in a run's folder."""
    for end in (".tmp", "", ".old"):
        shutil.rmtree(folder / f"checkpoint{end}", ignore_errors=True)


def _find(folder: Path) -> Path | None:
    return next((p for p in (folder / "checkpoint", folder / "checkpoint.old") if (p / "state.json").exists()), None)
