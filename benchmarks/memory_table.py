"""What fits on which GPU, from calculation: `python benchmarks/memory_table.py` prints the table of docs/memory.md.

The real models run at their real size on torch's meta device, where tensors have shapes and no memory, while every
tensor that is alive is counted. So the peak is that of this code's own graph (fused attention, half precision); what
is not in it: CUDA's context and the workspaces of cuDNN and cuBLAS (together about 0.6 to 1 GB), and fragmentation.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest.mock import patch

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from animkit import MotionModules, inflate
from animkit.checkpoints.architecture import architecture

GB = 1e9


class Peak(TorchDispatchMode):
    """Counts the bytes of all storages alive that were made inside, and keeps the largest sum."""

    def __init__(self):
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for key, (reference, size) in list(self.alive.items()):
            if reference.expired():
                self.bytes -= size
                del self.alive[key]
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        for tensor in tree_leaves(out):
            if torch.is_tensor(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive and storage._cdata not in inputs:
                    self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                    self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        return out


class FusedAttention(torch.autograd.Function):
    """What a fused attention kernel leaves: its output and one number a row, kept for the way back; on meta, torch would
    draw up every score."""

    @staticmethod
    def forward(ctx, q, k, v):
        out, row = torch.empty_like(q), q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, row)
        return out

    @staticmethod
    def backward(ctx, gradient):
        return tuple(map(torch.empty_like, ctx.saved_tensors[:3]))


def fused_attention(q, k, v, *args, **kwargs):
    return FusedAttention.apply(q, k, v)


def peak(run: Callable[[], object]) -> float:
    """The most gigabytes that are alive at once while run() works, its inputs, weights and their gradients apart."""
    with Peak() as counter, patch("torch.nn.functional.scaled_dot_product_attention", fused_attention):
        run()
    return counter.peak / GB


def weights(module: torch.nn.Module) -> float:
    return sum(t.nbytes for t in module.state_dict().values()) / GB


@torch.no_grad()
def measure(base: str, motion: str, frames: int, side: int) -> dict[str, float]:
    """Gigabytes in half precision (SDXL's VAE in single): the parts' weights, and the peaks of one guided step and of
    decoding."""
    known, half = architecture(base), torch.float16
    with init_empty_weights(include_buffers=True):
        unet = UNet2DConditionModel.from_config(known["unet"]).to(half).eval()
        vae = (
            AutoencoderKL.from_config(known["vae"])
            .to(torch.float32 if known["vae"].get("force_upcast") else half)
            .eval()
        )
        texts = [CLIPTextModel(CLIPTextConfig(**known["text_encoder"])).to(half)]
        if "text_encoder_2" in known:
            texts.append(CLIPTextModelWithProjection(CLIPTextConfig(**known["text_encoder_2"])).to(half))
        modules = MotionModules.for_unet(unet, motion).to(half)
    video = inflate(unet)
    with init_empty_weights(include_buffers=True):
        video.insert(modules)
    x = torch.empty(2, 4, frames, side // 8, side // 8, device="meta", dtype=half)
    text = torch.empty(2, 77, known["unet"]["cross_attention_dim"], device="meta", dtype=half)
    added = {
        "text_embeds": torch.empty(2, 1280, device="meta", dtype=half),
        "time_ids": torch.empty(2, 6, device="meta", dtype=half),
    }
    added = {"added_cond_kwargs": added} if base == "sdxl" else {}
    result = {"unet": weights(unet), "motion": weights(modules), "vae": weights(vae), "text": sum(map(weights, texts)),
              "step": peak(lambda: video(x, torch.empty((), device="meta"), text, **added))}
    latent = torch.empty(
        8, 4, side // 8, side // 8, device="meta", dtype=vae.dtype
    )  # SDXL's overflows in half precision
    result["decode 8"] = peak(lambda: vae.decode(latent))
    result["decode 1"] = peak(lambda: vae.decode(latent[:1]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="one row only")
    rows = [("sd1", "v3", 16, 256), ("sd1", "v3", 16, 512), ("sd1", "v2", 16, 512), ("sd1", "v3", 32, 512),
            ("sdxl", "v3", 16, 768), ("sdxl", "v3", 16, 1024)]
    names = ["base, module", "frames, pixels", "UNet", "motion", "text", "VAE", "one guided step", "decode 8 / 1",
             "all on the GPU", "with VAE slicing", "with `offload()`"]
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")
    for base, motion, frames, side in rows[:1] if parser.parse_args().fast else rows:
        m = measure(base, motion, frames, side)
        resident = m["unet"] + m["motion"] + m["text"] + m["vae"]
        sums = (resident + max(m["step"], m["decode 8"]), resident + max(m["step"], m["decode 1"]),
                max(m["unet"] + m["motion"] + m["step"], m["vae"] + m["decode 1"], m["text"]))
        cells = [f"{base}, {'SDXL beta' if base == 'sdxl' else motion}", f"{frames}, {side}",
                 *(f"{m[part]:.2f}" for part in ("unet", "motion", "text", "vae", "step")),
                 f"{m['decode 8']:.2f} / {m['decode 1']:.2f}", *(f"{total:.1f}" for total in sums)]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
