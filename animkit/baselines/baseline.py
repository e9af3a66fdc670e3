"""What the methods of the comparison (5.2) share: an animator's base and looks, its call, its sampler loop; no motion.

A method inflates the animator's image UNet once more for itself. So the looks in it, and their alphas, act here too.
The motion module acts only in the animator's own VideoUNet, so not here. The animator itself does not change.
"""
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.models.attention import BasicTransformerBlock
from einops import rearrange
from torch import nn

from animkit.animator import Animator
from animkit.errors import AnimkitError
from animkit.inflation import VideoUNet, inflate
from animkit.insertion import on_motion
from animkit.motion_module import MotionModules
from animkit.show.clip import Clip


class Baseline(Animator):
    """A method of the comparison on an Animator (or on a base that one takes); called like one, it returns a Clip.

    clip.settings["method"] names it, and ["alpha"] holds the looks at work. insert, remove, alpha are the animator's.
    When the method is deleted, its hooks leave the base. Raises AnimkitError as an Animator does.
    """

    method = ""
    usual: dict[str, Any] = {}  # its own defaults, where they are not the base's

    def __init__(self, animator: Any = "miniature"):
        animator = animator if isinstance(animator, Animator) else Animator(animator, motion=False)
        self.animator = animator = getattr(animator, "animator", animator)  # for another method, the animator below it
        self.pipe, self.base, self.alpha = animator.pipe, animator.base, animator.alpha
        self.insert, self.remove = animator.insert, animator.remove
        self.defaults = {**animator.defaults, **self.usual}
        self.video_unet = inflate(self.pipe.unet)
        weakref.finalize(self, self.video_unet.deflate)

    def __repr__(self) -> str:
        looks = ", ".join(f"{name} (alpha {alpha:g})" for name, alpha in self.looks.items()) or "nothing"
        return f"{self.method} on {self.base}, with: {looks}; {self.pipe.unet.dtype} on {self.device}"

    @property
    def looks(self) -> dict[str, float]:
        """Name -> alpha of what is at work in the image layers: personalised looks, a domain adapter."""
        return {name: part.work.alpha for name, part in self.animator.video_unet._inserted.items()
                if not isinstance(part.module, MotionModules) and not on_motion(part.module)}

    def __call__(self, prompt: str | Sequence[str], *args, **how) -> Clip | list[Clip]:
        """A clip, or a list of them, with the arguments of Animator.__call__; the class says what differs."""
        if getattr(self.pipe, "_offload_device", None) is not None:
            raise AnimkitError(f"{self.method} does not run on a base after offload(), which moves the UNet along with "
                               "the animator's own motion modules only: load the base again, without offload().")
        if how.get("control") is not None:
            raise AnimkitError(f"{self.method} takes no control: only the animator is steered by pictures (5.4).")
        clips = super().__call__(prompt, *args, **how)
        for clip in clips if isinstance(clips, list) else [clips]:
            clip.settings |= {"method": self.method, "alpha": self.looks, **self._settings()}
        return clips

    def _check(self, prompts, *args) -> None:
        super()._check(prompts, *args)
        if any(isinstance(prompt, Mapping) for prompt in prompts):
            raise AnimkitError(f"{self.method} takes one text for the whole clip; got {prompts!r}.")

    def _settings(self) -> dict[str, Any]:
        """What else is needed to make its clips again."""
        return {}


class DDIMBaseline(Baseline):
    """A method that needs DDIM (eta 0): it starts, stops or goes backwards between steps."""

    @property
    def scheduler(self) -> DDIMScheduler:
        """DDIM on the base's own betas (Stable Diffusion: scaled_linear), which no motion module changes here."""
        return DDIMScheduler.from_config(self.pipe.scheduler.config, clip_sample=False, timestep_spacing="leading")

    def _check(self, prompts, negative, seed, guidance, fps, scheduler, counts) -> None:
        super()._check(prompts, negative, seed, guidance, fps, scheduler, counts)
        if not isinstance(scheduler, DDIMScheduler):
            raise AnimkitError(f"{self.method} is defined for DDIM: leave scheduler out, or give a DDIMScheduler; got "
                               f"{type(scheduler).__name__}.")


def read_frames(video_unet: VideoUNet, frames_read: Callable[[int], Sequence[int]]) -> None:
    """In every spatial self-attention of frame i, keys and values come from the frames frames_read(i), not from i.

    Their tokens are concatenated, so that softmax(Q_i K^T / sqrt d) V runs over n tokens of each. deflate() ends it.
    """
    def others(attention: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if video_unet._call is None or kwargs.get("encoder_hidden_states") is not None:
            return None
        f = video_unet._call[1]
        index = torch.tensor([list(frames_read(i)) for i in range(f)], device=args[0].device)      # f k
        x = rearrange(args[0], "(b f) n c -> b f n c", f=f)
        return args, {**kwargs, "encoder_hidden_states": rearrange(x[:, index], "b f k n c -> (b f) (k n) c")}

    for _, block in transformer_blocks(video_unet):
        video_unet._handles.append(block.attn1.register_forward_pre_hook(others, with_kwargs=True))


def transformer_blocks(video_unet: VideoUNet) -> list[tuple[str, BasicTransformerBlock]]:
    """Path and block of every spatial Transformer block: attn1 is its self-attention, attn2 reads the text."""
    return [(path, m) for path, m in video_unet.unet.named_modules() if isinstance(m, BasicTransformerBlock)]
