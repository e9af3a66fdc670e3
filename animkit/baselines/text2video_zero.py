"""Text2Video-Zero (5.2; Khachatryan et al. 2023, arXiv 2303.13439): clips from an image model, without any training.

    frame 0             x_T -> x_941 -> x_881                      denoised alone, x_941 kept
    frame k, x_881      frame 0's x_881, moved by k delta          delta: (12, 12) pixels in a picture of 512
    frame k, x_941      sqrt(a) x_881 + sqrt(1 - a) eps            noised again; a = product of alpha_t from 881 to 941
    all frames          x_941 -> x_0, denoised together; in every spatial self-attention all frames read frame 0:

        softmax(Q_k K_0^T / sqrt d) V_0

The global motion moves the picture; frame 0's keys and values keep its appearance. No part of the method knows how an
object moves by itself. b clips, f frames, c channels, h w latent height and width.
"""
import math
from collections.abc import Sequence
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from animkit.baselines.baseline import DDIMBaseline, read_frames
from animkit.errors import AnimkitError
from animkit.sampling import sample

GRID = 512  # pixels of the picture that delta counts in, whatever the real size is


def first_frame(i: int) -> tuple[int]:
    """Cross-frame attention: frame i reads frame 0."""
    return (0,)


class Text2VideoZero(DDIMBaseline):
    """Text2Video-Zero: `Text2VideoZero(animator)("a red balloon over the sea", seed=0)`, called as an Animator is.

    delta: the global motion along x and y, in pixels per frame of a 512-pixel picture (lambda (dx, dy) in its paper);
    positive numbers move the picture left and up. times: the timestep at which frames are moved, and that up to which
    they are noised again; the scheduler's nearest steps are taken. By default 50 steps. A callback sees the last part
    only, all frames together. Raises AnimkitError for a wrong delta or times, and as an Animator does.
    """

    method, usual = "Text2Video-Zero", {"steps": 50}

    def __init__(self, animator: Any = "miniature", delta: Sequence[float] = (12, 12),
                 times: Sequence[int] = (881, 941)):
        if np.shape(delta) != (2,) or not all(isinstance(d, Real) and math.isfinite(d) for d in delta):
            raise AnimkitError(f"delta is two numbers, pixels a frame along x and y; got {delta!r}.")
        if np.shape(times) != (2,) or not all(isinstance(t, Real) for t in times) or not 0 < times[0] < times[1]:
            raise AnimkitError(f"times is two timesteps, the smaller first, such as (881, 941); got {times!r}.")
        super().__init__(animator)
        self.delta, self.times = tuple(delta), tuple(times)
        read_frames(self.video_unet, first_frame)

    def _draw(self, noise: Tensor, text: Tensor, scheduler: Any, steps: int, guidance: float, callback=None,
              progress: bool = True, **how) -> Tensor:
        """noise b c f h w: its frame 0 is x_T of frame 0, frame k the eps with which frame k is noised again."""
        j_941, j_881, a = self.places(scheduler, steps)
        draw = partial(sample, self.video_unet, text=text, scheduler=scheduler, steps=steps, guidance=guidance, **how)
        x_941 = draw(noise[:, :, :1], part=slice(0, j_941), progress=False)                     # b c 1 h w
        x_881 = draw(x_941, part=slice(j_941, j_881), progress=False)
        others = torch.cat([move(x_881, k, self.delta) for k in range(noise.shape[2])], dim=2)[:, :, 1:]
        others = math.sqrt(a) * others + math.sqrt(1 - a) * noise[:, :, 1:]
        return draw(torch.cat([x_941, others], dim=2), part=slice(j_941, None), callback=callback, progress=progress)

    def places(self, scheduler: Any, steps: int) -> tuple[int, int, float]:
        """The steps nearest to the larger and the smaller time, in this order; a, the product of alphas in between."""
        scheduler = type(scheduler).from_config(scheduler.config)
        scheduler.set_timesteps(steps)
        low, high = (int((scheduler.timesteps - t).abs().argmin()) for t in self.times)
        low = max(low, high + 1)  # few steps lie far apart, and both times may fall on one
        if low == steps:
            raise AnimkitError(f"Text2Video-Zero needs a step after the one at {self.times[1]}; of {steps} there is "
                               "none: ask for more steps.")
        t_low, t_high = scheduler.timesteps[low], scheduler.timesteps[high]
        return high, low, float(scheduler.alphas[t_low:t_high].prod())  # the authors' product, t_high itself left out

    def _settings(self) -> dict[str, Any]:
        return {"delta": self.delta, "times": self.times}


def move(x: Tensor, k: int, delta: Sequence[float]) -> Tensor:
    """Latents ... h w for frame k: each place takes the nearest value k delta further on; edges are mirrored."""
    h, w = x.shape[-2:]
    rows, columns = (source(size, k * d).to(x.device) for size, d in ((h, delta[1]), (w, delta[0])))
    return x[..., rows[:, None], columns]


def source(size: int, shift: float) -> Tensor:
    """For each of `size` latents, the index of the one it takes, for a shift in pixels of 512.

    The half pixel is as in the authors' code: their grid counts from a pixel's corner, torch's from its middle.
    """
    i = (torch.arange(size) + (shift - 0.5) * size / GRID).round().long() % (2 * size)  # 1 0 | 0 1 ... n | n ... 1 0
    return torch.where(i < size, i, 2 * size - 1 - i)
