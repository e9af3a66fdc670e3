"""From the original latent-diffusion naming to diffusers', by diffusers' own renaming, checked to lose nothing."""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from diffusers.loaders import single_file_utils as ldm
from torch import Tensor, nn

from animkit.checkpoints.architecture import architecture, count, or_damaged
from animkit.checkpoints.checkpoint import misfit

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = {
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
# What training and other programs leave in such files and no part of the model uses.
REST = re.compile(
    r"(model_ema\.|loss\.|first_stage_model\.loss\.|denoiser\.|.*\.position_ids$|.*\.(logit_scale|attn_mask)$|"
    r"(sqrt_|log_one_minus_)?(recip(m1)?_)?(one_minus_)?alphas_cumprod|betas$|alphas_cumprod_prev$|"
    r"sqrt_recipm?1?_alphas_cumprod$|posterior_|lvlb_weights$|logvar$|scale_factor$|v_pred$|ztsnr$|"
    # textual inversion's training, and the projection of CLIP ViT-L, which Stable Diffusion does not use
    r"embedding_manager\.|(cond_stage_model|conditioner\.embedders\.0)\.(transformer\.)?(text_model\.)?text_projection)"
)


def layers_per_block(weights: Mapping[str, Tensor], prefix: str) -> int:
    rows = count(weights, f"{prefix}input_blocks.")
    return next((i for i in range(1, rows) if f"{prefix}input_blocks.{i}.0.op.weight" in weights), rows) - 1


def _one_to_one(path: Path, part: str, source: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises AnimkitError if the renaming lost a tensor: diffusers silently drops what it does not know."""
    kept = {tensor.data_ptr() for tensor in state.values()}
    lost = [name for name, tensor in source.items() if tensor.data_ptr() not in kept]
    if lost:
        raise misfit(path, f"the {part} of Stable Diffusion", left_over=lost)


def unet_state(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet of a single file, under diffusers' names."""
    source = {name: tensor for name, tensor in weights.items() if name.startswith(UNET)}
    config = {"layers_per_block": layers_per_block(source, UNET), "class_embed_type": None,
              "addition_embed_type": "text_time" if f"{UNET}label_emb.0.0.weight" in source else None}
    state = {k: t for k, t in _renamed(path, "UNet", lambda: ldm.convert_ldm_unet_checkpoint(source, config)).items()}
    _one_to_one(path, "UNet", source, state)
    return state


def vae_state(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The VAE of a single file (or of a file with a VAE alone), under diffusers' names."""
    source = {name: tensor for name, tensor in weights.items() if name.startswith(VAE) and not REST.match(name)}
    source = source or {name: tensor for name, tensor in weights.items() if not REST.match(name)}
    if any(".down_blocks." in name for name in source):
        return dict(source)
    prefix = VAE if any(name.startswith(VAE) for name in source) else ""
    levels = count(source, f"{prefix}encoder.down.")
    config = {"down_block_types": [""] * levels, "up_block_types": [""] * levels}
    state = _renamed(path, "VAE", lambda: ldm.convert_ldm_vae_checkpoint(source, config))
    _one_to_one(path, "VAE", source, state)
    return state


def text_state(path: Path, weights: Mapping[str, Tensor], version: str, part: str) -> dict[str, Tensor]:
    """A text encoder of a single file, under transformers' names without the leading `text_model.`."""
    prefix = TEXT[version][part]
    source = {name: tensor for name, tensor in weights.items() if name.startswith(prefix) and not REST.match(name)}
    if prefix.endswith("model."):
        state = _renamed(path, "text encoder", lambda: _open_clip(path, source, version, prefix))
    else:
        state = _renamed(path, "text encoder", lambda: ldm.convert_ldm_clip_checkpoint(source))
        _one_to_one(path, "text encoder", source, state)
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}


def _open_clip(path: Path, source: Mapping[str, Tensor], version: str, prefix: str) -> dict[str, Tensor]:
    """OpenCLIP's names -> transformers'. Its q, k and v are one tensor, so _one_to_one cannot compare the two."""
    known = {prefix + name for name in ldm.DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"].values()}
    lost = [name for name in source if name not in known and not name.startswith(f"{prefix}transformer.")]
    if lost:
        raise misfit(path, "the text encoder of Stable Diffusion", left_over=lost)
    if version == "sd2":  # uses all layers but the last, and trainers may save just these
        layers, used = count(source, f"{prefix}transformer.resblocks."), architecture("sd2")["text_encoder"]
        projection = f"{prefix}text_projection"
        if layers > used["num_hidden_layers"] or (layers < used["num_hidden_layers"] and projection in source):
            source = {name: tensor for name, tensor in source.items() if f".resblocks.{layers - 1}." not in name}
        source = {name: tensor for name, tensor in source.items() if name != projection}
    width = nn.Module()
    width.config = type("Config", (), {"hidden_size": source[f"{prefix}token_embedding.weight"].shape[1]})
    return ldm.convert_open_clip_checkpoint(width, source, prefix)


def _renamed(path: Path, part: str, rename: Callable[[], dict]) -> dict[str, Tensor]:
    state = or_damaged(path, part, rename)
    absent = [name for name, tensor in state.items() if tensor is None]
    if absent:
        raise misfit(path, f"the {part} of Stable Diffusion", missing=absent, advice="fetch it again.")
    return state


def controlnet_state(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if any(name.startswith("controlnet_down_blocks.") for name in weights):
        return dict(weights)
    # a whole SD in the same file, as in the first ControlNets, is left out; diffusers strips the prefix of some names only
    source = {
        n.removeprefix("control_model."): t for n, t in weights.items() if n.startswith("control_model.")
    } or dict(weights)
    config = {"layers_per_block": layers_per_block(source, "")}
    state = _renamed(path, "ControlNet", lambda: ldm.convert_controlnet_checkpoint(source, config))
    _one_to_one(path, "ControlNet", source, state)
    return state
