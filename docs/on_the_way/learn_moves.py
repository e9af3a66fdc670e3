"""The stage `camera` on two processes, which have the two cores to themselves: as camera_module.xz was made.

Tidied since, and run again for some steps only.

    for r in 0 1; do RANK=$r WORLD=2 OMP_NUM_THREADS=1 taskset -c $r python docs/on_the_way/learn_moves.py START FOLDER MINUTES & done

START: a motion module's file, or "ships". FOLDER gets motion.safetensors (the average of the weights) and the eight
adapters every two minutes; adapters that lie there already are gone on with. LR (3e-3; the second round 2e-3) and RUN
(the seed) are read from the environment. Clips are drawn the first time, in 5 minutes of both cores.
"""
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from animkit import samples
from animkit.animator import Animator
from animkit.checkpoints import open_checkpoint, save_checkpoint
from animkit.data.camera import SHOTS
from animkit.data.cache import cache_latents, cache_text
from animkit.data.world_clips import WorldClips
from animkit.heap import keep_freed_memory
from animkit.miniature.camera import STILL, Moves, Said, recipes
from animkit.training.config import load_config
from animkit.training.ema import EMA

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD", 1))
LR, RUN = float(os.environ.get("LR", 3e-3)), int(os.environ.get("RUN", 0))


def clips(pipe, cache: Path) -> tuple[dict, torch.Tensor]:
    """Latents and text of 600 still clips and 120 of each shot type, as Moves wants them; and the text of ""."""
    sets = {shot: WorldClips(120 if shot else 600, workers=2, **asdict(drawn)) for shot, drawn in recipes().items()}
    latents = {shot: cache_latents(pipe.vae, each, cache) for shot, each in sets.items()}
    captions = sorted({caption for each in latents.values() for caption in each.captions})
    text = cache_text(pipe.tokenizer, pipe.text_encoder, captions, cache)
    return {shot: (each.latents, torch.stack([text[c] for c in each.captions])) for shot, each in latents.items()}, text.empty


def mean_of_gradients(parameters: list, by: int) -> None:
    """Each parameter's gradient becomes the sum over the processes, divided by how many have one."""
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    if WORLD > 1:
        dist.all_reduce(flat)
    for p, part in zip(parameters, (flat / by).split([p.numel() for p in parameters])):
        p.grad = part.view_as(p)


def main(start: str, folder: Path, minutes: float) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    folder.mkdir(parents=True, exist_ok=True)
    if WORLD > 1:
        dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29511", rank=RANK, world_size=WORLD)
    animator = Animator("miniature", motion=False)
    video_unet = animator.video_unet
    video_unet.unet.requires_grad_(False)
    modules = open_checkpoint(samples.path("motion_module") if start == "ships" else start).build(video_unet).float()
    video_unet.insert(modules, name="motion", dtype=torch.float32)
    said = Said(video_unet, modules)
    files = {shot: folder / f"adapter-{shot.replace(' ', '-')}.safetensors" for shot in SHOTS}
    for shot, file in files.items():
        if file.exists():
            said.adapters[shot].load_state_dict(load_file(file))
    if RANK == 0:
        clips(animator.pipe, folder / "cache")
    if WORLD > 1:
        dist.barrier()
    sets, empty = clips(animator.pipe, folder / "cache")
    task = Moves(sets, empty, load_config("miniature", "motion-module").noise.scheduler(), size=2)

    learned, adapters = list(modules.parameters()), {s: list(a.parameters()) for s, a in said.adapters.items()}
    optimizers = [torch.optim.AdamW([p for p in learned if p.ndim != 2], weight_decay=1e-2, fused=True),
                  torch.optim.Muon([p for p in learned if p.ndim == 2], weight_decay=1e-2, adjust_lr_fn="match_rms_adamw")]
    of_adapters = {shot: torch.optim.AdamW(ps, weight_decay=0, fused=True) for shot, ps in adapters.items()}
    ema = EMA(dict(modules.named_parameters()), 0.99)
    averages, taken = {s: EMA(dict(said.adapters[s].named_parameters()), 0.98) for s in SHOTS}, dict.fromkeys(SHOTS, 0)

    def step_of(optimizer, parameters: list, by: int, lr: float) -> None:
        mean_of_gradients(parameters, by)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for each in optimizer if isinstance(optimizer, list) else [optimizer]:
            for group in each.param_groups:
                group["lr"] = lr
            each.step()
            each.zero_grad(set_to_none=True)

    def save() -> None:
        with ema.swapped_in():
            save_checkpoint(modules, folder / "motion.safetensors", "reference", kind="motion module")
        for shot, file in files.items():
            with averages[shot].swapped_in():
                save_file({k: v.contiguous() for k, v in said.adapters[shot].state_dict().items()}, file.with_suffix(".tmp"))
                file.with_suffix(".tmp").replace(file)

    began = saved = time.monotonic()
    losses, step = [], 0
    while True:
        step += 1
        gone = torch.tensor([(time.monotonic() - began) / 60 / minutes])
        if WORLD > 1:
            dist.broadcast(gone, 0)
        gone = float(gone)
        if gone >= 1:
            break
        factor = min(1.0, step / 50)
        factor *= 1 if gone < 0.3 else 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * (gone - 0.3) / 0.7))
        # every process knows whose turn it is in each of them, and draws clips of its own
        shots = []
        for rank in range(WORLD):
            rng = np.random.default_rng([RUN, step, rank])
            shots.append(None if rng.random() < STILL else SHOTS[rng.integers(8)])
        z, text = sets[shots[RANK]]
        rows = np.random.default_rng([RUN, step, RANK, 1]).integers(len(z), size=task.size)
        with torch.autocast("cpu", torch.bfloat16):
            loss = task.loss(said, (shots[RANK], z[rows].float(), text[rows].float()),
                             torch.Generator().manual_seed(10**6 * RUN + step))
        loss.backward()
        losses.append(float(loss.detach()))
        step_of(optimizers, learned, WORLD, LR * factor)
        ema.update(step)
        for shot in set(shots) - {None}:
            taken[shot] += 1
            step_of(of_adapters[shot], adapters[shot], shots.count(shot), 3e-3 * factor)
            averages[shot].update(taken[shot])
        if RANK == 0 and step % 25 == 0:
            print(f"step {step}, {gone * minutes:.1f} of {minutes:g} minutes, loss {np.mean(losses[-100:]):.4f}", flush=True)
        if RANK == 0 and time.monotonic() - saved > 120:
            save()
            saved = time.monotonic()
    if RANK == 0:
        save()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
