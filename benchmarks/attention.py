"""Fused against plain attention in a training step on a CPU: `python benchmarks/attention.py`. Processor seconds, so that load matters little."""
import time
from contextlib import nullcontext

import torch

from animkit.miniature.unet import new_unet
from animkit.training.losses import short_attention


def seconds(run, rounds: int = 5) -> float:
    run()
    start = time.process_time()
    for _ in range(rounds):
        run()
    return (time.process_time() - start) / rounds


def main() -> None:
    torch.set_num_threads(1)
    unet, x, text, t = new_unet(), torch.randn(32, 8, 16, 16), torch.randn(32, 28, 96), torch.randint(0, 1000, (32,))

    def step(way):
        with way, torch.autocast("cpu", torch.bfloat16):
            unet(x, t, text).sample.float().pow(2).mean().backward()

    fused = seconds(lambda: step(nullcontext()))
    plain = seconds(lambda: step(short_attention(x.device)))
    print(f"a training step of 32 pictures: fused {fused:.3f} s, plain {plain:.3f} s, ratio {plain / fused:.2f}")


if __name__ == "__main__":
    main()
