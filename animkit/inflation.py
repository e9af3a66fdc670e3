"""Section 4.2: network inflation. An image UNet becomes a video UNet; its image layers do not change.

    image layers see  b c f h w  as  (b f) c h w;     only motion modules see the frames, as  (b h w) f c

No code of diffusers is copied or edited. Forward hooks stand where the paper puts the motion modules, and act only
while a VideoUNet runs. b batch, f frames, c channels, h w latent height and width, n tokens, d width of a text token.
"""
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from einops import rearrange, repeat
from torch import Tensor, nn

from animkit.errors import AnimkitError
from animkit.insertion import Insertable

# diffusers' processors that treat all query tokens alike, in any number; others get their tokens frame by frame.
FOLDABLE = {f"diffusers.models.attention_processor.{name}" for name in (
    "AttnProcessor", "AttnProcessor2_0", "FusedAttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor",
    "IPAdapterAttnProcessor", "IPAdapterAttnProcessor2_0", "IPAdapterXFormersAttnProcessor")}


def inflate(unet: nn.Module) -> "VideoUNet":
    """Turn a diffusers UNet2DConditionModel into a video UNet (4.2) on the same weight tensors; `.deflate()` undoes it.

    Raises AnimkitError for any other model.
    """
    if isinstance(getattr(unet, "_orig_mod", None), UNet2DConditionModel):
        raise AnimkitError("torch.compile has wrapped this UNet: inflate the one inside, pipe.unet = pipe.unet._orig_mod, then "
                           "compile what inflate returns (an animator's: animator.video_unet.compile())")
    if not isinstance(unet, UNet2DConditionModel):
        raise AnimkitError(f"inflate needs a diffusers UNet2DConditionModel, not {type(unet).__name__}; of a pipeline, "
                           "pass pipeline.unet")
    return VideoUNet(unet)


