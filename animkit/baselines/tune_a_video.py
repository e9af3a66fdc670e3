"""Tune-a-Video (5.2; Wu et al. 2023, arXiv 2212.11565): an image model is tuned on one clip, and draws others like it.

    self-attention    sparse-causal: frame i reads frame 0 and the one before,  softmax(Q_i K^T / sqrt d) V with
                      K = [K_0, K_i-1], V = [V_0, V_i-1] joined along tokens
    new               after every feed-forward  x + Attention(LayerNorm x)  along frames, zero when fresh
    trained           W_Q of attn1 (self) and attn2 (text), and the new attention: AdamW 3e-5, 500 steps on one clip
    drawn             from x_T of the source clip by DDIM inversion (the prompt ""), with guidance 12.5

The movement is the source's; the prompt changes what moves and how it looks. b clips, f frames, c channels,
h w latent height and width, n tokens.
"""
import hashlib
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMInverseScheduler
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor, nn

from animkit.base import check_size, decode
from animkit.baselines.baseline import DDIMBaseline, read_frames, transformer_blocks
from animkit.data.cache import encode, fingerprint_of
from animkit.errors import AnimkitError
from animkit.files import set_submodule
from animkit.inflation import VideoUNet
from animkit.prompts import check_prompt, encode_text
from animkit.quiet import quiet_libraries
from animkit.sampling import sample
from animkit.show.clip import Clip
from animkit.training.loop import LoopConfig, fit
from animkit.training.losses import denoising_loss


def first_and_former(i: int) -> tuple[int, int]:
    """Sparse-causal attention: frame i reads frames 0 and i - 1; frame 0 reads itself, twice."""
    return (0, max(i - 1, 0))


class TuneAVideo(DDIMBaseline):
    """Tune-a-Video: `TuneAVideo(animator, clip, "a cat walking")("a dog walking")`, called as an Animator is.

    The constructor tunes it on source (a Clip, or frames f h w 3 uint8) with its caption. folder: there a killed run
    resumes, and a finished one is found again. Every clip starts from the source's inverted latents, so it has the
    source's frames and size, and seed changes nothing; with `.inverted = False` it starts from the seed's noise. By
    default 50 steps and guidance 12.5 (in proportion, if the base's own guidance is not 7.5). `.history` is the loss
    curve. At full size, first call animator.pipe.unet.enable_gradient_checkpointing(): it saves most memory. Raises
    AnimkitError for a source or caption that the base cannot take, and as an Animator does.
    """

    method, usual = "Tune-a-Video", {"steps": 50}

    def __init__(self, animator: Any, source: Any, caption: str, *, steps: int = 500, lr: float = 3e-5, seed: int = 0,
                 folder: str | Path | None = None, progress: bool = True):
        super().__init__(animator)
        self.source = source if isinstance(source, Clip) else Clip(source)
        self.caption, self.inverted = caption, True
        f, h, w, _ = self.source.array.shape
        self.defaults |= {"frames": f, "height": h, "width": w,
                          "guidance": 12.5 * self.animator.defaults["guidance"] / 7.5}
        if self.pipe.unet.config.addition_embed_type:
            raise AnimkitError(f"{self.base} is of the XL family, with which Tune-a-Video does not train here: take a "
                               "base of Stable Diffusion 1.x or 2.x, or the miniature.")
        if not isinstance(caption, str):
            raise AnimkitError(f"The caption is a text, what the source clip shows; got {caption!r}.")
        check_size(self.pipe, self.defaults, h, w)
        check_prompt(caption, self.pipe.tokenizer, self.defaults["vocabulary"])
        read_frames(self.video_unet, first_and_former)
        self.tuned = Tuned(self.video_unet, seed)
        self.tuned.attach(self.video_unet)

        device, dtype = self.device, self.pipe.unet.dtype
        video = torch.from_numpy(self.source.array).permute(3, 0, 1, 2)                         # c f h w
        with torch.no_grad():
            self.z = encode(self.pipe.vae, video)[None].to(device, dtype)                       # 1 c f h w
            text, _ = encode_text(self.pipe, [caption, ""], "", False, (h, w), device)
        self.text, self.empty = text.to(dtype).chunk(2)                                         # 1 n d each
        self._learn(LoopConfig(lr=lr, steps=steps, weight_decay=1e-2, seed=seed,
                               device="cpu" if device.type == "cpu" else None,
                               mixed_precision={torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, "no")),
                    folder, quiet=not progress)

    def _learn(self, config: LoopConfig, folder: str | Path | None, quiet: bool) -> None:
        """eq. (7) on the one clip, in the one training loop; the UNet, and what is inserted in it, stay as they are."""
        def loss(_: nn.Module, z: Tensor, generator: torch.Generator) -> Tensor:
            return denoising_loss(self.video_unet, z, self.text, generator, scheduler=self.scheduler)

        self._made = {"source": _digest(self.source.array.tobytes()), "source_caption": self.caption,
                      "tuning_steps": config.steps, "lr": config.lr, "tuning_seed": config.seed}
        looks = [self.animator.video_unet._inserted[name].module for name in self.looks]
        model = nn.ModuleList([self.tuned, self.pipe.unet, *looks])
        with tempfile.TemporaryDirectory() as passing:
            run = Path(passing)
            if folder is not None:  # a folder for each run, named by all that it depends on
                parts = [*model[1:], self.pipe.vae, self.pipe.text_encoder]
                key = (self._made, config.fixed(), self.looks, *map(fingerprint_of, parts))
                run = Path(folder) / f"tune-a-video-{_digest(repr(key).encode())}"
            self.history = fit(model, loss, lambda k, generator: self.z, config, run, quiet=quiet,
                               parameters=self.tuned.trainable())
        self.tuned.requires_grad_(False)

    # ---- drawing

    def __call__(self, prompt, *args, latents: Tensor | None = None, **how) -> Clip | list[Clip]:
        """As Animator.__call__; latents replace the noise, so they need `.inverted = False`."""
        if latents is not None and self.inverted:
            raise AnimkitError("Tune-a-Video starts from its source's inverted latents: set .inverted = False to start "
                               "from yours.")
        return super().__call__(prompt, *args, latents=latents, **how)

    def _draw(self, noise: Tensor, text: Tensor, scheduler: Any, steps: int, guidance: float, **how) -> Tensor:
        if self.inverted:
            if noise.shape[1:] != self.z.shape[1:]:
                f, h, w, _ = self.source.array.shape
                raise AnimkitError(f"Tune-a-Video draws clips like its source, {f} frames of {w} x {h}: ask for these, "
                                   "or set .inverted = False to start from noise.")
            noise = self.invert(steps, scheduler).expand(len(noise), -1, -1, -1, -1)
        return super()._draw(noise, text, scheduler, steps, guidance, **how)

    def invert(self, steps: int = 50, scheduler: Any = None) -> Tensor:
        """The x_T (1 c f h w) from which DDIM leads to the source: its steps backwards, by the sampler, the prompt "".

            x_t+1 = sqrt(abar_t+1) (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t) + sqrt(1 - abar_t+1) eps

        eps is predicted at x_t instead of x_t+1 (Song et al. 2021, 4.3): the more steps, the more exact.
        """
        with quiet_libraries():  # a base's configuration may hold settings of other schedulers
            inverse = DDIMInverseScheduler.from_config((scheduler or self.scheduler).config)
        return sample(self.video_unet, self.z, self.empty, inverse, steps, guidance=1, progress=False)

    def reconstruct(self, steps: int = 50) -> tuple[Clip, float]:
        """The source, inverted and drawn again without guidance, and the error |x_0 - z| / |z| of its latents."""
        x = sample(self.video_unet, self.invert(steps), self.empty, self.scheduler, steps, guidance=1, progress=False)
        clip = Clip(decode(self.pipe.vae, x)[0].numpy(), self.source.fps, self.caption, {"steps": steps})
        return clip, float((x - self.z).float().norm() / self.z.float().norm())

    def _settings(self) -> dict[str, Any]:
        return {**self._made, "noise": "the source's, inverted"} if self.inverted else self._made


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


