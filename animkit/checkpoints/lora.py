"""LoRAs on disk: the same pair of matrices in five namings (reference, first diffusers, diffusers/PEFT, kohya, animkit).

Every name is read as (model, layer, half). The layer is then looked up among the layers that the model really has, so
no widths or block counts are assumed. kohya and PEFT multiply by their alpha / rank, which animkit.lora calls `scale`.
"""
from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from animkit.checkpoints.checkpoint import Checkpoint, check_numbers, first_ten, misfit
from animkit.checkpoints.ldm_names import to_ldm_name
from animkit.checkpoints.motion import to_diffusers_name
from animkit.checkpoints.settings import number, read_table
from animkit.errors import AnimkitError
from animkit.lora import Attachment, LoRA
from animkit.motion_module import MotionModules

# (how a tensor's name ends, whose naming that is), the most specific first; <h>: which half
ENDS = [
    (r"(?:\.processor)?\.(?P<to>\w+)_lora\.(?P<h>down|up)\.weight", "reference"),  # MotionDirector: 0_lora, proj_lora
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
}
OTHER_BASES = {"double_blocks": "Flux", "joint_blocks": "Stable Diffusion 3"}  # LoRAs for these; the models: refusals.py
PROJECTION = re.compile(r"(attn[12]_to_(?:q|k|v|out))(?:_0)?$")  # where a domain adapter has its layers (4.1)
MIDDLE = "mid_block.motion_modules.0"
# `kind` in the metadata of animkit's own files -> the checkpoint's kind
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
    """Underscores for dots, as kohya writes names. This cannot be undone, so all names are compared in this form."""
    return name.replace(".", "_")


def parse(path: Path, weights: Mapping[str, Tensor], metadata: Mapping, config: Mapping = {}) -> tuple[dict, str]:
    """({model: {flat layer name: Layer}}, naming); AnimkitError if a half or alpha is missing, or a tensor is not a LoRA's."""
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
        layer = layer.removeprefix("base_model.model.")
        model, rest = next(((model, layer[len(p):]) for p, model in MODELS if layer.startswith(p)), ("unet", layer))
        if model == "unet" and rest.startswith("text_model."):  # a file of PEFT's with a text encoder alone
            model = "text_encoder"
        formats[format] = formats.get(format, 0) + 1
        half = seen[match["h"]]
        value = tensor if half in ("down", "up") else float(tensor) if tensor.numel() == 1 else None
        if value is None or (half in ("down", "up") and tensor.ndim not in (2, 4)):
            raise AnimkitError(
                f"{path}: tensor {key} has the shape {tuple(tensor.shape)}, which no LoRA has; the file is damaged."
            )
        if half in ("down", "up"):
            check_numbers(path, {key: tensor})
        elif not math.isfinite(value):
            raise AnimkitError(f"{path}: tensor {key} is {value}; the file is damaged.")
        place = models.setdefault(model, {}).setdefault(flat(rest), Layer(rest))
        if getattr(place, half) is not None:
            raise AnimkitError(f"{path}: it has layer {rest} twice (the second is {key}): two LoRAs in one file; save "
                               "the one you mean alone.")
        setattr(place, half, value)
    missing = [f"{layer.name} ({'down' if layer.down is None else 'up'} half)" for layers in models.values()
               for layer in layers.values() if layer.down is None or layer.up is None]
    for layers in models.values():  # all of a model's layers have an alpha of their own, or none has
        without = [layer.name for layer in layers.values() if layer.alpha is None]
        missing += [f"{name} (alpha)" for name in without if len(without) < len(layers)]
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
            if len(layer.down) != layer.up.shape[1]:
                raise AnimkitError(
                    f"{path}: the rank of {layer.name} is {len(layer.down)} in one half and {layer.up.shape[1]} in the "
                    "other; the file is damaged."
                )
    _scale_of_peft(path, models, metadata, config)
    return models, max(formats, key=formats.get)


def _scale_of_peft(path: Path, models: Mapping, metadata: Mapping, config: Mapping) -> None:
    """PEFT keeps alpha and rank outside the tensors: in adapter_config.json, or in the metadata that diffusers writes."""
    what = "lora_adapter_metadata"
    said = read_table(path, metadata[what], f"its metadata ({what})") if what in metadata else {}
    for model, layers in models.items():
        own = {k.removeprefix(f"{model}."): v for k, v in said.items() if k.startswith(f"{model}.")} or dict(config)
        patterns = own.get("alpha_pattern") or {}
        if not isinstance(patterns, Mapping):
            raise AnimkitError(f"{path}: its setting alpha_pattern is {patterns!r:.80}, not a table; fetch it again.")
        for layer in layers.values():
            if layer.alpha is None and own.get("lora_alpha") is not None:
                alpha = next((a for p, a in patterns.items() if _is_of(path, p, layer.name)), own["lora_alpha"])
                root = len(layer.down) ** 0.5 if own.get("use_rslora") else 1
                layer.alpha = number(path, "lora_alpha", alpha) * root


