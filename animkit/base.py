"""Section 4.4, what an animator starts from: the base, a personalised Stable Diffusion, its defaults, sizes and VAE."""
from __future__ import annotations

import difflib
import json
import pickle
import re
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor

from animkit.errors import AnimkitError
from animkit.quiet import quiet_libraries

with quiet_libraries():  # importing pipelines makes transformers talk of torchvision, which nothing here uses
    from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

# What the paper's own release samples with; a base may say otherwise in an animkit.json beside its model_index.json.
DEFAULTS = {"steps": 25, "guidance": 7.5, "frames": 16, "fps": 8, "vocabulary": "open"}

# What libraries raise on a damaged or foreign file.
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError,
               pickle.UnpicklingError)


def open_base(base: str | Path | Any, dtype: torch.dtype = torch.float32,
              tokenizer: Any = None) -> tuple[Any, dict, Path | None]:
    """-> (diffusers pipeline, its defaults, the motion module shipped beside it or None).

    base: "miniature", a diffusers folder, a single .safetensors or .ckpt file, a name on the Hugging Face hub, or a
    Stable Diffusion pipeline that you hold. A file keeps its own dtype until it is moved to its device, and finds its
    tokenizer by itself, or takes `tokenizer` (or its folder). Raises AnimkitError if the base is none of these, cannot
    be read, or lacks weights.
    """
    if not isinstance(base, (str, Path)):
        return _usable(base), dict(DEFAULTS), None
    if base == "miniature":
        from animkit.samples import path as sample
        base = sample("miniature")
    path = Path(base)
    if not path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(base)):
        raise AnimkitError(f"There is no base model at '{base}': give \"miniature\", a diffusers folder, a "
                           f".safetensors file or a pipeline that you hold.")
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
    except _UNREADABLE as e:
        reason = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise AnimkitError(f"The base model '{base}' could not be loaded ({reason}): the file is damaged, incomplete, "
                           f"or not a Stable Diffusion model; fetch or train it again.") from e
    return pipe, _defaults(path), _motion_beside(path)


def _open_file(path: Path, tokenizer: Any) -> Any:
    from animkit.checkpoints import open_checkpoint
    checkpoint = open_checkpoint(path)
    if not hasattr(checkpoint, "pipeline"):
        raise AnimkitError(f"'{path}' is a {checkpoint.kind}, not a base: insert it into one, as in "
                           f"Animator(\"miniature\").insert(\"{path}\").")
    return checkpoint.pipeline(tokenizer=tokenizer)


def _usable(pipe: Any) -> Any:
    if not isinstance(pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        raise AnimkitError(f"animkit animates a StableDiffusionPipeline or StableDiffusionXLPipeline; this is a "
                           f"{type(pipe).__name__}.")
    takes, gives = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    if takes != gives:
        raise AnimkitError(f"This base's UNet takes {takes} channels and its VAE gives {gives}: a model for inpainting "
                           f"or editing wants a picture too; take the one that draws from text alone.")
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise AnimkitError("This base is distilled with its guidance as an input (LCM), which animkit does not give "
                           "it; take the base itself, with an LCM LoRA as a look.")
    return pipe


def _without_checker(folder: Path) -> dict:
    """The safety checker judges finished stills and is never called here, so a base that has one need not load it."""
    if folder.is_dir() and "safety_checker" not in json.loads((folder / "model_index.json").read_text()):
        return {}
    return {"safety_checker": None, "requires_safety_checker": False} if folder.is_dir() else {}


def _complete(pipe: Any, folder: Path) -> None:
    """Raise if a part's files hold fewer tensors than the part: libraries fill the gaps with noise and only log it."""
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
            raise AnimkitError(f"'{folder / name}' holds {len(stored)} tensors of the {len(expected)} that its model "
                               f"has; missing is for example '{gone[0]}': fetch or train it again.")


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
    """A path that exists, or the name of a look shipped with animkit ("ink"); else AnimkitError, which lists them."""
    if Path(name).exists():
        return Path(name)
    looks = sample_looks()
    if str(name) in looks:
        return looks[str(name)]
    near = difflib.get_close_matches(str(name), looks, 1)
    raise AnimkitError(f"'{name}' is neither a file here nor a look of the miniature"
                       + (f"; did you mean '{near[0]}'?" if near else "")
                       + f" (looks: {', '.join(looks) or 'none installed'}).")


def sample_looks() -> dict[str, Path]:
    """The looks shipped with animkit, by name."""
    from animkit.samples import path as sample
    try:
        return {file.stem: file for file in sorted(Path(sample("looks")).glob("*.safetensors"))}
    except AnimkitError:
        return {}


def check_size(pipe: Any, defaults: dict, height: int | None, width: int | None) -> tuple[int, int]:
    """-> height and width in pixels, from animkit.json or the UNet's sample_size where they are None.

    Raises AnimkitError unless both are multiples of the VAE's factor times the UNet's.
    """
    side = pipe.unet.config.sample_size
    sides = side if isinstance(side, (list, tuple)) else (side, side)  # of the latents
    multiple = pipe.vae_scale_factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    size = []
    for name, given, own in zip(("height", "width"), (height, width), sides):
        own = own and own * pipe.vae_scale_factor
        pixels = defaults.get(name, own) if given is None else given
        if not isinstance(pixels, Integral) or pixels < 1 or pixels % multiple:
            raise AnimkitError(f"{name} is a multiple of {multiple} pixels for this base (VAE x UNet halvings); "
                               f"got {pixels!r}.")
        size.append(int(pixels))
    return tuple(size)


@torch.no_grad()
def decode(vae: Any, latents: Tensor, frames_at_once: int = 8) -> Tensor:
    """Latents b c f h w -> pictures b f H W 3, uint8, on the CPU: the image VAE draws each frame alone."""
    b = latents.shape[0]
    z = rearrange(latents, "b c f h w -> (b f) c h w") / vae.config.scaling_factor + (vae.config.shift_factor or 0)
    upcast = vae.dtype == torch.float16 and vae.config.force_upcast  # SDXL's VAE overflows in half precision
    if upcast:
        vae.float()  # in place, and back without loss: a copy would hold it twice, and what it is offloaded with
    try:
        drawn = [vae.decode(part.to(vae.dtype)).sample.float().cpu() for part in z.split(frames_at_once)]
    finally:
        if upcast:
            vae.half()
    pictures = ((torch.cat(drawn) / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return rearrange(pictures, "(b f) c h w -> b f h w c", b=b)
