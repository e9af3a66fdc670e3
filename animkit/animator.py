"""Section 4.4: text -> clip. A personalised text-to-image model, what is inserted in it, and the call that draws.

b clips, f frames, c latent channels, h w latent height and width, n tokens, d text width.
"""
from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, DDIMScheduler
from torch import Tensor

import animkit
from animkit.base import check_size, decode, find_checkpoint
from animkit.control import Control, check_fits, check_pictures, matched, steer
from animkit.errors import AnimkitError
from animkit.heap import keep_freed_memory
from animkit.inflation import VideoUNet, inflate
from animkit.insertion import checked_alpha
from animkit.opening import StableDiffusionXLPipeline, best_device, checked_device, open_base
from animkit.prompts import Prompt, check_prompt, encode_prompts, kept, said, texts_of
from animkit.quiet import quiet_libraries
from animkit.sampling import SAMPLES, Callback, asks_more, betas_of, check_steps, sample
from animkit.show.clip import Clip
from animkit.windows import in_windows, repeated


class Alphas(Mapping):
    """The paper's alpha of each inserted part by name: in the UNet, the text encoder, a ControlNet; assign to it."""

    def __init__(self, video_unet: VideoUNet):
        self.video_unet, self.on_text, self.controls = video_unet, {}, {}

    def __getitem__(self, name: str) -> float:
        return self.controls[name].alpha if name in self.controls else self.video_unet.alpha[name]

    def __setitem__(self, name: str, alpha: float) -> None:
        if name in self.controls:
            self.controls[name].alpha = checked_alpha(alpha, name)
            return
        self.video_unet.alpha[name] = alpha
        for attached in self.on_text.get(name, ()):
            attached.alpha = alpha

    def __contains__(self, name: object) -> bool:
        return name in self.controls or name in self.video_unet.alpha

    def get(self, name: str, default: Any = None) -> Any:  # Mapping's own expects a KeyError; so in __contains__
        return self[name] if name in self else default

    def __iter__(self) -> Iterator[str]:
        return iter([*self.video_unet.alpha, *self.controls])

    def __len__(self) -> int:
        return len(self.video_unet.alpha) + len(self.controls)

    def __repr__(self) -> str:
        return repr(dict(self))


def _leave(video_unet: VideoUNet, on_text: Mapping[str, list]) -> None:
    """Take all that an animator inserted out of the pipeline that it was given."""
    for attached in [one for of in on_text.values() for one in of]:
        attached.remove()
    video_unet.deflate()


