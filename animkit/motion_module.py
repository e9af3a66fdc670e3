"""Section 4.2: the motion module, a temporal Transformer that is inserted into an image UNet and starts as the identity.

    x + proj_out( block( proj_in( GroupNorm(x) ) ) ),   block = two temporal self-attentions and a feed-forward, each residual

b batch, f frames, c channels, h w latent height and width, n heads, d width of a head. Parameter names are the reference
release's, so that its checkpoints load as they are.
"""
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from animkit.errors import AnimkitError
from animkit.files import load_folder, load_strictly, save_folder, set_submodule

VERSIONS = {  # the three SD 1.5 releases; `joint_norm`: ResNet norms and conv_norm_out take statistics over all frames
    "v1": {"positions": 24, "mid": False, "joint_norm": True},
    "v2": {"positions": 32, "mid": True, "joint_norm": False},
    "v3": {"positions": 32, "mid": False, "joint_norm": False},
}


def sinusoidal_positions(frames: int, c: int) -> Tensor:
    """PE[p, 2i] = sin(p / 10000^(2i/c)), PE[p, 2i+1] = cos(p / 10000^(2i/c)) (Vaswani et al. 2017, 3.5) -> frames c."""
    angle = torch.arange(frames)[:, None] * torch.exp(torch.arange(0, c, 2) * (-math.log(10000.0) / c))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class PositionalEncoding(nn.Module):
    """Adds each frame's place in the clip: without it, self-attention could not tell a clip from its shuffled frames."""

    def __init__(self, c: int, positions: int):
        super().__init__()
        self.register_buffer("pe", sinusoidal_positions(positions, c)[None])  # 1 f c, saved, as in the release

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pe[:, : x.shape[1]].to(x.dtype)


class TemporalAttention(nn.Module):
    """Self-attention along frames (4.2): softmax(Q K^T / sqrt d) V, positions added inside; (b h w) f c -> the same."""

    def __init__(self, c: int, heads: int, positions: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(c, c, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(c, c))
        self.pos_encoder = PositionalEncoding(c, positions)
        self.record: Callable[[Tensor], None] | None = None  # see record_attention

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_encoder(x)
        q, k, v = (rearrange(to(x), "b f (n d) -> b n f d", n=self.heads) for to in (self.to_q, self.to_k, self.to_v))
        if self.record is not None:
            weights = attention_weights(q, k)
            self.record(weights.detach())
            y = weights @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(y, "b n f d -> b f (n d)"))


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt d): how much frame i (row) reads from frame j (column)."""
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)


class TemporalConvolution(nn.Module):
    """The ablation of 5.3: a 1-D convolution along frames with exactly an attention's parameters, 4 c^2 + c."""

    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv1d(c, c, kernel_size=3, padding=1)
        self.mix = nn.Linear(c, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(F.silu(rearrange(self.conv(rearrange(x, "b f c -> b c f")), "b c f -> b f c")))


class GEGLU(nn.Module):
    """a * GELU(g), where (a, g) = W x (Shazeer 2020)."""

    def __init__(self, c: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(c, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        a, gate = self.proj(x).chunk(2, dim=-1)
        return a * F.gelu(gate)


class FeedForward(nn.Module):
    """c -> 4 c (GEGLU) -> c, for each frame and place alone."""

    def __init__(self, c: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(c, 4 * c), nn.Identity(), nn.Linear(4 * c, c))  # Identity: the release's dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TemporalBlock(nn.Module):
    """x += mix(LayerNorm x), twice, then x += FeedForward(LayerNorm x); mix looks along frames."""

    def __init__(self, c: int, heads: int, positions: int, kind: str):
        super().__init__()
        mix = (lambda: TemporalAttention(c, heads, positions)) if kind == "attention" else (lambda: TemporalConvolution(c))
        self.attention_blocks = nn.ModuleList(mix() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(2))
        self.ff, self.ff_norm = FeedForward(c), nn.LayerNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        for mix, norm in zip(self.attention_blocks, self.norms):
            x = mix(norm(x)) + x
        return self.ff(self.ff_norm(x)) + x


class TemporalTransformer(nn.Module):
    """What a motion module adds to its input: (b f) c h w -> (b f) c h w, zero when fresh."""

    def __init__(self, c: int, heads: int, positions: int, norm_groups: int, kind: str):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, c, eps=1e-6)
        self.proj_in = nn.Linear(c, c)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(c, heads, positions, kind)])
        self.proj_out = nn.Linear(c, c)
        nn.init.zeros_(self.proj_out.weight)  # 4.2: training starts from the untouched image model
        nn.init.zeros_(self.proj_out.bias)
        self.norm_rule = "reference"

    def forward(self, x: Tensor, frames: int) -> Tensor:
        h = x.shape[-2]
        if self.norm_rule == "diffusers":  # statistics over all frames; the reference takes each frame's own
            x = rearrange(self.norm(rearrange(x, "(b f) c h w -> b c f h w", f=frames)), "b c f h w -> (b f) c h w")
        else:
            x = self.norm(x)
        b = x.shape[0] // frames
        x = self.proj_in(rearrange(x, "(b f) c h w -> (b h w) f c", f=frames))
        for block in self.transformer_blocks:
            x = block(x)
        return rearrange(self.proj_out(x), "(b h w) f c -> (b f) c h w", b=b, h=h)


