"""The motion judge: which of the ten motions a clip shows, "still", or "incoherent" (its frames do not belong together)."""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import AnimkitError
from ..files import load_strictly, write_atomically
from ..training.draws import rand, randint
from .motion_clips import FRAMES, KINDS, SIZE, clips  # noqa: F401  (clips: what it is trained and tested on)

STILL, INCOHERENT = KINDS.index("still"), KINDS.index("incoherent")


class SpaceTime(nn.Module):
    """A (2+1)D convolution (Tran et al. 2018, arXiv 1711.11248): space, then 3 in time, each with its norm and ReLU."""

    def __init__(self, into: int, out: int, stride: int, pace: int = 1, space: int = 3):
        super().__init__()
        edge = space // 2
        self.space = nn.Conv3d(into, out, (1, space, space), (1, stride, stride), (0, edge, edge), bias=False)
        self.time = nn.Conv3d(out, out, (3, 1, 1), (pace, 1, 1), (1, 0, 0), bias=False)
        self.norms = nn.ModuleList([nn.GroupNorm(4, out, eps=1e-3), nn.GroupNorm(4, out, eps=1e-3)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.space(x)))
        return F.relu(self.norms[1](self.time(x)))


class MotionJudge(nn.Module):
    """Clips b c f h w (-1 to 1, 16 frames, 32 x 32) -> a score for each of KINDS, b k.

    It sees only what changes: each frame minus the clip's mean, and minus the frame before. A frozen clip is all zeros
    whatever it shows, so no drawn mark (speed lines, a rope) can pass for motion.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96)):
        super().__init__()
        a, b, c, d = widths
        self.blocks = nn.Sequential(SpaceTime(6, a, 2, space=5), SpaceTime(a, b, 2),
                                    SpaceTime(b, c, 2, pace=2), SpaceTime(c, d, 1, pace=2))
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(2 * d * FRAMES // 4, len(KINDS))

    def features(self, x: Tensor) -> Tensor:
        """Clips as above -> what the head takes, b d t: means and maxima over the picture, at four times."""
        x = x - x[:, :, :1]  # first, so that no change is exactly 0: norms would magnify a rounding error
        before = torch.cat([x[:, :, :1], x[:, :, :-1]], 2)
        seen = torch.cat([x - x.mean(2, keepdim=True), x - before], 1)                  # b 6 f h w
        z = self.blocks(2 * seen)                                                       # b d 4 4 4
        return torch.cat([z.mean((3, 4)), z.amax((3, 4))], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.features(x).flatten(1)))

    @torch.no_grad()
    def which(self, clips, size: int = 100, among: tuple[str, ...] = KINDS) -> Tensor:
        """Clips (b 16 H W 3, uint8, H and W multiples of 32) -> indices into KINDS, b; among: the only answers allowed."""
        self.eval()
        shut = torch.tensor([kind not in among for kind in KINDS])
        device = self.head.weight.device
        scores = [self(signal(np.asarray(clips[k:k + size])).to(device)).cpu() for k in range(0, len(clips), size)]
        return torch.cat(scores).masked_fill(shut, -torch.inf).argmax(-1)

    def save(self, path: Path, dtype: torch.dtype = torch.float16) -> None:
        state = {k: v.to(dtype).contiguous() for k, v in self.state_dict().items()}
        write_atomically(path, lambda beside: save_file(state, beside))

    @classmethod
    def load(cls, path: Path) -> "MotionJudge":
        """Raises AnimkitError if the file is missing or damaged."""
        model = cls()
        try:
            load_strictly(model, load_file(path))
        except (OSError, SafetensorError) as e:
            raise AnimkitError(f"{path} holds no motion judge ({str(e).splitlines()[0]}); train it with "
                               "`animkit miniature motion_judge`.") from e
        return model.float().eval()


def new_motion_judge(seed: int = 0) -> MotionJudge:
    torch.manual_seed(seed)
    return MotionJudge()


def signal(clips: np.ndarray) -> Tensor:
    """Clips b f H W 3, uint8 -> b 3 f 32 32 in -1 to 1: means of squares of pixels. AnimkitError for other sizes."""
    b, f, h, w, _ = clips.shape
    if f != FRAMES or h % SIZE or w % SIZE or h != w:
        raise AnimkitError(f"The motion judge takes clips of {FRAMES} frames and a multiple of {SIZE} pixels square; "
                           f"these have {f} frames of {w} x {h}.")
    x = torch.from_numpy(np.ascontiguousarray(clips)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    return F.avg_pool3d(x, (1, h // SIZE, w // SIZE))


def spoil(x: Tensor, generator: torch.Generator) -> Tensor:
    """Clips b c f h w with a generator's faults that are not motion: softness, grain, drifting colour and texture, ghosts
    of the frame before."""
    b, c, f, h, w = x.shape

    def some(share, *shape):
        return rand((b, *(shape or (1, 1, 1, 1))), generator) * (rand((b, 1, 1, 1, 1), generator) < share)

    def texture(frames, cells):
        coarse = torch.randn(b, c, frames, cells, cells, generator=generator)
        return F.interpolate(coarse, size=(f, h, w), mode="trilinear")

    x = torch.lerp(x, F.avg_pool3d(x, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False), some(0.6))
    ghost = torch.cat([x[:, :, :1], x[:, :, :-1]], 2)
    x = torch.lerp(x, ghost, 0.5 * some(0.25))
    x = x * (1 + 0.2 * some(0.5) * torch.randn(b, 1, f, 1, 1, generator=generator))         # contrast, frame by frame
    x = x + 0.1 * some(0.5) * torch.randn(b, c, f, 1, 1, generator=generator)               # tint, frame by frame
    x = x + 0.25 * some(0.5) * texture(4, 5) + 0.2 * some(0.4) * texture(f, 8)              # slow and quick patches
    x = x + 0.12 * some(0.6) * torch.randn(x.shape, generator=generator)
    contrast, tint = 0.75 + 0.5 * rand((b, 1, 1, 1, 1), generator), 0.2 * (rand((b, 3, 1, 1, 1), generator) - 0.5)
    return (x * contrast + tint).clamp(-1.2, 1.2)


class Watching:
    """batch and loss for fit, on clips (n f h w c, uint8) and labels in memory; 6 % are frozen, 8 % are made incoherent."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, size: int = 48):
        self.pixels, self.labels, self.size = torch.from_numpy(pixels), torch.from_numpy(labels).long(), size

    def batch(self, k, generator):
        rows, fate = randint(0, len(self.pixels), (self.size,), generator), rand((self.size,), generator)
        x, y = self.pixels[rows].clone(), self.labels[rows].clone()
        for i in torch.nonzero(fate < 0.14).flatten().tolist():
            order = torch.randperm(FRAMES, generator=generator)
            others = randint(0, len(self.pixels), (FRAMES,), generator)
            if fate[i] < 0.06:  # frozen
                x[i], y[i] = x[i, order[:1]], STILL
            elif fate[i] < 0.11 and KINDS[y[i]] not in ("still", "shaking", "spinning"):  # these may look right in any order
                x[i], y[i] = x[i, order], INCOHERENT
            else:  # frames of sixteen clips
                x[i], y[i] = self.pixels[others, order], INCOHERENT
        return spoil(signal(x.numpy()), generator), y

    def loss(self, model, batch, generator):
        x, y = batch
        scores = model(x)
        right = float((scores.argmax(-1) == y).float().mean())
        return F.cross_entropy(scores, y, label_smoothing=0.02), {"right": right}

    def accuracy(self, model) -> dict[str, float]:
        """The share of these clips, unchanged, that the model gets right."""
        return {"right": round(float((model.which(self.pixels.numpy()) == self.labels).float().mean()), 4)}
