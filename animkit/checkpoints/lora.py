"""LoRAs on disk: the same pair of matrices under five namings (reference, first diffusers, diffusers/PEFT, kohya,
animkit).

Every naming is brought to (model, layer, half); the layer is then looked up among the layers that the model really
has, so that no widths and no block counts are assumed. kohya and PEFT multiply by their alpha / rank: that is `scale`
in animkit.lora.
"""
from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from animkit.checkpoints.checkpoint import Checkpoint, misfit
from animkit.checkpoints.ldm_names import to_ldm_name
from animkit.checkpoints.motion import to_diffusers_name
from animkit.errors import AnimkitError
from animkit.lora import LoRA

# (how a tensor's name ends, whose naming it is), most telling first; <h> is which half
ENDS = [
    (r"(?:\.processor)?\.(?P<to>to_q|to_k|to_v|to_out)_lora\.(?P<h>down|up)\.weight", "reference"),
    (r"\.lora_linear_layer\.(?P<h>down|up)\.weight", "diffusers"),
    (r"\.lora\.(?P<h>down|up)\.weight", "diffusers"),
    (r"\.lora_(?P<h>down|up)\.weight", "kohya"),
    (r"\.lora_(?P<h>A|B)(?:\.[\w-]+)?\.weight", "PEFT"),
    (r"\.(?P<h>alpha)", "kohya"),
    (r"\.(?P<h>down|up)\.weight", "animkit"),
    (r"\.(?P<h>scale)", "animkit"),
]
ENDS = [(re.compile(pattern + "$"), whose) for pattern, whose in ENDS]
# how a name begins -> which model the layer is in
MODELS = [
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("unet.", "unet"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
    ("diffusion_model.", "unet"),
    ("model.diffusion_model.", "unet"),
]
OTHER_KINDS = {
    "hada_w1": "LoHa",
    "lokr_w1": "LoKr",
    "oft_": "OFT",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "LoCon with a Tucker core",
    "glora": "GLoRA",
    "ia3": "IA3",
    "boft": "BOFT",
    "lora_transformer_": "LoRA for a diffusion transformer",
    "double_blocks": "LoRA for Flux",
    "joint_blocks": "LoRA for Stable Diffusion 3",
}
# what the metadata of animkit's own files says a LoRA is
SAID = {"domainadapter": "domain adapter", "motionlora": "MotionLoRA", "look": "LoRA"}


@dataclass
class Layer:
    """One adapted layer of a file: its two halves, and what the file calls them."""

    name: str
    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None
    scale: float | None = None

    @property
    def factor(self) -> float:
        """What multiplies B A: kohya's alpha / rank, else the file's own scale, else 1."""
        return self.alpha / len(self.down) if self.alpha is not None else 1.0 if self.scale is None else self.scale


def flat(name: str) -> str:
    """kohya writes underscores for dots, and so cannot be taken apart again; every name is compared in this form."""
    return name.replace(".", "_")


def parse(path: Path, weights: Mapping[str, Tensor], metadata: Mapping, config: Mapping = {}) -> tuple[dict, str]:
    """({model: {flat layer name: Layer}}, naming); AnimkitError if a half is missing or a tensor is no LoRA's."""
    models: dict[str, dict[str, Layer]] = {}
    unknown, seen, formats = (
        [],
        {"down": "down", "up": "up", "A": "down", "B": "up", "alpha": "alpha", "scale": "scale"},
        {},
    )
    for key, tensor in weights.items():
        match, format = next(((m, whose) for end, whose in ENDS if (m := end.search(key))), (None, None))
        if match is None:
            unknown.append(key)
            continue
        layer = key[:match.start()] + (f".{match['to']}" if "to" in match.groupdict() else "")
        layer = re.sub(r"^(base_model\.model\.|module\.)+", "", layer)
        model, rest = next(((model, layer[len(p):]) for p, model in MODELS if layer.startswith(p)), ("unet", layer))
        formats[format] = formats.get(format, 0) + 1
        half = seen[match["h"]]
        value = tensor if half in ("down", "up") else float(tensor) if tensor.numel() == 1 else None
        if value is None or (half in ("down", "up") and tensor.ndim not in (2, 4)):
            raise AnimkitError(
                f"{path}: tensor {key} has the shape {tuple(tensor.shape)}, which no LoRA has; the file is damaged."
            )
        setattr(models.setdefault(model, {}).setdefault(flat(rest), Layer(rest)), half, value)
    missing = [f"{layer.name} ({'down' if layer.down is None else 'up'} half)" for layers in models.values()
               for layer in layers.values() if layer.down is None or layer.up is None]
    if unknown or missing:
        raise misfit(
            path,
            "the form of a LoRA",
            missing,
            unknown,
            advice="the file is damaged, or of a kind that animkit does not know.",
        )
    for layers in models.values():
        for layer in layers.values():
            if len(layer.down) != layer.up.shape[1] or len(layer.down) == 0:
                raise AnimkitError(
                    f"{path}: the rank of {layer.name} is {len(layer.down)} in one half and {layer.up.shape[1]} in the "
                    "other; the file is damaged."
                )
    _scale_of_peft(models, metadata, config)
    return models, max(formats, key=formats.get)


def _scale_of_peft(models: Mapping, metadata: Mapping, config: Mapping) -> None:
    """PEFT keeps alpha and rank outside the tensors: in adapter_config.json, or in the metadata that diffusers
    writes."""
    try:
        said = json.loads(metadata.get("lora_adapter_metadata", "null"))
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else {}
    for model, layers in models.items():
        own = {k.removeprefix(f"{model}."): v for k, v in said.items() if k.startswith(f"{model}.")} or dict(config)
        for layer in layers.values():
            if layer.alpha is None and isinstance(own.get("lora_alpha"), (int, float)):
                patterns = own.get("alpha_pattern") or {}
                alpha = next((a for p, a in patterns.items() if layer.name.endswith(p)), own["lora_alpha"])
                layer.alpha = alpha * (len(layer.down) ** 0.5 if own.get("use_rslora") else 1)


class LoRACheckpoint(Checkpoint):
    """A LoRA file of any naming; build() gives the LoRA for a UNet, build_text() that for a text encoder."""

    models: dict[str, dict[str, Layer]]

    def build(self, video_unet: nn.Module | None = None) -> LoRA:
        if video_unet is None:
            raise AnimkitError(
                f"{self.path}: a LoRA is built for a UNet, whose layers give its names; pass one to build()."
            )
        unet, motion = getattr(video_unet, "unet", video_unet), getattr(video_unet, "motion", None)
        on_text = [model for model in self.models if model != "unet"]
        if on_text and not self._for_animator:
            count = sum(len(self.models[model]) for model in on_text)
            warnings.warn(
                f"{self.path.name}: its {count} layers for the text encoder are not used by a UNet alone; insert it"
                " into an Animator to have them too.",
                stacklevel=3,
            )
        if motion is None and self.on_motion:
            raise AnimkitError(
                f"{self.path}: this MotionLoRA acts on a motion module and there is none yet; insert a motion module"
                " first."
            )
        return self._build("unet", [unet, *([motion] if motion is not None else [])])

    def build_text(self, text_encoder: nn.Module, which: str = "text_encoder") -> LoRA | None:
        """The LoRA for a text encoder ("text_encoder", or SDXL's second, "text_encoder_2"); None if the file has
        none."""
        return self._build(which, [text_encoder]) if which in self.models else None

    @property
    def on_motion(self) -> bool:
        return any("motion_modules" in name for name in self.models.get("unet", ()))

    def _build(self, model: str, roots: list[nn.Module]) -> LoRA:
        layers, places = self.models[model], aliases(roots)
        state, scale, homeless, wrong = {}, {}, [], []
        for name, layer in layers.items():
            place = places.get(name)
            if place is None:
                homeless.append(layer.name)
                continue
            path, target = place
            down, up = _in_shape_of(layer.down, target), _in_shape_of(layer.up, target)
            if (up.shape[0], *down.shape[1:]) != tuple(target.weight.shape):
                wrong.append(
                    f"{layer.name} for a weight {(up.shape[0], *down.shape[1:])}, the model's is"
                    f" {tuple(target.weight.shape)}"
                )
                continue
            state[f"{path}.down.weight"], state[f"{path}.up.weight"], scale[path] = down, up, layer.factor
        where = {"unet": "the UNet" if not self.on_motion else "the motion modules"}.get(
            model, f"the {model.replace('_', ' ')}"
        )
        middle = bool(homeless) and all("mid_block.motion_modules" in name for name in homeless)
        if wrong or (homeless and (self.strict or not state)):
            advice = ("it was trained on a v2 motion module, whose middle block this one lacks; open it with "
                      "open_checkpoint(path, strict=False) to use the rest." if middle and not wrong
                      else "was it made for another model (SD 1.x, 2.x, XL, the miniature)?")
            raise misfit(self.path, where, left_over=homeless, misshapen=wrong, advice=advice)
        if homeless:
            why = (
                "it was trained on a v2 module, whose middle block this one lacks"
                if middle
                else f"first: {homeless[0]}"
            )
            warnings.warn(
                f"{self.path.name}: {len(homeless)} of its {len(layers)} layers have no place in {where} and are left"
                f" out ({why}).",
                stacklevel=4,
            )
        return LoRA.from_state_dict(state, scale)


LoRACheckpoint._for_animator = False  # the Animator asks for the text encoder's part itself, so nothing is left unsaid


def _in_shape_of(half: Tensor, target: nn.Module) -> Tensor:
    """A 1x1 convolution's halves for a Linear and the other way round: Stable Diffusion 1 and 2 differ in just this."""
    if target.weight.ndim == 2 and half.ndim == 4 and half.shape[2:] == (1, 1):
        return half.flatten(1)
    return half[:, :, None, None] if target.weight.ndim == 4 and half.ndim == 2 else half


def aliases(roots: Iterable[nn.Module]) -> dict[str, tuple[str, nn.Module]]:
    """Every flat name that some naming gives to a Linear or convolution of `roots` -> (its path, the layer)."""
    table: dict[str, tuple[str, nn.Module]] = {}
    for root in roots:
        per_block = getattr(getattr(root, "config", None), "layers_per_block", None)
        for path, layer in root.named_modules():
            if not isinstance(layer, (nn.Linear, nn.Conv2d)) or ".lora_" in path or path.startswith("lora_"):
                continue
            path = path.replace(".base_layer", "")
            names = [path]
            if "motion_modules." in path:
                names.append(to_diffusers_name(path))
            elif isinstance(per_block, int):
                names.append(to_ldm_name(path, per_block, root))
            if "self_attn." in path or ".mlp." in path:  # CLIP: transformers has dropped `text_model.`, files have not
                names = [*names, path if path.startswith("text_model.") else f"text_model.{path}"]
                for new, old in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
                    names += [name[:-len(new)] + old for name in names if name.endswith(f".{new}")]
            names += [name.removesuffix(".0") for name in names if name.endswith(".to_out.0")]
            for name in names:
                table.setdefault(flat(name), (path, layer))
    return table


def recognise(
    path: Path, weights: dict[str, Tensor], metadata: Mapping, config: Mapping, strict: bool
) -> Checkpoint | None:
    """A LoRACheckpoint if these are a LoRA's weights; names what looks like one and is something else."""
    for sign, kind in OTHER_KINDS.items():
        if any(sign in name for name in weights):
            raise AnimkitError(
                f"{path}: this is a {kind} (a tensor has {sign!r} in its name), not a plain LoRA; animkit's formula is "
                "W + alpha * B A, so take a LoRA, or merge this into its base model with the tool that made it."
            )
    halves = [name for name in weights if any(end.search(name) for end, _ in ENDS)]
    if 2 * len(halves) <= len(weights) or not any(name.endswith(".weight") for name in halves):
        return None
    models, format = parse(path, weights, metadata, config)
    unet, notes = models.get("unet", {}), []
    if not unet:
        count = sum(map(len, models.values()))
        raise AnimkitError(
            f"{path}: this LoRA is for the text encoder alone ({count} layers); it teaches a word, not a look, and"
            " animkit animates looks: take one that was trained on the UNet too."
        )
    motion = [name for name in unet if "motion_modules" in name]
    said = SAID.get(re.sub("[-_ ]", "", metadata.get("kind", "").lower()))
    adapter = all(re.search(r"attn[12]_to_(q|k|v|out)(_0)?$", name) for name in unet) and format in (
        "reference",
        "animkit",
    )
    kind = (
        said
        if said
        else "MotionLoRA" if len(motion) == len(unet) else "domain adapter" if adapter and not motion else "LoRA"
    )
    if kind == "domain adapter" and not said:
        notes.append("a domain adapter's names; the first diffusers LoRAs of looks had the same, and act alike")
    if motion and len(motion) < len(unet):
        notes.append(f"{len(motion)} layers are on the motion module, {len(unet) - len(motion)} on the image UNet")
    for model, name in (("text_encoder", "text encoder"), ("text_encoder_2", "second text encoder")):
        if model in models:
            notes.append(f"{len(models[model])} layers are on the {name}")
    ranks = sorted({len(layer.down) for layers in models.values() for layer in layers.values()})
    scales = sorted({round(layer.factor, 4) for layers in models.values() for layer in layers.values()})
    if scales != [1.0]:
        notes.append(f"alpha / rank: {', '.join(map(str, scales[:4]))}{', ...' if len(scales) > 4 else ''}")
    version = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    checkpoint = LoRACheckpoint(path, weights, kind, version, format, {}, notes, strict)
    checkpoint.models = models
    return checkpoint
