"""Saves what was trained here so that other programs load it: in the reference's, diffusers', kohya's or our naming."""
from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from animkit.checkpoints.motion import read_off, to_diffusers, to_diffusers_name
from animkit.errors import AnimkitError
from animkit.files import apart, save_folder, write_atomically
from animkit.lora import LoRA
from animkit.motion_module import MotionModules

LORA_FORMATS = ("reference", "diffusers", "kohya", "animkit")


def save_checkpoint(part: MotionModules | LoRA, path: str | Path, format: str = "reference", *, kind: str | None = None,
                    text_encoder: LoRA | None = None) -> Path:
    """Writes motion modules or a LoRA as other programs expect them; -> the path. Tensors keep their bits and dtype; only a
    LoRA's scale, if it is not 1, is multiplied into `up` where a naming has no place for it (reference, diffusers).

    MotionModules: "reference" (a .ckpt as released, or .safetensors) or "diffusers" (a MotionAdapter's folder).
    LoRA: "reference" (AnimateDiff's), "diffusers" (PEFT names), "kohya" (with alpha) or "animkit" (.safetensors, or
    .ckpt). kind: "domain adapter", "MotionLoRA" or "look", kept in a .safetensors file's metadata, since names alone
    may not tell. text_encoder: the LoRA of the text encoder that belongs to a look. The file appears only when it is
    complete. Raises AnimkitError for what the format cannot hold, or a path of the wrong kind.
    """
    path = Path(path)
    if isinstance(part, MotionModules):
        return _save_motion(part, path, format)
    if not isinstance(part, LoRA):
        raise AnimkitError(
            f"only MotionModules and LoRA are saved here, not {type(part).__name__}; a whole pipeline has"
            " save_pretrained."
        )
    if format not in LORA_FORMATS:
        raise AnimkitError(f"unknown LoRA format {format!r}: choose one of {', '.join(LORA_FORMATS)}.")
    weights = _name_lora(part, format, "unet")
    if text_encoder is not None:
        if format not in ("diffusers", "kohya"):
            raise AnimkitError(
                f'the {format} format has no place for a text encoder\'s LoRA; save it with format="kohya" or'
                ' "diffusers".'
            )
        weights |= _name_lora(text_encoder, format, "text_encoder")
    return _write(path, weights, {"kind": kind} if kind else {})


def _save_motion(modules: MotionModules, path: Path, format: str) -> Path:
    state = {name: tensor.detach().cpu() for name, tensor in modules.state_dict().items()}
    own = {"_class_name": "MotionModules", **modules.config}
    if format == "diffusers":
        if path.suffix in (".safetensors", ".ckpt", ".pt", ".pth", ".bin") or path.is_file():
            raise AnimkitError(
                f"{path}: a MotionAdapter is a folder (config.json and its weights); give a folder's name."
            )
        save_folder(path, _adapter_config(modules), to_diffusers(state), own)
        return path
    if format != "reference":
        raise AnimkitError(f'unknown motion module format {format!r}: choose "reference" or "diffusers".')
    shown = read_off(state)
    shown["version"] = {"sdxl": "v3", "lcm": "v2" if any(s.startswith("mid") for s in modules.sites) else "v3"}.get(
        shown["version"], shown["version"])
    hidden = [key for key in ("version", "heads", "norm_groups", "kind", "positions") if shown[key] != own[key]]
    hidden += ["norm"] * (own["norm"] != "reference")
    if hidden and path.suffix != ".safetensors":
        raise AnimkitError(
            f"{path}: a file of the reference's form would lose the {', '.join(hidden)} of these motion modules, which"
            " only its names and shapes could tell; save them as .safetensors, which keeps the config, or with"
            " save_pretrained."
        )
    return _write(path, state, {"config": json.dumps(own)})


def _adapter_config(modules: MotionModules) -> dict:
    """The config of diffusers' MotionAdapter with these sites; AnimkitError if it cannot have them."""
    if modules.kind != "attention":
        raise AnimkitError("diffusers knows no motion modules of convolutions; save them with save_pretrained.")
    levels: dict[int, list[int]] = {}
    for site, c in modules.sites.items():
        if site.startswith("down_blocks"):
            levels.setdefault(int(site.split(".")[1]), []).append(c)
    layers = [len(levels[i]) for i in sorted(levels)]
    return {
        "_class_name": "MotionAdapter",
        "block_out_channels": [levels[i][0] for i in sorted(levels)],
        "motion_layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "motion_mid_block_layers_per_block": 1,
        "motion_num_attention_heads": modules.heads,
        "motion_norm_num_groups": modules.norm_groups,
        "motion_max_seq_length": modules.positions,
        "conv_in_channels": None,
        "use_motion_mid_block": any(site.startswith("mid_block") for site in modules.sites),
    }


def _name_lora(lora: LoRA, format: str, model: str) -> dict[str, Tensor]:
    if format == "animkit":
        return {name: tensor.detach().cpu() for name, tensor in lora.state_dict().items()}
    weights: dict[str, Tensor] = {}
    for path in lora.paths:
        layer = lora[path]
        down, up, scale = layer.down.weight.detach().cpu(), layer.up.weight.detach().cpu(), float(layer.scale)
        if format == "kohya":
            name = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[model] + path.removeprefix(
                "text_model."
            ).replace(".", "_")
            # to the fourth decimal: someone chose alpha, and scale = alpha / rank has rounded it
            weights |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up,
                        f"{name}.alpha": torch.tensor(round(scale * len(down), 4), dtype=torch.float32)}
            continue
        if scale != 1:  # these namings have no alpha, only W + up @ down
            up = up * scale
        if format == "diffusers":
            path = f"text_model.{path}" if model == "text_encoder" and not path.startswith("text_model.") else path
            name = f"{model}.{to_diffusers_name(path)}"
            weights |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
            continue
        match = re.fullmatch(r"(.*)\.(to_q|to_k|to_v|to_out)(?:\.0)?", path)
        if match is None:
            raise AnimkitError(
                f"the reference's naming has only to_q, to_k, to_v and to_out, and this LoRA has {path}; save it with "
                "format=\"kohya\" or \"diffusers\"."
            )
        name = f"{match[1]}.processor.{match[2]}_lora"
        weights |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    return weights


def _write(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    if path.suffix == ".safetensors":
        return write_atomically(path, lambda file: save_file(apart(tensors), file, {"format": "pt", **metadata}))
    if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        # a view of a mapped file would be saved with the whole file behind it
        own = {name: t if t.untyped_storage().nbytes() == t.nbytes else t.clone() for name, t in tensors.items()}
        return write_atomically(path, lambda file: _pickle(own, file))
    raise AnimkitError(f"{path}: the file's name must end in .safetensors, .ckpt, .pt, .pth or .bin.")


def _pickle(tensors: Mapping[str, Tensor], file: str) -> None:
    try:
        torch.save(tensors, file)
    except RuntimeError as error:  # torch's error for a full disk
        raise OSError(f"torch could not save it ({error})") from error