class Animator:
    """Text -> clip (4.4): `Animator("miniature")("a red balloon over the sea, rising", seed=0)`.

    base: "miniature", a diffusers folder, a single .safetensors file, or a Stable Diffusion pipeline that you hold (its
    UNet is inflated in place). motion: MotionModules, their folder or file; None: those shipped beside the base, if any;
    False: none. device: by default CUDA, else Apple's MPS, else the CPU; dtype: by default float32. A pipeline that you
    hold keeps its device and dtype unless you give them; when the animator is deleted, all that it inserted is taken out.
    tokenizer: CLIP's or its folder, for a file that does not find its own or a folder that has none.
    Raises AnimkitError when a file is missing, damaged or of the wrong kind.
    """

    def __init__(self, base: Any = "miniature", motion: Any = None, device: str | torch.device | None = None,
                 dtype: torch.dtype | None = None, tokenizer: Any = None):
        held = not isinstance(base, (str, Path))
        if held and tokenizer is not None:
            raise AnimkitError("tokenizer= is for a base that is opened here: a pipeline that you hold has its own, "
                               "pipe.tokenizer.")
        device = checked_device(device) if device is not None or not held else None
        self.pipe, self.defaults, beside = open_base(base, torch.float32 if dtype is None else dtype, tokenizer)
        dtype = torch.float32 if dtype is None and not held else dtype
        if self.pipe.unet.device.type == "meta":
            raise AnimkitError("This pipeline keeps its weights elsewhere from layer to layer (enable_sequential_cpu_offload), "
                               "where nothing can be inserted: load it without, and call offload() of its animator.")
        with quiet_libraries():  # diffusers warns of modules kept in float32 even when there are none
            if not held:
                for part in self.pipe.components.values():  # device and dtype in one move: half precision moves as half
                    if isinstance(part, torch.nn.Module):
                        part.to(device, dtype)
            elif device is not None or dtype is not None:
                self.pipe.to(device=device, dtype=dtype)
        self.base = type(base).__name__ if held else str(base)
        self.video_unet = inflate(self.pipe.unet)
        self.alpha = Alphas(self.video_unet)  # animator.alpha["ink"] = 0.3
        if held:  # it may outlive this animator, in another that does not know what is inserted here
            weakref.finalize(self, _leave, self.video_unet, self.alpha.on_text).atexit = False
        motion = beside if motion is None else motion
        if isinstance(motion, (str, Path)) or hasattr(motion, "build"):  # a file or checkpoint: it says what it is
            from animkit.checkpoints.roles import open_roles
            motion, _ = next(iter(open_roles(motion=motion).values()))
        if motion is not None and motion is not False:
            self.insert(motion, name="motion")

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} (alpha {alpha:g})" for name, alpha in self.alpha.items()) or "nothing"
        return f"Animator on {self.base}, inserted: {parts}; {self.pipe.unet.dtype} on {self.device}"

    @classmethod
    def from_files(cls, base: Any, motion: Any = None, looks: Any = (), adapter: Any = (), motion_loras: Any = (), *,
                   strict: bool = True, tokenizer: Any = None, device: str | torch.device | None = None,
                   dtype: torch.dtype | None = None) -> Animator:
        """One animator from files (4.4), in any order and any known format; each part is named after its file.

        motion, looks, adapter, motion_loras: a path, a list of paths, or {path: alpha}. The kind of a file is read
        from it and checked against its role before the base is loaded. strict=False: a v2 MotionLoRA may go without its
        middle block. Raises AnimkitError for a file that is missing, damaged, or does not fit its role or the base.
        """
        from animkit.checkpoints.roles import open_roles
        parts = open_roles(motion=motion, adapter=adapter, looks=looks, motion_loras=motion_loras, strict=strict)
        animator = cls(base, motion=False, device=device, dtype=dtype, tokenizer=tokenizer)
        for name, (checkpoint, alpha) in parts.items():
            animator.insert(checkpoint, alpha=alpha, name=name)
        return animator

    # ---- what is inserted: motion modules, looks, domain adapters, MotionLoRAs, ControlNets

    def insert(self, what: Any, alpha: float = 1.0, name: str | None = None) -> str:
        """Insert what `ak.open_checkpoint` returned, a file, or a sample look by its name; -> the name to use for it.

        A look that was also trained on the text encoder is inserted there too. A ControlNet (5.4; also diffusers' own
        class) stands beside the UNet and acts in calls that give control=. Raises AnimkitError, and changes nothing,
        if it does not fit.
        """
        if isinstance(what, (str, Path)):
            from animkit.checkpoints import open_checkpoint
            what = open_checkpoint(find_checkpoint(what))
        if isinstance(what, ControlNetModel) or hasattr(what, "controlnet"):
            return self._insert_control(what, alpha, name)
        if (name or getattr(what, "name", None)) in self.alpha.controls:
            name = name or what.name
            raise AnimkitError(f"something is already inserted as {name!r}: remove it first, or choose another name")
        if hasattr(what, "check_prediction"):
            what.check_prediction(self.pipe.scheduler.config.get("prediction_type", "epsilon"))
        on_text, own = [], []
        if hasattr(what, "build_text"):
            on_text = [(encoder, what.build_text(encoder, part)) for part, encoder in self.pipe.components.items()
                       if part.startswith("text_encoder") and encoder is not None]
            own = [part for part in what.on_text() if self.pipe.components.get(part) is None]
            name, what = name or what.name, what.build(self.video_unet, text_too=True)
        name = self.video_unet.insert(what, alpha=alpha, name=name)
        self.alpha.on_text[name] = [lora.to(encoder.device, encoder.dtype).attach(encoder, alpha=alpha)
                                    for encoder, lora in on_text if lora is not None]
        if own:
            warnings.warn(f"{name}: what it has for {' and '.join(own)} does nothing here, for this base has no such part.",
                          stacklevel=2)
        return name

    def _insert_control(self, what: Any, alpha: float, name: str | None) -> str:
        name, unet = name or getattr(what, "name", None) or "control", self.pipe.unet
        if name in self.alpha:
            raise AnimkitError(f"something is already inserted as {name!r}: remove it first, or choose another name")
        alpha = checked_alpha(alpha, name)
        model = what if isinstance(what, ControlNetModel) else what.controlnet()
        check_fits(model, unet, self.pipe.vae_scale_factor)
        with quiet_libraries():  # as above: diffusers warns without a reason
            model.to(unet.device, unet.dtype).eval()
        self.alpha.controls[name] = Control(model, alpha)
        return name

    def remove(self, name: str) -> None:
        """Take out what was inserted under this name; nothing of it stays. Raises AnimkitError for an unknown name."""
        if self.alpha.controls.pop(name, None) is not None:
            return
        self.video_unet.remove(name)
        for attached in self.alpha.on_text.pop(name, ()):
            attached.remove()

    def offload(self, device: str | torch.device | None = None) -> Animator:
        """For a small GPU: each model waits in main memory until it is called, the VAE decodes frame by frame; -> self.

        Uses diffusers' model offload; motion modules and LoRAs move along with the UNet that they act in.
        device: by default CUDA, else Apple's MPS. A call is slower by the moves of the three models, a step is not;
        docs/memory.md says what fits where. Raises AnimkitError if there is no such device.
        """
        if device is None and best_device() == "cpu":
            raise AnimkitError("There is no GPU to offload from: leave offload() out.")
        unet, device = self.pipe.unet, checked_device(device)
        try:
            self.pipe.unet = self.video_unet  # what moves is the UNet and all that is inserted into it
            self.pipe.enable_model_cpu_offload(device=device)
        finally:
            self.pipe.unet = unet
        self.pipe.vae.enable_slicing()
        return self

    def _join(self, device: torch.device) -> None:
        """Bring the other models to the UNet's device, if training has moved that alone; not while they are offloaded."""
        if getattr(self.pipe, "_offload_device", None) is None:
            for model in self.pipe.components.values():
                if isinstance(model, torch.nn.Module) and getattr(model, "device", device).type not in ("meta", device.type):
                    model.to(device)

    @property
    def device(self) -> torch.device:
        """Where clips are drawn: the UNet's device, or where offload() sends it for that."""
        return getattr(self.pipe, "_offload_device", None) or self.pipe.unet.device

    @property
    def scheduler(self) -> Any:
        """The default scheduler of a call: the base's own; with motion modules, DDIM on the betas of their training.

        Motion modules are trained with betas that rise linearly, the base with scaled_linear ones (reference training);
        the release's module for SDXL with scaled_linear ones up to 0.02 (the inference.yaml of its branch `sdxl`).
        With the base's betas, motion modules would see noise levels that they never met: colours fade and frames
        flicker. For another sampler, keep these betas:
        `scheduler=EulerDiscreteScheduler.from_config(animator.scheduler.config)`.
        """
        own = self.pipe.scheduler
        if self.video_unet.motion is None:
            return own
        betas = {"beta_schedule": "linear"}
        if isinstance(self.pipe, StableDiffusionXLPipeline):
            betas = {"beta_schedule": "scaled_linear", "beta_end": 0.02}
        # DDIM's step adds no noise (eta = 0) unless told to. Latents are not pixels: there is nothing to clip at +-1.
        return DDIMScheduler.from_config(own.config, **betas, trained_betas=None, clip_sample=False)

    # ---- text -> clip

    def __call__(self, prompt: Prompt | Sequence[Prompt], frames: int | None = None, seed: int = 0, *,
                 negative_prompt: str = "", steps: int | None = None, guidance: float | None = None,
                 height: int | None = None, width: int | None = None, scheduler: Any = None, clips_per_prompt: int = 1,
                 callback: Callback | None = None, progress: bool = True, latents: Tensor | None = None,
                 fps: float | None = None, control: Any = None,
                 guided: Mapping[str, float] | None = None, guided_until: float = 0.3,
                 eased: Mapping[str, float] | None = None, eased_below: float = 0.5,
                 window: int | None = None, stride: int | None = None) -> Clip | list[Clip]:
        """Draw a clip; a list of prompts, or clips_per_prompt above 1, gives a list (the first prompt's clips first).

        prompt: a text; or {frame: text}, such as {0: "... by the sea", 15: "... in the desert"}, which changes over the
        clip (prompts.py); frames count from 0. dict(clip.settings["prompts"]) gives it back.
        frames: 1 to the motion module's positions. More are drawn with a window, such as 16: motion modules then look at
        so many frames at a time, each window starting stride frames (by default half a window) after the one before it
        (FreeNoise; windows.py). height, width: pixels. Clip i draws its noise with seed + i, on the CPU, so each can be
        made again alone and on any device; latents (b c f h w, standard normal) replace this noise.
        control (5.4): for an inserted ControlNet, one picture per frame, or depth (control.pictures_of lists the forms);
        {name: pictures} for several. guided {name: weight}, such as {"zoom in": 5}: the clip is guided towards these
        inserted parts, as towards the text, so they show more clearly; until a share guided_until of the timesteps is
        left (see sample and towards). eased {name: share}: these inserted parts act with this share of their alpha in
        the last eased_below of the timesteps. {"motion": 0.6} keeps more of the shape of things in a look that the
        motion module was not trained on, but frames hold together less. An argument that is None comes from the control
        (frames), from the base's animkit.json, else from the paper's release: 16 frames, 25 steps, guidance 7.5.
        Raises AnimkitError for words, sizes or numbers that the base or the motion module cannot take.
        """
        pictures = matched(self.alpha.controls, control)
        frames = len(next(iter(pictures.values()))) if frames is None and pictures else frames
        given = {"frames": frames, "steps": steps, "guidance": guidance, "fps": fps}
        frames, steps, guidance, fps = (self.defaults[k] if v is None else v for k, v in given.items())
        scheduler = self.scheduler if scheduler is None else scheduler
        alone = isinstance(prompt, (str, Mapping)) or not isinstance(prompt, Iterable)
        prompts = [prompt] if alone else list(prompt)
        looking = {k: v for k, v in (("window", window), ("stride", stride)) if v is not None}
        self._check(prompts, negative_prompt, seed, guidance, fps, scheduler,
                    {"frames": frames, "steps": steps, "clips_per_prompt": clips_per_prompt, **looking})
        guided = self._checked_weights("guided", guided, guided_until, "guided_until")
        eased = self._checked_weights("eased", eased, eased_below, "eased_below")
        frames, seed, steps = int(frames), int(seed), int(steps)  # libraries do not take numpy's integers
        h, w = check_size(self.pipe, self.defaults, height, width)
        check_pictures(pictures, frames, h, w)
        prompts = [p for p in prompts for _ in range(clips_per_prompt)]
        unet, device = self.pipe.unet, self.device
        if device.type == "cpu":
            keep_freed_memory()
        self._join(device)
        controls = {name: self.alpha.controls[name] for name in pictures}
        with quiet_libraries():  # as where it was inserted
            for one in controls.values():
                one.model.to(device, unet.dtype)

        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        shape = (unet.config.in_channels, frames, h // self.pipe.vae_scale_factor, w // self.pipe.vae_scale_factor)
        noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
        long = window is not None and frames > window and self.video_unet.motion is not None
        looking = {"window": int(window), "stride": int(stride or max(window // 2, 1))} if long else {}
        noise = repeated(noise, generators=generators, **looking) if long else noise
        noise = noise if latents is None else latents  # still drawn: a sampler's own noise comes after it
        if not torch.is_tensor(noise) or noise.shape != (len(prompts), *shape):
            got = f"the shape {tuple(noise.shape)}" if torch.is_tensor(noise) else f"the type {type(noise).__name__}"
            raise AnimkitError(f"latents have {got}; this call needs a tensor, b c f h w = "
                               f"{(len(prompts), *shape)}.")
        ways = {**({"guided": guided, "guided_until": float(guided_until)} if guided else {}),
                **({"eased": eased, "eased_below": float(eased_below)} if eased else {})}
        with self._one_at_a_time(), in_windows(self.video_unet.motion, **looking):
            text, added = encode_prompts(self.pipe, prompts, negative_prompt, guidance > 1, (h, w), device, frames)
            steering = steer([(controls[name], pictures[name].to(device)) for name in controls])
            x = self._draw(noise.to(device, unet.dtype), text.to(unet.dtype), scheduler, steps, guidance, added=added,
                           generators=generators, callback=callback, progress=progress, control=steering, **ways)
            if not torch.isfinite(x).all():
                raise AnimkitError(f"Sampling gave numbers that are not finite ({unet.dtype} on {device}): the weights "
                                   "are damaged, or the precision is too low; load the base again with "
                                   "dtype=torch.float32.")
            drawn = decode(self.pipe.vae, x, upcast=isinstance(self.pipe, StableDiffusionXLPipeline)).numpy()
        common = {"negative_prompt": negative_prompt, "steps": steps, "guidance": guidance, "frames": frames,
                  "height": h, "width": w, "base": self.base, "alpha": dict(self.alpha),
                  "scheduler": type(scheduler).__name__,
                  "scheduler_config": {k: v for k, v in scheduler.config.items() if not k.startswith("_")},
                  "noise": "seed" if latents is None else "latents", "device": str(device), "dtype": str(unet.dtype),
                  "animkit": animkit.__version__, **({"control": sorted(controls)} if controls else {}),
                  **ways, **looking}
        clips = [Clip(p, fps, said(one), {"seed": seed + i, **kept(one), **common})
                 for i, (p, one) in enumerate(zip(drawn, prompts))]
        return clips[0] if alone and clips_per_prompt == 1 else clips

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """After offload(): what is still on the device at the end, or after an error, goes back to main memory."""
        try:
            yield
        finally:
            for hook in getattr(self.pipe, "_all_hooks", ()):
                hook.offload()

    def _draw(self, noise: Tensor, text: Tensor, scheduler: Any, steps: int, guidance: float, **how) -> Tensor:
        """Noise b c f h w -> latents. The baselines (5.2) do this step in another way."""
        return sample(self.video_unet, noise, text, scheduler, steps, guidance, **how)

    def _checked_weights(self, what: str, weights: Mapping[str, float] | None, share: float, of: str) -> dict[str, float]:
        """{name: number}, without parts at alpha 0; AnimkitError for an unknown name or a weight that is no number."""
        if not isinstance(share, Real) or not 0 <= share <= 1:
            raise AnimkitError(f"{of} is a share of the timesteps, 0 to 1; got {share!r}.")
        if weights is not None and not isinstance(weights, Mapping):
            raise AnimkitError(f'{what} is {{name: number}}, such as {{"motion": 0.6}}; got {weights!r}.')
        for name, weight in (weights or {}).items():
            if name not in self.video_unet.alpha:
                raise AnimkitError(f"nothing that could be {what} is inserted as {name!r}; there is: "
                                   f"{', '.join(self.video_unet.alpha) or 'nothing'}")
            if not isinstance(weight, Real) or not math.isfinite(weight):
                raise AnimkitError(f"{what}[{name!r}] is a finite number; got {weight!r}.")
        return {name: float(weight) for name, weight in (weights or {}).items() if self.alpha[name]}

    def _check(self, prompts: list[Prompt], negative: str, seed: int, guidance: float, fps: float, scheduler: Any,
               counts: dict[str, int]) -> None:
        """Raise AnimkitError on the first thing that cannot be drawn, before anything is."""
        for name, number in counts.items():
            if not isinstance(number, Integral) or number < 1:
                raise AnimkitError(f"{name} is a whole number of at least 1; got {number!r}.")
        if not isinstance(seed, Integral) or not -2**63 <= seed < 2**63:
            raise AnimkitError(f"seed is a whole number of at most 63 bits; got {seed!r}.")
        for name, number, least in (("guidance", guidance, 0), ("fps", fps, 1e-3)):
            if not isinstance(number, Real) or not math.isfinite(number) or number < least:
                raise AnimkitError(f"{name} is a number of at least {least}; got {number!r}.")
        if isinstance(scheduler, type) or not all(hasattr(scheduler, has) for has in SAMPLES) or asks_more(scheduler):
            raise AnimkitError(f"scheduler is a diffusers scheduler, such as "
                               f"DDIMScheduler.from_config(animator.scheduler.config); got {scheduler!r:.80}.")
        check_steps(scheduler, counts["steps"])
        if self.pipe.unet.config.encoder_hid_dim_type == "ip_image_proj":
            raise AnimkitError("There is an IP-Adapter in this UNet, and an Animator has no picture for it: take it out, "
                               "pipe.unload_ip_adapter(), or call animator.video_unet with "
                               "added_cond_kwargs={\"image_embeds\": ...}.")
        window, motion = counts.get("window", counts["frames"]), self.video_unet.motion
        if counts.get("stride", 0) > counts.get("window", 0):
            raise AnimkitError("stride is how far apart windows start, at most one window, or frames between two would be left "
                               f"out; got stride {counts['stride']} and window {counts.get('window')}.")
        if motion is not None and betas_of(scheduler) == betas_of(self.pipe.scheduler) != betas_of(self.scheduler):
            kind = type(scheduler).__name__
            warnings.warn(f"This {kind} has the base's own betas, and motion modules are trained on others: frames flicker and "
                          f"fade. Make it by {kind}.from_config(animator.scheduler.config).", stacklevel=3)
        if motion is not None and min(window, counts["frames"]) > motion.positions:
            raise AnimkitError(f"{min(window, counts['frames'])} frames are more than the {motion.positions} positions of the "
                               f"motion module: ask for at most {motion.positions} frames, or draw a longer clip in windows, "
                               "window=16.")
        for text in texts_of(prompts, negative, counts["frames"]):
            check_prompt(text, self.pipe.tokenizer, self.defaults["vocabulary"])
