"""Stable Diffusion 1.x, 2.x and XL on disk: one file in the original naming, or a UNet or VAE of diffusers alone."""
from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from animkit.checkpoints.architecture import (
    architecture,
    or_damaged,
    own_settings,
    text_config,
    unet_config,
    vae_config,
    version_by_text,
)
from animkit.checkpoints.checkpoint import Checkpoint, make_module, misfit
from animkit.checkpoints.original_naming import REST, TEXT, UNET, VAE, text_state, unet_state, vae_state
from animkit.checkpoints.refusals import refuse
from animkit.checkpoints.replacement import Replacement
from animkit.checkpoints.tokenizer import clip_tokenizer, padded
from animkit.errors import AnimkitError


class UNetCheckpoint(Checkpoint):
    """The UNet of a whole model, or a UNet alone; inserted, it replaces the base's, as far as alpha says."""

    def unet_state(self) -> dict[str, Tensor]:
        return dict(self.weights) if self.format == "diffusers" else unet_state(self.path, self.weights)

    def unet(self, dtype: torch.dtype | None = None) -> nn.Module:
        """A UNet2DConditionModel with these weights, in the file's dtype or in `dtype`."""
        from diffusers import UNet2DConditionModel

        state = self.unet_state()
        own = own_settings(self.config) if self.format == "diffusers" else {}
        config = own or or_damaged(self.path, "UNet", self.unet_config, state)
        return make_module(self.path, "UNet", UNet2DConditionModel, config, self._hand_out(state), dtype, bool(own))

    def unet_config(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        return {**unet_config(state), "sample_size": architecture(self.version)["unet"]["sample_size"]}

    def build(self, video_unet: nn.Module | None = None) -> Replacement:
        """The UNet's weights in place of those of video_unet's image UNet (a personalised model, fully fine-tuned)."""
        return Replacement(self.path, self._hand_out(self.unet_state()))


class BaseModelCheckpoint(UNetCheckpoint):
    """A whole Stable Diffusion in one file; as a look, its UNet and text encoders act, but the base's VAE stays."""

    def build(self, video_unet: nn.Module | None = None, text_too: bool = False) -> Replacement:
        """As UNetCheckpoint's. text_too: build_text() is called too, so there is no warning about what is left out."""
        if not text_too and any(self.parts[part] for part in TEXT[self.version]):
            self._say_left_out("its text encoder is")
        return super().build(video_unet)

    def check_prediction(self, base: str) -> None:
        """AnimkitError if this model does not predict what a base predicts ("epsilon" or "v_prediction")."""
        own, marked = self.config["prediction"], self.config["marked"]
        if own != base and (marked or self.version != "sd2"):  # SD 2 has both: without a mark, no one knows
            raise AnimkitError(
                f"{self.path}: this model's prediction is {own!r} and the base's is {base!r}; their weights do not mix: "
                "give it as the base, not as a look."
            )

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
        config = CLIPTextConfig(**or_damaged(self.path, part, text_config, state, architecture(self.version)[part]))
        model = CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel
        return make_module(self.path, part, model, config, self._hand_out(state), dtype)

    def vae(self, dtype: torch.dtype | None = None) -> nn.Module:
        """An AutoencoderKL with the file's weights."""
        return _vae(self.path, self._hand_out(vae_state(self.path, self.weights)), self.version, dtype)

    def on_text(self) -> list[str]:
        """The text encoders that the file has."""
        return [part for part in TEXT[self.version] if self.parts[part]]

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
        replacement = Replacement(self.path, self._hand_out(state))
        replacement.pairs(text_encoder)  # before anything changes: does it fit?
        return replacement

    def components(self, dtype: torch.dtype | None = None, tokenizer: Any = None,
                   vae: nn.Module | VAECheckpoint | None = None, prediction: str | None = None) -> dict[str, Any]:
        """Every part of a diffusers pipeline, in the file's dtype or in `dtype`.

        tokenizer: a CLIP tokenizer, or a folder that has one. vae: in place of the file's own. prediction: "epsilon" or
        "v_prediction", if it is not what models of its version usually predict (SD 2.0-base: "epsilon"). Raises
        AnimkitError if a part is missing.
        """
        from diffusers import DDIMScheduler

        missing = [part for part, there in self.parts.items() if not there and not (part == "vae" and vae is not None)]
        if missing:
            raise AnimkitError(
                f"{self.path}: the file has no {' and no '.join(missing)} (a pruned file); take the full one"
                + (", or give Animator, as its base, open_checkpoint(this).pipeline(vae=open_checkpoint(a VAE's file))."
                   if missing == ["vae"] else ".")
            )
        known, made = architecture(self.version), {"unet": self.unet(dtype)}
        vae = vae.vae(dtype, self.version) if isinstance(vae, VAECheckpoint) else vae
        made["vae"] = self.vae(dtype) if vae is None else vae
        for part in TEXT[self.version]:
            made[part] = self.text_encoder(part, dtype)
            which = part.replace("text_encoder", "tokenizer")
            made[which] = (
                padded(tokenizer, known[which]["pad_token"])
                if tokenizer is not None and not isinstance(tokenizer, (str, Path))
                else clip_tokenizer(tokenizer or self.path.parent, known[which]["pad_token"])
            )
            words = len(made[which]) if hasattr(made[which], "__len__") else 0
            if words > made[part].config.vocab_size:
                raise AnimkitError(
                    f"{self.path}: the tokenizer knows {words:,} words and the file's {part.replace('_', ' ')} "
                    f"{made[part].config.vocab_size:,}; give the tokenizer that it was trained with (tokenizer=...)."
                )
        prediction = prediction or self.config["prediction"]
        trained = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if self.config["zero_snr"] else {}
        made["scheduler"] = DDIMScheduler(**{**known["scheduler"], "prediction_type": prediction, **trained})
        return made

    def pipeline(self, dtype: torch.dtype | None = None, **options: Any) -> Any:
        """A StableDiffusionPipeline or StableDiffusionXLPipeline without a safety checker; options as for components()."""
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        parts = self.components(dtype, **options)
        if self.version == "sdxl":
            return StableDiffusionXLPipeline(**parts)
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )


