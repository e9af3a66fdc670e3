"""Section 4.4, what an animator starts from: the base (a personalised Stable Diffusion), its defaults, and its words."""
from __future__ import annotations

import difflib
import json
import pickle
import re
import warnings
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


def open_base(base: str | Path | Any, dtype: torch.dtype = torch.float32) -> tuple[Any, dict, Path | None]:
    """-> (diffusers pipeline, its defaults, the motion module shipped beside it or None).

    base: "miniature", a diffusers folder, a single .safetensors or .ckpt file, a name on the Hugging Face hub, or a Stable
    Diffusion pipeline that you hold. Raises AnimkitError if it is none of these, cannot be read, or lacks some weights.
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
                pipe = StableDiffusionPipeline.from_single_file(str(path), dtype=dtype, safety_checker=None)
            else:
                pipe = DiffusionPipeline.from_pretrained(str(base), dtype=dtype, **_without_checker(path))
        _usable(pipe)
        _complete(pipe, path)
    except AnimkitError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, pickle.UnpicklingError) as e:
        reason = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise AnimkitError(f"The base model '{base}' could not be loaded ({reason}): the file is damaged, incomplete, or not a "
                           f"Stable Diffusion model; fetch or train it again.") from e
    return pipe, _defaults(path), _motion_beside(path)


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


def check_prompt(prompt: str, tokenizer: Any, vocabulary: str | list[str] = "open") -> None:
    """Warn when a prompt is longer than the text encoder reads; refuse words that the base never learned.

    vocabulary: "open" takes any word; a list takes its words; "closed" takes words that are one token for the tokenizer.
    Raises AnimkitError that names the words and the nearest known ones.
    """
    if vocabulary != "open":
        unknown = _unknown_words(prompt, tokenizer, vocabulary)
        if unknown:
            said = "; ".join(f"'{w}'" + (f" (near: {', '.join(near)})" if near else "") for w, near in unknown.items())
            raise AnimkitError(f"The base never learned {said}, in the prompt '{prompt}': use words from its small world.")
    limit = tokenizer.model_max_length
    ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
    if len(ids) > limit:
        cut = tokenizer.decode(ids[limit - 1:-1])
        warnings.warn(f"The prompt is longer than the {limit} tokens that the text encoder reads; this was cut off: '{cut}'.",
                      stacklevel=3)


def _unknown_words(prompt: str, tokenizer: Any, vocabulary: str | list[str]) -> dict[str, list[str]]:
    """Unknown words of a prompt -> known ones that look like them; words end where the tokenizer ends them."""
    pieces = set(tokenizer.get_vocab())  # CLIP's mark the end of a word
    known = {w.removesuffix("</w>") for w in pieces if w.endswith("</w>")} or pieces
    known = known if vocabulary == "closed" else {w.lower() for w in vocabulary}
    encoding = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False)
    places: dict[int, list[int]] = {}
    for place, word in enumerate(encoding.word_ids()):
        places.setdefault(word, []).append(place)
    unknown = {}
    for inside in places.values():
        word = prompt[encoding.token_to_chars(inside[0]).start:encoding.token_to_chars(inside[-1]).end].strip().lower()
        broken = len(inside) > 1 or encoding.input_ids[inside[0]] == tokenizer.unk_token_id
        if any(c.isalnum() for c in word) and (broken if vocabulary == "closed" else word not in known):
            unknown[word] = difflib.get_close_matches(word, known, 3)
    return unknown


def encode_text(pipe: Any, prompts: list[str], negatives: list[str] | None, guided: bool, size: tuple[int, int],
                device: torch.device) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """-> (text [negative, positive] stacked: 2b n d, or b n d when not guided; SDXL's added conditions, else {})."""
    with quiet_libraries():  # check_prompt has said what is cut
        encoded = pipe.encode_prompt(prompt=prompts, device=device, num_images_per_prompt=1,
                                     do_classifier_free_guidance=guided, negative_prompt=negatives if guided else None)
    positive, negative, *pooled = encoded
    text = torch.cat([negative, positive]) if guided else positive
    if not pooled:
        return text, {}
    embeds = torch.cat([pooled[1], pooled[0]]) if guided else pooled[0]
    times = torch.tensor([[*size, 0, 0, *size]], dtype=text.dtype, device=device).repeat(len(text), 1)
    return text, {"text_embeds": embeds, "time_ids": times}  # SDXL: what the picture's size was, and where it was cropped
