"""Frames a second and core that the cartoon world draws: `python benchmarks/world_speed.py`. Processor seconds, so that load matters little."""
import json
import platform
import time
from pathlib import Path

import numpy as np

from animkit.world import LOOKS, random_scene, render


def frames_per_second(size: int, looks, frames: int = 16, clips: int = 24) -> float:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, look=tuple(looks)) for _ in range(clips)]
    render(scenes[0], frames=frames, size=size)
    start = time.process_time()
    for scene in scenes:
        render(scene, frames=frames, size=size)
    return round(clips * frames / (time.process_time() - start), 1)


def main() -> None:
    told = {
        "settings": {"frames": 16, "clips": 24, "processor": platform.processor() or platform.machine(),
                     "python": platform.python_version(), "numpy": np.__version__},
        "frames per second and core": {
            "64 pixels, all looks": frames_per_second(64, LOOKS),
            **{f"64 pixels, {look}": frames_per_second(64, [look], clips=8) for look in LOOKS},
            "128 pixels, all looks": frames_per_second(128, LOOKS, clips=12),
            "256 pixels, all looks": frames_per_second(256, LOOKS, clips=4),
        },
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told["frames per second and core"], indent=1))


if __name__ == "__main__":
    main()
