"""open_checkpoint tells from a file's content what it is: it takes wrappers off, then asks the file of each format."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from animkit.checkpoints import controlnet, lora, motion, stable_diffusion
from animkit.checkpoints.checkpoint import IN_FOLDER, Checkpoint, first_ten, named_by_folder
from animkit.checkpoints.files import read_file
from animkit.checkpoints.refusals import INVERSION, IP_ADAPTER, not_inserted
from animkit.checkpoints.settings import read_config
from animkit.errors import AnimkitError

WRAPPERS = ("state_dict", "module", "model_state_dict", "model", "params")
PREFIXES = ("module.", "_orig_mod.")  # what torch's DataParallel and compile put before every name


def open_checkpoint(path: str | Path, *, strict: bool = True) -> Checkpoint:
    """What a weights file (or a folder with one) is, and its weights; it goes into VideoUNet.insert or Animator.insert.

    Motion modules (v1, v2, v3, SDXL, AnimateLCM, diffusers' MotionAdapter), MotionLoRAs, domain adapters and LoRAs
    (reference, diffusers, PEFT, kohya naming), Stable Diffusion 1.x, 2.x, XL in one file, UNets, VAEs, ControlNets;
    .safetensors, .ckpt, .pt, .bin. strict=False lets a LoRA leave out layers that the model lacks (a v2 MotionLoRA's
    middle block on v1 or v3), with a warning. Nothing of the file is executed. Raises AnimkitError, which says what the
    file is if it is not one of these.
    """
    if not isinstance(path, (str, Path)):
        raise AnimkitError(f"open_checkpoint takes the path of a weights file or folder, not {path!r:.80}.")
    path = Path(path).expanduser()
    file, config = _in_folder(path) if _is_dir(path) else (path, _config_beside(path))
    contents, metadata = read_file(file)
    weights, beside = unwrap(file, contents)
    for recognise in (
        lambda *a: lora.recognise(*a, strict), motion.recognise, controlnet.recognise, stable_diffusion.recognise
    ):
        checkpoint = recognise(file, weights, metadata, config)
        if checkpoint is not None:
            if path.is_dir():
                checkpoint.notes.append(f"from the folder {path.name}")
            if beside:
                checkpoint.notes.append(f"tensors beside the weights are left out: {first_ten(beside)}")
            checkpoint.strict = strict
            return checkpoint
    names = ", ".join(list(weights)[:3])
    raise AnimkitError(
        f"{file}: its {len(weights)} tensors ({names}, ...) are of no kind that animkit knows: motion module,"
        " MotionLoRA, domain adapter, LoRA, Stable Diffusion 1.x, 2.x or XL, UNet, VAE, ControlNet."
    )


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise AnimkitError(f"{str(path)[:200]}: this path cannot be followed ({error.strerror}); check it.") from None


def unwrap(path: Path, contents: Any) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors by name, names of other entries that hold tensors too), without wrappers such as `state_dict` and
    `module.`, or from the only table that has tensors. Numbers, configs and optimisers' lists are dropped."""
    beside: list[str] = []
    for _ in range(4):
        wrapper = _wrapper(contents) if isinstance(contents, Mapping) else None
        if wrapper is None:
            break
        beside += [str(key) for key, value in contents.items() if key != wrapper and _has_tensors(value)]
        contents = contents[wrapper]
    if not isinstance(contents, Mapping):
        raise AnimkitError(
            f"{path}: it holds a {type(contents).__name__}, not a table of tensors with names; ask for the state dict."
        )
    if "string_to_param" in contents:
        raise not_inserted(path, INVERSION)
    if {"image_proj", "ip_adapter"} <= contents.keys():
        raise not_inserted(path, IP_ADAPTER)
    weights = {key: value.data if isinstance(value, torch.nn.Parameter) else value
               for key, value in contents.items() if isinstance(key, str) and torch.is_tensor(value)}
    if not weights and (inner := _tables(contents)):
        raise AnimkitError(f"{path}: its tensors lie in inner tables ({first_ten(list(map(str, inner)))}), and which of"
                           " them is meant cannot be told; save that one alone.")
    if not weights:
        raise AnimkitError(f"{path}: there is no tensor in it; ask for the file with the weights.")
    beside += [str(key) for key, value in contents.items() if key not in weights and _has_tensors(value)]
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in weights)), None):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights, beside


def _wrapper(contents: Mapping) -> Any:
    """The key of the table that holds the weights; None if they are at this level, or if several tables have tensors."""
    known = next((key for key in WRAPPERS if isinstance(contents.get(key), Mapping) and contents[key]), None)
    if known is not None or "string_to_param" in contents or any(map(torch.is_tensor, contents.values())):
        return known
    tables = _tables(contents)
    tables = [key for key in tables if _has_tensors(contents[key])] or tables
    return tables[0] if len(tables) == 1 else None


def _has_tensors(value: Any) -> bool:
    return torch.is_tensor(value) or isinstance(value, Mapping) and any(map(torch.is_tensor, value.values()))


def _tables(contents: Mapping) -> list:
    """The keys of the tables that have tensors in them, at any depth."""
    seen: set[int] = set()  # a pickle's tables may hold one another, or themselves
    return [key for key, value in contents.items() if isinstance(value, Mapping) and _deep_tensors(value, seen)]


def _deep_tensors(table: Mapping, seen: set[int]) -> bool:
    waiting = [table]
    while waiting:
        table = waiting.pop()
        if _has_tensors(table):
            return True
        if id(table) not in seen:
            seen.add(id(table))
            waiting += [value for value in table.values() if isinstance(value, Mapping)]
    return False


def _config_beside(path: Path) -> dict:
    """The config.json (or PEFT's adapter_config.json) beside a file with a usual name (IN_FOLDER); {} if there is none."""
    if not named_by_folder(path):
        return {}
    return next((read_config(path.parent / name) for name in ("config.json", "adapter_config.json")
                 if (path.parent / name).is_file()), {})


def _in_folder(folder: Path) -> tuple[Path, dict]:
    """The one weights file of a folder as diffusers, PEFT or animkit write it, and its config."""
    if (folder / "model_index.json").is_file():
        raise AnimkitError(
            f"{folder}: this is a whole diffusers pipeline; give it as the base: Animator({str(folder)!r})."
        )
    found = [
        folder / f"{stem}{variant}{ending}"
        for stem in IN_FOLDER
        for ending in (".safetensors", ".bin")
        for variant in ("", ".fp16")
        if (folder / f"{stem}{variant}{ending}").is_file()
    ]
    own = folder / f"{folder.resolve().name}.safetensors"  # what a training run leaves
    found += [own] if own.is_file() else []
    if not found:
        if list(folder.glob("*.index.json")):
            raise AnimkitError(
                f"{folder}: its weights are split over several files (an index.json); join them into one .safetensors"
                " first."
            )
        raise AnimkitError(
            f"{folder}: no weights in this folder (diffusion_pytorch_model.safetensors or the like; of a finished training"
            f" run, {own.name}); give the file itself."
        )
    return found[0], _config_beside(found[0])
