"""Section 4.2: network inflation. An image UNet becomes a video UNet; its image layers never learn of it.

    image layers see  b c f h w  as  (b f) c h w;     motion modules alone see the frames, as  (b h w) f c

Nothing of diffusers is copied or edited: forward hooks stand where the paper puts the motion modules, and act only
while a VideoUNet runs. b batch, f frames, c channels, h w latent height and width, n tokens, d width of a text token.
"""
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from einops import rearrange, repeat
from torch import Tensor, nn

from animkit.errors import AnimkitError
from animkit.insertion import Alphas, Inserted, MotionAtWork, check_fits, checked_alpha, on_motion
from animkit.lora import LoRA
from animkit.motion_module import MotionModules

# Processors that treat query tokens alike, whatever their number; any other one gets its tokens frame by frame.
FOLDABLE = {"AttnProcessor", "AttnProcessor2_0", "FusedAttnProcessor2_0", "SlicedAttnProcessor",
            "XFormersAttnProcessor", "IPAdapterAttnProcessor", "IPAdapterAttnProcessor2_0"}


def inflate(unet: nn.Module) -> "VideoUNet":
    """A video UNet around a diffusers UNet2DConditionModel (4.2), with its own weight tensors; `.deflate()` undoes it.

    Raises AnimkitError if this is no such UNet.
    """
    if not isinstance(unet, UNet2DConditionModel):
        raise AnimkitError(f"inflate needs a diffusers UNet2DConditionModel, not {type(unet).__name__}; of a pipeline, "
                           "pass pipeline.unet")
    return VideoUNet(unet)


