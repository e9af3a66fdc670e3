"""Clips of the cartoon world as training data: WorldClips is like VideoClips, but draws scenes instead of reading files."""
import hashlib
import multiprocessing
import os
import threading
import time
import weakref
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from animkit import world
from animkit.data import camera, world_recipe
from animkit.data.video import to_float
from animkit.data.world_recipe import WorldRecipe, draw
from animkit.errors import AnimkitError

__all__ = ["WorldClips", "WorldRecipe", "draw"]


class WorldClips:
    """`count` clips of random scenes, for cache_latents: get(i) is {"video": c f h w in -1 .. 1, "caption", "index"}.

    workers > 1: other processes draw the next clips ahead. They end once the last clip, or every clip, has been given,
    and when this process ends or is killed; a later get(i) starts new ones. Raises AnimkitError if they cannot run.
    """

    def __init__(self, count: int, *, workers: int = 1, **recipe):
        if count < 1:
            raise AnimkitError(f"a set of {count} clips cannot be drawn: count must be at least 1")
        self.count, self.recipe, self.workers = count, WorldRecipe(**recipe), workers
        self._pool: ProcessPoolExecutor | None = None
        self._ahead: dict[int, Future] = {}
        self._given: set[int] = set()
        self._lock = threading.Lock()  # threads may ask at the same time

    def __len__(self) -> int:
        return self.count

    def get(self, index: int, epoch: int = 0) -> dict:
        """Clip `index`, the same in every epoch."""
        pixels, caption = self._next(index) if self.workers > 1 else draw(self.recipe, index)
        video = to_float(rearrange(torch.from_numpy(pixels), "f h w c -> c f h w"))
        return {"video": video, "caption": caption, "index": index}

    def _next(self, index: int) -> tuple[np.ndarray, str]:
        try:
            with self._lock:
                if self._pool is None:
                    self._pool = ProcessPoolExecutor(self.workers, initializer=_begin)
                    self._end = weakref.finalize(self, self._pool.shutdown, cancel_futures=True)
                if index not in self._ahead:
                    self._forget()
                for i in range(index, min(index + 4 * self.workers, self.count)):
                    if i not in self._ahead:
                        self._ahead[i] = self._pool.submit(draw, self.recipe, i)
                clip = self._ahead.pop(index)
            drawn, pool = clip.result(), None
        except (OSError, BrokenProcessPool) as error:  # no /dev/shm; a script that each process runs again
            raise AnimkitError(f"The processes that draw clips cannot work here ({error}): set data.workers=1 (a script of your "
                               'own may just want `if __name__ == "__main__":` before its calls).') from error
        with self._lock:
            self._given.add(index)
            every = len(self._given) == self.count
            if every:
                self._given.clear()
            if self._pool and (every or index == self.count - 1):
                self._forget()
                self._end.detach()
                pool, self._pool = self._pool, None
        if pool:
            pool.shutdown()  # waits for the clips that other threads still want
        return drawn

    def _forget(self) -> None:
        for clip in self._ahead.values():
            clip.cancel()
        self._ahead.clear()

    def fingerprint(self) -> str:
        """A hash of the recipe and of the world's code (the files' bytes): if it changes, the clips are other clips."""
        digest = hashlib.sha256(repr((self.count, self.recipe)).encode())
        for file in [*sorted(Path(world.__file__).parent.glob("*.py")), Path(camera.__file__), Path(world_recipe.__file__)]:
            digest.update(file.read_bytes())
        return digest.hexdigest()


def _begin() -> None:
    """What a drawing process does first."""
    # one thread: OpenMP's threads do not survive a fork, and a forked process that waits for them hangs
    torch.set_num_threads(1)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    """End this process when its parent is gone: a parent that is killed (kill -9) cannot end it."""
    while os.getppid() == parent and multiprocessing.parent_process().is_alive():
        time.sleep(1)
    os._exit(1)
