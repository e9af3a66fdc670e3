"""Section 4.2: the temporal Transformer inside a motion module.

    proj_out( block( proj_in( GroupNorm(x) ) ) ),   block = two temporal self-attentions and a feed-forward

b batch, f frames, c channels, h w latent height and width, n heads, d width of a head. The weights have the names of
the reference release, so its checkpoints load unchanged.
"""
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from animkit.errors import AnimkitError
from animkit.windows import averaged

MOST_ROWS = 2**16 - 1  # CUDA's attention kernels take no larger batch (pytorch issue 146704), and b h w may exceed it


def sinusoidal_positions(frames: int, c: int) -> Tensor:
    """PE[p, 2i] = sin(p / 10000^(2i/c)), PE[p, 2i+1] = cos(the same) (Vaswani et al. 2017, 3.5) -> frames c."""
    angle = torch.arange(frames)[:, None] * torch.exp(torch.arange(0, c, 2) * (-math.log(10000.0) / c))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class PositionalEncoding(nn.Module):
    """Adds each frame's place in the clip; without it, attention could not tell a clip from its shuffled frames."""

    def __init__(self, c: int, positions: int):
        super().__init__()
        self.register_buffer("pe", sinusoidal_positions(positions, c)[None])  # 1 f c; saved, as in the release

    def forward(self, x: Tensor) -> Tensor:
        frames, positions = x.shape[1], self.pe.shape[1]
        if frames > positions:
            raise AnimkitError(f"{frames} frames were asked of a motion module that has {positions} positions: ask for at "
                               f"most {positions} frames, or draw in windows (window=16)")
        return x + self.pe[:, :frames].to(x.dtype)


class TemporalAttention(nn.Module):
    """Self-attention along frames: softmax(Q K^T / sqrt d) V, positions added inside; (b h w) f c -> the same."""

    def __init__(self, c: int, heads: int, positions: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(c, c, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(c, c))
        self.pos_encoder = PositionalEncoding(c, positions)
        self.record: Callable[[Tensor], None] | None = None  # see record_attention

    def forward(self, x: Tensor) -> Tensor:
        x = self.pos_encoder(x)
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        q, k, v = (rearrange(y, "b f (n d) -> b n f d", n=self.heads) for y in (q, k, v))
        if self.record is not None:
            weights = attention_weights(q, k)
            self.record(weights.detach())
            y = weights @ v
        else:
            rows = zip(q.split(MOST_ROWS), k.split(MOST_ROWS), v.split(MOST_ROWS))
            parts = [F.scaled_dot_product_attention(*few) for few in rows]
            y = parts[0] if len(parts) == 1 else torch.cat(parts)
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
    """c -> 4 c (GEGLU) -> c, for each frame and place separately."""

    def __init__(self, c: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(c, 4 * c), nn.Identity(), nn.Linear(4 * c, c))  # Identity: the release's dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TemporalBlock(nn.Module):
    """x += mix(LayerNorm x), twice, then x += FeedForward(LayerNorm x); mix: attention or convolution along frames."""

    def __init__(self, c: int, heads: int, positions: int, kind: str):
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            TemporalAttention(c, heads, positions) if kind == "attention" else TemporalConvolution(c) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(c) for _ in range(2))
        self.ff, self.ff_norm = FeedForward(c), nn.LayerNorm(c)
        self.in_windows: tuple[int, int] | None = None  # a window's frames and stride, for long clips: windows.py

    def forward(self, x: Tensor) -> Tensor:
        x = averaged(self.along_frames, x, *self.in_windows) if self.in_windows else self.along_frames(x)
        return self.ff(self.ff_norm(x)) + x

    def along_frames(self, x: Tensor) -> Tensor:
        """The two that look along frames, (b h w) f c -> the same."""
        for mix, norm in zip(self.attention_blocks, self.norms):
            x = mix(norm(x)) + x
        return x


class TemporalTransformer(nn.Module):
    """What a motion module adds to its input: (b f) c h w -> (b f) c h w, zero when fresh."""

    def __init__(self, c: int, heads: int, positions: int, norm_groups: int, kind: str):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, c, eps=1e-6)
        self.proj_in = nn.Linear(c, c)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(c, heads, positions, kind)])
        self.proj_out = nn.Linear(c, c)
        nn.init.zeros_(self.proj_out.weight)  # 4.2: training starts from the unchanged image model
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
