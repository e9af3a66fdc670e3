"""The three losses of the paper. One formula, eq. (2) for images and eq. (7) for clips:

    L = E || eps - eps_theta(z_t, t, text) ||^2,      z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps,      eps ~ N(0, I)

4.1 sees single random frames; 4.2 sees whole clips, with one timestep t for all frames of a clip; 4.3 is 4.2. What is
trained differs too, but `fit(parameters=...)` chooses that, not the loss. Latents z_0 b c f h w, text b n d (of the
captions), `empty` 1 n d or n d (that of ""). Noise and timesteps are drawn on the CPU by the generator given.
"""
from typing import Any

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from animkit.errors import AnimkitError
from animkit.training.draws import rand, randint, randn


def domain_adapter_loss(video_unet: nn.Module, z: Tensor, text: Tensor, generator: torch.Generator, *, scheduler: Any,
                        empty: Tensor | None = None, drop: float = 0.1, **weighting) -> Tensor:
    """4.1: the plain image loss on one random frame of each clip, without the other frames.

    z b c f h w (or stills, f = 1), text b n d, scheduler with the base's betas (Stable Diffusion: scaled_linear).
    Insert no motion module while it runs: on a single frame it would be another network. weighting: as for
    denoising_loss. Scalar. AnimkitError on shapes that do not fit.
    """
    b, _, f = _checked(z, text).shape[:3]
    chosen = randint(0, f, (b,), generator).to(z.device)
    return denoising_loss(video_unet, z[torch.arange(b, device=z.device), :, chosen].unsqueeze(2), text, generator,
                          scheduler=scheduler, empty=empty, drop=drop, **weighting)


def motion_module_loss(video_unet: nn.Module, z: Tensor, text: Tensor, generator: torch.Generator, *, scheduler: Any,
                       empty: Tensor | None = None, drop: float = 0.1, **weighting) -> Tensor:
    """4.2: the video loss; one timestep per clip, noise of its own for each frame, captions dropped with p = 0.1.

    z b c f h w, text b n d, scheduler with linear betas 0.00085 to 0.012. The domain adapter, inserted with alpha = 1,
    and the base are frozen. weighting: as for denoising_loss. Scalar. AnimkitError on shapes that do not fit.
    """
    return denoising_loss(video_unet, z, text, generator, scheduler=scheduler, empty=empty, drop=drop, **weighting)


# 4.3: "the same objective"; what changes is that the MotionLoRA's A and B are trained, on clips of one shot type.
motion_lora_loss = motion_module_loss


def denoising_loss(video_unet: nn.Module, z: Tensor, text: Tensor, generator: torch.Generator, *, scheduler: Any,
                   empty: Tensor | None = None, drop: float = 0.0, towards_noise: float = 1.0,
                   min_snr_gamma: float | None = None, snr_plus_one: bool = False) -> Tensor:
    """E || eps - eps_theta(sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps, t, text) ||^2 over clips b c f h w; a scalar.

    The paper's loss is the plain one. towards_noise: see timesteps. min_snr_gamma, snr_plus_one: see snr_weight.
    """
    b = _checked(z, text).shape[0]
    t = timesteps(b, scheduler, generator, towards_noise).to(z.device)  # one for all frames of a clip
    eps = randn(z.shape, generator).to(z)  # b c f h w: independent for each frame
    z_t = scheduler.add_noise(z, eps, t)  # sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps
    with short_attention(z.device, video_unet):
        predicted = video_unet(z_t, t, drop_captions(text, empty, drop, generator) if drop else text)
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise AnimkitError(f"The scheduler predicts {kind!r}; the losses know epsilon and v_prediction.")
    target = eps if kind == "epsilon" else scheduler.get_velocity(z, eps, t)
    error = F.mse_loss(predicted.float(), target.float(), reduction="none").mean(dim=(1, 2, 3, 4))  # b
    if min_snr_gamma is None and not snr_plus_one:
        return error.mean()
    return (error * snr_weight(scheduler, t, min_snr_gamma, snr_plus_one)).mean()


