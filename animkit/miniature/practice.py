"""Stage 2 continues in looks to practise on, so that one motion module suits looks that it never met (5.1).

A look's LoRA changes the features that the motion module reads. Trained on one base alone, the miniature's module moved things
well in half of the eight looks and spoilt their shape in five (data_samples/README.md). The remedy is the paper's own idea (4.1):
there a domain adapter learns the look of web video, so that the module need not; here a LoRA learns each of the nine
PRACTICE_LOOKS, trained as the zoo's looks are. A step has either clips in one of the nine, with its LoRA at alpha 1, or clips as
in `camera`. None of these LoRAs ships, and none of the nine looks is one of the eight that the module is judged in.
"""
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoints import open_checkpoint
from ..data.world_clips import WorldRecipe
from ..errors import AnimkitError
from ..inflation import inflate
from ..training.draws import rand, randint
from ..training.losses import motion_module_loss
from ..world import PRACTICE_LOOKS
from .camera import NONE, Moves, Said, recipes

SHARE = 0.5  # the share of steps whose clips are in one of the looks
EACH = 100  # clips of each look, and of each shot type
STILL = 400  # clips whose camera stands still, in the base's own looks
HARD = ("shaking", "shrinking", "growing", "spinning")  # shapes are lost most where these are asked for: drawn twice as often


class Practice:
    """batch and loss for fit: in each step clips of one look, chosen at random, or a batch of `moves`.

    clips: look -> latents n c f h w, text n m d. Each look's LoRA is in the model, under its name; it acts in its steps alone.
    """

    def __init__(self, clips: dict[str, tuple[Tensor, Tensor]], moves: Moves):
        self.clips, self.moves = clips, moves

    def batch(self, k: int, generator: torch.Generator) -> tuple[str | None, Tensor, Tensor, Tensor]:
        """The look or None, types b (NONE in a look), latents b c f h w, text b m d."""
        if rand((1,), generator).item() >= SHARE:
            return None, *self.moves.batch(k, generator)
        look = list(self.clips)[randint(0, len(self.clips), (1,), generator).item()]
        z, text = self.clips[look]
        rows = randint(0, len(z), (self.moves.size,), generator)
        return look, torch.full((self.moves.size,), NONE), z[rows].float(), text[rows].float()

    def loss(self, model: Said, batch: tuple[str | None, Tensor, Tensor, Tensor], generator: torch.Generator) -> Tensor:
        """The loss of 4.2, a scalar; the LoRA of the batch's look acts, and no other."""
        own, types, z, text = batch
        for look in self.clips:
            model.video_unet.alpha[look] = float(look == own)
        return motion_module_loss(partial(model, types=types), z, text, generator, scheduler=self.moves.scheduler,
                                  empty=self.moves.empty, towards_noise=0.55, snr_plus_one=True)


def train(recipe: Any) -> None:
    """The recipe's stage: trains what `camera` made (or `adopt` put there) further, with the LoRAs of `practice_looks`.

    The adapters of the shot types are saved in practice-adapters.safetensors, from which `--more` continues.
    """
    from .recipe import new_motion_modules, save, saying
    from .unet import motion_betas, new_unet, text_states

    files = {look: recipe.folder / "zoo" / "practice" / look / f"{look}.safetensors" for look in PRACTICE_LOOKS}
    if missing := [look for look, file in files.items() if not file.exists()]:
        raise AnimkitError(f"There is no LoRA of the look {', '.join(missing)} to practise with: run `animkit miniature "
                           "practice_looks` first.")
    tokenizer, text_encoder = recipe.text()
    unet = recipe.read("unet", new_unet()).requires_grad_(False)
    modules = recipe.read(recipe.last_motion(), new_motion_modules(unet))

    def clips(name: str, count: int, drawn: WorldRecipe, twice: tuple[str, ...] = ()) -> tuple[Tensor, Tensor]:
        z, captions = recipe.clip_latents(name.replace(" ", "-"), count, drawn)
        rows = torch.cat([torch.arange(len(z)), saying(captions, *twice)])
        return z[rows].transpose(1, 2), text_states(text_encoder, tokenizer, captions)[rows]

    seen = {look: clips(f"practice-{look}", EACH, WorldRecipe(looks=(look,), seed=400 + k), twice=HARD)
            for k, look in enumerate(files)}
    moved = {shot: clips(shot or "still camera", EACH if shot else STILL, drawn) for shot, drawn in recipes().items()}
    video_unet = inflate(unet)
    video_unet.insert(modules)
    for look, file in files.items():
        lora = open_checkpoint(file).build(video_unet).float().requires_grad_(False)
        video_unet.insert(lora, alpha=0, name=look)
    said, kept = Said(video_unet, modules), recipe.folder / "practice-adapters.safetensors"
    if recipe.more and kept.exists():
        said.adapters.load_state_dict(load_file(kept))
    empty = text_states(text_encoder, tokenizer, [""]).float()
    task = Practice(seen, Moves(moved, empty, motion_betas(), recipe.batch or 4))
    if recipe.train("practice", said, task.loss, task.batch, parameters=said.learned(), keep=modules, lr=2e-3, ema=0.99, optimizer="muon"):
        save(said.adapters, kept)
