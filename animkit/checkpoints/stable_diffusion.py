"""Stable Diffusion 1.x, 2.x and XL on disk: one file in the original latent-diffusion naming, or a UNet or VAE of
diffusers.

The renaming is diffusers' own (diffusers.loaders.single_file_utils); which model it is and how wide its layers are is
read off the tensors; what tensors do not show (heads, scheduler) stands in architectures/*.json. Nothing is asked of a
hub.
"""
from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import single_file_utils as ldm
from torch import Tensor, nn

from animkit.checkpoints.checkpoint import Checkpoint, fit, misfit
from animkit.checkpoints.replacement import Replacement
from animkit.checkpoints.tokenizer import clip_tokenizer
from animkit.errors import AnimkitError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = {
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
# What training and other programs leave in such files, and no part of the model is made of.
REST = re.compile(
    r"(model_ema\.|loss\.|first_stage_model\.loss\.|denoiser\.|.*\.position_ids$|.*\.(logit_scale|attn_mask)$|"
    r"(sqrt_|log_one_minus_)?(recip(m1)?_)?(one_minus_)?alphas_cumprod|betas$|alphas_cumprod_prev$|"
    r"sqrt_recipm?1?_alphas_cumprod$|posterior_|lvlb_weights$|logvar$|scale_factor$|v_pred$|ztsnr$)"
)


@cache
def architecture(version: str) -> dict[str, Any]:
    """The full-size configs of "sd1", "sd2" or "sdxl", part by part, as diffusers and transformers take them."""
    return json.loads((files("animkit.checkpoints") / "architectures" / f"{version}.json").read_text())


# ------------------------------------------------------------------------------------- what the tensors themselves show
def _count(state: Mapping[str, Tensor], before: str) -> int:
    """How many numbers follow `before` in the names: _count(state, "down_blocks.") -> 4."""
    return len({name[len(before):].split(".")[0] for name in state if name.startswith(before)})


def unet_config(state: Mapping[str, Tensor], pooled: int | None = None) -> dict[str, Any]:
    """UNet2DConditionModel's config, read off its weights (also a ControlNet's share of it). pooled: the second text
    encoder's width, which SDXL's added condition holds beside six embedded sizes."""
    down = range(_count(state, "down_blocks."))
    widths = [state[f"down_blocks.{i}.resnets.0.conv2.weight"].shape[0] for i in down]
    cross = [_count(state, f"down_blocks.{i}.attentions.") > 0 for i in down]
    attention = next(name for name in state if name.endswith(".attn2.to_k.weight"))
    depth = [max(1, _count(state, f"down_blocks.{i}.attentions.0.transformer_blocks.")) for i in down]
    linear = state[f"{attention.split('.transformer_blocks')[0]}.proj_in.weight"].ndim == 2
    layers = [_count(state, f"down_blocks.{i}.resnets.") for i in down]
    config = {
        "block_out_channels": widths,
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "down_block_types": ["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross],
        "cross_attention_dim": state[attention].shape[1],
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
        up = range(_count(state, "up_blocks."))
        config["up_block_types"] = [
            "CrossAttnUpBlock2D" if _count(state, f"up_blocks.{i}.attentions.") else "UpBlock2D" for i in up
        ]
        config["out_channels"] = state["conv_out.weight"].shape[0]
    return config


def vae_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """AutoencoderKL's config, read off its weights."""
    levels = range(_count(state, "encoder.down_blocks."))
    widths = [state[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in levels]
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": _count(state, "encoder.down_blocks.0.resnets."),
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "norm_num_groups": math.gcd(32, *widths),
        "mid_block_add_attention": any("mid_block.attentions" in name for name in state),
    }


def text_config(state: Mapping[str, Tensor], full: Mapping[str, Any]) -> dict[str, Any]:
    """CLIP's text config, read off its weights (names without `text_model.`); `full`: the full-size one, for the
    rest."""
    vocabulary, c = state["embeddings.token_embedding.weight"].shape
    config = {**full, "vocab_size": vocabulary, "hidden_size": c, "num_attention_heads": max(1, c // 64),
              "max_position_embeddings": len(state["embeddings.position_embedding.weight"]),
              "num_hidden_layers": _count(state, "encoder.layers."),
              "intermediate_size": len(state["encoder.layers.0.mlp.fc1.weight"])}
    if "text_projection.weight" in state:
        config["projection_dim"] = len(state["text_projection.weight"])
    return config


# ------------------------------------------------------------------------------------------------- one part at a time
def _layers_per_block(weights: Mapping[str, Tensor], prefix: str) -> int:
    rows = _count(weights, f"{prefix}input_blocks.")
    return next((i for i in range(1, rows) if f"{prefix}input_blocks.{i}.0.op.weight" in weights), rows) - 1


def _one_to_one(path: Path, part: str, source: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """diffusers' renaming drops what it does not know, without a word; a renaming is complete when every tensor is
    still there."""
    kept = {tensor.data_ptr() for tensor in state.values()}
    lost = [name for name, tensor in source.items() if tensor.data_ptr() not in kept]
    if lost:
        raise misfit(path, f"the {part} of Stable Diffusion", left_over=lost)


def unet_state(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet of a single file, under diffusers' names."""
    source = {name: tensor for name, tensor in weights.items() if name.startswith(UNET)}
    config = {"layers_per_block": _layers_per_block(source, UNET), "class_embed_type": None,
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
    levels = _count(source, f"{prefix}encoder.down.")
    config = {"down_block_types": [""] * levels, "up_block_types": [""] * levels}
    state = _renamed(path, "VAE", lambda: ldm.convert_ldm_vae_checkpoint(source, config))
    _one_to_one(path, "VAE", source, state)
    return state


def text_state(path: Path, weights: Mapping[str, Tensor], version: str, part: str) -> dict[str, Tensor]:
    """A text encoder of a single file, under transformers' names without the leading `text_model.`."""
    prefix = TEXT[version][part]
    source = {name: tensor for name, tensor in weights.items() if name.startswith(prefix) and not REST.match(name)}
    if prefix.endswith("model."):  # OpenCLIP's naming
        if version == "sd2":  # conditions on the last layer but one
            last = _count(source, f"{prefix}transformer.resblocks.") - 1
            source = {name: tensor for name, tensor in source.items()
                      if f".resblocks.{last}." not in name and not name.endswith("text_projection")}
        width = nn.Module()
        width.config = type("Config", (), {"hidden_size": source[f"{prefix}token_embedding.weight"].shape[1]})
        state = _renamed(path, "text encoder", lambda: ldm.convert_open_clip_checkpoint(width, source, prefix))
    else:
        state = _renamed(path, "text encoder", lambda: ldm.convert_ldm_clip_checkpoint(source))
        _one_to_one(path, "text encoder", source, state)
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}


def _renamed(path: Path, part: str, rename: Callable[[], dict]) -> dict[str, Tensor]:
    try:
        state = rename()
    except (KeyError, AttributeError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise AnimkitError(
            f"{path}: its {part} is incomplete or damaged ({type(error).__name__}: {error}); fetch it again."
        ) from None
    absent = [name for name, tensor in state.items() if tensor is None]
    if absent:
        raise misfit(path, f"the {part} of Stable Diffusion", missing=absent, advice="fetch it again.")
    return state


def _make(
    path: Path, part: str, model: type, config: Any, state: Mapping[str, Tensor], dtype: torch.dtype | None
) -> nn.Module:
    """The part on no memory of its own, then the file's tensors in their places, cast one at a time if another dtype
    is asked."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        module = model.from_config(config) if hasattr(model, "from_config") else model(config)
    if any(name.startswith("text_model.") for name in module.state_dict()):  # transformers has it with and without
        state = {
            name if name.startswith("text_projection") else f"text_model.{name}": tensor
            for name, tensor in state.items()
        }
    fit(path, module, {name: tensor.to(dtype or tensor.dtype) for name, tensor in state.items()},
        advice="its structure is not that of Stable Diffusion 1.x, 2.x or XL.")
    return module


class UNetCheckpoint(Checkpoint):
    """The UNet of a whole model, or a UNet alone; inserted, it takes the place of the base's, by alpha."""

    def unet_state(self) -> dict[str, Tensor]:
        return dict(self.weights) if self.format == "diffusers" else unet_state(self.path, self.weights)

    def unet(self, dtype: torch.dtype | None = None) -> nn.Module:
        """A UNet2DConditionModel with these weights, in the file's dtype or in `dtype`."""
        from diffusers import UNet2DConditionModel

        state = self.unet_state()
        return _make(self.path, "UNet", UNet2DConditionModel, self.unet_config(state), self._hand_out(state), dtype)

    def unet_config(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        own = {k: v for k, v in self.config.items() if not k.startswith("_")}
        return own or {**unet_config(state), "sample_size": architecture(self.version)["unet"]["sample_size"]}

    def build(self, video_unet: nn.Module | None = None) -> Replacement:
        """The UNet's weights in place of those of video_unet's image UNet (a personalised model, fully fine-tuned)."""
        return Replacement(self.path, self._hand_out(self.unet_state()))


class BaseModelCheckpoint(UNetCheckpoint):
    """A whole Stable Diffusion in one file."""

    @property
    def parts(self) -> dict[str, bool]:
        """Which parts the file holds: {"unet": True, "vae": True, "text_encoder": True, ...}."""
        prefixes = {"unet": UNET, "vae": VAE, **TEXT[self.version]}
        return {part: any(name.startswith(prefix) for name in self.weights) for part, prefix in prefixes.items()}

    def unet_config(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        pooled = next(
            (len(t.T) for name, t in self.weights.items() if name.endswith("embedders.1.model.text_projection")), None
        )
        return {**unet_config(state, pooled), **{k: v for k, v in architecture(self.version)["unet"].items()
                                                 if k in ("sample_size", "upcast_attention")}}

    def text_encoder(self, part: str = "text_encoder", dtype: torch.dtype | None = None) -> nn.Module:
        """A CLIPTextModel (with its projection for SDXL's second) with the file's weights."""
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        state = text_state(self.path, self.weights, self.version, part)
        config = CLIPTextConfig(**text_config(state, architecture(self.version)[part]))
        model = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
        return _make(self.path, part, model, config, self._hand_out(state), dtype)

    def vae(self, dtype: torch.dtype | None = None) -> nn.Module:
        """An AutoencoderKL with the file's weights."""
        return _vae(self.path, self._hand_out(vae_state(self.path, self.weights)), self.version, dtype)

    def build_text(self, text_encoder: nn.Module, which: str = "text_encoder") -> Replacement | None:
        """The text encoder's weights in place of `text_encoder`'s; None if the file has none."""
        if not self.parts.get(which):
            return None
        state = text_state(self.path, self.weights, self.version, which)
        if any(name.startswith("text_model.") for name in text_encoder.state_dict()):
            state = {
                name if name.startswith("text_projection") else f"text_model.{name}": tensor
                for name, tensor in state.items()
            }
        return Replacement(self.path, state)

    def components(self, dtype: torch.dtype | None = None, tokenizer: Any = None, vae: nn.Module | None = None,
                   prediction: str | None = None) -> dict[str, Any]:
        """Every part of a diffusers pipeline, in the file's dtype or in `dtype`.

        tokenizer: a CLIP tokenizer, or a folder that has one. prediction: "epsilon" or "v_prediction" if the file was
        trained otherwise than its version commonly is (SD 2.0-base: "epsilon"). Raises AnimkitError if a part is
        missing.
        """
        from diffusers import DDIMScheduler

        missing = [part for part, there in self.parts.items() if not there and not (part == "vae" and vae is not None)]
        if missing:
            raise AnimkitError(
                f"{self.path}: the file has no {' and no '.join(missing)} (a pruned file); take the full one"
                + (", or pass vae=." if "vae" in missing else ".")
            )
        known, made = architecture(self.version), {"unet": self.unet(dtype), "vae": vae or self.vae(dtype)}
        for part in TEXT[self.version]:
            made[part] = self.text_encoder(part, dtype)
            which = part.replace("text_encoder", "tokenizer")
            made[which] = (
                tokenizer
                if tokenizer is not None and not isinstance(tokenizer, (str, Path))
                else clip_tokenizer(tokenizer or self._tokenizer_beside(), known[which]["pad_token"])
            )
        prediction = prediction or (
            "v_prediction" if "v_pred" in self.weights else known["scheduler"]["prediction_type"]
        )
        made["scheduler"] = DDIMScheduler(**{**known["scheduler"], "prediction_type": prediction})
        return made

    def _tokenizer_beside(self) -> Path | None:
        return (
            self.path.parent
            if (self.path.parent / "tokenizer").is_dir() or (self.path.parent / "vocab.json").is_file()
            else None
        )

    def pipeline(self, dtype: torch.dtype | None = None, **options: Any) -> Any:
        """A StableDiffusionPipeline, or a StableDiffusionXLPipeline, without a safety checker; options as for
        components()."""
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        parts = self.components(dtype, **options)
        if self.version == "sdxl":
            return StableDiffusionXLPipeline(**parts)
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )


class VAECheckpoint(Checkpoint):
    """A VAE alone."""

    def vae(self, dtype: torch.dtype | None = None) -> nn.Module:
        return _vae(self.path, self._hand_out(vae_state(self.path, self.weights)), self.version, dtype, self.config)

    def build(self, video_unet: nn.Module | None = None) -> nn.Module:
        raise AnimkitError(f"{self.path}: a VAE is not inserted into a UNet; give it with the base: "
                           "open_checkpoint(base).pipeline(vae=open_checkpoint(this).vae()).")


class ControlNetCheckpoint(Checkpoint):
    """A ControlNet, in diffusers' or the original naming."""

    def build(self, video_unet: nn.Module | None = None, dtype: torch.dtype | None = None) -> nn.Module:
        """A diffusers ControlNetModel, to be given to the Animator (5.4); it stands beside the UNet, not in it."""
        from diffusers import ControlNetModel

        state = _controlnet_state(self.path, self.weights)
        hints = range(_count(state, "controlnet_cond_embedding.blocks."))
        widths = [state[f"controlnet_cond_embedding.blocks.{i}.weight"].shape[0] for i in hints if i % 2 == 1]
        config = {**unet_config(state), "conditioning_embedding_out_channels": [
            state["controlnet_cond_embedding.conv_in.weight"].shape[0], *widths],
            "conditioning_channels": state["controlnet_cond_embedding.conv_in.weight"].shape[1]}
        own = {k: v for k, v in self.config.items() if not k.startswith("_")}
        return _make(self.path, "ControlNet", ControlNetModel, own or config, self._hand_out(state), dtype)


def _controlnet_state(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if any(name.startswith("controlnet_down_blocks.") for name in weights):
        return dict(weights)
    # a whole SD beside it (as the first ControlNets came) is not the ControlNet's; diffusers strips the prefix only
    # from some
    source = {
        n.removeprefix("control_model."): t for n, t in weights.items() if n.startswith("control_model.")
    } or dict(weights)
    config = {"layers_per_block": _layers_per_block(source, "")}
    state = _renamed(path, "ControlNet", lambda: ldm.convert_controlnet_checkpoint(source, config))
    _one_to_one(path, "ControlNet", source, state)
    return state


def _vae(
    path: Path, state: Mapping[str, Tensor], version: str, dtype: torch.dtype | None, config: Mapping = {}
) -> nn.Module:
    from diffusers import AutoencoderKL

    # before 0.15 diffusers had other names for the same tensors of the middle attention
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    state = {
        re.sub(
            r"(mid_block\.attentions\.0\.)(query|key|value|proj_attn)\.", lambda m: f"{m[1]}{old[m[2]]}.", name
        ): tensor
        for name, tensor in state.items()
    }
    full = architecture(version)["vae"]
    fixed = {key: full[key] for key in ("sample_size", "scaling_factor", "force_upcast") if key in full}
    own = {k: v for k, v in config.items() if not k.startswith("_")}
    return _make(path, "VAE", AutoencoderKL, own or {**vae_config(state), **fixed}, state, dtype)


def recognise(path: Path, weights: dict[str, Tensor], metadata: Mapping, config: Mapping) -> Checkpoint | None:
    """A checkpoint of a whole Stable Diffusion or one of its parts; refuses, by name, the models that cannot be
    animated."""
    _refuse(path, weights)
    notes = [f"prediction: {metadata['modelspec.prediction_type']}"] if "modelspec.prediction_type" in metadata else []
    make = lambda cls, kind, version, naming, kept: cls(
        path, kept, kind, version, naming, dict(config), notes
    )  # noqa: E731
    if any(
        name.startswith("control_model.") or "controlnet_down_blocks." in name or name.startswith("input_hint_block.")
        for name in weights
    ):
        cross = _width_of_text(weights)
        naming = "diffusers" if any("controlnet_down_blocks." in name for name in weights) else "latent diffusion"
        return make(ControlNetCheckpoint, "ControlNet", _by_text(cross), naming, weights)
    if any(name.startswith(UNET) for name in weights):
        version = (
            "sdxl"
            if any(name.startswith("conditioner.") for name in weights) or f"{UNET}label_emb.0.0.weight" in weights
            else (
                "sd2"
                if any(name.startswith("cond_stage_model.model.") for name in weights)
                or _width_of_text(weights) == 1024
                else "sd1"
            )
        )
        kept = {name: tensor for name, tensor in weights.items() if not REST.match(name)}
        unknown = [name for name in kept if not name.startswith((UNET, VAE, *TEXT[version].values()))]
        if unknown:
            raise misfit(path, f"Stable Diffusion ({version})", left_over=unknown, advice="is it another model?")
        if len(kept) < len(weights):
            ema = sum(name.startswith("model_ema.") for name in weights)
            notes.append(
                f"{len(weights) - len(kept)} tensors of training are left out"
                + (f" ({ema} of them the EMA)" if ema else "")
            )
        if version == "sd2":
            notes.append("v_prediction is taken, as of SD 2.x at 768; for SD 2.0-base pass prediction=\"epsilon\"")
        return make(BaseModelCheckpoint, "base model", version, "latent diffusion", kept)
    if "conv_in.weight" in weights and any(name.startswith("down_blocks.0.resnets.") for name in weights):
        version = "sdxl" if "add_embedding.linear_1.weight" in weights else _by_text(_width_of_text(weights))
        return make(UNetCheckpoint, "UNet", version, "diffusers", weights)
    if any(name.removeprefix(VAE) == "decoder.conv_in.weight" for name in weights):
        naming = "diffusers" if any(".down_blocks." in name for name in weights) else "latent diffusion"
        return make(VAECheckpoint, "VAE", "sd1", naming, weights)
    return None


def _width_of_text(weights: Mapping[str, Tensor]) -> int | None:
    return next(
        (
            tensor.shape[1]
            for name, tensor in weights.items()
            if name.endswith(".attn2.to_k.weight") and tensor.ndim == 2
        ),
        None,
    )


def _by_text(width: int | None) -> str:
    return {1024: "sd2", 2048: "sdxl"}.get(width, "sd1")


def _refuse(path: Path, weights: Mapping[str, Tensor]) -> None:
    def channels(*names: str, side: int) -> int | None:
        return next((weights[n].shape[side] for n in names if n in weights and weights[n].ndim == 4), None)

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
    signs = {
        "conditioner.embedders.0.model.transformer.": "the SDXL refiner, which only finishes what the base model drew",
        ".joint_blocks.": "Stable Diffusion 3, a transformer without the UNet that motion modules live in",
        "double_blocks.": "Flux, a transformer without the UNet that motion modules live in",
        "string_to_param": "a textual inversion (one word's embedding)",
        "emb_params": "a textual inversion (one word's embedding)",
        "text_model.encoder.layers.": "a text encoder alone",
        "image_proj": "an IP-Adapter; load it with diffusers into the UNet",
        "condition_encoder": "a SparseCtrl encoder",
        "model.diffusion_model.time_stack": "Stable Video Diffusion",
        ".time_stack.": "Stable Video Diffusion, which has temporal layers of its own",
    }
    whole = any(name.startswith(UNET) for name in weights)
    for sign, what in signs.items():
        hit = any(sign in f".{name}" for name in weights)
        if hit and not (whole and sign == "text_model.encoder.layers.") and not any("lora" in name for name in weights):
            raise AnimkitError(
                f"{path}: this is {what}; animkit inserts motion modules, LoRAs and Stable Diffusion 1.x, 2.x and XL."
            )
