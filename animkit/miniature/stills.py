"""Rendered pictures for training, kept in a folder in chunks of 1,000 so that a stopped run continues where it was."""

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.camera import any_crop, apply
from ..files import make_folder
from ..world import BASE_LOOKS, COLOURS, LOOKS, MOTIONS, OBJECTS, SETTINGS, random_scene, render
from ..world.captions import caption
from ..world.web import degrade

CHUNK = 1000
NAMES = {
    "object": list(OBJECTS),
    "colour": list(COLOURS),
    "setting": list(SETTINGS),
    "motion": ["still", *MOTIONS],
    "look": list(LOOKS),
}


@dataclass
class Stills:
    """pixels n 64 64 3 (uint8), captions (n), labels: for each of NAMES the index (n), the first object's."""

    pixels: np.ndarray
    captions: list[str]
    labels: dict[str, np.ndarray]

    def __len__(self):
        return len(self.pixels)


def draw(seed: int, count: int, looks, web: float, size: int = 64, framed: float = 0.0):
    """`count` stills of moving scenes at random moments: pixels n size size 3 (uint8), captions, labels as in Stills.

    web: the share that is degraded as web video is.
    framed: the share seen through a window of any_crop, cut out of a picture twice as large, as a moving camera sees.
    """
    rng = np.random.default_rng(seed)
    pixels, captions, labels = (
        np.empty((count, size, size, 3), np.uint8),
        [],
        {k: np.empty(count, np.int16) for k in NAMES},
    )
    for n in range(count):
        scene = random_scene(rng, things=1 if rng.random() < 0.93 else 2, look=tuple(looks))
        moment, window = [rng.random()], any_crop(rng) if framed and rng.random() < framed else None
        rgb = render(scene, size=size * (2 if window else 1), u=moment).rgb
        if rng.random() < web:
            rgb = degrade(rgb)
        if window:
            rgb = apply(torch.from_numpy(rgb).permute(3, 0, 1, 2), [window], size).permute(1, 2, 3, 0).numpy()
        pixels[n] = (rgb[0] * 255 + 0.5).astype(np.uint8)
        captions.append(caption(scene, rng))
        thing = scene.things[0]
        for key, value in {
            "object": thing.object,
            "colour": thing.colour,
            "setting": scene.setting,
            "motion": thing.motion or "still",
            "look": scene.look,
        }.items():
            labels[key][n] = NAMES[key].index(value)
    return pixels, captions, labels


def _chunk(job):
    path, *how = job
    if not path.exists():
        pixels, captions, labels = draw(how[0], CHUNK, *how[1:])
        beside = path.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez(beside, pixels=pixels, captions=np.array(captions), **labels)
        os.replace(beside, path)
    return path


def stills(
    folder: Path,
    name: str,
    count: int,
    looks=BASE_LOOKS,
    web: float = 0.0,
    seed: int = 0,
    size: int = 64,
    framed: float = 0.0,
    processes: int | None = None,
) -> Stills:
    """At least `count` stills (whole chunks), rendered on all cores unless the folder has them."""
    folder = make_folder(folder)
    jobs = [
        (folder / f"{name}-{size}-{k:03d}.npz", seed * 100_000 + k, tuple(looks), web, size, framed)
        for k in range(-(-count // CHUNK))
    ]
    with ProcessPoolExecutor(processes or os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        paths = list(
            tqdm(
                pool.map(_chunk, jobs),
                total=len(jobs),
                desc=f"rendering {name}",
                unit="k stills",
                disable=all(j[0].exists() for j in jobs),
            )
        )
    parts = [np.load(p) for p in paths]
    return Stills(
        np.concatenate([p["pixels"] for p in parts]),
        [c for p in parts for c in p["captions"].tolist()],
        {k: np.concatenate([p[k] for p in parts]) for k in NAMES},
    )
