"""UNets of every family at toy size, with random weights, and what the core's tests do with them again and again."""
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

TEXT = 24


def tiny_unet(**changes) -> UNet2DConditionModel:
    """SD 1.5's anatomy: a level with cross-attention, one without, a middle block."""
    torch.manual_seed(0)
    config = dict(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
                  down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                  cross_attention_dim=TEXT, attention_head_dim=8, norm_num_groups=16)
    return UNet2DConditionModel(**{**config, **changes}).eval().requires_grad_(False)


def tiny_sd2(**changes) -> UNet2DConditionModel:
    return tiny_unet(attention_head_dim=(4, 8), use_linear_projection=True, **changes)


def tiny_sdxl(**changes) -> UNet2DConditionModel:
    return tiny_unet(**{**dict(
        block_out_channels=(32, 32, 64), transformer_layers_per_block=(1, 1, 2), attention_head_dim=(2, 4, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 20),
        **changes})


FAMILIES = {"sd1": tiny_unet, "sd2": tiny_sd2, "sdxl": tiny_sdxl}


def added(unet: nn.Module, b: int, seed: int = 5) -> dict[str, Tensor] | None:
    """SDXL's further conditions for b clips; None for the other families."""
    if unet.config.addition_embed_type != "text_time":
        return None
    g = torch.Generator().manual_seed(seed)
    return {"text_embeds": torch.randn(b, 20, generator=g), "time_ids": torch.rand(b, 6, generator=g) * 64}


def clip_and_text(b: int = 2, f: int = 3, n: int = 5, seed: int = 1, size: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(b, 4, f, size, size, generator=g), torch.randn(b, n, TEXT, generator=g)


def shaken(module: nn.Module, seed: int = 2, scale: float = 0.2) -> nn.Module:
    """The same module with every weight moved at random, so that nothing is zero or one by luck."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn(p.shape, generator=g).to(p) * scale)
    return module


def traces(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Everything that insertion could leave behind: hooks on any layer, submodules, attributes."""
    return {name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_with_kwargs),
                   len(m._forward_pre_hooks_with_kwargs), len(m._modules), len(m.__dict__))
            for name, m in module.named_modules()}


def equal_states(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