def _is_of(path: Path, pattern: str, name: str) -> bool:
    """Whether a layer's name matches, or ends in a match of, an entry of alpha_pattern. PEFT takes it as a regular
    expression. One from a file that cannot be trusted may run for ever, so nothing in it may repeat."""
    if not re.fullmatch(r"\^?(?:[\w-]|\\?\.)+\$?", pattern):
        raise AnimkitError(f"{path}: its setting alpha_pattern has {pattern!r:.80}, which is no layer's name; save the "
                           "LoRA with one alpha, or with its layers' names written out.")
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


class PartialLoRA(LoRA):
    """A LoRA whose `optional` layers act only where the model has them: a v2 MotionLoRA, opened with strict=False, whose
    middle block v1 and v3 do not have. It keeps all its layers, so it can be moved between v2 and v1 or v3."""

    path: Path
    optional: frozenset[str] = frozenset()

    def layers_in(self, *roots: nn.Module) -> dict[str, nn.Module]:
        there = {path for root in roots for path, _ in root.named_modules()}
        return {path: self._layer(path, roots) for path in self.paths if path in there or path not in self.optional}

    def attach(self, *roots: nn.Module, alpha: float = 1.0) -> Attachment:
        work = super().attach(*roots, alpha=alpha)
        left_out = len(self.paths) - len(work.layers)
        if left_out:
            warnings.warn(
                f"{self.path.name}: {left_out} of its {len(self.paths)} layers have no place in the motion modules and"
                " are left out (it was trained on a v2 module, whose middle block this one lacks).",
                stacklevel=4,
            )
        return work


class LoRACheckpoint(Checkpoint):
    """A LoRA file of any naming; build() gives the LoRA for a UNet, build_text() the LoRA for a text encoder."""

    models: dict[str, dict[str, Layer]]

    def build(self, video_unet: nn.Module | None = None, text_too: bool = False) -> LoRA:
        """The LoRA for a UNet and the motion modules in it. text_too: build_text() is called too, so there is no warning
        about the layers that a UNet leaves out. Raises AnimkitError if it does not fit."""
        if video_unet is None:
            raise AnimkitError(
                f"{self.path}: a LoRA is built for a UNet, whose layers give its names; pass one to build()."
            )
        unet, motion = getattr(video_unet, "unet", video_unet), getattr(video_unet, "motion", None)
        if self.on_text() and not text_too:
            count = sum(len(self.models[model]) for model in self.on_text())
            self._say_left_out(f"its {count} layers for the text encoder are")
        if motion is None and self.on_motion:
            raise AnimkitError(
                f"{self.path}: this MotionLoRA acts on a motion module and there is none yet; insert a motion module"
                " first."
            )
        return self._build("unet", [unet, *([motion] if motion is not None else [])])

    def build_text(self, text_encoder: nn.Module, which: str = "text_encoder") -> LoRA | None:
        """The LoRA for a text encoder ("text_encoder", or SDXL's second, "text_encoder_2"); None if the file has none."""
        return self._build(which, [text_encoder]) if which in self.models else None

    def on_text(self) -> list[str]:
        """The text encoders that the file has layers for."""
        return [model for model in self.models if model != "unet"]

    @property
    def on_motion(self) -> bool:
        return any("motion_modules" in name for name in self.models.get("unet", ()))

    def _build(self, model: str, roots: list[nn.Module]) -> LoRA:
        layers, places = self.models[model], aliases(roots)
        middle = {} if self.strict else _middle_block(roots)
        state, scale, homeless, wrong = {}, {}, [], []
        for name, layer in layers.items():
            path, target = places.get(name) or middle.get(name) or (None, None)
            if path is None:
                homeless.append(layer.name)
                continue
            down, up = _in_shape_of(layer.down, target), _in_shape_of(layer.up, target)
            if target is not None and (up.shape[0], *down.shape[1:]) != tuple(target.weight.shape):
                wrong.append(
                    f"{layer.name} for a weight {(up.shape[0], *down.shape[1:])}, the model's is"
                    f" {tuple(target.weight.shape)}"
                )
                continue
            state[f"{path}.down.weight"], state[f"{path}.up.weight"], scale[path] = down, up, layer.factor
        where = {"unet": "the UNet" if not self.on_motion else "the motion modules"}.get(
            model, f"the {model.replace('_', ' ')}"
        )
        if wrong or (homeless and (self.strict or not state)):
            only_middle = all("mid_block.motion_modules" in name for name in homeless) and not wrong
            advice = ("it was trained on a v2 motion module, whose middle block this one lacks; open it with "
                      "open_checkpoint(path, strict=False) to use the rest." if only_middle
                      else "was it made for another model (SD 1.x, 2.x, XL, the miniature)?")
            raise misfit(self.path, where, left_over=homeless, misshapen=wrong, advice=advice, noun="layer")
        if homeless:
            warnings.warn(
                f"{self.path.name}: {len(homeless)} of its {len(layers)} layers have no place in {where} and are left"
                f" out: {first_ten(homeless)}.",
                stacklevel=4,
            )
        optional = frozenset(path for path, _ in middle.values() if f"{path}.down.weight" in state)
        if not optional:
            return LoRA.from_state_dict(state, scale)
        lora = PartialLoRA.from_state_dict(state, scale)
        lora.path, lora.optional = self.path, optional
        return lora