class VAECheckpoint(Checkpoint):
    """A VAE alone. The factor that scales its latents is not in the tensors: it comes from a config beside, or the version."""

    def vae(self, dtype: torch.dtype | None = None, version: str = "sd1") -> nn.Module:
        """An AutoencoderKL with these weights; version: "sd1" (2.x's is the same) or "sdxl", if no config is there."""
        if version not in TEXT:
            raise AnimkitError(f"{self.path}: unknown version {version!r}: choose one of {', '.join(TEXT)}.")
        return _vae(self.path, self._hand_out(vae_state(self.path, self.weights)), version, dtype, self.config)

    def build(self, video_unet: nn.Module | None = None) -> nn.Module:
        raise AnimkitError(f"{self.path}: a VAE is not inserted into a UNet; give it with the base: "
                           "open_checkpoint(base).pipeline(vae=open_checkpoint(this)).")


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
    own = own_settings(config)
    made = own or {**or_damaged(path, "VAE", vae_config, state), **fixed}
    return make_module(path, "VAE", AutoencoderKL, made, state, dtype, bool(own))


def recognise(path: Path, weights: dict[str, Tensor], metadata: Mapping, config: Mapping) -> Checkpoint | None:
    """A checkpoint of a whole Stable Diffusion or a part of it, else None. AnimkitError for models that cannot be animated."""
    refuse(path, weights)
    if any(name.startswith(UNET) for name in weights):
        version = version_of(weights)
        kept = {name: tensor for name, tensor in weights.items() if not REST.match(name)}
        unknown = [name for name in kept if not name.startswith((UNET, VAE, *TEXT[version].values()))]
        if unknown:
            raise misfit(path, f"Stable Diffusion ({version})", left_over=unknown, advice="is it another model?")
        marked = _marked_prediction(weights, metadata)
        common = architecture(version)["scheduler"]["prediction_type"]
        notes, said = [], {"prediction": marked or common, "marked": bool(marked), "zero_snr": "ztsnr" in weights}
        if len(kept) < len(weights):
            ema = sum(name.startswith("model_ema.") for name in weights)
            notes.append(
                f"{len(weights) - len(kept)} tensors of training, or of CLIP's that no picture needs, are left out"
                + (f" ({ema} of them the EMA)" if ema else "")
            )
        notes.append(f"prediction: {said['prediction']}" + (
            ", as SD 2.x at 768; for SD 2.0-base pass prediction=\"epsilon\"" if version == "sd2" else ""))
        return BaseModelCheckpoint(path, kept, "base model", version, "latent diffusion", said, notes)
    if "conv_in.weight" in weights and any(name.startswith("down_blocks.0.resnets.") for name in weights):
        version = version_by_text(weights)
        return UNetCheckpoint(path, weights, "UNet", version, "diffusers", dict(config))
    if any(name.removeprefix(VAE) == "decoder.conv_in.weight" for name in weights):
        naming = "diffusers" if any(".down_blocks." in name for name in weights) else "latent diffusion"
        other = [n for n in weights if not n.startswith(VAE) and not REST.match(n)]
        if other and f"{VAE}decoder.conv_in.weight" in weights:
            raise misfit(path, "a VAE alone", left_over=other, advice="where is its UNet?")
        notes = [] if config else ["as SD 1.x's and 2.x's; with a base of XL, or by .vae(version=\"sdxl\"), as XL's"]
        return VAECheckpoint(path, weights, "VAE", "sd1", naming, dict(config), notes)
    return None


def version_of(weights: Mapping[str, Tensor]) -> str:
    """sd1, sd2 or sdxl, by the text encoders that a single file holds, or the width of text that its UNet takes."""
    if f"{UNET}label_emb.0.0.weight" in weights or any(name.startswith("conditioner.") for name in weights):
        return "sdxl"
    if any(name.startswith("cond_stage_model.model.") for name in weights):
        return "sd2"
    return version_by_text(weights)


def _marked_prediction(weights: Mapping[str, Tensor], metadata: Mapping) -> str | None:
    """What the UNet predicts, by the marks that trainers leave; None without one."""
    said = str(metadata.get("modelspec.prediction_type", "")).lower()
    if "v_pred" in weights or said in ("v", "v_prediction"):
        return "v_prediction"
    return "epsilon" if said == "epsilon" else None
