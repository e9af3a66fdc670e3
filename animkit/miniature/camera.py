"""Stage 2 continues with clips whose camera moves: a MotionLoRA (4.3) can only bring out what its motion module knows.

The paper's module saw ten million web videos. Their cameras pan and zoom, whether the captions say so or not. The
miniature's captions have no words for camera moves; adapters stand for the words. Each of the eight shot types has a
low-rank adapter of its own, which acts on the clips of that type. No adapter acts on clips with a still camera, so
that without an adapter the camera stays still. The MotionLoRAs of the zoo are trained anew, from 50 clips each.
"""

from functools import partial
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from ..data.camera import SHOTS
from ..data.world_clips import WorldRecipe
from ..inflation import inflate
from ..motion_lora import new_motion_lora
from ..motion_module import MotionModules
from ..training.draws import rand, randint
from ..training.losses import motion_module_loss

STILL = 0.3  # the share of clips whose camera stands still
AMOUNT = 0.2  # of the crop's move: a quarter of the window in a pan, 18 degrees in a roll
RANK = 8
LOUD = 4.0  # alpha of the eight: large, since each learns from about one clip in eleven; they do not ship
NONE = -1  # instead of a shot type's number: the camera stands still


class Adapters(nn.Module):
    """W x + LOUD * B A x on every layer of a MotionLoRA (4.3), with A and B of each clip's own shot type.

    Eight inserted LoRAs would each act on all clips of a batch; here one batch can have clips of different types.
    """

    def __init__(self, modules: MotionModules, rank: int = RANK):
        super().__init__()
        fresh = [new_motion_lora(modules, rank, seed) for seed in range(len(SHOTS))]
        self.paths = paths = fresh[0].paths
        self.down = nn.ParameterList(torch.stack([lora[path].down.weight.detach() for lora in fresh]) for path in paths)  # 8 r in
        self.up = nn.ParameterList(torch.stack([lora[path].up.weight.detach() for lora in fresh]) for path in paths)  # 8 out r
        self.types: Tensor | None = None  # b: each clip's shot type, or NONE
        for k, path in enumerate(paths):
            modules.get_submodule(path).register_forward_hook(partial(self._add, k))

    def state_of(self, type: int) -> dict[str, Tensor]:
        """One type's A and B, named as a LoRA's; its alpha here is LOUD."""
        parts = zip(self.paths, self.down, self.up)
        return {f"{path}.{name}.weight": both[type] for path, *pair in parts for name, both in zip(("down", "up"), pair)}

    def _add(self, k: int, layer: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor:
        """Add to y, a layer's output for x, both (b h w) f c: the places h w of one clip follow each other."""
        if self.types is None:
            return y
        moving, types = self.types >= 0, self.types.clamp(min=0)
        x = rearrange(args[0], "(b p) f c -> b (p f) c", b=len(types))
        down, up = self.down[k][types], self.up[k][types] * (LOUD * moving)[:, None, None]
        return y + rearrange(x @ down.mT @ up.mT, "b (p f) c -> (b p) f c", f=y.shape[1]).to(y.dtype)


class Said(nn.Module):
    """The inflated UNet with its motion modules, and an adapter for each shot type; each clip uses its own."""

    def __init__(self, video_unet: nn.Module, modules: MotionModules):
        super().__init__()
        self.video_unet, self.motion, self.adapters = video_unet, modules, Adapters(modules)

    def learned(self) -> list[nn.Parameter]:
        """What is trained: the motion modules, and the adapters."""
        return [*self.motion.parameters(), *self.adapters.parameters()]

    def forward(self, x: Tensor, t: Tensor, text: Tensor, types: Tensor) -> Tensor:
        """Latents x b c f h w, t b, text b m d -> b c f h w; types b: numbers in SHOTS, or NONE."""
        self.adapters.types = types
        try:
            return self.video_unet(x, t, text)
        finally:
            self.adapters.types = None


class Moves:
    """batch and loss for fit: clips of all shot types and of a still camera, and their text.

    clips: shot type, or None for a still camera -> latents n c f h w, text n m d; size: clips in a batch.
    """

    def __init__(self, clips: dict[str | None, tuple[Tensor, Tensor]], empty: Tensor, scheduler: Any, size: int = 4):
        self.empty, self.scheduler, self.size = empty, scheduler, size
        sets = [clips[shot] for shot in (*SHOTS, None)]  # NONE, -1, is the last
        self.z, self.text = (torch.cat(parts) for parts in zip(*sets))
        self.count = torch.tensor([len(z) for z, _ in sets])
        self.first = self.count.cumsum(0) - self.count

    def batch(self, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        still = rand((self.size,), generator) < STILL
        types = torch.where(still, NONE, randint(0, len(SHOTS), (self.size,), generator))
        rows = self.first[types] + (rand((self.size,), generator) * self.count[types]).long()
        return types, self.z[rows].float(), self.text[rows].float()

    def loss(self, model: Said, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> Tensor:
        types, z, text = batch
        return motion_module_loss(partial(model, types=types), z, text, generator, scheduler=self.scheduler, empty=self.empty,
                                  towards_noise=0.5, snr_plus_one=True)


def recipes(amount: float = AMOUNT) -> dict[str | None, WorldRecipe]:
    """Shot type, or None -> how its clips are drawn: by the paper's moving crop, out of clips that no other stage sees."""
    moved = {shot: WorldRecipe(shot=shot, amount=amount, camera="crop", seed=310 + k) for k, shot in enumerate(SHOTS)}
    return {None: WorldRecipe(seed=301), **moved}


def train(recipe: Any) -> None:
    """The recipe's stage: trains the module that learned clean clips further, on 200 clips of each shot type and 600 still.

    The adapters are saved in camera-adapters.safetensors, from which `--more` continues.
    """
    from .recipe import new_motion_modules, save
    from .unet import motion_betas, new_unet, text_states

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
    video_unet = inflate(unet)
    video_unet.insert(modules)
    said, kept = Said(video_unet, modules), recipe.folder / "camera-adapters.safetensors"
    if recipe.more and kept.exists():
        said.adapters.load_state_dict(load_file(kept))
    task = Moves(clips, empty, motion_betas(), recipe.batch or 4)
    if recipe.train("camera", said, task.loss, task.batch, parameters=said.learned(), keep=modules, lr=2e-3, ema=0.99, optimizer="muon"):
        save(said.adapters, kept)
