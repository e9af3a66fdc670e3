"""`animkit inspect FILE...`: a table that says what weights files are."""
from __future__ import annotations

import argparse
import re
from collections import Counter

from animkit.checkpoints.checkpoint import Checkpoint
from animkit.errors import AnimkitError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="a .safetensors, .ckpt, .pt or .bin file, or a diffusers folder"
    )
    parser.add_argument("--tensors", action="store_true", help="also list every tensor with its shape and dtype")


def run(args: argparse.Namespace) -> int:
    """Prints a table for each file; returns 1 if animkit cannot use one of them, else 0."""
    from animkit.checkpoints import open_checkpoint

    failed = 0
    for number, file in enumerate(args.files):
        print(end="\n" if number else "")
        try:
            print(_harmless(table(open_checkpoint(file), args.tensors)))
        except AnimkitError as error:
            print(_harmless(str(error)))
            failed = 1
    return failed


def _harmless(text: str) -> str:
    """The text without characters that are commands to a terminal: names in files cannot be trusted."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def table(checkpoint: Checkpoint, tensors: bool = False) -> str:
    """What a checkpoint is: lines, each with a name and a value."""
    weights = checkpoint.weights
    found = ((re.match(r".*?(down|mid|up|input|middle|output)_blocks?", name), name) for name in weights)
    blocks = Counter(match[0] if match else name.split(".")[0] for match, name in found)
    rows = {
        "file": str(checkpoint.path),
        "kind": checkpoint.kind,
        "version": checkpoint.version,
        "naming": checkpoint.format,
        "tensors": f"{len(weights):,}",
        "parameters": f"{checkpoint.parameters:,}",
        "dtype": ", ".join(checkpoint.dtypes),
        "size": f"{sum(t.nbytes for t in weights.values()) / 1e6:,.1f} MB",
        "inside": ", ".join(f"{name} ({count})" for name, count in blocks.most_common(6)),
        **{
            key.replace("_", " "): str(value)
            for key, value in checkpoint.config.items()
            if key in ("positions", "heads")
        },
    }
    lines = [f"{name:<11} {value}" for name, value in rows.items()]
    lines += [f"{'note':<11} {note}" for note in checkpoint.notes]
    if tensors:
        width = max(map(len, weights))
        lines += [
            f"  {name:<{width}}  {str(tuple(t.shape)):<22} {str(t.dtype).removeprefix('torch.')}"
            for name, t in weights.items()
        ]
    return "\n".join(lines)
