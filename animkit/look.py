"""A personalised look as a LoRA on the image UNet: on which layers.

    linear         y = W x + alpha * B A x           every Linear layer, as most community LoRAs; x b ... c_in
    convolutions   y = W * x + alpha * B (A * x)     every convolution; x b c_in h w, A rank c_in k k, B c_out rank 1 1
                                                     (kohya's LoCon without its Linear layers)

A look lies in edges, texture and colour, which convolutions draw; the attentions decide more of what is where. In the
miniature, a LoRA on the convolutions keeps more of the motion (data_samples/README.md has the numbers).
"""
from torch import nn

from animkit.errors import AnimkitError
from animkit.lora import LoRA

LAYERS = {"linear": nn.Linear, "convolutions": nn.Conv2d}


def new_look(unet: nn.Module, rank: int = 32, layers: str = "linear", seed: int = 0) -> LoRA:
    """A fresh LoRA for a look, on one kind of LAYERS. Then: video_unet.insert(look). AnimkitError for other layers."""
    if layers not in LAYERS:
        raise AnimkitError(f"a look's LoRA is on {' or '.join(LAYERS)} layers of the UNet, not on {layers!r}")
    return LoRA.for_module(getattr(unet, "unet", unet), lambda path: True, rank, seed=seed, kinds=(LAYERS[layers],))
