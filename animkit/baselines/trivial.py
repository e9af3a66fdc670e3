"""Two methods of our own that bound the comparison (5.2): their score in a metric shows what the metric sees.

Frames that are drawn independently differ as much as frames can, and are no clip; a still is perfectly smooth, and does
not move.
"""
from typing import Any

from einops import repeat
from torch import Tensor

from animkit.baselines.baseline import Baseline


class IndependentFrames(Baseline):
    """Every frame is a picture of its own, from noise of its own: the inflated base without a motion module."""

    method = "frames sampled independently"


class RepeatedStill(Baseline):
    """One picture, that of the noise's first frame, shown f times."""

    method = "one still repeated"

    def _draw(self, noise: Tensor, text: Tensor, scheduler: Any, steps: int, guidance: float, **how) -> Tensor:
        x = super()._draw(noise[:, :, :1], text, scheduler, steps, guidance, **how)
        return repeat(x, "b c 1 h w -> b c f h w", f=noise.shape[2])
