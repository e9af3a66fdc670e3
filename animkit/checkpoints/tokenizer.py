"""CLIP's tokenizer without a network: from a folder, the hub's cache, or the vocabulary that some pip packages have."""
from __future__ import annotations

import copy
import gzip
import importlib.util
import os
from pathlib import Path
from typing import Any

from animkit.checkpoints.files import short
from animkit.errors import AnimkitError

HUB = (("openai/clip-vit-large-patch14", ""), ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
       ("runwayml/stable-diffusion-v1-5", "tokenizer"), ("stabilityai/stable-diffusion-2-1", "tokenizer"),
       ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer"))
PACKAGES = (("open_clip", "bpe_simple_vocab_16e6.txt.gz"), ("clip", "bpe_simple_vocab_16e6.txt.gz"))
MERGES = 49152 - 256 - 2  # as many of the file's merges as CLIP's vocabulary of 49408 has room for


def clip_tokenizer(folder: str | Path | None = None, pad_token: str = "<|endoftext|>") -> Any:
    """CLIP's tokenizer for 77 tokens. folder: where vocab.json and merges.txt (or tokenizer.json) are, or in a subfolder
    `tokenizer`. If none is given or it has none, the next are tried: the folder that the environment's ANIMKIT_TOKENIZER
    names, the hub's cache, pip packages.

    Raises AnimkitError that says what was tried.
    """
    tried: list[str] = []
    for place in (folder, os.environ.get("ANIMKIT_TOKENIZER")):
        for candidate in (Path(place), Path(place) / "tokenizer") if place else ():
            if _has_tokenizer(candidate):
                return _from_folder(candidate, pad_token)
            tried.append(f"the folder {candidate} (no tokenizer.json, nor vocab.json with merges.txt)")
    for name, subfolder in HUB:
        cached = _in_cache(name, subfolder)
        if cached is not None:
            return _from_folder(cached, pad_token)
        tried.append(f"the hub's cache of {name}")
    for package, file in PACKAGES:
        spec = importlib.util.find_spec(package)  # finds the package without running it
        places = [Path(p) / file for p in (spec.submodule_search_locations or [])] if spec else []
        vocabulary = next((p for p in places if p.is_file()), None)
        if vocabulary is not None:
            return _from_bpe(vocabulary, pad_token)
        tried.append(f"the pip package {package}")
    raise AnimkitError(
        "CLIP's tokenizer was not found; tried: "
        + "; ".join(tried)
        + ". Give a folder that has it (tokenizer=...), or "
        "`pip install --no-deps open_clip_torch`, whose vocabulary file is enough."
    )


def padded(tokenizer: Any, pad_token: str) -> Any:
    """A copy of a tokenizer that fills prompts up with pad_token, as its text encoder was trained: SDXL's second, and that of
    SD 2, have "!" where the others have the end of text, and no attention mask hides it. As it is if it has no such token."""
    if pad_token == getattr(tokenizer, "pad_token", pad_token) or pad_token not in tokenizer.get_vocab():
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = pad_token
    return tokenizer


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or (
        (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    )


def _in_cache(name: str, subfolder: str) -> Path | None:
    """The cached folder of a hub's tokenizer, or None. Searched here: transformers 5 makes an empty one if there is none."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("vocab.json", "tokenizer.json"):
        found = try_to_load_from_cache(name, f"{subfolder}/{file}" if subfolder else file)
        if isinstance(found, str) and _has_tokenizer(Path(found).parent):
            return Path(found).parent
    return None


def _from_folder(folder: Path, pad_token: str) -> Any:
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the libraries raise many kinds of errors for damaged files
        raise AnimkitError(
            f"{folder}: its tokenizer cannot be read ({short(error)}); fetch it again."
        ) from None
    tokenizer.pad_token = pad_token
    tokenizer.model_max_length = min(tokenizer.model_max_length, 77)
    return tokenizer


def _from_bpe(path: Path, pad_token: str) -> Any:
    """From OpenAI's bpe_simple_vocab_16e6.txt.gz: a heading, then the merges, whose order gives the vocabulary."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    with gzip.open(path, "rt", encoding="utf-8") as f:
        merges = f.read().split("\n")[1:MERGES + 1]
    merges = [merge for merge in merges if merge.strip()]
    letters = list(bytes_to_unicode().values())
    words = letters + [f"{letter}</w>" for letter in letters] + ["".join(merge.split()) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    pairs = [tuple(merge.split()) for merge in merges]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=pairs, pad_token=pad_token, model_max_length=77
    )
