"""The miniature's ControlNet on depth (5.4): learns from stills and their exact depth alone, beside the frozen base."""
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel
from einops import repeat
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..control import depth_pictures
from ..files import make_folder
from ..training.draws import randint
from ..training.losses import drop_captions
from ..world import BASE_LOOKS, random_scene, render
from ..world.captions import caption
from . import stills
from .unet import Denoising, new_unet, text_states

WIDTHS = (16, 32, 64)  # of the layers that read the picture: two halvings, 64 pixels to 16 x 16
HELD_OUT = 0.05       # share of the pictures that only validation sees


def new_controlnet(unet: nn.Module, seed: int = 0) -> ControlNetModel:
    """A copy of the UNet's first half, its outputs zero; its middle block is the first ResNet alone, which is enough."""
    torch.manual_seed(seed)
    whole = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=WIDTHS)
    controlnet = ControlNetModel.from_config({**whole.config, "mid_block_type": "UNetMidBlock2D"})
    copied = whole.state_dict()
    controlnet.load_state_dict({name: copied[name] for name in controlnet.state_dict()})
    return controlnet


@dataclass
class Pictures:
    """Stills with what is known of them: pixels n h w 3, depth as a ControlNet sees it n h w (both uint8), captions."""
    pixels: np.ndarray
    depth: np.ndarray
    captions: list[str]

    def __len__(self) -> int:
        return len(self.pixels)


def draw(seed: int, count: int, size: int = 64) -> Pictures:
    """`count` stills in the base's looks, of moving scenes at random moments; a pure function of the seed."""
    rng = np.random.default_rng(seed)
    pixels, depth = np.empty((count, size, size, 3), np.uint8), np.empty((count, size, size), np.uint8)
    captions = []
    for n in range(count):
        scene = random_scene(rng, things=1 if rng.random() < 0.93 else 2, look=BASE_LOOKS)
        footage = render(scene, size=size, u=[rng.random()])
        pixels[n], depth[n] = footage.uint8[0], depth_pictures(footage.depth)[0, ..., 0]
        captions.append(caption(scene, rng))
    return Pictures(pixels, depth, captions)


def _chunk(job: tuple[Path, int, int]) -> Path:
    path, seed, count = job
    if not path.exists():
        beside = path.with_suffix(f".{os.getpid()}.tmp.npz")
        np.savez(beside, **vars(draw(seed, count)))
        os.replace(beside, path)
    return path


def pictures(folder: Path, count: int, seed: int = 30, processes: int | None = None) -> Pictures:
    """At least `count` stills with depth, in whole chunks of 1,000, rendered unless the folder has them."""
    folder = make_folder(folder)
    chunks = -(-count // stills.CHUNK)
    jobs = [(folder / f"depth-{k:03d}.npz", seed * 100_000 + k, stills.CHUNK) for k in range(chunks)]
    done = all(path.exists() for path, *_ in jobs)
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        paths = list(tqdm(pool.map(_chunk, jobs), total=chunks, desc="rendering depth", unit="k stills", disable=done))
    parts = [np.load(path) for path in paths]
    pixels, depth = (np.concatenate([part[key] for part in parts]) for key in ("pixels", "depth"))
    return Pictures(pixels, depth, [caption for part in parts for caption in part["captions"].tolist()])


class Steered(nn.Module):
    """The frozen UNet with a ControlNet beside it, on stills: (x n c h w, t, text, depth n H W uint8) -> as the UNet."""

    def __init__(self, unet: nn.Module, controlnet: ControlNetModel):
        super().__init__()
        self.unet, self.controlnet = unet.requires_grad_(False), controlnet

    def forward(self, x: Tensor, t: Tensor, text: Tensor, depth: Tensor) -> Any:
        picture = repeat(depth.to(x) / 255, "n h w -> n c h w", c=3)
        down, mid = self.controlnet(x, t, text, picture, return_dict=False)
        return self.unet(x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=mid)


class Control(Denoising):
    """batch, loss and validate for fit: the base's own objective, on latents n c h w, text n m d and depth n H W.

    Half of the captions are dropped, as in the ControlNet paper, so that depth alone must tell what there is.
    """

    def __init__(self, latents: Tensor, text: Tensor, empty: Tensor, depth: Tensor, size: int = 32, drop: float = 0.5):
        super().__init__(latents, text, empty, size, drop)
        self.depth, self.last = depth, max(1, round(HELD_OUT * len(latents)))

    def batch(self, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        rows = randint(0, len(self.latents) - self.last, (self.size,), generator)
        text = drop_captions(self.text[rows].float(), self.empty.float(), self.drop, generator)
        return self.latents[rows].float(), text, self.depth[rows]

    def loss(self, model: Steered, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> Tensor:
        x, text, depth = batch
        return super().loss(lambda x, t, text: model(x, t, text, depth.to(x.device)), (x, text), generator)

    @torch.no_grad()
    def validate(self, model: Steered, step: int) -> dict[str, float]:
        """The loss on held-out pictures with their captions, and the loss of the base alone, on the same noise."""
        held_out = slice(-min(self.last, 256), None)
        x, text, depth = self.latents[held_out].float(), self.text[held_out].float(), self.depth[held_out]
        device = next(model.parameters()).device
        x, text = x.to(device), text.to(device)

        def mean(predict: Callable) -> float:
            return float(Denoising.loss(self, predict, (x, text), torch.Generator().manual_seed(0)))

        steered = mean(lambda x, t, text: model(x, t, text, depth.to(device)))
        return {"loss": round(steered, 4), "loss without depth": round(mean(model.unet), 4)}


def train(recipe: Any) -> None:
    """The recipe's stage: 2,000 steps of 32 pictures, about 24 minutes of one core; nothing in it ever moves."""
    tokenizer, text_encoder = recipe.text()
    found = pictures(recipe.folder / "data", recipe.counted(10_000))
    text, empty = (text_states(text_encoder, tokenizer, captions) for captions in (found.captions, [""]))
    task = Control(recipe.latents(found, "depth-latents"), text, empty, torch.from_numpy(found.depth),
                   recipe.batch or 32)
    unet = recipe.read("unet", new_unet())
    controlnet = new_controlnet(unet)
    recipe.train("control", Steered(unet, controlnet), task.loss, task.batch, task.validate,
                 parameters=controlnet.parameters(), keep=controlnet, lr=1e-3, ema=0.995, validate_every=200)
