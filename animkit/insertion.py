"""Section 4.2: what is inserted into an inflated UNet, and where.

Motion modules follow every (ResNet, spatial attention) pair, or the ResNet alone in blocks without attention; v2 has
one in the middle block, between its attention and its second ResNet.
"""
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from einops import rearrange
from torch import Tensor, nn

from animkit.errors import AnimkitError
from animkit.lora import Attachment, LoRA
from animkit.motion_module import MotionModule, MotionModules, motion_sites


@dataclass
class Inserted:
    """A part of a VideoUNet, and its hooks (`work`), which have its alpha and its remove()."""
    module: nn.Module  # MotionModules, a LoRA, or anything that attaches
    work: "MotionAtWork | Attachment"


class Alphas(Mapping):
    """The paper's alpha of every inserted part; set it at any time: alpha["ink"] = 0.3. AnimkitError if unknown."""

    def __init__(self, inserted: dict[str, Inserted]):
        self._inserted = inserted

    def __getitem__(self, name: str) -> float:
        if name not in self._inserted:
            raise AnimkitError(f"nothing is inserted as {name!r}; there is: {', '.join(self._inserted) or 'nothing'}")
        return self._inserted[name].work.alpha

    def __setitem__(self, name: str, alpha: float) -> None:
        self[name]
        self._inserted[name].work.alpha = checked_alpha(alpha, name)

    def __contains__(self, name: object) -> bool:  # Mapping's own expects a KeyError
        return name in self._inserted

    def get(self, name: str, default: Any = None) -> Any:  # Mapping's own expects a KeyError
        return self[name] if name in self else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._inserted)

    def __len__(self) -> int:
        return len(self._inserted)

    def __repr__(self) -> str:
        return repr(dict(self))


def checked_alpha(alpha: Any, name: str) -> float:
    try:
        if math.isfinite(alpha):
            return float(alpha)
    except (TypeError, ValueError):  # a tensor of several numbers
        pass
    raise AnimkitError(f"alpha of {name!r} must be a finite number, not {alpha!r}")


class MotionAtWork:
    """Motion modules at work: each adds alpha * TemporalTransformer(x) to its layer's output x in a VideoUNet."""

    def __init__(self, video_unet: "Insertable", modules: MotionModules, alpha: float = 1.0):
        self.video_unet, self.modules, self.alpha = video_unet, modules, alpha
        self._handles = []
        for site in modules.sites:
            block, layer = place(video_unet.unet, site)
            self._handles.append(layer.register_forward_hook(partial(self._move, modules[site], block)))
        for norm in resnet_norms(video_unet.unet) if modules.version == "v1" else ():
            self._handles.append(norm.register_forward_pre_hook(self._join_frames))
            self._handles.append(norm.register_forward_hook(self._part_frames))

    def _move(self, module: MotionModule, block: nn.Module, layer: nn.Module, args: tuple, output: Any) -> Any:
        if self.video_unet._call is None:
            return output
        x = output if torch.is_tensor(output) else output[0]  # an attention returns (x,)
        if module.temporal_transformer.proj_in.weight.device != x.device:  # the UNet was moved without them
            self.modules.to(x.device)
        move = partial(module, frames=self.video_unet._call[1], alpha=self.alpha)
        if torch.is_grad_enabled() and getattr(block, "gradient_checkpointing", False) and layer not in block.resnets:
            x = block._gradient_checkpointing_func(move, x)
        else:  # after a ResNet we are inside the ResNet's own checkpoint, if there is one
            x = move(x)
        return x if torch.is_tensor(output) else (x, *output[1:])

    def _join_frames(self, norm: nn.Module, args: tuple) -> tuple | None:
        if self.video_unet._call is not None and self.modules.joint_norm and self.alpha:  # at alpha 0 the image model is as it was
            return (rearrange(args[0], "(b f) c h w -> b c f h w", f=self.video_unet._call[1]),)

    def _part_frames(self, norm: nn.Module, args: tuple, y: Tensor) -> Tensor:
        return rearrange(y, "b c f h w -> (b f) c h w") if y.ndim == 5 else y

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


