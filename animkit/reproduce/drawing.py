"""Clips that the experiments draw once and keep, and the prompts that they are drawn from."""
import ast
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from animkit import samples
from animkit.data.cache import fingerprint_of
from animkit.errors import AnimkitError
from animkit.files import write_atomically
from animkit.show.clip import Clip


def shipped(name: str) -> Path | None:
    """The file or folder `name` (or name.safetensors) among the samples, None if it does not ship."""
    for each in (name, f"{name}.safetensors"):
        try:
            return samples.path(each)
        except AnimkitError:
            continue
    return None


def asked_moving(count: int, seed: int, **how) -> tuple[list[str], list]:
    """`count` prompts of the cartoon world, the ten motions in turn and no look named, and the scenes they tell of."""
    from animkit.miniature.judge import asked
    prompts, scenes = zip(*asked(count, seed, look=False, **how))
    return list(prompts), list(scenes)


# The code that decides what a clip looks like, given the weights: if it changes, clips are drawn anew.
DRAWS = ("animator.py", "base.py", "control.py", "inflation.py", "insertion.py", "lora.py", "motion_module.py",
         "prompts.py", "sampling.py", "temporal_transformer.py", "windows.py", "baselines")


def code(source: str) -> str:
    """What a Python file does: its syntax tree, without comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


@cache
def _drawing_code() -> str:
    package = Path(__file__).resolve().parents[1]
    files = [file for name in DRAWS for file in (sorted((package / name).glob("*.py")) or [package / name])]
    return hashlib.sha256("".join(code(file.read_text(encoding="utf-8")) for file in files).encode()).hexdigest()


_found: list[float] = []


def found_seconds() -> float:
    """The seconds that it once took to draw the clips that `drawn` has found in this process, not drawn."""
    return sum(_found)


def drawn(animator: Any, prompts: Sequence[str], *, seed: int, work: str | Path, name: str, batch: int = 4,
          each: Mapping[str, Sequence] | None = None, **how) -> list[Clip]:
    """A clip for each prompt, clip k from the noise of seed + k. A clip that any notebook has drawn into `work` is used
    again if weights, prompts, noise, sampler, settings and the drawing code are the same.

    name: shown by the progress bar. each: arguments with a value for each clip, such as control; then clips are drawn one
    by one. how: for the animator's (or a baseline's) call. Raises AnimkitError as that call does.
    """
    batch, each = 1 if each else batch, each or {}
    inside = getattr(animator, "animator", animator).video_unet  # a baseline's looks are in the animator inside it
    models = [inside, animator.pipe.vae, animator.pipe.text_encoder]
    models += [control.model for control in animator.alpha.controls.values()]
    models += [animator.tuned] if hasattr(animator, "tuned") else []  # Tune-a-Video
    settings = animator._settings() if hasattr(animator, "method") else {}
    made_by = [[fingerprint_of(model) for model in models], dict(animator.alpha), settings,
               _plain(animator.defaults), _plain(animator.scheduler), _drawing_code(),
               getattr(animator, "method", "AnimateDiff")]
    folder, clips = Path(work) / "clips", []
    for k in tqdm(range(0, len(prompts), batch), desc=f"drawing {name}", unit="batch"):
        given = how | {key: values[k] for key, values in each.items()}
        said = [made_by, list(prompts[k:k + batch]), seed + k, {key: _plain(value) for key, value in given.items()}]
        key = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:24]
        path = folder / f"{key}.npz"
        if not (there := path.exists()):
            began = time.perf_counter()
            new = animator(list(prompts[k:k + batch]), seed=seed + k, progress=False, **given)
            pixels = np.stack([clip.array for clip in new])
            write_atomically(path, lambda beside: _save(beside, pixels=pixels, fps=new[0].fps,
                                                         seconds=time.perf_counter() - began))
        with np.load(path) as file:
            _found.extend([float(file["seconds"])] if there else [])
            clips += [Clip(p, float(file["fps"]), prompt, {"method": made_by[-1]})
                      for p, prompt in zip(file["pixels"], prompts[k:k + batch])]
    return clips


def _save(path: str, **arrays) -> None:
    with open(path, "wb") as file:  # numpy adds .npz to a path, not to an open file
        np.savez_compressed(file, **arrays)


def _plain(value: Any) -> Any:
    """What tells an argument apart from others: numbers as they are, arrays by their bytes, schedulers by config."""
    if hasattr(value, "config"):
        return [type(value).__name__, dict(value.config)]
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if hasattr(value, "__array__"):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return value
