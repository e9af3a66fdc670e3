"""Names of the layers of diffusers' UNet in the original latent-diffusion code, which numbers its blocks in one row."""
from __future__ import annotations

from torch import nn

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def to_ldm_name(path: str, layers_per_block: int, unet: nn.Module) -> str:
    """down_blocks.1.attentions.0.proj_in -> input_blocks.4.1.proj_in; a name without a counterpart stays as it is."""
    for diffusers, original in OUTSIDE.items():
        if path == diffusers or path.startswith(f"{diffusers}."):
            return original + path[len(diffusers):]
    side, *rest = path.split(".")
    if side == "mid_block":
        part, j, *rest = rest
        return _join(f"middle_block.{2 * int(j) if part == 'resnets' else 1}", part, rest)
    if side not in ("down_blocks", "up_blocks"):
        return path
    i, part, j, *rest = rest
    i, j, row = int(i), int(j), layers_per_block + 1
    if side == "down_blocks":
        if part == "downsamplers":
            return ".".join([f"input_blocks.{(i + 1) * row}.0.op", *rest[1:]])
        return _join(f"input_blocks.{1 + i * row + j}.{int(part == 'attentions')}", part, rest)
    if part == "upsamplers":  # comes after the attention, if the block has one
        last = 2 if getattr(unet.up_blocks[i], "attentions", None) is not None else 1
        return ".".join([f"output_blocks.{i * row + layers_per_block}.{last}", *rest])
    return _join(f"output_blocks.{i * row + j}.{int(part == 'attentions')}", part, rest)


def _join(block: str, part: str, rest: list[str]) -> str:
    if part == "resnets":
        rest = [RESNET.get(rest[0], rest[0]), *rest[1:]]
    return ".".join([block, *rest])
