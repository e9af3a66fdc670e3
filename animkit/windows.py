"""Clips longer than the motion module's positions, without training: FreeNoise (Qiu et al. 2023, arXiv 2310.15169).

Only motion modules look along frames. For a long clip they do so within windows of as many frames as they learned from;
where windows overlap, their results are averaged. The noise of the first window comes again, its frames shuffled, so
that scenery stays what it was. Not in the paper, whose clips have 16 frames. b batch, f frames, c channels.
"""
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def windows(frames: int, window: int, stride: int) -> list[slice]:
    """Slices of `window` frames that start `stride` apart and cover all frames; the last one ends with the clip."""
    last = max(frames - window, 0)
    return [slice(start, start + window) for start in (*range(0, last, stride), last)]


def averaged(mix: Callable[[Tensor], Tensor], x: Tensor, window: int, stride: int) -> Tensor:
    """mix within each window of x (b f c); a frame's results are averaged, those near a window's middle weighing most.

    Weights 1, 2, 3, ..., 3, 2, 1 (FreeNoise, eq. 9). A clip no longer than a window goes through mix as it is.
    """
    if x.shape[1] <= window:
        return mix(x)
    place = torch.arange(1, window + 1, device=x.device)
    weight = torch.minimum(place, place.flip(0)).to(x.dtype)[:, None]                             # f 1
    total, weights = torch.zeros_like(x), x.new_zeros(x.shape[1], 1)
    for part in windows(x.shape[1], window, stride):
        total[:, part] += weight * mix(x[:, part])
        weights[part] += weight
    return total / weights


def repeated(noise: Tensor, window: int, stride: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Noise b c f h w; frames beyond the first window get the noise of a window before, shuffled within each stride.

    This is FreeNoise's noise rescheduling. generators: one per clip, on the CPU.
    """
    noise = noise.clone()
    for clip, generator in zip(noise, generators):
        for start in range(window, clip.shape[1], stride):
            order = start - window + torch.randperm(stride, generator=generator)
            later = clip[:, start : start + stride]
            later[:] = clip[:, order[: later.shape[1]]]
    return noise


@contextmanager
def in_windows(motion_modules: nn.Module | None, window: int | None = None, stride: int | None = None) -> Iterator[None]:
    """Inside, these motion modules look along frames within windows; without a window, along the whole clip."""
    blocks = [module for module in motion_modules.modules() if hasattr(module, "in_windows")] if motion_modules else []
    try:
        for block in blocks:
            block.in_windows = window and (window, stride)
        yield
    finally:
        for block in blocks:
            block.in_windows = None
