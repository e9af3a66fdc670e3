"""What a run records: a line of JSON per step, its curve, and TensorBoard where it is installed."""
import json
import os
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Iterator

import numpy as np

from animkit import files
from animkit.errors import AnimkitError


class History:
    """The loss curve of a run, from its folder's log.jsonl; `ema` is the average of the weights if one was kept.

    `ended` says why the last call returned: "finished" (all steps), "stopped" (its `stop` said so); or "running".
    `before`: the seconds of training before that call.
    """

    def __init__(self, records: list[dict], ema=None, ended: str = "finished", before: float = 0.0):
        self.records, self.ema, self.ended, self.before = records, ema, ended, before

    @classmethod
    def of(cls, folder: str | Path) -> "History":
        """Read the curve of a run, running or ended."""
        return cls(_records(Path(folder) / "log.jsonl"))

    def __getitem__(self, key: str) -> np.ndarray:
        """A column, NaN where a step has no such entry: history["loss"], history["lr"], history["wait"], your own."""
        return np.array([r.get(key, np.nan) for r in self.records], dtype=float)

    @property
    def steps(self) -> np.ndarray:
        return np.array([r["step"] for r in self.records], dtype=int)

    @property
    def losses(self) -> np.ndarray:
        return self["loss"]

    @property
    def seconds(self) -> np.ndarray:
        return self["seconds"]

    def plot(self, ax=None, smooth: int = 50):
        """Draw the losses and their running mean over `smooth` steps; returns the matplotlib axes."""
        import matplotlib.pyplot as plt
        ax = ax or plt.subplots(figsize=(6, 3))[1]
        n = min(smooth, len(self.losses) // 4)
        ax.plot(self.steps, self.losses, color="0.65" if n > 1 else "black", lw=0.5, label="loss")
        if n > 1:
            ax.plot(self.steps[n - 1:], np.convolve(self.losses, np.ones(n) / n, "valid"), color="black",
                    label=f"mean of {n} steps")
        ax.set(xlabel="step", ylabel="loss")
        ax.legend()
        return ax

    def __repr__(self) -> str:
        if not len(self.records):
            return "History(no steps)"
        last = self.records[-1]
        return f"History({last['step']} steps, last loss {last['loss']:.4g}, {last['seconds']:.0f} s, {self.ended})"


class Log:
    """folder/log.jsonl, one record a step, and folder/tensorboard if tensorboard is installed; keeps other runs out."""

    def __init__(self, folder: Path):
        self.path, self.lock, self.file, self.board = folder / "log.jsonl", locked(folder), None, None
        self.records: list[dict] = []

    def open_at(self, step: int) -> None:
        """Drop what a killed run wrote after its last checkpoint, so that the resumed curve has nothing twice."""
        self.records = [r for r in _records(self.path) if r["step"] <= step]
        beside = self.path.with_suffix(".tmp")
        with _on_disk(self.path):
            beside.write_text("".join(json.dumps(r) + "\n" for r in self.records))
            os.replace(beside, self.path)
            self.file = open(self.path, "a")
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=step + 1)

    def add(self, record: dict) -> None:
        self.records.append(record)
        with _on_disk(self.path):
            self.file.write(json.dumps(record) + "\n")

    def show(self, record: dict) -> None:
        """Make the record visible from outside: on the disk, in TensorBoard."""
        with _on_disk(self.path):
            self.file.flush()
            for name, value in record.items() if self.board else ():
                if name != "step":
                    self.board.add_scalar(name, value, record["step"])

    def draw(self, pictures: dict, step: int) -> None:
        """Show pictures, such as samples drawn during training, in TensorBoard."""
        with _on_disk(self.path):
            for name, picture in pictures.items() if self.board else ():
                self.board.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error) -> None:
        for file in (self.file, self.board, self.lock):
            with suppress(OSError):  # a full disk: the error under way reports it
                if file:
                    file.close()


@contextmanager
def _on_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AnimkitError(f"{path} cannot be written ({error}); the last checkpoint is intact: free some disk space "
                           "and start the same call again to go on.") from error


def locked(folder: Path) -> IO[str]:
    """Keeps other runs out of this folder until it is closed; AnimkitError if one is training there."""
    return files.locked(folder, f"Another run is training in {folder}; wait or choose another folder.")


def _records(path: Path) -> list[dict]:
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # a kill while writing leaves half a line, the last one
            break
    return records
