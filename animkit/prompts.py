"""Section 4.4, an animator's text: checks that a prompt's words are known and not too many, and encodes it."""
from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from animkit.errors import AnimkitError
from animkit.quiet import quiet_libraries

NOTATION = re.compile(r"\([^()]*:\s*\d*\.\d+\s*\)|<(?:lora|lyco|hypernet):[^<>]*>")  # web UIs' weights and LoRAs


def check_prompt(prompt: str, tokenizer: Any, vocabulary: str | list[str] = "open") -> None:
    """Warn when a prompt is longer than the text encoder reads, or in the notation of web UIs; refuse words that the base
    never learned.

    vocabulary: "open" allows any word; a list, only its words; "closed", only words that the tokenizer does not split.
    Raises AnimkitError that names the words and the nearest known ones.
    """
    prompt = as_read(prompt, tokenizer)
    if vocabulary != "open":
        unknown = _unknown_words(prompt, tokenizer, vocabulary)
        if unknown:
            said = "; ".join(f"'{w}'" + (f" (near: {', '.join(near)})" if near else "") for w, near in unknown.items())
            raise AnimkitError(f"The base never learned {said}, in the prompt '{prompt}': use words from its small "
                               f"world.")
    if found := NOTATION.findall(prompt):
        warnings.warn(f"The text encoder reads the notation of web UIs as plain letters: {', '.join(found)}. Leave weights out, "
                      "and insert a LoRA by animator.insert(file, alpha=0.8).", stacklevel=4)
    limit = tokenizer.model_max_length
    ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
    if len(ids) > limit:
        cut = tokenizer.decode(ids[limit - 1:-1])
        warnings.warn(f"The prompt is longer than the {limit} tokens that the text encoder reads; this was cut off: "
                      f"'{cut}'.", stacklevel=4)


def as_read(prompt: str, tokenizer: Any) -> str:
    """Small tokenizers may have a word "a" and no "an": they read "an orange cat" as "a orange cat". CLIP's has both."""
    a, an = (tokenizer.convert_tokens_to_ids(f"{word}</w>") for word in ("a", "an"))
    lacking = (None, tokenizer.unk_token_id)
    return re.sub(r"\b([Aa])[Nn]\b", r"\1", prompt) if an in lacking and a not in lacking else prompt


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


@torch.no_grad()  # else text carries the text encoder's graph, which holds its weights on the GPU after offload()
def encode_text(pipe: Any, prompts: list[str], negative: str, guided: bool, size: tuple[int, int],
                device: torch.device) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """-> (text [negative, positive] stacked: 2b n d, or b n d when not guided; SDXL's added conditions, else {})."""
    prompts, negative = [as_read(p, pipe.tokenizer) for p in prompts], as_read(negative, pipe.tokenizer)
    negatives = [negative] * len(prompts) if guided and negative else None  # None: SDXL takes zeros for the text ""
    with quiet_libraries():  # check_prompt has warned of what is cut
        encoded = pipe.encode_prompt(prompt=prompts, device=device, num_images_per_prompt=1,
                                     do_classifier_free_guidance=guided, negative_prompt=negatives)
    positive, negative, *pooled = encoded
    text = torch.cat([negative, positive]) if guided else positive
    if not pooled:
        return text, {}
    embeds = torch.cat([pooled[1], pooled[0]]) if guided else pooled[0]
    times = torch.tensor([[*size, 0, 0, *size]], dtype=text.dtype, device=device).repeat(len(text), 1)
    return text, {"text_embeds": embeds, "time_ids": times}  # SDXL is told the picture's size, and where it was cropped


Prompt = str | Mapping[int, str]  # one text for the whole clip, or {frame: text}


def said(prompt: Prompt) -> str:
    """A prompt as one line, as a clip keeps it: "0: a cat in the city; 15: a cat over the sea"."""
    return prompt if isinstance(prompt, str) else "; ".join(f"{frame}: {text}" for frame, text in in_order(prompt))


def in_order(prompt: Mapping[int, str]) -> list[list]:
    """A prompt that changes as [[frame, text], ...], which JSON keeps as it is (it makes a mapping's frames texts)."""
    return [[int(frame), prompt[frame]] for frame in sorted(prompt)]


def kept(prompt: Prompt) -> dict[str, list[list]]:
    """What a clip's settings keep of a prompt that changes, {"prompts": [[frame, text], ...]}; of a plain one nothing."""
    return {} if isinstance(prompt, str) else {"prompts": in_order(prompt)}


def texts_of(prompts: Sequence[Prompt], negative: str, frames: int) -> list[str]:
    """Every text of a call once. Raises AnimkitError for what is no prompt, and for frames that the clip does not have."""
    changing = [prompt for prompt in prompts if isinstance(prompt, Mapping)]
    texts = [text for prompt in prompts for text in (prompt.values() if isinstance(prompt, Mapping) else [prompt])]
    if not prompts or not all(changing) or not all(isinstance(text, str) for text in [*texts, negative]):
        raise AnimkitError("A prompt is a text, {frame: text}, or a list of at least one, and negative_prompt is one text; got "
                           f"{prompts!r} (negative: {negative!r}).")
    for frame in [frame for prompt in changing for frame in prompt]:
        if isinstance(frame, bool) or not isinstance(frame, Integral) or not 0 <= frame < frames:
            raise AnimkitError(f"A prompt that changes names frames from 0 to {frames - 1} of this clip; got {frame!r}.")
    return list(dict.fromkeys([*texts, negative]))


def encode_prompts(pipe: Any, prompts: Sequence[Prompt], negative: str, guided: bool, size: tuple[int, int],
                   device: torch.device, frames: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """As encode_text; if a prompt changes over its clip, all get a text for each frame: (2b f) n d, or (b f) n d.

    Between the frames that it names, a text is mixed of its two neighbours, linearly in what the text encoder makes of
    them (prompt travel; diffusers' AnimateDiff with FreeNoise mixes them so). Not in the paper.
    """
    if all(isinstance(prompt, str) for prompt in prompts):
        return encode_text(pipe, list(prompts), negative, guided, size, device)
    keyed = [{0: prompt} if isinstance(prompt, str) else dict(in_order(prompt)) for prompt in prompts]
    text, added = encode_text(pipe, [one for texts in keyed for one in texts.values()], negative, guided, size, device)

    def each_frame(rows: torch.Tensor) -> torch.Tensor:
        halves = [half.split([len(texts) for texts in keyed]) for half in rows.chunk(2 if guided else 1)]
        return torch.cat([between(own, list(texts), frames) for half in halves for own, texts in zip(half, keyed)])

    return each_frame(text), {name: each_frame(rows) for name, rows in added.items()}


def between(rows: torch.Tensor, places: Sequence[int], frames: int) -> torch.Tensor:
    """Row k stands at frame places[k] -> a row for each frame, f ...: linear in between, constant before and after."""
    place = np.interp(np.arange(frames), places, np.arange(len(places)))
    below = torch.from_numpy(place).long().to(rows.device)
    above = (below + 1).clamp(max=len(rows) - 1)
    share = torch.from_numpy(place % 1).to(rows.dtype).to(rows.device)  # dtype first: Apple's MPS has no float64
    share = share.view(-1, *[1] * (rows.ndim - 1))
    return rows[below] + share * (rows[above] - rows[below])  # equal rows stay exactly equal, also in half precision
