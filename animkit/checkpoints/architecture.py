"""Configs of Stable Diffusion's parts: those of full size, which come with the kit, and those read off the weights.

What tensors do not show (scheduler, tokenizer) is in architectures/*.json, or a rule gives it (heads): no hub is asked.
"""
from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import Tensor

from animkit.errors import AnimkitError


@cache
def architecture(version: str) -> dict[str, Any]:
    """The full-size configs of "sd1", "sd2" or "sdxl", part by part, as diffusers and transformers take them."""
    return json.loads((files("animkit.checkpoints") / "architectures" / f"{version}.json").read_text())


def count(state: Mapping[str, Tensor], before: str) -> int:
    """How many different numbers follow `before` in the names: count(state, "down_blocks.") -> 4."""
    return len({name[len(before):].split(".")[0] for name in state if name.startswith(before)})


def unet_config(state: Mapping[str, Tensor], pooled: int | None = None) -> dict[str, Any]:
    """UNet2DConditionModel's config, read off its weights (or a ControlNet's part of it). pooled: the second text encoder's
    width; SDXL's added condition is as wide as this and six embedded sizes together."""
    down = range(count(state, "down_blocks."))
    widths = [state[f"down_blocks.{i}.resnets.0.conv2.weight"].shape[0] for i in down]
    cross = [count(state, f"down_blocks.{i}.attentions.") > 0 for i in down]
    depth = [count(state, f"down_blocks.{i}.attentions.0.transformer_blocks.") if c else 1 for i, c in zip(down, cross)]
    texts = [tensor.shape[1] for name, tensor in state.items() if name.endswith(".attn2.to_k.weight")]
    linear = any(name.endswith(".proj_in.weight") and tensor.ndim == 2 for name, tensor in state.items())
    layers = [count(state, f"down_blocks.{i}.resnets.") for i in down]
    config = {
        "block_out_channels": widths,
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "down_block_types": ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross],
        **({"cross_attention_dim": texts[0]} if texts else {}),  # a small ControlNet may have no attention
        "in_channels": state["conv_in.weight"].shape[1],
        "transformer_layers_per_block": depth if len(set(depth)) > 1 else depth[0],
        "use_linear_projection": linear,
        "norm_num_groups": math.gcd(32, *widths),
        "act_fn": "silu",
        "norm_eps": 1e-5,
        # diffusers' name for the number of heads: 8 in SD 1.x, heads of width 64 in SD 2.x and XL
        "attention_head_dim": [max(1, c // 64) for c in widths] if linear else math.gcd(8, *widths),
    }
    if "add_embedding.linear_1.weight" in state:
        added = state["add_embedding.linear_1.weight"].shape[1]
        each = (added - (1280 if pooled is None else pooled)) // 6
        config |= {
            "addition_embed_type": "text_time",
            "projection_class_embeddings_input_dim": added,
            "addition_time_embed_dim": each,
        }
    if "time_embedding.cond_proj.weight" in state:
        config["time_cond_proj_dim"] = state["time_embedding.cond_proj.weight"].shape[1]
    if "conv_out.weight" in state:
        up = range(count(state, "up_blocks."))
        config["up_block_types"] = [
            "CrossAttnUpBlock2D" if count(state, f"up_blocks.{i}.attentions.") else "UpBlock2D" for i in up
        ]
        config["out_channels"] = state["conv_out.weight"].shape[0]
    return config


def vae_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """AutoencoderKL's config, read off its weights."""
    levels = range(count(state, "encoder.down_blocks."))
    widths = [state[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in levels]
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": count(state, "encoder.down_blocks.0.resnets."),
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "norm_num_groups": math.gcd(32, *widths),
        "mid_block_add_attention": any("mid_block.attentions" in name for name in state),
    }


def text_config(state: Mapping[str, Tensor], full: Mapping[str, Any]) -> dict[str, Any]:
    """CLIP's text config, read off its weights (names without `text_model.`); full: the full-size config, for the rest."""
    vocabulary, c = state["embeddings.token_embedding.weight"].shape
    config = {**full, "vocab_size": vocabulary, "hidden_size": c, "num_attention_heads": max(1, c // 64),
              "max_position_embeddings": len(state["embeddings.position_embedding.weight"]),
              "num_hidden_layers": count(state, "encoder.layers."),
              "intermediate_size": len(state["encoder.layers.0.mlp.fc1.weight"])}
    if "text_projection.weight" in state:
        config["projection_dim"] = len(state["text_projection.weight"])
    return config


def own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without what the library adds for itself, such as _class_name."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def or_damaged(path: Path, part: str, read: Callable[..., dict], *arguments: Any) -> dict[str, Any]:
    """read(*arguments), which reads the weights of a part; AnimkitError if they lack what it needs."""
    try:
        return read(*arguments)
    except AnimkitError:
        raise
    except (LookupError, StopIteration, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise AnimkitError(
            f"{path}: its {part} is incomplete or damaged ({type(error).__name__}: {error}); fetch it again."
        ) from None


def version_by_text(weights: Mapping[str, Tensor]) -> str:
    """sd1, sd2 or sdxl, by the width of the text tokens that cross-attention takes, 768 (and any other), 1024, 2048, or by
    what XL alone is told, the picture's sizes."""
    if any(name.endswith("add_embedding.linear_1.weight") for name in weights):  # its sizes; small ControlNets read no text
        return "sdxl"
    keys = (t.shape[1] for name, t in weights.items() if name.endswith(".attn2.to_k.weight") and t.ndim == 2)
    return {1024: "sd2", 2048: "sdxl"}.get(next(keys, 768), "sd1")
