"""Section 5.4: a ControlNet of the base steers every frame of a clip by a picture of its own, such as its depth.

A ControlNet (Zhang et al. 2023, arXiv 2302.05543) is a trained copy of the image UNet's first half. It reads the
control picture beside the noisy latents. Its outputs are added to the UNet's own features on their way to the second
half. It was trained on stills and knows nothing of time. It needs no training here: each frame is a picture to it,

    residuals = alpha * ControlNet(x_t as (b f) c h w, t, text, pictures as (b f) 3 H W)

b clips, f frames, c latent channels, h w latent height and width, H W pixels, n tokens, d text width.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel
from einops import rearrange, repeat
from PIL.Image import Image
from torch import Tensor, nn

from animkit.data.video import to_rgb
from animkit.errors import AnimkitError
from animkit.inflation import each_frame


def depth_pictures(depth: Any) -> np.ndarray:
    """Distances from the camera (f h w, any unit, inf for the sky) as a depth ControlNet sees them: f h w 3, uint8.

    Inverse depth, 255 * nearest / depth: the nearest point of the whole clip is white, what is far away black. Raises
    AnimkitError unless all distances are above 0.
    """
    depth = np.asarray(depth, np.float64)
    if depth.ndim != 3 or 0 in depth.shape:
        raise AnimkitError(f"Depth is f h w, a distance for every pixel of every frame; got the shape {depth.shape}.")
    if not (depth > 0).all():  # also catches NaN
        raise AnimkitError("Depth is a distance from the camera, above 0 at every pixel (and inf for the sky); "
                           f"this has {int((~(depth > 0)).sum())} pixels that are not.")
    if np.isinf(depth).all():
        raise AnimkitError("Depth is infinite everywhere: there is nothing to steer by.")
    grey = (255 * depth.min() / depth + 0.5).astype(np.uint8)
    return repeat(grey, "f h w -> f h w c", c=3)


@dataclass
class Control:
    """A ControlNet at work beside a UNet; alpha: how much of it acts (diffusers' controlnet_conditioning_scale)."""
    model: ControlNetModel
    alpha: float = 1.0

    def residuals(self, x: Tensor, t: Tensor, text: Tensor, pictures: Tensor,
                  added: Mapping[str, Tensor] | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        """What to add to the UNet's skip connections and to its middle block, (b f) c h w each.

        x b c f h w, text b n d or (b f) n d, pictures f 3 H W (0 to 1); added: SDXL's further conditions, b d or (b f) d.
        """
        b, f = x.shape[0], x.shape[2]
        text, added = each_frame(text, b, f), {key: each_frame(value, b, f) for key, value in (added or {}).items()}
        return self.model(rearrange(x, "b c f h w -> (b f) c h w"), t, text,
                          repeat(pictures.to(x), "f c h w -> (b f) c h w", b=b), conditioning_scale=self.alpha,
                          added_cond_kwargs=added or None, return_dict=False)


Steered = list[tuple[Control, Tensor]]  # ControlNets, each with the pictures f 3 H W that it reads


def steer(steered: Steered) -> Callable[..., dict[str, Any]] | None:
    """A function that, at each step, gives keywords for the video UNet's call; several ControlNets add up."""
    if not steered:
        return None

    def residuals(x: Tensor, t: Tensor, text: Tensor, added: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
        found = [control.residuals(x, t, text, pictures, added) for control, pictures in steered]
        return {"down_block_additional_residuals": tuple(sum(level) for level in zip(*(down for down, _ in found))),
                "mid_block_additional_residual": sum(mid for _, mid in found)}
    return residuals


# ---- what a caller gives, checked


def check_fits(model: ControlNetModel, unet: nn.Module, vae_scale_factor: int) -> None:
    """AnimkitError unless this ControlNet was made for a UNet such as this one, and for pictures of its VAE's size."""
    reads = any(name.endswith(".attn2.to_k.weight") for name in model.state_dict())  # SDXL's "small" ones have no attention
    for key in ("in_channels", "block_out_channels", "layers_per_block", "addition_embed_type",
                *(("cross_attention_dim", "attention_head_dim") if reads else ())):
        theirs, ours = (_plain(config.get(key)) for config in (model.config, unet.config))
        if theirs != ours:
            raise AnimkitError(f"This ControlNet was made for another base: its {key} is {theirs}, the UNet's {ours}; "
                               "take one for this base, or make one by ControlNetModel.from_unet(unet).")
    shrunk = 2 ** (len(model.config.conditioning_embedding_out_channels) - 1)
    if shrunk != vae_scale_factor:
        raise AnimkitError(f"This ControlNet makes its pictures {shrunk} times smaller, the base's VAE "
                           f"{vae_scale_factor} times: their sizes cannot meet; take one for this base.")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def pictures_of(given: Any, name: str = "control", channels: int = 3) -> Tensor:
    """Control pictures f 3 H W, 0 to 1, from what a caller gives; AnimkitError if that is none of these:

    uint8 (f h w 3, f h w), a Clip, a list of PIL images: pictures of the kind that the ControlNet was trained on.
    Floats f h w: distances from the camera, for a depth ControlNet (depth_pictures turns them into pictures).
    """
    if isinstance(given, Tensor):
        given = (given.float() if given.is_floating_point() else given).detach().cpu().numpy()
    if not hasattr(given, "__array__"):
        given = [_colours(one) for one in (given if isinstance(given, Sequence) else [given])]
        if len({np.shape(picture) for picture in given}) > 1:
            raise AnimkitError(f"The pictures of {name!r} differ in size or in their number of colours.")
    array = np.asarray(given)
    if array.ndim == 3 and array.dtype == np.uint8 and array.shape[-1] == channels:
        raise AnimkitError(f"{name!r} is steered by one picture a frame, f h w {channels}; this is one picture, of shape "
                           f"{array.shape}.")
    if array.ndim == 3 and array.dtype.kind == "f":
        array = depth_pictures(array)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or 0 in array.shape \
            or array.ndim == 4 and array.shape[-1] != channels:
        raise AnimkitError(f"{name!r} is steered by pictures (uint8, f h w {channels} or f h w) or by depth (floats, "
                           f"f h w), one a frame; these are {array.dtype} of shape {array.shape}.")
    if array.ndim == 3:
        array = repeat(array, "f h w -> f h w c", c=channels)
    return rearrange(torch.from_numpy(np.array(array)), "f h w c -> f c h w").float() / 255


def _colours(picture: Any) -> Any:
    """A PIL picture with a palette, colours other than RGB, or transparency, as RGB: its bytes are not brightness."""
    return to_rgb(picture) if isinstance(picture, Image) and picture.mode not in ("L", "RGB", "F", "I", "I;16") else picture


def matched(controls: Mapping[str, Control], given: Any) -> dict[str, Tensor]:
    """Name -> pictures f 3 H W of a call's control=: {name: pictures}, or pictures alone if there is one ControlNet."""
    if given is None:
        return {}
    there = ", ".join(controls) or "none"
    if not isinstance(given, Mapping):
        if len(controls) != 1:
            raise AnimkitError("control= was given, but no ControlNet is inserted: animator.insert(controlnet, "
                               "name=\"depth\") first." if not controls else
                               f"There are {len(controls)} ControlNets ({there}): say which is steered by what, "
                               "control={name: pictures}.")
        given = {next(iter(controls)): given}
    for name in given:
        if name not in controls:
            raise AnimkitError(f"No ControlNet is inserted as {name!r}; there is: {there}.")
    return {name: pictures_of(one, name, controls[name].model.config.conditioning_channels)
            for name, one in given.items() if one is not None}


def check_pictures(pictures: Mapping[str, Tensor], frames: int, height: int, width: int) -> None:
    """AnimkitError unless there is a picture of the clip's size for each of its frames."""
    for name, given in pictures.items():
        if len(given) != frames:
            raise AnimkitError(f"{name!r} is steered by {len(given)} pictures, and the clip has {frames} frames: give "
                               "one a frame.")
        if given.shape[2:] != (height, width):
            raise AnimkitError(f"The pictures that steer {name!r} are {given.shape[2]} x {given.shape[3]} pixels, the "
                               f"clip {height} x {width}: make them of one size, or pass height and width.")
