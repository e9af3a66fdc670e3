"""Section 4.4: the sampler loop, in full: a clip's latents x_0 from noise x_T, step by step.

b clips, f frames, c latent channels, h w latent height and width, n tokens, d text width.
"""
import copy
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from animkit.errors import AnimkitError
from animkit.inflation import VideoUNet

Callback = Callable[[int, Tensor, Tensor], Any]
SAMPLES = ("step", "scale_model_input", "init_noise_sigma", "order")  # a sampler has these; flow matching's lack some


@torch.no_grad()
def sample(video_unet: VideoUNet, noise: Tensor, text: Tensor, scheduler: Any, steps: int = 25, guidance: float = 7.5,
           generators: list[torch.Generator] | None = None, callback: Callback | None = None, progress: bool = True,
           added: dict[str, Tensor] | None = None, control: Callable[..., dict] | None = None,
           part: slice = slice(None), guided: Mapping[str, float] | None = None, guided_until: float = 0.3,
           eased: Mapping[str, float] | None = None, eased_below: float = 0.5) -> Tensor:
    """From noise x_T (b c f h w) to a clip's latents x_0: 25 steps of DDIM in the paper, here any diffusers scheduler.

    text is [negative, positive] stacked (2b n d) when guidance is above 1, else b n d; or a text for each frame of each
    clip, in place of b then (b f). Each step asks the video UNet for the noise in x_t and lets the scheduler take some
    of it away, by classifier-free guidance (Ho & Salimans 2022):

        eps = eps(x, negative) + guidance * (eps(x, text) - eps(x, negative))

    guided {name: weight}: these inserted parts are left out of this eps and guided towards with their weight (see
    towards) while t is above guided_until of all timesteps; each takes half as much time again. Below, only detail is
    still open, and they act as usual (as in Kynkaanniemi et al. 2024, arXiv 2404.07724). eased {name: share}: these
    inserted parts act with this share of their alpha once t is at or below eased_below of all timesteps. By then the
    movement is decided, and a motion module may spoil shapes in a look that it was not trained on; not in the paper
    (ComfyUI-AnimateDiff-Evolved has it as keyframes). callback(step, t, x) gets each x. Ancestral schedulers draw fresh
    noise from generators, one per clip. control (5.4, from control.steer) gives, at each step, what to add inside the
    UNet. part: the steps to take; after slice(None, k), slice(k, None) continues, with the first result as its noise.
    """
    scheduler = copy.deepcopy(scheduler)  # a scheduler remembers the steps it took; the caller's stays fresh
    if getattr(scheduler, "noise_sampler_seed", 0) is None and generators:  # DPMSolverSDE
        scheduler.noise_sampler_seed = [g.initial_seed() for g in generators]
    scheduler.set_timesteps(steps, device=noise.device)
    takes = inspect.signature(scheduler.step).parameters
    extra = {"generator": generators} if "generator" in takes and generators else {}
    extra |= {"eta": 0.0} if "eta" in takes else {}  # no fresh noise in DDIM's steps or TCD's, as in diffusers' pipelines
    x = noise if part.start else noise * scheduler.init_noise_sigma                         # b c f h w
    bar = tqdm(scheduler.timesteps[part], desc=f"{x.shape[2]} frames on {x.device}", disable=not progress)
    for step, t in enumerate(bar, part.start or 0):
        z = scheduler.scale_model_input(x, t)
        b, z = len(z), torch.cat([z, z]) if guidance > 1 else z
        steering = control(z, t, text, added) if control else {}
        now = guided if guided and t > guided_until * scheduler.config.num_train_timesteps else {}
        late = eased if eased and t <= eased_below * scheduler.config.num_train_timesteps else {}
        with scaled(video_unet, late):
            with left_out(video_unet, now):
                eps = video_unet(z, t, text, added_cond_kwargs=added, **steering)
            if guidance > 1:
                negative, positive = eps.chunk(2)
                eps = negative + guidance * (positive - negative)
            if now:
                halves = 2 if guidance > 1 else 1
                own = added and {key: rows.chunk(halves)[-1] for key, rows in added.items()}
                apart = positive if guidance > 1 else eps
                eps = eps + towards(video_unet, now, z[:b], t, text.chunk(halves)[-1], apart, own, control)
        x = scheduler.step(eps, t, x, **extra, return_dict=False)[0]                        # x_t -> x_{t-1}
        if callback is not None:
            callback(step, t, x)
    return x