class VideoUNet(Insertable):
    """An image UNet that denoises clips (4.2): (x b c f h w, t a number or b, text b n d) -> b c f h w.

    insert() adds motion modules and LoRAs, remove() takes them out; alpha[name] can change at any time (insertion.py).
    text may also be (b f) n d, one prompt per frame. With fold_text = False, text keys and values are computed for each
    frame, the plain way.
    """

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        self.unet, self.fold_text = unet, True
        attentions = [m for m in unet.modules() if isinstance(m, Attention)]
        self._handles = [attention.register_forward_pre_hook(self._fold, with_kwargs=True) for attention in attentions]
        self._handles += [attention.register_forward_hook(self._unfold) for attention in attentions]

    config = property(lambda self: self.unet.config)
    dtype = property(lambda self: self.unet.dtype)
    device = property(lambda self: self.unet.device)

    # ---- one call

    def forward(self, x: Tensor, t: Tensor | float, text: Tensor | None, *,
                added_cond_kwargs: Mapping[str, Any] | None = None,
                down_block_additional_residuals: tuple[Tensor, ...] | None = None,
                mid_block_additional_residual: Tensor | None = None, **kwargs) -> Tensor:
        """Noise prediction, b c f h w; conditions are given once per clip (b ...) or once per frame ((b f) ...).

        ControlNet's residuals may also be b c f h w; other keywords go to the image UNet. Raises AnimkitError on shapes
        that do not fit.
        """
        added, config = dict(added_cond_kwargs or {}), self.unet.config
        self._check_call(x, text, added)
        b, f = x.shape[0], x.shape[2]
        each = partial(each_frame, b=b, f=f)
        images = _tensors(added.get("image_embeds"))
        if config.addition_embed_type in ("text", "text_image") or any(image.shape[0] != b for image in images):
            text = each(text)  # so attention gets one prompt per frame and folds nothing
        ip_adapter = config.encoder_hid_dim_type == "ip_image_proj"
        keep = ("image_embeds",) if ip_adapter and text.shape[0] == b else ()  # attention gets these beside text
        added = {key: value if key in keep else each(value) for key, value in added.items()}
        if torch.is_tensor(t) and t.ndim and len(t) > 1:
            t = each(t)
        for key in kwargs.keys() & {"class_labels", "timestep_cond", "attention_mask",
                                    "down_intrablock_additional_residuals"}:
            kwargs[key] = each(kwargs[key])
        with self._running((b, f)), self._checkpoints_carry_frames():
            y = self.unet(rearrange(x, "b c f h w -> (b f) c h w"), t, text, added_cond_kwargs=added or None,
                          down_block_additional_residuals=each(down_block_additional_residuals),
                          mid_block_additional_residual=each(mid_block_additional_residual),
                          return_dict=False, **kwargs)[0]
        return rearrange(y, "(b f) c h w -> b c f h w", f=f)

    def _check_call(self, x: Tensor, text: Tensor | None, added: Mapping[str, Any]) -> None:
        config = self.unet.config
        self._check_inflated()
        if x.ndim != 5 or 0 in x.shape or x.shape[1] != config.in_channels:
            raise AnimkitError(f"a VideoUNet takes clips b c f h w, here with c = {config.in_channels} and at least "
                               f"one frame, not {tuple(x.shape)}")
        b, f = x.shape[0], x.shape[2]
        if text is not None and (text.ndim != 3 or text.shape[0] not in (b, b * f)):
            raise AnimkitError(f"text for {b} clips is {b} n d (or {b * f} n d, a prompt for each frame), not "
                               f"{tuple(text.shape)}")
        d = config.cross_attention_dim
        if text is not None and config.encoder_hid_dim_type in (None, "ip_image_proj") and isinstance(d, int) \
                and text.shape[2] != d:
            raise AnimkitError(f"text has width {text.shape[2]} and this UNet reads width {d}: encode it with the "
                               "UNet's own text encoder")
        if config.addition_embed_type == "text_time" and not {"text_embeds", "time_ids"} <= added.keys():
            raise AnimkitError("an SDXL UNet also needs added_cond_kwargs with text_embeds and time_ids")

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
        blocks = [m for m in self.unet.modules() if getattr(m, "gradient_checkpointing", False)]
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

    # ---- text keys and values once per prompt: q (b f) n c -> b (f n) c, so that k and v stay at batch b

    def _fold(self, attention: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        text = kwargs.get("encoder_hidden_states")
        first = text[0] if isinstance(text, tuple) else text  # IP-Adapter: (text, images)
        if self._call is None or first is None or first.shape[0] == args[0].shape[0]:
            return None
        b, f = self._call
        plain_layer = args[0].ndim == 3 and attention.group_norm is None and attention.spatial_norm is None
        processor = f"{type(attention.processor).__module__}.{type(attention.processor).__qualname__}"
        if self.fold_text and plain_layer and processor in FOLDABLE and kwargs.get("ip_adapter_masks") is None:
            return (rearrange(args[0], "(b f) n c -> b (f n) c", f=f), *args[1:]), kwargs
        conditions = {key: each_frame(kwargs.get(key), b, f) for key in ("encoder_hidden_states", "attention_mask")}
        return args, {**kwargs, **conditions}

    def _unfold(self, attention: nn.Module, args: tuple, y: Tensor) -> Tensor:
        if self._call is None or y.shape[0] == self._call[0] * self._call[1]:
            return y
        return rearrange(y, "b (f n) c -> (b f) n c", f=self._call[1])

    def deflate(self) -> nn.Module:
        """Remove all hooks and return the image UNet; this VideoUNet cannot be used any more."""
        for name in reversed(list(self._inserted)):
            self.remove(name)
        for handle in self._handles or ():
            handle.remove()
        self._handles = None
        return self.unet


def each_frame(condition: Any, b: int, f: int) -> Any:
    """Give a condition (a tensor, or a tuple or list of them) to every frame: b ... or b c f h w -> (b f) ..."""
    if isinstance(condition, (tuple, list)):
        return type(condition)(each_frame(one, b, f) for one in condition)
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
