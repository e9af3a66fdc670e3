"""Small models and the files that people would have of them, in every naming; written apart from the code under
test."""
from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, MotionAdapter, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

WIDTHS = (32, 64, 64)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter away from its special starting value (norms at 1, outputs at 0), so that a mix-up shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.08 + (parameter.ndim == 1) * 0.5)
    return module.eval()


def unet(version: str = "sd1", widths: tuple[int, ...] = WIDTHS, seed: int = 0) -> UNet2DConditionModel:
    """A UNet with the anatomy of SD 1.x, 2.x or XL, three levels."""
    common = dict(block_out_channels=widths, layers_per_block=2, sample_size=8, norm_num_groups=32)
    down = ["CrossAttnDownBlock2D"] * (len(widths) - 1) + ["DownBlock2D"]
    up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (len(widths) - 1)
    if version == "sd1":
        model = UNet2DConditionModel(
            **common, down_block_types=down, up_block_types=up, cross_attention_dim=64, attention_head_dim=8
        )
    elif version == "sd2":
        model = UNet2DConditionModel(**common, down_block_types=down, up_block_types=up, cross_attention_dim=64,
                                     attention_head_dim=[max(1, w // 64) for w in widths], use_linear_projection=True)
    else:
        model = UNet2DConditionModel(
            **common,
            down_block_types=down[::-1],
            up_block_types=up[::-1],
            cross_attention_dim=96,
            use_linear_projection=True,
            attention_head_dim=[max(1, w // 64) for w in widths],
            transformer_layers_per_block=[1, 2, 3],
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=48 + 32,
        )
    return randomise(model, seed)


def vae(seed: int = 1) -> AutoencoderKL:
    return randomise(
        AutoencoderKL(
            block_out_channels=(32, 64),
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=32,
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
        ),
        seed,
    )


def text(width: int = 64, projection: int = 0, act: str = "quick_gelu", layers: int = 2, seed: int = 2) -> nn.Module:
    config = CLIPTextConfig(
        vocab_size=60,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        hidden_act=act,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=77,
        projection_dim=projection or width,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return randomise((CLIPTextModelWithProjection if projection else CLIPTextModel)(config), seed)


# ------------------------------------------------------------------- the original naming, from the original code's
# structure
def ldm_unet(state: dict[str, Tensor], layers: int = 2, attention: tuple[bool, ...] = (True, True, False)) -> dict[str, Tensor]:
    """diffusers' UNet names -> latent diffusion's, counting its rows of blocks as its constructor does."""
    rows, row = {"conv_in": "input_blocks.0.0"}, 1
    for i in range(len(attention)):
        for j in range(layers):
            rows |= {
                f"down_blocks.{i}.resnets.{j}": f"input_blocks.{row}.0",
                f"down_blocks.{i}.attentions.{j}": f"input_blocks.{row}.1",
            }
            row += 1
        if i < len(attention) - 1:
            rows[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{row}.0.op"
            row += 1
    rows |= {
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    row = 0
    for i, attends in enumerate(reversed(attention)):
        for j in range(layers + 1):
            rows |= {
                f"up_blocks.{i}.resnets.{j}": f"output_blocks.{row}.0", f"up_blocks.{i}.attentions.{j}": f"output_blocks.{row}.1"
            }
            if j == layers and i < len(attention) - 1:
                rows[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{row}.{2 if attends else 1}.conv"
            row += 1
    rows |= {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    inside = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
              "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
    new = {}
    for name, tensor in state.items():
        start = max((r for r in rows if name.startswith(r + ".")), key=len)
        rest = name[len(start) + 1:]
        if ".resnets." in start:
            head, tail = rest.split(".", 1)
            rest = f"{inside[head]}.{tail}"
        new[f"model.diffusion_model.{rows[start]}.{rest}"] = tensor
    return new


def ldm_vae(state: dict[str, Tensor], levels: int = 2) -> dict[str, Tensor]:
    new = {}
    for name, tensor in state.items():
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block", name)
        name = re.sub(r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample", name)
        name = re.sub(r"decoder\.up_blocks\.(\d)\.resnets", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.block", name)
        name = re.sub(r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.upsample", name)
        if "mid_block.attentions.0" in name:
            name = (
                name.replace("mid_block.attentions.0", "mid.attn_1")
                .replace("group_norm", "norm")
                .replace("to_out.0", "proj_out")
            )
            name = re.sub(r"to_([qkv])\.", r"\1.", name)
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None].contiguous()
        new[f"first_stage_model.{name}"] = tensor
    return new


def ldm_clip(state: dict[str, Tensor], prefix: str = "cond_stage_model.transformer.") -> dict[str, Tensor]:
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def ldm_open_clip(state: dict[str, Tensor], prefix: str, extra_layer: bool = False) -> dict[str, Tensor]:
    """OpenCLIP packs q, k and v into one tensor; SD 2.x's file has one layer more than SD 2.x uses."""
    new, heads = {}, {}
    for name, tensor in state.items():
        name = name.removeprefix("text_model.")
        match = re.match(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name)
        if match:
            heads.setdefault((int(match[1]), match[3]), {})[match[2]] = tensor
            continue
        name = {
            "embeddings.token_embedding.weight": "token_embedding.weight",
            "embeddings.position_embedding.weight": "positional_embedding",
            "final_layer_norm.weight": "ln_final.weight",
            "final_layer_norm.bias": "ln_final.bias",
            "text_projection.weight": "text_projection",
        }.get(name, name)
        tensor = tensor.T.contiguous() if name == "text_projection" else tensor
        name = (
            name.replace("encoder.layers.", "transformer.resblocks.").replace("self_attn", "attn").replace("layer_norm", "ln_")
        )
        new[prefix + name.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")] = tensor
    for (layer, leaf), qkv in heads.items():
        new[f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{leaf}"] = torch.cat([qkv[h] for h in "qkv"])
    new[f"{prefix}logit_scale"] = torch.tensor(4.6)
    if extra_layer:
        last = max(int(m[1]) for n in new if (m := re.search(r"resblocks\.(\d+)\.", n)))
        new |= {
            n.replace(f"resblocks.{last}.", f"resblocks.{last + 1}."): t + 1
            for n, t in list(new.items())
            if f"resblocks.{last}." in n
        }
        new[f"{prefix}text_projection"] = torch.zeros(
            state[
                ("final_layer_norm.weight" if "final_layer_norm.weight" in state else "text_model.final_layer_norm.weight")
            ].shape[0],
            7,
        )
    return new


def single_file(version: str = "sd1", dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], dict[str, nn.Module]]:
    """(the tensors of a single-file checkpoint, the models they were made from)."""
    parts: dict[str, nn.Module] = {"unet": unet(version), "vae": vae()}
    attention = (False, True, True) if version == "sdxl" else (True, True, False)
    state = ldm_unet(parts["unet"].state_dict(), attention=attention) | ldm_vae(parts["vae"].state_dict())
    if version == "sd1":
        parts["text_encoder"] = text()
        state |= ldm_clip(parts["text_encoder"].state_dict())
        state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
        state["model_ema.decay"] = torch.tensor(0.9999)
    elif version == "sd2":
        parts["text_encoder"] = text(act="gelu")
        state |= ldm_open_clip(parts["text_encoder"].state_dict(), "cond_stage_model.model.", extra_layer=True)
    else:
        parts |= {"text_encoder": text(64), "text_encoder_2": text(32, projection=32, act="gelu", seed=3)}
        state |= ldm_clip(parts["text_encoder"].state_dict(), "conditioner.embedders.0.transformer.")
        state |= ldm_open_clip(parts["text_encoder_2"].state_dict(), "conditioner.embedders.1.model.")
    return {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}, parts


# --------------------------------------------------------------------------------------------------------- motion
# modules
def adapter(widths: tuple[int, ...] = WIDTHS, mid: bool = False, positions: int = 32, seed: int = 5) -> MotionAdapter:
    """diffusers' MotionAdapter with random weights (its proj_out is not zero anyway)."""
    return randomise(MotionAdapter(block_out_channels=widths, motion_layers_per_block=2, use_motion_mid_block=mid,
                                   motion_max_seq_length=positions), seed)


def reference_motion(motion: MotionAdapter) -> dict[str, Tensor]:
    """The same weights as the reference release would have saved them."""
    new = {}
    for name, tensor in motion.state_dict().items():
        name = re.sub(r"motion_modules\.(\d)\.", r"motion_modules.\1.temporal_transformer.", name)
        name = re.sub(r"\.attn([12])\.", lambda m: f".attention_blocks.{int(m[1]) - 1}.", name)
        name = re.sub(r"\.norm([12])\.", lambda m: f".norms.{int(m[1]) - 1}.", name).replace(".norm3.", ".ff_norm.")
        if name.endswith("pos_embed.pe"):
            for i in (0, 1):
                new[name.replace("pos_embed.pe", f"attention_blocks.{i}.pos_encoder.pe")] = tensor.clone()
        else:
            new[name] = tensor
    return new


# -------------------------------------------------------------------------------------------------------------------
# LoRAs
def pairs(module: nn.Module, wanted: str, rank: int = 3, seed: int = 7) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer path: (down, up)} for every Linear or convolution whose path matches `wanted`."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for path, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and re.search(wanted, path):
            out, *inside = layer.weight.shape
            up = (out, rank, *(1 for _ in inside[1:]))
            made[path] = (
                torch.randn(rank, *inside, generator=generator) * 0.2, torch.randn(up, generator=generator) * 0.2
            )
    assert made, wanted
    return made


SPATIAL = r"attn[12]\.to_(q|k|v|out\.0)$"


def reference_lora(made: dict) -> dict[str, Tensor]:
    new = {}
    for path, (down, up) in made.items():
        parent, leaf = re.match(r"(.*)\.(to_q|to_k|to_v|to_out)(?:\.0)?$", path).groups()
        new |= {f"{parent}.processor.{leaf}_lora.down.weight": down, f"{parent}.processor.{leaf}_lora.up.weight": up}
    return new


def peft_lora(made: dict, prefix: str = "unet.") -> dict[str, Tensor]:
    return {f"{prefix}{p}.lora_{h}.weight": t for p, (down, up) in made.items() for h, t in (("A", down), ("B", up))}


def diffusers_lora(made: dict, prefix: str = "unet.") -> dict[str, Tensor]:
    return {f"{prefix}{p}.lora.{h}.weight": t for p, (down, up) in made.items() for h, t in (("down", down), ("up", up))}


def kohya_lora(made: dict, alpha: float | None = 1.0, prefix: str = "lora_unet_") -> dict[str, Tensor]:
    new = {}
    for path, (down, up) in made.items():
        name = prefix + path.replace(".", "_")
        new |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            new[f"{name}.alpha"] = torch.tensor(alpha)
    return new


def controlnet(version: str = "sd1") -> ControlNetModel:
    return randomise(ControlNetModel.from_unet(unet(version), conditioning_embedding_out_channels=(16, 32)), 9)


def ldm_controlnet(state: dict[str, Tensor], attention: tuple[bool, ...] = (True, True, False)) -> dict[str, Tensor]:
    """lllyasviel's naming: the encoder half of a UNet under control_model., zero convolutions, a hint block."""
    inner = {n: t for n, t in state.items() if not n.startswith("controlnet_")}
    new = {n.replace("model.diffusion_model.", "control_model."): t for n, t in ldm_unet(inner, attention=attention).items()}
    hints = len([n for n in state if n.startswith("controlnet_cond_embedding.blocks.") and n.endswith("weight")])
    for name, tensor in state.items():
        leaf = name.split(".")[-1]
        if name.startswith("controlnet_down_blocks."):
            new[f"control_model.zero_convs.{name.split('.')[1]}.0.{leaf}"] = tensor
        elif name.startswith("controlnet_mid_block."):
            new[f"control_model.middle_block_out.0.{leaf}"] = tensor
        elif name.startswith("controlnet_cond_embedding.blocks."):
            new[f"control_model.input_hint_block.{2 * (int(name.split('.')[2]) + 1)}.{leaf}"] = tensor
        elif name.startswith("controlnet_cond_embedding."):
            new[f"control_model.input_hint_block.{0 if 'conv_in' in name else 14}.{leaf}"] = tensor
    assert hints == 2
    return new


def write(path: Path, weights: dict[str, Tensor], wrap: str = "") -> Path:
    """.safetensors, or a torch file with `wrap` around the tensors ("state_dict", "module.", "legacy", ...)."""
    weights = {n: t.contiguous().clone() for n, t in weights.items()}
    if path.suffix == ".safetensors":
        save_file(weights, path)
        return path
    contents: dict = {f"module.{n}": t for n, t in weights.items()} if "module." in wrap else weights
    if "state_dict" in wrap:
        contents = {"epoch": 3, "global_step": 9, "state_dict": contents}
    if "config" in wrap:
        contents = {**contents, "animatediff_config": {"motion_module_mid_block": False, "layers": [1, 2, None, 0.5]}}
    torch.save(contents, path, _use_new_zipfile_serialization="legacy" not in wrap)
    return path
