"""Weights in folders of config.json and safetensors, as diffusers keeps them, whole or not at all.

Files are written beside their place and renamed, so that a crash or a full disk leaves the old file whole.
"""
import errno
import glob
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from torch import Tensor, nn

from animkit.errors import AnimkitError


def write_atomically(path: str | Path, write: Callable[[str], None]) -> Path:
    """Call write(temporary path) in the folder of `path` (made if absent), then rename; AnimkitError if that fails."""
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):  # by a process that was killed
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink(missing_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        from safetensors import SafetensorError  # what save_file raises on a full disk
        if isinstance(error, (OSError, SafetensorError)):
            why = getattr(error, "strerror", None) or error
            raise AnimkitError(f"could not write {path}: {why}; an older file there is untouched") from error
        raise
    return path


WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_folder(folder: str | Path, config: Mapping, state: Mapping[str, Tensor], own: Mapping | None = None) -> None:
    """Write config.json and the weights. The weights hold the config too, so weights and config always fit together.

    own: the config for the weights, where config.json is in another library's format.
    """
    from safetensors.torch import save_file

    text, inside = (json.dumps(dict(said), indent=2) for said in (config, config if own is None else own))
    tensors = apart({key: tensor.detach().cpu().contiguous() for key, tensor in state.items()})
    write_atomically(Path(folder) / WEIGHTS, lambda path: save_file(tensors, path, {"format": "pt", "config": inside}))
    write_atomically(Path(folder) / "config.json", lambda path: Path(path).write_text(text + "\n"))


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors; those that share memory with another (positions, at most) copied, for safetensors refuses them."""
    own, seen = {}, set()
    for name, tensor in tensors.items():
        own[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return own


def make_folder(folder: str | Path) -> Path:
    """The folder, made if absent; AnimkitError where it cannot be."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AnimkitError(f"{folder} cannot be made a folder ({error.strerror}): choose another place.") from error
    return Path(folder)


def locked(folder: str | Path, busy: str) -> IO[str]:
    """Open and lock folder/lock, for one run only; a run that dies releases it. AnimkitError(busy) if it is locked."""
    try:
        file = open(Path(folder) / "lock", "w")
    except OSError as error:
        raise AnimkitError(f"{folder} cannot be written to ({error.strerror}): choose another folder.") from error
    try:
        import fcntl  # not on Windows: no check there
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):  # else a file system without locks: no check there
            file.close()
            raise AnimkitError(busy) from error
    return file


def load_folder(folder: str | Path, class_name: str) -> tuple[dict, dict[str, Tensor]]:
    """(config, weights) of a folder that save_folder wrote, or of its .safetensors file alone."""
    from safetensors import SafetensorError, safe_open

    file = Path(folder) if Path(folder).suffix == ".safetensors" else Path(folder) / WEIGHTS
    if not file.is_file():
        raise AnimkitError(f"no {WEIGHTS} at {folder}: give the folder that save_pretrained wrote, or the file in it")
    try:
        with safe_open(file, framework="pt") as weights:
            text = (weights.metadata() or {}).get("config")
            state = {key: weights.get_tensor(key) for key in weights.keys()}
    except (SafetensorError, OSError) as error:
        raise AnimkitError(f"{file} is damaged or no safetensors file ({error}): fetch or make it again") from error
    if text is None and not file.with_name("config.json").is_file():
        raise AnimkitError(f"{file} has no config.json beside it: copy the whole folder that save_pretrained wrote")
    try:
        config = json.loads(text or file.with_name("config.json").read_text())
    except ValueError as error:
        raise AnimkitError(f"the config of {file} is no JSON ({error}): fetch or make it again") from error
    if not isinstance(config, dict) or config.pop("_class_name", None) != class_name:
        raise AnimkitError(f"{file} does not hold {class_name}, says its config: open it with open_checkpoint")
    return config, state


def load_strictly(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """load_state_dict, all of it or nothing, and one sentence about what does not fit."""
    own = module.state_dict()
    missing, extra = [k for k in own if k not in state], [k for k in state if k not in own]
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    for keys, what in ((missing, "are missing"), (extra, "are unknown"), (wrong, "have another shape")):
        if keys:
            shapes = f" ({tuple(state[keys[0]].shape)} for {tuple(own[keys[0]].shape)})" if keys is wrong else ""
            raise AnimkitError(f"{len(keys)} of the weights for {type(module).__name__} {what}, the first is "
                               f"{keys[0]}{shapes}: nothing was loaded")
    module.load_state_dict(state)


def set_submodule(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path, with containers on the way, so that its weights' names begin with the path."""
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root._modules[name]
    root.add_module(last, module)
