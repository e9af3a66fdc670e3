"""Section 4.4, what an animator starts from: the base, a personalised Stable Diffusion, opened whole or not at all."""
from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from animkit.errors import AnimkitError
from animkit.quiet import quiet_libraries

with quiet_libraries():  # importing pipelines makes transformers warn of torchvision, which is not used here
    from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

# What the paper's own release samples with; a base may say otherwise in an animkit.json beside its model_index.json.
DEFAULTS = {"steps": 25, "guidance": 7.5, "frames": 16, "fps": 8, "vocabulary": "open"}

# What libraries raise on a damaged or foreign file.
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError,
               pickle.UnpicklingError)
_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # a name that ends so is a file, not a name on the hub
# In older files the VAE's attention has these names, and the text encoder's names begin with one more word.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def open_base(base: str | Path | Any, dtype: torch.dtype = torch.float32,
              tokenizer: Any = None) -> tuple[Any, dict, Path | None]:
    """-> (diffusers pipeline, its defaults, the motion module shipped beside it or None).

    base: "miniature", a diffusers folder, a single .safetensors or .ckpt file, a name on the Hugging Face hub, or a
    Stable Diffusion pipeline that you hold. A file keeps its own dtype until it is moved to its device.
    tokenizer: one, or its folder, for a file that does not find its own or a folder without one. Raises AnimkitError
    if the base is none of these, cannot be read, or lacks weights.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise AnimkitError(f"dtype is torch.float32, torch.float16 or torch.bfloat16; got {dtype!r}.")
    if not isinstance(base, (str, Path)):
        return _usable(base), dict(DEFAULTS), None
    if base == "miniature":
        from animkit.samples import path as sample
        base = sample("miniature")
    path = Path(base).expanduser()
    hub = not path.exists()
    if hub and (path.suffix in _FILES or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(base))):
        raise AnimkitError(f"There is no base model at '{base}': give \"miniature\", a diffusers folder, a "
                           f".safetensors file or a pipeline that you hold.")
    if path.is_dir() and not (path / "model_index.json").exists():
        raise AnimkitError(f"The folder '{path}' is not a diffusers pipeline: it has no model_index.json.")
    try:
        with quiet_libraries(progress_bars=hub):  # a download may take long: show it
            if path.is_file():
                pipe = _open_file(path, tokenizer)
            else:
                options = _without_checker(path) | _variant(path) | _tokenizers(path, tokenizer)
                pipe = DiffusionPipeline.from_pretrained(str(base if hub else path), torch_dtype=dtype, **options)
        _usable(pipe)
        _tokenizers_fit(pipe, base)
        _complete(pipe, _cached(str(base)) if hub else path)
    except AnimkitError:
        raise
    except _UNREADABLE as e:
        reason = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
        if hub:
            raise AnimkitError(f"There is no '{base}' on this machine, and as a name on the Hugging Face hub it could not be "
                               f"fetched: check the name, and that this machine is online ({reason}).") from e
        raise AnimkitError(f"The base model '{base}' could not be loaded ({reason}): the file is damaged, incomplete, "
                           f"or not a Stable Diffusion model; fetch or train it again.") from e
    return pipe, _defaults(path), _motion_beside(path)


def _open_file(path: Path, tokenizer: Any) -> Any:
    from animkit.checkpoints import open_checkpoint
    checkpoint = open_checkpoint(path)
    if checkpoint.kind == "VAE":
        checkpoint.build()  # which says where it goes
    if not hasattr(checkpoint, "pipeline"):
        raise AnimkitError(f"'{path}' is a {checkpoint.kind}, not a base: insert it into one, as in "
                           f"Animator(\"miniature\").insert(\"{path}\").")
    return checkpoint.pipeline(tokenizer=tokenizer)


def _usable(pipe: Any) -> Any:
    if not isinstance(pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        raise AnimkitError(f"animkit animates a StableDiffusionPipeline or StableDiffusionXLPipeline; this is a "
                           f"{type(pipe).__name__}: give its base, as a folder, a file or such a pipeline, and what else is "
                           "in it as files.")
    takes, gives = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    if takes != gives:
        raise AnimkitError(f"This base's UNet takes {takes} channels and its VAE gives {gives}: a model for inpainting "
                           f"or editing wants a picture too; take the one that draws from text alone.")
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise AnimkitError("This base is distilled with its guidance as an input (LCM), which animkit does not give "
                           "it; take the base itself, with an LCM LoRA as a look.")
    return pipe


def _without_checker(folder: Path) -> dict:
    """The safety checker judges finished stills and is never called here, so a base that has one need not load it, nor
    fetch it from the hub."""
    if folder.is_dir() and "safety_checker" not in json.loads((folder / "model_index.json").read_text()):
        return {}
    return {"safety_checker": None, "requires_safety_checker": False}


def _variant(folder: Path) -> dict:
    """The option to read half-precision files (unet/...fp16.safetensors), for a folder that has no others."""
    files = [f.name for f in (folder / "unet").glob("*") if f.suffix in _FILES]
    return {"variant": "fp16"} if files and all(".fp16." in name for name in files) else {}


def _tokenizers(folder: Path, given: Any) -> dict:
    """The tokenizer in place of the folder's. AnimkitError if there is none: transformers would make an empty one."""
    from animkit.checkpoints.tokenizer import clip_tokenizer, padded
    index = json.loads((folder / "model_index.json").read_text()) if folder.is_dir() else {}
    given = clip_tokenizer(given) if isinstance(given, (str, Path)) else given
    options = {} if given is None else {"tokenizer": given}
    for part in (name for name, what in index.items() if name.startswith("tokenizer") and what[0]):
        if given is not None:
            options[part] = padded(given, "!") if _fills_with_marks(folder, part) else given
        elif not any((folder / part / file).is_file() for file in ("tokenizer.json", "vocab.json")):
            raise AnimkitError(f"'{folder / part}' holds no tokenizer (tokenizer.json, or vocab.json and merges.txt), and "
                               "without it every prompt would be the same: fetch it again, or give tokenizer=.")
    return options


