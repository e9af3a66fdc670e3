"""The exponential moving average of the trained weights."""
from contextlib import contextmanager
from typing import Iterator

import torch
from torch import Tensor, nn


class EMA:
    """e <- d e + (1 - d) w after every step, kept in float32, with d = min(decay, (1 + step) / (10 + step)).

    The growing d lets the average forget its random start; `step` counts the updates made so far.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float):
        self.parameters, self.decay = parameters, decay
        self.average: dict[str, Tensor] = {n: p.detach().float().clone() for n, p in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        d = min(self.decay, (1 + step) / (10 + step))
        weights = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - d)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """The model's weights become the average, permanently."""
        for name, p in self.parameters.items():
            p.copy_(self.average[name])

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside `with ema.swapped_in():` the model works with the average; after it, with its own weights again."""
        own = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self.parameters.items():
                    p.copy_(own[name])
