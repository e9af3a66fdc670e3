"""A personalised look as a LoRA on the image UNet: which layers, nothing more.

    linear         every Linear layer: attention, feed-forward, time embedding, as most community LoRAs
    convolutions   every convolution (kohya's LoCon without its Linear layers)

A look lies in edges, texture and colour, which convolutions draw; what is where is more the attentions' work. In the
miniature a LoRA on the convolutions leaves more of the motion (data_samples/README.md has the numbers).
"""
from torch import nn

from animkit.lora import LoRA

LAYERS = {"linear": nn.Linear, "convolutions": nn.Conv2d}


def new_look(unet: nn.Module, rank: int = 32, layers: str = "linear", seed: int = 0) -> LoRA:
    """A fresh LoRA for a look, on one of LAYERS; video_unet.insert(it) sets it to work."""
    return LoRA.for_module(getattr(unet, "unet", unet), lambda path: True, rank, seed=seed, kinds=(LAYERS[layers],))
