"""Section 4.4, what an animator starts from: the base, a personalised Stable Diffusion, with its defaults."""
from __future__ import annotations

import difflib
import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from animkit.errors import AnimkitError
from animkit.quiet import quiet_libraries

with quiet_libraries():  # importing pipelines makes transformers talk of torchvision, which nothing here uses
    from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

# What the paper's own release samples with; a base may say otherwise in an animkit.json beside its model_index.json.
DEFAULTS = {"steps": 25, "guidance": 7.5, "frames": 16, "fps": 8, "vocabulary": "open"}


def open_base(base: str | Path | Any, dtype: torch.dtype = torch.float32,
              tokenizer: Any = None) -> tuple[Any, dict, Path | None]:
    """-> (diffusers pipeline, its defaults, the motion module shipped beside it or None).

    base: "miniature", a diffusers folder, a single .safetensors or .ckpt file, a name on the Hugging Face hub, or a Stable
    Diffusion pipeline that you hold. A file keeps its own dtype until it is moved to its device, and finds its tokenizer by
    itself, or takes `tokenizer` (or its folder). Raises AnimkitError if it is none of these, cannot be read, or lacks weights.
    """
    if not isinstance(base, (str, Path)):
        return _usable(base), dict(DEFAULTS), None
    if base == "miniature":
        from animkit.samples import path as sample
        base = sample("miniature")
    path = Path(base)
    if not path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(base)):
        raise AnimkitError(f"There is no base model at '{base}': give \"miniature\", a diffusers folder, a .safetensors file or "
                           f"a pipeline that you hold.")
    if path.is_dir() and not (path / "model_index.json").exists():
        raise AnimkitError(f"The folder '{path}' is not a diffusers pipeline: it has no model_index.json.")
    try:
        with quiet_libraries(progress_bars=not path.exists()):  # a download may take long: show it
            if path.is_file():
                pipe = _open_file(path, tokenizer)
            else:
                pipe = DiffusionPipeline.from_pretrained(str(base), torch_dtype=dtype, **_without_checker(path))
        _usable(pipe)
        _complete(pipe, path)
    except AnimkitError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, pickle.UnpicklingError) as e:
        reason = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise AnimkitError(f"The base model '{base}' could not be loaded ({reason}): the file is damaged, incomplete, or not a "
                           f"Stable Diffusion model; fetch or train it again.") from e
    return pipe, _defaults(path), _motion_beside(path)


def _open_file(path: Path, tokenizer: Any) -> Any:
    from animkit.checkpoints import open_checkpoint
    checkpoint = open_checkpoint(path)
    if not hasattr(checkpoint, "pipeline"):
        raise AnimkitError(f"'{path}' is a {checkpoint.kind}, not a base: insert it into one, as in "
                           f"Animator(\"miniature\").insert(\"{path}\").")
    return checkpoint.pipeline(tokenizer=tokenizer)


def _usable(pipe: Any) -> Any:
    if isinstance(pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        return pipe
    raise AnimkitError(f"animkit animates StableDiffusionPipeline and StableDiffusionXLPipeline; this is a {type(pipe).__name__}.")


def _without_checker(folder: Path) -> dict:
    """The safety checker judges finished stills and is never called here, so a base that has one need not load it."""
    if folder.is_dir() and "safety_checker" not in json.loads((folder / "model_index.json").read_text()):
        return {}
    return {"safety_checker": None, "requires_safety_checker": False} if folder.is_dir() else {}


def _complete(pipe: Any, folder: Path) -> None:
    """Raise if a part's files hold fewer tensors than the part has: libraries fill the gaps with noise and only log it."""
    for name, part in pipe.components.items():
        files = sorted((folder / name).glob("*.safetensors")) if isinstance(part, torch.nn.Module) else []
        files = [f for f in files if not re.search(r"\.(fp16|bf16|non_ema)\b", f.name)] or files
        if not files:
            continue
        stored: set[str] = set()
        for file in files:
            with safe_open(file, "pt") as tensors:
                stored |= set(tensors.keys())
        expected = set(part.state_dict())
        if len(stored) < len(expected):  # counted, not named: old files go by other names for the same tensors
            gone = sorted(expected - stored)
            raise AnimkitError(f"'{folder / name}' holds {len(stored)} tensors of the {len(expected)} that its model has; missing "
                               f"is for example '{gone[0]}': fetch or train it again.")


def _defaults(folder: Path) -> dict:
    file = folder / "animkit.json"
    if not file.is_file():
        return dict(DEFAULTS)
    try:
        own = json.loads(file.read_text())
        if not isinstance(own, dict):
            raise ValueError("not a table of settings")
    except ValueError as error:
        raise AnimkitError(f"'{file}' is not JSON that can be read ({error}): repair or remove it.") from error
    return {**DEFAULTS, **own}


def _motion_beside(folder: Path) -> Path | None:
    """animkit's own bases (those with an animkit.json) come with the folder motion_module next to theirs."""
    beside = folder.resolve().parent / "motion_module"
    return beside if (folder / "animkit.json").is_file() and beside.is_dir() else None


def find_checkpoint(name: str | Path) -> Path:
    """A path that exists, or the name of a look shipped with animkit ("ink"). Raises AnimkitError that lists the looks."""
    if Path(name).exists():
        return Path(name)
    looks = sample_looks()
    if str(name) in looks:
        return looks[str(name)]
    near = difflib.get_close_matches(str(name), looks, 1)
    raise AnimkitError(f"'{name}' is neither a file here nor a look of the miniature"
                       + (f"; did you mean '{near[0]}'?" if near else "") + f" (looks: {', '.join(looks) or 'none installed'}).")


def sample_looks() -> dict[str, Path]:
    """The looks shipped with animkit, by name."""
    from animkit.samples import path as sample
    try:
        return {file.stem: file for file in sorted(Path(sample("looks")).glob("*.safetensors"))}
    except AnimkitError:
        return {}