class Insertable(nn.Module):
    """The half of a VideoUNet that knows what is inserted; the other half, inflation.py, is the call itself."""

    unet: nn.Module

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList()  # so that .to(), .train() and .parameters() reach what is inserted
        self._inserted: dict[str, Inserted] = {}
        self.alpha = Alphas(self._inserted)
        self._call: tuple[int, int] | None = None  # (b, f) of the running call; None: the hooks do nothing
        self._handles: list | None = []  # the inflation's own hooks; None once deflated

    @property
    def motion(self) -> MotionModules | None:
        """The inserted motion modules, if any."""
        return next((part.module for part in self._inserted.values() if isinstance(part.module, MotionModules)), None)

    def insert(self, part: Any, alpha: float = 1.0, name: str | None = None,
               dtype: torch.dtype | None = None) -> str:
        """Insert motion modules (they replace older ones), a domain adapter, a look or a MotionLoRA; returns its name.

        part: MotionModules, a LoRA, or what open_checkpoint gives; it moves to the UNet's device and dtype (or to the
        dtype given). MotionLoRAs move over to new motion modules. AnimkitError, and no change, if it does not fit.
        """
        self._check_inflated()
        name = name or getattr(part, "name", None)
        if hasattr(part, "build"):
            part = part.build(self)
        if not isinstance(part, MotionModules) and not hasattr(part, "attach"):  # LoRAs, and whole replaced weights
            raise AnimkitError(f"cannot insert a {type(part).__name__}: give MotionModules, a LoRA, or what "
                               "open_checkpoint returns")
        old = next((n for n, p in self._inserted.items() if isinstance(p.module, MotionModules)), None)
        replaced = old if isinstance(part, MotionModules) else None
        name = name or self._free_name("motion" if isinstance(part, MotionModules) else "lora", replaced)
        if name in self._inserted and name != replaced:
            raise AnimkitError(f"something is already inserted as {name!r}: remove it first, or choose another name")
        alpha = checked_alpha(alpha, name)
        riders = [p for p in self._inserted.values() if on_motion(p.module)]
        if isinstance(part, MotionModules):
            check_fits(part, self.unet)
            for rider in riders:  # before anything changes: does every MotionLoRA find its layers again?
                rider.module.layers_in(self.unet, part)
            if replaced:
                self.remove(replaced)
            work = MotionAtWork(self, part, alpha)
            for rider in riders:
                rider.work = rider.module.attach(self.unet, part, alpha=rider.work.alpha)
        elif on_motion(part) and self.motion is None:
            raise AnimkitError(f"{name!r} is a MotionLoRA and there is no motion module to set it on: insert one first")
        else:
            work = part.attach(self.unet, *([self.motion] if self.motion is not None else []), alpha=alpha)
        part.to(device=self.device, dtype=dtype or self.dtype)
        self._inserted[name] = Inserted(part, work)
        self.parts = nn.ModuleList(part.module for part in self._inserted.values())
        return name

    def _free_name(self, stem: str, replaced: str | None) -> str:
        taken = set(self._inserted) - {replaced}
        return next(name for i in count(1) if (name := stem if i == 1 else f"{stem}-{i}") not in taken)

    def remove(self, name: str) -> None:
        """Take a part out; nothing of it stays. Without motion modules, MotionLoRAs do nothing until new ones come."""
        if name not in self._inserted:
            raise AnimkitError(f"nothing is inserted as {name!r}; there is: {', '.join(self._inserted) or 'nothing'}")
        self._inserted[name].work.remove()  # first: it refuses while a LoRA is fused into what it replaced
        gone = self._inserted.pop(name)
        if isinstance(gone.module, MotionModules):
            for rider in self._inserted.values():
                if on_motion(rider.module):
                    rider.work.remove()
        self.parts = nn.ModuleList(part.module for part in self._inserted.values())

    def _check_inflated(self) -> None:
        if self._handles is None:
            raise AnimkitError("this VideoUNet was deflated: call inflate(unet) again")


def place(unet: nn.Module, site: str) -> tuple[nn.Module, nn.Module]:
    """(block, layer) for a site's name: the motion module acts on the output of that layer."""
    path, j = site.split(".motion_modules.")
    block = unet.get_submodule(path)
    return block, (block.attentions if getattr(block, "attentions", None) else block.resnets)[int(j)]


def resnet_norms(unet: nn.Module) -> list[nn.Module]:
    """The norms that v1 of the release takes over all frames: both norms of every ResNet, and the UNet's last."""
    norms = [norm for m in unet.modules() if isinstance(m, ResnetBlock2D) for norm in (m.norm1, m.norm2)]
    return [*norms, unet.conv_norm_out]


def on_motion(part: nn.Module) -> bool:
    """Whether a part is a LoRA on motion modules, a MotionLoRA (4.3)."""
    return isinstance(part, LoRA) and any(".motion_modules." in path for path in part.paths)


def check_fits(modules: MotionModules, unet: nn.Module) -> None:
    """AnimkitError unless there is a motion module of the right width for every place of this UNet, and no more."""
    ours = motion_sites(unet, mid=any(site.startswith("mid_block") for site in modules.sites))
    for site in (*ours, *modules.sites):
        if ours.get(site) != modules.sites.get(site):
            theirs, own = (f"width {c}" if c else "no place" for c in (modules.sites.get(site), ours.get(site)))
            raise AnimkitError(f"these motion modules were made for another base: at {site} they have {theirs}, the "
                               f"UNet has {own}; take modules for this base, or MotionModules.for_unet(unet)")
