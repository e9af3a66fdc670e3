"""Stage 2 in the miniature, plain and short: motion modules learn from world clips while the base stays frozen."""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..world import BASE_LOOKS, random_scene, render
from ..world.captions import caption
from ..world.web import degrade

CHUNK = 100
FRAMES = 16


def draw(seed: int, count: int, looks, web: bool, size: int, fixed: dict):
    """`count` clips of moving scenes: pixels n f h w 3 (uint8) and captions; web: degraded as web video is.

    `fixed` goes to random_scene.
    """
    rng = np.random.default_rng(seed)
    pixels, captions = np.empty((count, FRAMES, size, size, 3), np.uint8), []
    for n in range(count):
        scene = random_scene(rng, moving=0.95, look=tuple(looks), **fixed)
        rgb = render(scene, FRAMES, size).rgb
        pixels[n] = ((degrade(rgb) if web else rgb) * 255 + 0.5).astype(np.uint8)
        captions.append(caption(scene, rng))
    return pixels, captions


def _chunk(job):
    path, *how = job
    if not path.exists():
        pixels, captions = draw(*how)
        beside = path.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez(beside, pixels=pixels, captions=np.array(captions))
        os.replace(beside, path)
    return path


def clips(
    folder: Path,
    name: str,
    count: int,
    looks=BASE_LOOKS,
    web: bool = False,
    seed: int = 0,
    size: int = 64,
    processes: int | None = None,
    **fixed,
):
    """At least `count` clips in whole chunks of 100: (chunk's path, ...).

    Rendered over all cores where the folder does not hold them yet.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (folder / f"{name}-{size}-{k:03d}.npz", seed * 100_000 + k, CHUNK, tuple(looks), web, size, fixed)
        for k in range(-(-count // CHUNK))
    ]
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        return list(
            tqdm(
                pool.map(_chunk, jobs),
                total=len(jobs),
                desc=f"rendering {name}",
                unit="00 clips",
                disable=all(j[0].exists() for j in jobs),
            )
        )
