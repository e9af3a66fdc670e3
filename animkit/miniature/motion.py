"""Clips that the miniature's motion modules learn from (stage 2), kept in a folder in chunks of 100."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.world_clips import WorldClips, WorldRecipe, draw
from ..files import make_folder

CHUNK = 100
MOVES = 0.15  # share of clips whose camera moves though no caption says so, as in web video: MotionLoRAs (4.3) bring it out


def _chunk(job: tuple[Path, WorldRecipe, int]) -> Path:
    path, recipe, first = job
    if not path.exists():
        pixels, captions = zip(*(draw(recipe, index) for index in range(first, first + CHUNK)))
        beside = path.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez(beside, pixels=np.stack(pixels), captions=np.array(captions))  # n f h w 3 (uint8), n
        os.replace(beside, path)
    return path


def clips(folder: Path, name: str, count: int, recipe: WorldRecipe, processes: int | None = None) -> list[Path]:
    """At least `count` clips in whole chunks of 100: [chunk's path, ...].

    Rendered on all cores unless the folder has them; another recipe, or a change in the world's code, makes other files.
    """
    folder = make_folder(folder)
    key = WorldClips(CHUNK, **asdict(recipe)).fingerprint()[:8]
    jobs = [(folder / f"{name}-{key}-{k:03d}.npz", recipe, k * CHUNK) for k in range(-(-count // CHUNK))]
    with ProcessPoolExecutor(processes or os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(
            tqdm(
                pool.map(_chunk, jobs),
                total=len(jobs),
                desc=f"rendering {name}",
                unit="00 clips",
                disable=all(j[0].exists() for j in jobs),
            )
        )