class Tuned(nn.Module):
    """All that is trained, under the reference code's names: a change of W_Q (zero at first), and attn_temp.

    The base's own W_Q do not change, for other methods use them too; so weight decay pulls towards the base, not to 0.
    """

    def __init__(self, video_unet: VideoUNet, seed: int = 0):
        super().__init__()
        self.paths = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for path, block in transformer_blocks(video_unet):
                c, heads = block.attn1.to_q.in_features, block.attn1.heads
                for name in ("attn1.to_q", "attn2.to_q") if block.attn2 is not None else ("attn1.to_q",):
                    layer = block.get_submodule(name)
                    change = nn.Linear(layer.in_features, layer.out_features, bias=False)
                    nn.init.zeros_(change.weight)
                    set_submodule(self, f"{path}.{name}", change)
                    self.paths.append(f"{path}.{name}")
                attn_temp = Attention(c, heads=heads, dim_head=block.attn1.inner_dim // heads)
                nn.init.zeros_(attn_temp.to_out[0].weight)
                nn.init.zeros_(attn_temp.to_out[0].bias)  # random in the reference, which so starts off the base
                set_submodule(self, f"{path}.norm_temp", nn.LayerNorm(c))
                set_submodule(self, f"{path}.attn_temp", attn_temp)
        self.to(video_unet.device)

    def trainable(self) -> list[nn.Parameter]:
        """Everything but norm_temp, which the reference leaves untrained too."""
        return [p for name, p in self.named_parameters() if ".norm_temp." not in name]

    def attach(self, video_unet: VideoUNet) -> None:
        """Attach it to a VideoUNet, whose deflate() takes it off."""
        def change_query(change: nn.Module, layer: nn.Module, args: tuple, y: Tensor) -> Tensor:
            return y if video_unet._call is None else y + change(args[0].to(change.weight.dtype)).to(y.dtype)

        def attend_over_time(norm: nn.Module, attn_temp: nn.Module, block: nn.Module, args: tuple, y: Tensor) -> Tensor:
            if video_unet._call is None:
                return y
            x = rearrange(y, "(b f) n c -> b n f c", f=video_unet._call[1])
            b = x.shape[0]
            x = rearrange(x, "b n f c -> (b n) f c").to(norm.weight.dtype)
            return rearrange((x + attn_temp(norm(x))).to(y.dtype), "(b n) f c -> (b f) n c", b=b)

        blocks = dict(transformer_blocks(video_unet))
        for path in self.paths:
            hook = partial(change_query, self.get_submodule(path))
            video_unet._handles.append(video_unet.unet.get_submodule(path).register_forward_hook(hook))
        for path, block in blocks.items():
            parts = (self.get_submodule(f"{path}.{name}") for name in ("norm_temp", "attn_temp"))
            hook = partial(attend_over_time, *parts)
            video_unet._handles.append(block.register_forward_hook(hook))