def _fills_with_marks(folder: Path, part: str) -> bool:
    """Whether a tokenizer fills prompts up with "!": SDXL's second does, and SD 2's, whose text is 1024 wide."""
    config = folder / part.replace("tokenizer", "text_encoder") / "config.json"
    return part == "tokenizer_2" or config.is_file() and json.loads(config.read_text()).get("hidden_size") == 1024


def _tokenizers_fit(pipe: Any, base: Any) -> None:
    """AnimkitError if a tokenizer has more words, or makes longer prompts, than its text encoder can take."""
    for name in ("", "_2"):
        tokenizer, encoder = getattr(pipe, f"tokenizer{name}", None), getattr(pipe, f"text_encoder{name}", None)
        if tokenizer is None or encoder is None:
            continue
        words, longest = len(tokenizer) if hasattr(tokenizer, "__len__") else 0, getattr(tokenizer, "model_max_length", 0)
        if words > encoder.config.vocab_size or longest > encoder.config.max_position_embeddings:
            raise AnimkitError(
                f"The tokenizer knows {words:,} words and makes prompts of up to {longest:,} tokens; the text encoder of "
                f"'{base}' takes {encoder.config.vocab_size:,} words and {encoder.config.max_position_embeddings} tokens: give "
                "tokenizer= the one that it was trained with, with its model_max_length set.")


def _cached(name: str) -> Path:
    """The folder in the hub's cache that a name was loaded from."""
    from huggingface_hub import snapshot_download
    return Path(snapshot_download(name, local_files_only=True))


def _complete(pipe: Any, folder: Path) -> None:
    """Raise if a part's files lack a tensor of the part: libraries fill the gaps with noise and only log it."""
    for name, part in pipe.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        expected = {_plain(n): n for n in part.state_dict() if not n.endswith("position_ids")}
        gone = [n for n, tensor in part.state_dict().items() if tensor.is_meta]
        if stored := {_plain(n) for n in _stored(folder / name)}:
            gone += [n for plain, n in expected.items() if plain not in stored]
        if gone:
            raise AnimkitError(f"'{folder / name}' holds {len(stored)} tensors of the {len(expected)} that its model "
                               f"has; missing is for example '{sorted(gone)[0]}': fetch or train it again.")


def _plain(name: str) -> str:
    """A tensor's name, made the same for old and new files."""
    words = name.removeprefix("text_model.").split(".")
    return ".".join(_OLD_NAMES.get(word, word) if "attentions" in words else word for word in words)


def _stored(folder: Path) -> set[str]:
    """The tensors' names in those files of a part that are read: safetensors before pickles, fp32 before fp16."""
    from animkit.checkpoints.files import read_file
    for suffix in ("safetensors", "bin"):
        files = sorted(folder.glob(f"*.{suffix}"))
        files = [f for f in files if not re.search(r"\.(fp16|bf16|non_ema)\b", f.name)] or files
        if files:
            return {name for file in files for name in read_file(file)[0]}
    return set()


def best_device() -> str:
    """CUDA, else Apple's MPS, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def checked_device(device: str | torch.device | None) -> torch.device:
    """The device, by default the best; AnimkitError if this machine does not have it."""
    try:
        return torch.empty(0, device=device or best_device()).device
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise AnimkitError(f"There is no device {device!r} here ({str(error).splitlines()[0]}); the best that there is: "
                           f"'{best_device()}'.") from error


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
