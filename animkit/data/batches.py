"""Micro-batches as a pure function of the step, so that a killed run continues exactly where it stopped."""
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from animkit.errors import AnimkitError
from animkit.training.draws import rank_and_world


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `count` items in an epoch: a permutation, a function of (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


class Batches:
    """The batch(k, generator) of `training.loop.fit`, from any items with len() and get(index, epoch) -> dict.

    Shuffled epochs follow one another without end; micro-step k takes the `size` items from position k * size. So each
    item comes once per epoch, and a batch may reach into the next epoch. Several processes take the parts of one batch
    of world * size. The generator is not used. workers > 1: threads fetch a batch's items in parallel (decoders release
    Python's lock). Raises AnimkitError for no items or a size below 1.
    """

    def __init__(self, items, size: int, seed: int = 0, workers: int = 1):
        if not len(items) or size < 1:
            raise AnimkitError(f"batches of {size} out of {len(items)} items make no sense: both must be at least 1")
        self.items, self.size, self.seed, self._order = items, size, seed, (None, None)
        self._pool = ThreadPoolExecutor(workers) if workers > 1 else None

    def rows(self, k: int) -> list[tuple[int, int]]:
        """(index, epoch) of each item of this process's micro-batch k."""
        rank, world = rank_and_world()
        first = (k * world + rank) * self.size
        places = [divmod(place, len(self.items)) for place in range(first, first + self.size)]
        return [(int(self._of_epoch(epoch)[place]), epoch) for epoch, place in places]

    def __call__(self, k: int, generator: torch.Generator | None = None) -> dict:
        get = lambda row: self.items.get(*row)  # noqa: E731
        return collate(list((self._pool.map if self._pool else map)(get, self.rows(k))))

    def _of_epoch(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self.items), self.seed, epoch))
        return self._order[1]


def collate(items: list[dict]) -> dict:
    """One dict per item -> one dict for the batch: tensors stacked along b, all else in lists."""
    columns = {key: [item[key] for item in items] for key in items[0]}
    return {key: torch.stack(column) if torch.is_tensor(column[0]) else column for key, column in columns.items()}


class TensorClips:
    """Clips held in memory, for Batches and cache_latents: video b c f h w (uint8, or float in -1 .. 1), captions."""

    def __init__(self, video: torch.Tensor, captions: Sequence[str]):
        if video.ndim != 5 or len(video) != len(captions):
            raise AnimkitError(f"{len(captions)} captions do not go with clips {tuple(video.shape)}: "
                               "give b c f h w and one caption for each")
        self.video, self.captions = video, list(captions)

    def __len__(self) -> int:
        return len(self.video)

    def get(self, index: int, epoch: int = 0) -> dict:
        return {"video": self.video[index], "caption": self.captions[index], "index": index}

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.video.dtype, self.video.shape, self.captions)).encode())
        digest.update(self.video.contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()
