"""One clip of the cartoon world: how it is drawn. Caches of clips go by the bytes of this file: edit it to have others."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from animkit import world
from animkit.data import camera
from animkit.errors import AnimkitError
from animkit.world.web import degrade


@dataclass(frozen=True)
class WorldRecipe:
    """How clips are drawn. Raises AnimkitError for a look or a shot type that the world does not have."""
    size: int = 64                                    # pixels
    frames: int = 16                                  # 1: stills, each at a random moment of its scene
    looks: Sequence[str] = world.BASE_LOOKS
    web: bool = False                                 # degraded as web video is, watermark and all
    moving: float = 0.95                              # the share of things that move
    shot: str | None = None                           # one of camera.SHOTS
    amount: float = 1.0                               # of the camera move: what it means depends on `camera`
    camera: Literal["scene", "crop"] = "scene"        # the world's own camera (amount 1: its whole move), or the
    #                                                   paper's moving crop out of a picture twice as large (0 to 1)
    seed: int = 0
    moves: float = 0.0                                # the share of clips whose camera moves, by a crop in one of the
    #                                                   eight ways (amount 0.1 to 0.3), unsaid, as in web video

    def __post_init__(self):
        unknown = [look for look in self.looks if look not in world.EVERY_LOOK]
        if unknown or not self.looks:
            raise AnimkitError(f"there is no look {', '.join(unknown) or 'at all'} to draw; the cartoon world has "
                               f"{', '.join(world.EVERY_LOOK)}")
        if not 0 <= self.moves <= 1 or (self.moves and (self.shot or self.frames < 2)):
            raise AnimkitError("moves is a share of clips, 0 to 1, which are no stills and not all of one shot type; got "
                               f"{self.moves}, frames {self.frames}, shot {self.shot}")
        if self.shot:
            object.__setattr__(self, "shot", camera.shot_name(self.shot))
            if self.camera == "crop":
                camera.crop_path(self.shot, 2, self.amount)  # says so if the amount is out of range
            elif not 0 < self.amount <= 2:
                raise AnimkitError(f"the amount of the world's own camera is above 0 and at most 2, not {self.amount}")


def draw(recipe: WorldRecipe, index: int) -> tuple[np.ndarray, str]:
    """Clip `index` (uint8 f h w 3) and its caption: a function of the recipe and the index alone."""
    rng = np.random.default_rng([recipe.seed, index])
    shot, amount, cropped = recipe.shot, recipe.amount, recipe.shot is not None and recipe.camera == "crop"
    if recipe.moves and rng.random() < recipe.moves:
        shot, amount, cropped = camera.SHOTS[rng.integers(len(camera.SHOTS))], rng.uniform(0.1, 0.3), True
    fixed = {"shot": recipe.shot, "amount": recipe.amount} if recipe.shot and not cropped else {}
    scene = world.random_scene(rng, moving=recipe.moving, look=tuple(recipe.looks), **fixed)
    caption = world.caption(scene, rng)
    moments = [rng.random()] if recipe.frames == 1 else np.arange(recipe.frames) / recipe.frames
    rgb = world.render(scene, size=recipe.size * (2 if cropped else 1), u=moments).rgb
    if recipe.web:
        rgb = degrade(rgb)  # before the crop, as in a real web video: its watermark moves along
    pixels = (rgb * 255 + 0.5).astype(np.uint8)
    if cropped:
        path = camera.crop_path(shot, recipe.frames, amount)
        moved = camera.apply(torch.from_numpy(pixels).permute(3, 0, 1, 2), path, recipe.size)
        pixels = moved.permute(1, 2, 3, 0).numpy()
    return pixels, caption
