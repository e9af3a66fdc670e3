"""Section 4.1: the domain adapter learns the look of the training videos, so that the motion module need not.

    Q = W_Q z + alpha * A B^T z      and K, V, output likewise, in every self- and cross-attention of the image UNet

This is eq. (4) in the paper's letters. The paper's A (out rank) is `up`, B in lora.py; its B^T (rank in) is `down`, A there.
alpha is 1 in training. At inference it is lowered, down to 0: the videos' look (above all their watermark) fades.
"""
from torch import nn

from animkit.lora import LoRA

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def is_target(path: str) -> bool:
    """Every projection of attn1 (self-attention) and attn2 (cross-attention)."""
    return path.endswith(tuple(f".{attention}.{name}" for attention in ("attn1", "attn2") for name in PROJECTIONS))


def new_domain_adapter(unet: nn.Module, rank: int = 128, seed: int = 0) -> LoRA:
    """A fresh domain adapter (4.1) for an image UNet; the release has rank 128. Then: video_unet.insert(adapter)."""
    return LoRA.for_module(getattr(unet, "unet", unet), is_target, rank, seed=seed)