class MotionModule(nn.Module):
    """One motion module (4.2): x + alpha * TemporalTransformer(x), (b f) c h w -> (b f) c h w; the identity when fresh."""

    def __init__(self, c: int, heads: int = 8, positions: int = 32, norm_groups: int = 32, kind: str = "attention"):
        super().__init__()
        if c % heads or c % norm_groups:
            raise AnimkitError(f"a motion module of width {c} cannot have {heads} heads and {norm_groups} norm groups: "
                               f"both must divide {c}; pass heads= and norm_groups= that do")
        if kind not in ("attention", "conv"):
            raise AnimkitError(f'unknown kind of motion module {kind!r}: choose "attention" or "conv"')
        self.positions = positions
        self.temporal_transformer = TemporalTransformer(c, heads, positions, norm_groups, kind)

    def forward(self, x: Tensor, frames: int, alpha: float = 1.0) -> Tensor:
        if frames > self.positions:
            raise AnimkitError(f"{frames} frames were asked of a motion module that has {self.positions} positions: "
                               f"ask for at most {self.positions} frames")
        motion = self.temporal_transformer(x.to(self.temporal_transformer.proj_in.weight.dtype), frames).to(x.dtype)
        return x + (motion if alpha == 1 else alpha * motion)


class MotionModules(nn.Module):
    """All motion modules of one UNet (4.2), one at each site; `modules["down_blocks.0.motion_modules.1"]` is one of them.

    sites: name -> width, as `motion_sites(unet)` gives them; the other arguments are the module's config, saved with its
    weights. kind "conv" is the ablation of 5.3. norm "diffusers" computes every norm as that library does (statistics of a
    module's own norm over all frames, v1's ResNets per frame), so that the two can be compared. Raises AnimkitError.
    """

    def __init__(self, sites: Mapping[str, int], version: str = "v3", positions: int | None = None, heads: int = 8,
                 norm_groups: int = 32, kind: str = "attention", norm: str = "reference"):
        super().__init__()
        if version not in VERSIONS:
            raise AnimkitError(f"unknown motion module version {version!r}: choose one of {', '.join(VERSIONS)}")
        self.sites, self.version, self.kind = dict(sites), version, kind
        self.positions = positions or VERSIONS[version]["positions"]
        self.heads, self.norm_groups = heads, norm_groups
        for site, c in self.sites.items():
            set_submodule(self, site, MotionModule(c, heads, self.positions, norm_groups, kind))
        self.norm = norm

    @classmethod
    def for_unet(cls, unet: nn.Module, version: str = "v3", *, positions: int | None = None, heads: int | None = None,
                 norm_groups: int | None = None, kind: str = "attention", norm: str = "reference", seed: int = 0) -> "MotionModules":
        """Fresh motion modules that fit a UNet: inserted, they change nothing yet (v1's joint ResNet norms apart).

        heads and norm_groups default to the release's 8 and 32, or to the largest power of two below that fits all widths.
        """
        if version not in VERSIONS:
            raise AnimkitError(f"unknown motion module version {version!r}: choose one of {', '.join(VERSIONS)}")
        sites = motion_sites(getattr(unet, "unet", unet), mid=VERSIONS[version]["mid"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(sites, version, positions, heads or math.gcd(8, *sites.values()),
                       norm_groups or math.gcd(32, *sites.values()), kind, norm)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], version: str = "v3", **config) -> "MotionModules":
        """Motion modules with these weights, under the reference release's names; sites, widths and positions are read off."""
        end = ".temporal_transformer.proj_in.weight"
        sites = {key.removesuffix(end): weight.shape[0] for key, weight in state.items() if key.endswith(end)}
        places = [weight.shape[1] for key, weight in state.items() if key.endswith("pos_encoder.pe")]
        if not sites:
            raise AnimkitError(f"no motion module in these {len(state)} tensors: none is named ...{end}")
        modules = cls(sites, version, **{"positions": max(places, default=None), **config})
        load_strictly(modules, state)
        return modules

    @property
    def config(self) -> dict:
        return {key: getattr(self, key) for key in ("sites", "version", "positions", "heads", "norm_groups", "kind", "norm")}

    @property
    def norm(self) -> str:
        return self._norm

    @norm.setter
    def norm(self, rule: str) -> None:
        if rule not in ("reference", "diffusers"):
            raise AnimkitError(f'unknown norm rule {rule!r}: choose "reference" or "diffusers"')
        self._norm = rule
        for site in self.sites:
            self[site].temporal_transformer.norm_rule = rule

    @property
    def joint_norm(self) -> bool:
        """Whether the image UNet's ResNet norms and conv_norm_out see all frames of a clip at once (v1 of the release)."""
        return VERSIONS[self.version]["joint_norm"] and self.norm == "reference"

    def __getitem__(self, site: str) -> MotionModule:
        return self.get_submodule(site)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors, each beside its place and then renamed."""
        save_folder(folder, {"_class_name": "MotionModules", **self.config}, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "MotionModules":
        """What save_pretrained wrote, exactly; AnimkitError if a file is missing, damaged or does not fit."""
        config, state = load_folder(folder, "MotionModules")
        modules = cls(**config)
        load_strictly(modules, state)
        return modules


def motion_sites(unet: nn.Module, mid: bool = False) -> dict[str, int]:
    """Where motion modules go and how wide each is: {"down_blocks.0.motion_modules.0": 320, ...} (4.2)."""
    sites = {}
    for side in ("down_blocks", "up_blocks"):
        for i, block in enumerate(getattr(unet, side)):
            for j, resnet in enumerate(block.resnets):
                sites[f"{side}.{i}.motion_modules.{j}"] = resnet.out_channels
    if mid and unet.mid_block is not None:
        sites["mid_block.motion_modules.0"] = unet.mid_block.resnets[0].out_channels
    return sites


@contextmanager
def record_attention(modules: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside, every temporal attention keeps its last map: {path: (b h w) n f f}, rows the reading frames, sums 1.

        with record_attention(video_unet) as maps: video_unet(x, t, text)
    """
    found = {path: module for path, module in modules.named_modules() if isinstance(module, TemporalAttention)}
    maps: dict[str, Tensor] = {}
    try:
        for path, attention in found.items():
            attention.record = partial(maps.__setitem__, path)
        yield maps
    finally:
        for attention in found.values():
            attention.record = None
