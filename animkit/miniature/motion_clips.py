"""Clips that the motion judge learns from: real renders in every look, and imitations of what an image model draws alone.

The marks around a thing (speed lines, a rope, footprints) show its motion even in a still. Here they are its own in
40 % of clips, another motion's in 30 % and absent in 30 %, so that they tell nothing. A third of clips flicker: the judge
is asked only how a thing moves; other measures tell how steady the rest is (metrics: warp error, smoothness).
"""
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..files import make_folder
from ..world import LOOKS, MOTIONS, OBJECTS, Scene, random_scene, render
from ..world.web import degrade

KINDS = ("still", *MOTIONS, "incoherent")
FRAMES, SIZE, CHUNK = 16, 32, 250
FLICKERING = 0.35  # the share of clips with a motion, or none, that flicker


def small(rgb: np.ndarray) -> np.ndarray:
    """Pictures (f 64 64 3, 0 to 1) -> f 32 32 3, uint8: means of 2 x 2 pixels, as `MotionJudge.signal` makes them."""
    f, h, w, c = rgb.shape
    return (rgb.reshape(f, h // 2, 2, w // 2, 2, c).mean((2, 4)) * 255 + 0.5).astype(np.uint8)


def with_marks(scene: Scene, cue: str | None) -> Scene:
    """The same scene with other marks around its things: "own", None, or another motion's."""
    return scene.with_(things=tuple(replace(t, cue=cue) for t in scene.things))


def moving(rng, kind: str, looks=tuple(LOOKS)) -> Scene:
    """A random scene whose things all move in one way, or stand still."""
    things = 1 if rng.random() < 0.93 else 2
    return random_scene(rng, things=things, motion=None if kind == "still" else kind, look=looks)


def incoherent(rng, looks=tuple(LOOKS)) -> np.ndarray:
    """Frames (f 64 64 3) as separate noise makes them: the prompt's picture drawn anew 16 times, in half of these clips with
    the same scenery; or, in a third of clips, another thing at the same place in every frame."""
    scene = moving(rng, KINDS[rng.integers(len(KINDS) - 1)], looks)
    kept, steady = rng.random() < 0.67, rng.random() < 0.5  # steady scenery alone makes no clip coherent
    frames = []
    for _ in range(FRAMES):
        thing = scene.things[0]
        other = moving(rng, thing.motion or "still", (scene.look,))
        if kept:
            same = tuple(replace(t, object=thing.object, colour=thing.colour) for t in other.things)
            shown = other.with_(things=same, setting=scene.setting, seed=scene.seed if steady else other.seed)
        else:
            shown = scene.with_(things=tuple(replace(t, object=list(OBJECTS)[rng.integers(len(OBJECTS))],
                                                     colour=other.things[0].colour) for t in scene.things))
        frames.append(render(shown, u=[rng.random()]).rgb[0])
    return np.stack(frames)


def flickering(rng, scene: Scene, u: np.ndarray) -> np.ndarray:
    """A scene (f 64 64 3) as a weak generator draws it: the thing moves as it should, but each frame has partly new scenery
    and texture, and the thing's outline trembles by half a pixel. This flicker is not motion."""
    def trembling(thing):
        dx, dy, grown = rng.normal(0, (0.015, 0.015, 0.03))
        return replace(thing, x=thing.x + dx, y=thing.y + dy, size=thing.size * (1 + grown))

    anew = [scene.with_(seed=int(rng.integers(1 << 30)), things=tuple(map(trembling, scene.things))) for _ in u]
    redrawn = np.stack([render(each, u=[moment]).rgb[0] for each, moment in zip(anew, u)])
    return (share := rng.uniform(0.3, 1)) * redrawn + (1 - share) * render(scene, u=u).rgb


def draw(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` clips (n f 32 32 3, uint8) and which of KINDS each shows (n); a pure function of the seed."""
    rng = np.random.default_rng(seed)
    pixels, labels = np.empty((count, FRAMES, SIZE, SIZE, 3), np.uint8), rng.integers(len(KINDS), size=count)
    for n, label in enumerate(labels):
        if KINDS[label] == "incoherent":
            rgb = incoherent(rng)
        else:
            other = (None, *MOTIONS)[rng.integers(len(MOTIONS) + 1)]
            cue = ("own", other, None)[rng.choice(3, p=(0.4, 0.3, 0.3))]
            pace = rng.uniform(0.85, 1)  # a generator may start late or end early
            u = rng.uniform(0, 1 - pace) + pace * np.arange(FRAMES) / FRAMES
            scene = with_marks(moving(rng, KINDS[label]), cue)
            rgb = flickering(rng, scene, u) if rng.random() < FLICKERING else render(scene, u=u).rgb
        pixels[n] = small(degrade(rgb) if rng.random() < 0.08 else rgb)
    return pixels, labels


def _chunk(job):
    path, seed = job
    if not path.exists():
        pixels, labels = draw(seed, CHUNK)
        beside = path.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez(beside, pixels=pixels, labels=labels)
        os.replace(beside, path)
    return path


def clips(folder: Path, name: str, count: int, seed: int, processes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """At least `count` clips (whole chunks of 250), drawn unless the folder has them: pixels, labels."""
    folder = make_folder(folder)
    jobs = [(folder / f"{name}-{k:03d}.npz", seed * 100_000 + k) for k in range(-(-count // CHUNK))]
    with ProcessPoolExecutor(processes) as pool:
        done = tqdm(pool.map(_chunk, jobs), total=len(jobs), desc=f"rendering {name}", unit=f" x {CHUNK} clips",
                    disable=all(path.exists() for path, _ in jobs))
        paths = list(done)
    parts = [np.load(p) for p in paths]
    return np.concatenate([p["pixels"] for p in parts]), np.concatenate([p["labels"] for p in parts])
