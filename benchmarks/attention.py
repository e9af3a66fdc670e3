"""Fused against plain attention in a training step on a CPU, in float32 and, where the CPU computes in it, in bf16:
`python benchmarks/attention.py`. Processor seconds, the two in turns, so that load matters little."""
import time
from contextlib import nullcontext

import torch

from animkit.miniature.unet import new_unet
from animkit.training.losses import short_attention
from animkit.training.plumbing import fast_precision


def seconds(run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    unet, x, text, t = new_unet(), torch.randn(32, 8, 16, 16), torch.randn(32, 28, 96), torch.randint(0, 1000, (32,))

    for precision in dict.fromkeys(["no", fast_precision("cpu")]):
        def step(way):
            with way, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                unet(x, t, text).sample.float().pow(2).mean().backward()

        step(nullcontext())  # to warm up
        rounds = [(seconds(lambda: step(nullcontext())), seconds(lambda: step(short_attention(x.device))))
                  for _ in range(5)]
        fused, plain = (sum(each) / len(rounds) for each in zip(*rounds))
        print(f"a training step of 32 pictures, mixed_precision {precision}: fused {fused:.3f} s, plain {plain:.3f} s, "
              f"ratio {plain / fused:.2f}")


if __name__ == "__main__":
    main()
