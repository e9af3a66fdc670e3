"""Section 4.1: the domain adapter takes in the look of the training videos, which the motion module need not learn.

    Q = W_Q z + alpha * A B^T z      and K, V, output likewise, in every self- and cross-attention of the image UNet

This is eq. (4) in the paper's letters: its A (out rank) is `up`, which is B in lora.py, its B^T (rank in) is `down`, A there.
alpha = 1 in training; lowered or 0 at inference, and the videos' look (their watermark above all) fades.
"""
from torch import nn

from animkit.lora import LoRA

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def is_target(path: str) -> bool:
    """Every projection of attn1 (self-attention) and attn2 (cross-attention)."""
    return path.endswith(tuple(f".{attention}.{name}" for attention in ("attn1", "attn2") for name in PROJECTIONS))


def new_domain_adapter(unet: nn.Module, rank: int = 128, seed: int = 0) -> LoRA:
    """A fresh domain adapter (4.1) for an image UNet, released with rank 128; video_unet.insert(it) sets it to work."""
    return LoRA.for_module(getattr(unet, "unet", unet), is_target, rank, seed=seed)