def _middle_block(roots: list[nn.Module]) -> dict[str, tuple[str, None]]:
    """Flat names of the layers that a motion module in the middle block has or would have -> (path, None); {} without
    motion modules."""
    motion = next((root for root in roots if isinstance(root, MotionModules)), None)
    if motion is None:
        return {}
    site = next(iter(motion.sites))
    return {
        name.replace(flat(site), flat(MIDDLE), 1): (path.replace(site, MIDDLE, 1), None)
        for name, (path, _) in aliases([motion]).items()
        if path.startswith(f"{site}.")
    }


def _in_shape_of(half: Tensor, target: nn.Module | None) -> Tensor:
    """A 1x1 convolution's half for a Linear, or the reverse: Stable Diffusion 1 and 2 differ in just this."""
    if target is None:
        return half
    if target.weight.ndim == 2 and half.ndim == 4 and half.shape[2:] == (1, 1):
        return half.flatten(1)
    return half[:, :, None, None] if target.weight.ndim == 4 and half.ndim == 2 else half


def aliases(roots: Iterable[nn.Module]) -> dict[str, tuple[str, nn.Module]]:
    """Every flat name that any naming gives a Linear or convolution of `roots` -> (its path, the layer)."""
    table: dict[str, tuple[str, nn.Module]] = {}
    for root in roots:
        per_block = getattr(getattr(root, "config", None), "layers_per_block", None)
        for path, layer in root.named_modules():
            if not isinstance(layer, (nn.Linear, nn.Conv2d)):
                continue
            path = path.replace(".base_layer", "")
            names = [path]
            if "motion_modules." in path:
                names.append(to_diffusers_name(path))
            elif isinstance(per_block, int):
                names.append(to_ldm_name(path, per_block, root))
            if "self_attn." in path or ".mlp." in path:  # CLIP: files have `text_model.`, new transformers not
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
    """A LoRACheckpoint if these are a LoRA's weights, else None. AnimkitError for what only looks like one: it says what."""
    for sign, kind in OTHER_KINDS.items():
        if any(sign in name for name in weights):
            raise AnimkitError(
                f"{path}: this is a {kind} (a tensor has {sign!r} in its name), not a plain LoRA; animkit's formula is "
                "W + alpha * B A, so take a LoRA, or merge this into its base model with the tool that made it."
            )
    for sign, base in OTHER_BASES.items():
        if any(sign in name for name in weights) and any("lora" in name for name in weights):
            raise AnimkitError(f"{path}: this is a LoRA for {base}, a transformer without the UNet that motion modules live "
                               "in; take one for Stable Diffusion 1.x, 2.x or XL.")
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
    places = {match[1] if (match := PROJECTION.search(name)) else "" for name in unet}
    adapter = "" not in places and not motion
    named_so = adapter and format in ("reference", "animkit")
    kind = said or ("MotionLoRA" if len(motion) == len(unet) else "domain adapter" if named_so else "LoRA")
    if kind == "domain adapter" and not said:
        notes.append("a domain adapter's names; the first diffusers LoRAs of looks had the same, and act alike")
    elif kind == "LoRA" and not said and adapter and len(places) == 8 and len(models) == 1:
        notes.append("a look, or a domain adapter: in this naming the two are alike, and act alike")
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
