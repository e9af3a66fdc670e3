"""Stage 2 goes on with clips whose camera moves: a MotionLoRA (4.3) can only bring out what its motion module knows.

The paper's module saw ten million web videos, whose cameras pan and zoom, said or unsaid. The miniature's captions have
no words for it; here an adapter stands for the words. Each of the eight shot types has a low-rank adapter
of its own, in place while the module learns clips of that type; none is in place for clips whose camera stands still, so
that without one it goes on standing still. The eight are thrown away at the end: the MotionLoRAs of the zoo are learned
afresh, from 50 clips each.
"""

from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from ..data.camera import SHOTS
from ..data.world_clips import WorldRecipe
from ..inflation import inflate
from ..motion_lora import new_motion_lora
from ..motion_module import MotionModules
from ..training.draws import rand, randint
from ..training.losses import motion_module_loss

STILL = 0.3  # the share of batches whose camera stands still
AMOUNT = 0.2  # of the crop's move: a quarter of the window in a pan, 18 degrees in a roll
RANK = 8
TYPES = 4  # types of clip in a step, each a part of its batch: so an adapter learns in every second step or so
LOUD = 4.0  # alpha of the eight: the module's optimizer is slow for adapters that begin at nothing, and are thrown away


class Said(nn.Module):
    """The inflated UNet with its motion modules, and an adapter for each shot type; `shot` says whose is in place."""

    def __init__(self, video_unet: nn.Module, modules: MotionModules):
        super().__init__()
        self.video_unet, self.motion, self.shot = video_unet, modules, None
        self.adapters = nn.ModuleDict({shot: new_motion_lora(modules, RANK, seed) for seed, shot in enumerate(SHOTS)})
        for shot, adapter in self.adapters.items():
            video_unet.insert(adapter, alpha=0, name=shot)

    def learned(self) -> list[nn.Parameter]:
        """What is trained: the motion modules, and the adapters that are thrown away."""
        return [*self.motion.parameters(), *self.adapters.parameters()]

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """Latents x n c f h w, t n, text n m d -> n c f h w, with the adapter of `shot` (None: with none)."""
        for shot in SHOTS:
            self.video_unet.alpha[shot] = LOUD * (shot == self.shot)
        return self.video_unet(x, t, text)


class Moves:
    """batch and loss for fit, a part of a step's: clips of one shot type, or (None) of a still camera, and their text.

    clips: type -> n c f h w, n m d; size: so many of them in a part.
    """

    def __init__(self, clips: dict[str | None, tuple[Tensor, Tensor]], empty: Tensor, scheduler: Any, size: int = 1):
        self.clips, self.empty, self.scheduler, self.size = clips, empty, scheduler, size

    def batch(self, k: int, generator: torch.Generator) -> tuple[str | None, Tensor, Tensor]:
        still = float(rand((1,), generator)) < STILL
        shot = None if still else SHOTS[int(randint(0, len(SHOTS), (1,), generator))]
        z, text = self.clips[shot]
        rows = randint(0, len(z), (self.size,), generator)
        return shot, z[rows].float(), text[rows].float()

    def loss(self, model: Said, batch: tuple[str | None, Tensor, Tensor], generator: torch.Generator) -> Tensor:
        model.shot, *clips = batch
        return motion_module_loss(model, *clips, generator, scheduler=self.scheduler, empty=self.empty, towards_noise=0.5,
                                  snr_plus_one=True)


def recipes(amount: float = AMOUNT) -> dict[str | None, WorldRecipe]:
    """Shot type, or None -> how its clips are drawn: by the paper's moving crop, out of clips that no other stage sees."""
    moved = {shot: WorldRecipe(shot=shot, amount=amount, camera="crop", seed=310 + k) for k, shot in enumerate(SHOTS)}
    return {None: WorldRecipe(seed=301), **moved}


def train(recipe: Any) -> None:
    """The recipe's stage, on the module that learned clean clips; 200 clips of each shot type and 600 still ones."""
    from .recipe import new_motion_modules
    from .unet import new_unet, scheduler, text_states

    tokenizer, text_encoder = recipe.text()
    unet = recipe.read("unet", new_unet()).requires_grad_(False)
    modules = new_motion_modules(unet)
    if not (recipe.folder / "camera" / "checkpoint").exists():
        recipe.read("motion", modules)
    clips = {}
    for shot, drawn in recipes().items():
        name = (shot or "still camera").replace(" ", "-")
        z, captions = recipe.clip_latents(name, 200 if shot else 600, drawn)
        clips[shot] = z.transpose(1, 2), text_states(text_encoder, tokenizer, captions)
    empty = text_states(text_encoder, tokenizer, [""]).float()
    betas = DDIMScheduler.from_config(scheduler().config, beta_schedule="linear")
    video_unet = inflate(unet)
    video_unet.insert(modules)
    batch = recipe.batch or 4
    parts = min(TYPES, batch)
    task, said = Moves(clips, empty, betas, batch // parts), Said(video_unet, modules)
    recipe.train("camera", said, task.loss, task.batch, parameters=said.learned(), keep=modules, lr=2e-3, ema=0.99,
                 optimizer="muon", accumulate=parts)
