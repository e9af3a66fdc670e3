"""Section 4.4, what a call needs from the base: looks by name, sizes, and pictures from latents."""
from __future__ import annotations

import difflib
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from animkit.errors import AnimkitError


def find_checkpoint(name: str | Path) -> Path:
    """A path that exists, or the name of a look shipped with animkit ("ink"); else AnimkitError, which lists them."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    looks = sample_looks()
    if str(name) in looks:
        return looks[str(name)]
    near = difflib.get_close_matches(str(name), looks, 1)
    raise AnimkitError(f"'{name}' is neither a file here nor a look of the miniature"
                       + (f"; did you mean '{near[0]}'?" if near else "")
                       + f" (looks: {', '.join(looks) or 'none installed'}).")


def sample_looks() -> dict[str, Path]:
    """The looks shipped with animkit, by name."""
    from animkit.samples import path as sample
    try:
        return {file.stem: file for file in sorted(Path(sample("looks")).glob("*.safetensors"))}
    except AnimkitError:
        return {}


def check_size(pipe: Any, defaults: dict, height: int | None, width: int | None) -> tuple[int, int]:
    """-> height and width in pixels, from animkit.json or the UNet's sample_size where they are None.

    Raises AnimkitError unless both are multiples of the VAE's factor times the UNet's.
    """
    side = pipe.unet.config.sample_size
    sides = side if isinstance(side, (list, tuple)) else (side, side)  # of the latents
    multiple = pipe.vae_scale_factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    size = []
    for name, given, own in zip(("height", "width"), (height, width), sides):
        own = own and own * pipe.vae_scale_factor
        pixels = defaults.get(name, own) if given is None else given
        if not isinstance(pixels, Integral) or pixels < 1 or pixels % multiple:
            raise AnimkitError(f"{name} is a multiple of {multiple} pixels for this base (VAE x UNet halvings); "
                               f"got {pixels!r}.")
        size.append(int(pixels))
    return tuple(size)


@torch.no_grad()
def decode(vae: Any, latents: Tensor, frames_at_once: int = 8, upcast: bool = True) -> Tensor:
    """Latents b c f h w -> pictures b f H W 3, uint8, on the CPU: the image VAE decodes each frame by itself.

    upcast: a VAE in float16 decodes in float32 if its config says force_upcast. SDXL's VAE needs this: it overflows in
    half precision. The configs of other VAEs have it too, but they do not need it, and their pipelines ignore it.
    A VAE that overflows all the same, and would draw black frames, decodes again in float32.
    Raises AnimkitError if what the VAE draws is not finite.
    """
    b = latents.shape[0]
    z = rearrange(latents, "b c f h w -> (b f) c h w") / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)
    half = vae.dtype == torch.float16
    drawn = _decoded(vae, z, frames_at_once, upcast=half and upcast and vae.config.get("force_upcast"))
    if half and not drawn.isfinite().all():
        drawn = _decoded(vae, z, frames_at_once, upcast=True)
    if not drawn.isfinite().all():
        raise AnimkitError(f"The VAE drew numbers that are not finite ({vae.dtype}): its weights are damaged; fetch the base "
                           "again, or give another VAE, open_checkpoint(base).pipeline(vae=open_checkpoint(vae)).")
    pictures = ((drawn / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return rearrange(pictures, "(b f) c h w -> b f h w c", b=b)


def _decoded(vae: Any, z: Tensor, frames_at_once: int, upcast: bool) -> Tensor:
    """Latents (b f) c h w -> what the VAE draws, float32 on the CPU."""
    if upcast:
        vae.float()  # in place, and back without loss: a copy would double it, with its offloading hooks
    try:
        where = None if hasattr(vae, "_hf_hook") or vae.device.type == "meta" else vae.device  # offloaded: its hook moves them
        return torch.cat([vae.decode(part.to(where, vae.dtype)).sample.float().cpu() for part in z.split(frames_at_once)])
    finally:
        if upcast:
            vae.half()