def timesteps(b: int, scheduler: Any, generator: torch.Generator, towards_noise: float = 1.0) -> Tensor:
    """t for b clips, b integers: uniform (the paper's), or T u^towards_noise with u uniform in 0 to 1. Below 1, t is
    more often near noise, where the layout is decided: a small model in a short training then learns motion sooner."""
    T = scheduler.config.num_train_timesteps
    check_weighting(towards_noise)
    if towards_noise == 1:
        return randint(0, T, (b,), generator)
    return (T * rand((b,), generator) ** towards_noise).long().clamp(max=T - 1)


def short_attention(device: torch.device, model: Any = None) -> AbstractContextManager:
    """Under bfloat16 autocast on a CPU, attention by plain matrix products: torch's fused kernel is slower there on the
    16 to 64 tokens of small latents and of frames; in float32 it is faster (benchmarks/attention.py).

    Not for a model with gradient checkpointing: it computes again in backward, where this choice no longer holds.
    """
    again = model is not None and any(getattr(m, "gradient_checkpointing", False) for m in getattr(model, "modules", list)())
    slow = device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return sdpa_kernel(SDPBackend.MATH) if slow and not again else nullcontext()


def drop_captions(text: Tensor, empty: Tensor | None, p: float, generator: torch.Generator) -> Tensor:
    """Each caption of text b n d becomes the empty prompt `empty` (1 n d or n d) with probability p, for guidance."""
    if empty is None:
        raise AnimkitError('Captions are to be dropped, but there is nothing to put in their place: pass empty=, the '
                           'embedding of "", or drop=0.')
    if empty.shape[-2:] != text.shape[-2:]:
        raise AnimkitError(f"The empty prompt's embedding is {tuple(empty.shape)}, the captions' {tuple(text.shape)}: "
                           "both must come from the same text encoder and padding.")
    dropped = (rand((text.shape[0],), generator) < p).to(text.device)
    return torch.where(rearrange(dropped, "b -> b 1 1"), empty.to(text), text)


def snr_weight(scheduler: Any, t: Tensor, min_snr_gamma: float | None = None, snr_plus_one: bool = False) -> Tensor:
    """The weight of timestep t, b numbers; SNR_t = abar_t / (1 - abar_t). As weights of the error of z_0:

        min(SNR_t, gamma)    Hang et al. 2023 (arXiv 2303.09556): nearly clean pictures count less
        SNR_t + 1            Salimans & Ho 2022 (arXiv 2202.00512): every timestep counts. The plain loss, SNR_t, falls
                             to 0 near noise, where layout and movement are decided

    The error of eps is SNR_t times the error of z_0, that of v SNR_t + 1 times. AnimkitError if asked for both.
    """
    check_weighting(min_snr_gamma=min_snr_gamma, snr_plus_one=snr_plus_one)
    abar = scheduler.alphas_cumprod.to(t.device)[t]
    snr = abar / (1 - abar)
    wanted = snr + 1 if snr_plus_one else snr.clamp(max=min_snr_gamma)
    return wanted / (snr if scheduler.config.prediction_type == "epsilon" else snr + 1)


def check_weighting(towards_noise: float = 1.0, min_snr_gamma: float | None = None, snr_plus_one: bool = False) -> None:
    """AnimkitError for settings of `timesteps` and `snr_weight` that make no sense or exclude each other."""
    if not 0 < towards_noise <= 4:
        raise AnimkitError(f"towards_noise = {towards_noise!r} makes no sense: 1 draws timesteps evenly, 0.6 more "
                           "often noisy ones.")
    if min_snr_gamma is not None and not min_snr_gamma > 0:
        raise AnimkitError(f"min_snr_gamma = {min_snr_gamma!r} makes no sense: 5 is usual, None the plain loss.")
    if min_snr_gamma is not None and snr_plus_one:
        raise AnimkitError("min_snr_gamma and snr_plus_one are two weightings of one loss: choose one.")


def _checked(z: Tensor, text: Tensor) -> Tensor:
    if z.ndim != 5 or 0 in z.shape:
        raise AnimkitError(f"A loss takes latents b c f h w, not a tensor of shape {tuple(z.shape)}.")
    if text.ndim != 3 or len(text) != len(z):
        raise AnimkitError(f"There are {len(z)} clips, but text is {tuple(text.shape)}: give b n d, one a clip.")
    return z