class VideoUNet(nn.Module):
    """An image UNet that denoises clips (4.2): (x b c f h w, t a number or b, text b n d) -> b c f h w.

    insert() and remove() set motion modules and LoRAs to work and take them off; alpha[name] is live. text may also be
    (b f) n d, one prompt a frame. fold_text = False computes text keys and values once a frame, the plain way.
    """

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet, self.fold_text = unet, True
        self.parts = nn.ModuleList()  # so that .to(), .train() and .parameters() reach what is inserted
        self._inserted: dict[str, Inserted] = {}
        self.alpha = Alphas(self._inserted)
        self._call: tuple[int, int] | None = None  # (b, f) of the running call; None: the hooks do nothing
        attentions = [m for m in unet.modules() if isinstance(m, Attention)]
        self._handles = [attention.register_forward_pre_hook(self._fold, with_kwargs=True) for attention in attentions]
        self._handles += [attention.register_forward_hook(self._unfold) for attention in attentions]

    config = property(lambda self: self.unet.config)
    dtype = property(lambda self: self.unet.dtype)
    device = property(lambda self: self.unet.device)

    @property
    def motion(self) -> MotionModules | None:
        """The inserted motion modules, if any."""
        return next((part.module for part in self._inserted.values() if isinstance(part.module, MotionModules)), None)

    # ---- one call

    def forward(self, x: Tensor, t: Tensor | float, text: Tensor, *, added_cond_kwargs: Mapping[str, Any] | None = None,
                down_block_additional_residuals: tuple[Tensor, ...] | None = None,
                mid_block_additional_residual: Tensor | None = None, **kwargs) -> Tensor:
        """Noise prediction, b c f h w; conditions are given once a clip (b ...) or once a frame ((b f) ...).

        ControlNet's residuals may also be b c f h w; other keywords go to the image UNet. Raises AnimkitError on shapes
        that do not fit.
        """
        if self._handles is None:
            raise AnimkitError("this VideoUNet was deflated: call inflate(unet) again")
        if x.ndim != 5 or 0 in x.shape:
            raise AnimkitError(f"a VideoUNet takes clips b c f h w, all at least 1, not {tuple(x.shape)}")
        b, f = x.shape[0], x.shape[2]
        each = partial(_each_frame, b=b, f=f)
        if text.shape[0] not in (b, b * f):
            raise AnimkitError(f"text has batch {text.shape[0]}, clips {b}: give {b} prompts, or {b * f}, one a frame")
        added, config = dict(added_cond_kwargs or {}), self.unet.config
        images = _tensors(added.get("image_embeds"))
        if config.addition_embed_type in ("text", "text_image") or any(image.shape[0] != b for image in images):
            text = each(text)  # and so attention finds one prompt a frame, and folds nothing
        keep = ("image_embeds",) if config.encoder_hid_dim_type == "ip_image_proj" and text.shape[0] == b else ()
        added = {key: value if key in keep else each(value) for key, value in added.items()}
        if torch.is_tensor(t) and t.ndim and len(t) > 1:
            t = each(t)
        for key in ("class_labels", "timestep_cond", "attention_mask"):
            if kwargs.get(key) is not None:
                kwargs[key] = each(kwargs[key])
        with self._running((b, f)), self._checkpoints_carry_frames():
            y = self.unet(rearrange(x, "b c f h w -> (b f) c h w"), t, text, added_cond_kwargs=added or None,
                          down_block_additional_residuals=each(down_block_additional_residuals),
                          mid_block_additional_residual=each(mid_block_additional_residual),
                          return_dict=False, **kwargs)[0]
        return rearrange(y, "(b f) c h w -> b c f h w", f=f)

    @contextmanager
    def _running(self, call: tuple[int, int]) -> Iterator[None]:
        before, self._call = self._call, call
        try:
            yield
        finally:
            self._call = before

    @contextmanager
    def _checkpoints_carry_frames(self) -> Iterator[None]:
        """Checkpointing runs layers again in backward, perhaps after other calls: give them this call's b and f."""
        on = torch.is_grad_enabled()
        blocks = [m for m in self.unet.modules() if on and getattr(m, "gradient_checkpointing", False)]
        plain = [block._gradient_checkpointing_func for block in blocks]
        for block, checkpoint in zip(blocks, plain):
            block._gradient_checkpointing_func = partial(self._checkpoint, checkpoint)
        try:
            yield
        finally:
            for block, checkpoint in zip(blocks, plain):
                block._gradient_checkpointing_func = checkpoint

    def _checkpoint(self, checkpoint: Callable, layer: Callable, *args):
        call = self._call

        def again(*args):
            with self._running(call):
                return layer(*args)
        return checkpoint(again, *args)

    # ---- text keys and values once a prompt: q (b f) n c -> b (f n) c, so that k and v stay at batch b

    def _fold(self, attention: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        text = kwargs.get("encoder_hidden_states")
        first = text[0] if isinstance(text, tuple) else text  # IP-Adapter: (text, images)
        if self._call is None or first is None or first.shape[0] == args[0].shape[0]:
            return None
        b, f = self._call
        plain_layer = args[0].ndim == 3 and attention.group_norm is None and attention.spatial_norm is None
        if (self.fold_text and plain_layer and type(attention.processor).__name__ in FOLDABLE
                and kwargs.get("ip_adapter_masks") is None):
            return (rearrange(args[0], "(b f) n c -> b (f n) c", f=f), *args[1:]), kwargs
        conditions = {key: _each_frame(kwargs.get(key), b, f) for key in ("encoder_hidden_states", "attention_mask")}
        return args, {**kwargs, **conditions}

    def _unfold(self, attention: nn.Module, args: tuple, y: Tensor) -> Tensor:
        if self._call is None or y.shape[0] == self._call[0] * self._call[1]:
            return y
        return rearrange(y, "b (f n) c -> (b f) n c", f=self._call[1])

    # ---- what is inserted

    def insert(self, part: Any, alpha: float = 1.0, name: str | None = None, dtype: torch.dtype | None = None) -> str:
        """Set motion modules (in the place of those there), a domain adapter, a look or a MotionLoRA to work; its name.

        part: MotionModules, LoRA, or what open_checkpoint gives; it is moved to the UNet's device and dtype (or to the
        dtype given). MotionLoRAs follow to new motion modules. If the part does not fit, AnimkitError, and no change.
        """
        if self._handles is None:
            raise AnimkitError("this VideoUNet was deflated: call inflate(unet) again")
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
        riders = [p for p in self._inserted.values() if isinstance(p.module, LoRA) and on_motion(p.module)]
        if isinstance(part, MotionModules):
            check_fits(part, self.unet)
            for rider in riders:  # look before anything changes: will every MotionLoRA find its layers again?
                rider.module.layers_in(self.unet, part)
            if replaced:
                self.remove(replaced)
            work = MotionAtWork(self, part)
            for rider in riders:
                rider.work = rider.module.attach(self.unet, part, alpha=rider.work.alpha)
        elif on_motion(part) and self.motion is None:
            raise AnimkitError(f"{name!r} is a MotionLoRA and there is no motion module to set it on: insert one first")
        else:
            work = part.attach(self.unet, *([self.motion] if self.motion is not None else []))
        part.to(device=self.device, dtype=dtype or self.dtype)
        self.parts.append(part)
        self._inserted[name] = Inserted(part, work)
        self.alpha[name] = alpha
        return name

    def _free_name(self, stem: str, replaced: str | None) -> str:
        taken = set(self._inserted) - {replaced}
        return next(name for i in count(1) if (name := stem if i == 1 else f"{stem}-{i}") not in taken)

    def remove(self, name: str) -> None:
        """Take a part off; the rest is as if it had never been there. MotionLoRAs wait for the next motion modules."""
        if name not in self._inserted:
            raise AnimkitError(f"nothing is inserted as {name!r}; there is: {', '.join(self._inserted) or 'nothing'}")
        gone = self._inserted.pop(name)
        if isinstance(gone.module, MotionModules):
            for rider in self._inserted.values():
                if on_motion(rider.module):
                    rider.work.remove()
        gone.work.remove()
        self.parts = nn.ModuleList(part for part in self.parts if part is not gone.module)

    def deflate(self) -> nn.Module:
        """The image UNet again, with no hook left on it; this VideoUNet is of no further use."""
        for name in reversed(list(self._inserted)):
            self.remove(name)
        for handle in self._handles or ():
            handle.remove()
        self._handles = None
        return self.unet


def _each_frame(condition: Any, b: int, f: int) -> Any:
    """Give a condition (a tensor, or a tuple or list of them) to every frame: b ... or b c f h w -> (b f) ..."""
    if isinstance(condition, (tuple, list)):
        return type(condition)(_each_frame(one, b, f) for one in condition)
    if not torch.is_tensor(condition) or condition.ndim == 0:
        return condition
    if condition.ndim == 5 and condition.shape[::2][:2] == (b, f):
        return rearrange(condition, "b c f h w -> (b f) c h w")
    if condition.shape[0] == b and f > 1:
        return repeat(condition, "b ... -> (b f) ...", f=f)
    if condition.shape[0] != b * f:
        raise AnimkitError(f"a condition of shape {tuple(condition.shape)} fits neither {b} clips nor {b * f} frames")
    return condition


def _tensors(condition: Any) -> list[Tensor]:
    return [condition] if torch.is_tensor(condition) else [t for one in condition or () for t in _tensors(one)]