def towards(video_unet: VideoUNet, guided: Mapping[str, float], x: Tensor, t: Tensor, text: Tensor, positive: Tensor,
            added: dict[str, Tensor] | None = None, control: Callable[..., dict] | None = None) -> Tensor:
    """What inserted parts, such as MotionLoRAs, add to eps as conditions with a weight each, as the text has one:

        sum over k of guided[k] * (eps(x, text, with k) - eps(x, text)),      the second without any part: `positive`

    x b c f h w, its positive text b n d or (b f) n d. What a look does to the text encoder is not taken out. Not in the
    paper: its MotionLoRA acts in both halves of the guidance alike. InstructPix2Pix weighs two conditions in this way
    (Brooks et al. 2023, arXiv 2211.09800, eq. 3).
    """
    found = torch.zeros_like(positive)
    for name, weight in guided.items():
        with left_out(video_unet, [other for other in guided if other != name]):
            steering = control(x, t, text, added) if control else {}
            found += weight * (video_unet(x, t, text, added_cond_kwargs=added, **steering) - positive)
    return found


@contextmanager
def scaled(video_unet: VideoUNet, shares: Mapping[str, float]) -> Iterator[None]:
    """Inside, the parts with these names act with a share of their alpha; it is restored even after an error."""
    own = {name: video_unet.alpha[name] for name in shares}
    try:
        for name, alpha in own.items():
            video_unet.alpha[name] = shares[name] * alpha
        yield
    finally:
        for name, alpha in own.items():
            video_unet.alpha[name] = alpha


def left_out(video_unet: VideoUNet, names: Iterable[str]) -> AbstractContextManager[None]:
    """Inside, the parts inserted under these names do nothing."""
    return scaled(video_unet, dict.fromkeys(names, 0.0))


def asks_more(scheduler: Any) -> bool:
    """Whether its step needs more than the model's output, t and x_t. CogVideoX's does: it is for that model only."""
    wanted = [p for p in inspect.signature(scheduler.step).parameters.values()
              if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(wanted) != 3


def betas_of(scheduler: Any) -> list:
    """What tells two noise schedules apart: their kind, first beta and last."""
    return [scheduler.config.get(key) for key in ("beta_schedule", "beta_start", "beta_end")]


def check_steps(scheduler: Any, steps: int) -> None:
    """AnimkitError for a number of steps that the scheduler cannot take, or that would begin far below pure noise."""
    T = scheduler.config.get("num_train_timesteps", math.inf)
    if steps > T:
        raise AnimkitError(f"steps is at most {T}, as many as there are noise levels; got {steps}.")
    trial = copy.deepcopy(scheduler)
    try:
        trial.set_timesteps(steps)
        first = float(max(trial.timesteps))
    except Exception as error:  # each scheduler has its own error for a number that it cannot take
        raise AnimkitError(f"{type(scheduler).__name__} cannot take {steps} steps ({error}): choose another number."
                           ) from error
    # "leading" timesteps go up from 0, T // steps apart: with many steps the first may be far below T, not pure noise
    floored = scheduler.config.get("timestep_spacing") == "leading" and steps * (T // steps) < 0.75 * T
    if first >= T or floored:
        raise AnimkitError(f"{steps} steps of {type(scheduler).__name__} would begin at timestep {first:.0f} of {T}: take at "
                           f'most {T // 3:.0f}, or a scheduler with timestep_spacing="trailing".')
