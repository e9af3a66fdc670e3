"""A training step of the miniature's motion module with and without heap.keep_freed_memory: `python benchmarks/heap.py`.

Processor seconds and page faults, each way in processes of its own and in turns, since the setting stays for good.
"""
import resource
import subprocess
import sys
import time

import torch


def step_of(keep: bool, steps: int = 4) -> tuple[float, float]:
    from diffusers import DDIMScheduler

    from animkit.heap import keep_freed_memory
    from animkit.inflation import inflate
    from animkit.miniature.recipe import new_motion_modules
    from animkit.miniature.unet import new_unet, scheduler
    from animkit.training.losses import motion_module_loss
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    unet = new_unet().requires_grad_(False)
    video_unet = inflate(unet)
    video_unet.insert(new_motion_modules(unet))
    betas = DDIMScheduler.from_config(scheduler().config, beta_schedule="linear")
    draw = torch.Generator().manual_seed(0)
    z, text = torch.randn(4, 8, 16, 16, 16, generator=draw), torch.randn(4, 28, 96, generator=draw)
    for k in range(steps + 2):
        if k == 2:  # two to warm up
            began, faults = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        motion_module_loss(video_unet, z, text, draw, scheduler=betas, drop=0).backward()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return (time.process_time() - began) / steps, faults / steps


def main() -> None:
    told = {}
    for _ in range(3):
        for way in ("plain", "kept"):
            done = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True)
            told.setdefault(way, []).append([float(word) for word in done.stdout.split()])
    plain, kept = (sorted(told[way])[1] for way in ("plain", "kept"))  # the median run
    print(f"a training step of four clips, one thread: plain {plain[0]:.2f} s and {plain[1]:.0f} page faults, kept "
          f"{kept[0]:.2f} s and {kept[1]:.0f}; kept takes {kept[0] / plain[0]:.2f} of plain")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(*step_of(sys.argv[1] == "kept"))
    else:
        main()
