"""How long the training loop waits for data: its share of the time, for the ways that animkit feeds it.

    python benchmarks/data_wait.py                         # writes small videos and shards into a temporary folder
    python benchmarks/data_wait.py --size 480 640 --step 0.5 --steps 60 --out wait.json

The step is a pause of --step seconds, as on an accelerator, where the processor is free meanwhile; or with --busy that
much work on one processor core, as in training without one. `wait` is what `fit` itself measures and writes into its
log.
"""
import argparse
import io
import json
import os
import platform
import tarfile
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from torch import nn

from animkit.data import Batches, StreamClips, TensorClips, VideoClips
from animkit.training import LoopConfig, fit


def write_videos(folder: Path, count: int, size: tuple[int, int], frames: int = 80) -> None:
    """H.264 videos of drifting soft noise, each frame another, a caption beside each; and the same as four shards."""
    rng = np.random.default_rng(0)
    for i in range(count):
        with av.open(str(folder / f"{i:04}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
            tiles = rng.integers(0, 256, (size[0] // 8 + 12, size[1] // 8 + 12, 3), dtype=np.uint8)
            big = tiles.repeat(8, axis=0).repeat(8, axis=1)
            for f in range(frames):
                picture = np.ascontiguousarray(big[f:f + size[0], f:f + size[1]])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        (folder / f"{i:04}.txt").write_text(f"drifting noise {i}")
    for shard in range(4):
        with tarfile.open(folder / f"clips-{shard}.tar", "w") as tar:
            own = [p for p in folder.glob("*.*") if p.suffix in (".mp4", ".txt") and int(p.stem) % 4 == shard]
            for path in sorted(own):
                info = tarfile.TarInfo(path.name)
                info.size = path.stat().st_size
                tar.addfile(info, io.BytesIO(path.read_bytes()))


def measure(batch, step_seconds: float, busy: bool, steps: int, prefetch: int) -> dict:
    """Train a one-number model with such a step; the first steps, when nothing can be ready yet, do not count."""
    def loss(model, x, generator):
        until, matrix = time.perf_counter() + step_seconds, torch.ones(200, 200)
        if not busy:
            time.sleep(step_seconds)
        while time.perf_counter() < until:
            matrix @ matrix
        first = x["video"] if "video" in x else x["latents"]
        return model(first.flatten()[:1].view(1, 1)).mean() ** 2

    with tempfile.TemporaryDirectory() as run:
        config = LoopConfig(steps=steps, prefetch=prefetch, checkpoint_seconds=1e9)
        history = fit(nn.Linear(1, 1), loss, batch, config, run, quiet=True)
    warm = max(1, prefetch)
    seconds = history.seconds[-1] - history.seconds[warm - 1]
    waited = history["wait"][warm:].sum()
    return {"wait_share": round(float(waited / seconds), 4),
            "seconds_per_step": round(float(seconds / (steps - warm)), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), help="height and width of the videos")
    parser.add_argument("--crop", type=int, default=256, help="side of the clips that are cut out of them")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--step", type=float, default=0.5, help="seconds that a step takes")
    parser.add_argument("--busy", action="store_true", help="the step keeps a processor core busy")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--prefetch", type=int, default=4)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_videos(folder, a.videos, tuple(a.size))
        clips = VideoClips(folder, size=a.crop)
        began = time.perf_counter()
        Batches(clips, a.batch)(0)
        decode = time.perf_counter() - began
        ways = {"videos, decoded in the step": (Batches(clips, a.batch), 0),
                "videos, decoded ahead": (Batches(clips, a.batch, workers=a.workers), a.prefetch),
                "shards, decoded ahead": (StreamClips(str(folder / "clips-{0..3}.tar"), a.batch, size=a.crop,
                                                      workers=a.workers), a.prefetch),
                "in memory": (Batches(TensorClips(torch.zeros(8, 4, 16, 32, 32), [""] * 8), a.batch), 0)}
        for name, (batch, prefetch) in ways.items():
            rows[name] = measure(batch, a.step, a.busy, a.steps, prefetch)
            print(f"{name:30} waits {rows[name]['wait_share']:6.1%} of the time, "
                  f"{rows[name]['seconds_per_step']:.3f} s a step", flush=True)
    settings = {k: v for k, v in vars(a).items() if k != "out"}
    result = {"settings": settings, "seconds_to_decode_a_batch": round(decode, 3), "ways": rows,
              "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"}
    print(json.dumps(result, indent=1))
    if a.out:
        a.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
