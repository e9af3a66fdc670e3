"""Models that look like Stable Diffusion and cannot be animated: each is named, with the reason."""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from animkit.checkpoints.original_naming import UNET
from animkit.errors import AnimkitError

IP_ADAPTER = ("an IP-Adapter, to whose UNet an Animator gives no picture; load it with pipe.load_ip_adapter() and call "
              "ak.inflate(pipe.unet) with added_cond_kwargs={\"image_embeds\": ...}")
INVERSION = ("a textual inversion (one word's embedding), which goes into the text encoder: "
             "animator.pipe.load_textual_inversion(this file, token=\"the word\"), and the word into the prompt")


def refuse(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raises AnimkitError if these weights are of a model without a place for motion modules."""

    def channels(*names: str, side: int) -> int | None:
        return next((weights[n].shape[side] for n in names if n in weights and weights[n].ndim == 4), None)

    if _textual_inversion(weights):
        raise not_inserted(path, INVERSION)
    signs = {
        "conditioner.embedders.0.model.transformer.": "the SDXL refiner, which only finishes what the base model drew",
        ".joint_blocks.": "Stable Diffusion 3, a transformer without the UNet that motion modules live in",
        "double_blocks.": "Flux, a transformer without the UNet that motion modules live in",
        "string_to_param": INVERSION,
        "emb_params": INVERSION,
        "text_model.encoder.layers.": "a text encoder alone",
        "image_proj": IP_ADAPTER,
        "condition_encoder": "a SparseCtrl encoder",
        "model.diffusion_model.time_stack": "Stable Video Diffusion",
        ".time_stack.": "Stable Video Diffusion, which has temporal layers of its own",
    }
    whole = any(name.startswith(UNET) for name in weights)
    for sign, what in signs.items():
        hit = any(sign in f".{name}" for name in weights)
        if hit and not (whole and sign == "text_model.encoder.layers.") and not any("lora" in name for name in weights):
            raise not_inserted(path, what)
    taken = channels(f"{UNET}input_blocks.0.0.weight", "conv_in.weight", side=1)
    given = channels(f"{UNET}out.2.weight", "conv_out.weight", side=0) or 4
    if taken == given + 5 and not any("controlnet" in name for name in weights):
        raise AnimkitError(
            f"{path}: this is an inpainting model: its UNet takes {taken} channels (latents, a mask and the masked"
            " picture), and an animation has only latents; take the model's ordinary version."
        )
    if taken == 2 * given:
        raise AnimkitError(
            f"{path}: this UNet takes {taken} channels (InstructPix2Pix or another model that edits a picture), and an "
            "animation has only latents; take an ordinary text to image model."
        )


def not_inserted(path: Path, what: str) -> AnimkitError:
    """What to raise for a file of a kind that has no place here."""
    return AnimkitError(
        f"{path}: this is {what}; animkit inserts motion modules, LoRAs and Stable Diffusion 1.x, 2.x and XL."
    )


def _textual_inversion(weights: Mapping[str, Tensor]) -> bool:
    """Whether each tensor is a word's embedding, named by the word (learned_embeds.bin) or, for SDXL's two text encoders,
    by the encoder."""
    if not all(tensor.ndim in (1, 2) for tensor in weights.values()):
        return False
    if all(name in ("clip_l", "clip_g") or re.fullmatch(r"<[^<>]+>(_\d+)?", name) for name in weights):
        return True
    (name, tensor), *others = weights.items()
    return not others and "." not in name and tensor.shape[-1] in (768, 1024, 1280)
