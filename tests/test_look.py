"""Which layers a look's LoRA is on: found by running the UNet, not by names."""
import pytest
import torch
from torch import nn

from animkit.look import LAYERS, new_look
from animkit.lora import LoRA
from tiny import tiny_unet


def sizes(unet, kind):
    """path -> whether the layer reads or writes at the full latent resolution, of all layers of a kind."""
    found, size = {}, unet.config.sample_size
    handles = [layer.register_forward_hook(lambda layer, args, y, path=path: found.__setitem__(
        path, y.shape[-2:] == (size, size))) for path, layer in unet.named_modules() if isinstance(layer, kind)]
    unet(torch.randn(1, unet.config.in_channels, size, size), 5, torch.randn(1, 3, unet.config.cross_attention_dim))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("unet", [tiny_unet(), None], ids=["tiny", "miniature"])
def test_the_finest_are_all_convolutions_that_write_at_full_resolution(unet):
    if unet is None:
        import animkit as ak
        unet = ak.Animator("miniature", motion=False).pipe.unet
    full = {path for path, whole in sizes(unet, nn.Conv2d).items() if whole}
    attention = {path for path in full if path.endswith(("proj_in", "proj_out"))}
    assert set(new_look(unet, 2, "finest").paths) - attention == full - attention and full - attention
    assert set(new_look(unet, 2).paths) == set(LoRA.for_module(unet, lambda path: True, 2).paths) and len(LAYERS) == 2


def test_fresh_it_does_nothing_and_it_learns():
    unet = tiny_unet()
    x, text = torch.randn(1, unet.config.in_channels, 8, 8), torch.randn(1, 3, unet.config.cross_attention_dim)
    before = unet(x, 5, text).sample
    lora = new_look(unet, 2, "finest")
    at = lora.attach(unet)
    assert torch.equal(unet(x, 5, text).sample, before)
    unet(x, 5, text).sample.square().sum().backward()
    assert all(lora[path].up.weight.grad.abs().max() > 0 for path in lora.paths)
    at.remove()
