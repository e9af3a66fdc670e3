"""Section 4.2: the motion module, x + alpha * TemporalTransformer(x), and the set of them for one UNet.

A fresh one is the identity: its output layer starts at zero, so training starts from the unchanged image model.
b batch, f frames, c channels, h w latent height and width.
"""
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from animkit.errors import AnimkitError
from animkit.files import load_folder, load_strictly, save_folder, set_submodule
from animkit.temporal_transformer import TemporalAttention, TemporalTransformer

# The three SD 1.5 releases; joint_norm: the UNet's ResNet norms and conv_norm_out take statistics over all frames.
VERSIONS = {
    "v1": {"positions": 24, "mid": False, "joint_norm": True},
    "v2": {"positions": 32, "mid": True, "joint_norm": False},
    "v3": {"positions": 32, "mid": False, "joint_norm": False},
}


class MotionModule(nn.Module):
    """x + alpha * TemporalTransformer(x) (4.2), (b f) c h w -> the same; attention: AnimkitError beyond `positions` frames."""

    def __init__(self, c: int, heads: int = 8, positions: int = 32, norm_groups: int = 32, kind: str = "attention"):
        super().__init__()
        if min(heads, norm_groups, positions) < 1:
            raise AnimkitError(f"heads, norm_groups and positions of a motion module are at least 1; got {heads}, "
                               f"{norm_groups} and {positions}")
        if c % heads or c % norm_groups:
            raise AnimkitError(f"a motion module of width {c} cannot have {heads} heads and {norm_groups} norm groups: "
                               f"both must divide {c}; pass heads= and norm_groups= that do")
        if kind not in ("attention", "conv"):
            raise AnimkitError(f'unknown kind of motion module {kind!r}: choose "attention" or "conv"')
        self.temporal_transformer = TemporalTransformer(c, heads, positions, norm_groups, kind)

    def forward(self, x: Tensor, frames: int, alpha: float = 1.0) -> Tensor:
        weight = self.temporal_transformer.proj_in.weight
        motion = self.temporal_transformer(x.to(weight.dtype), frames).to(x.dtype)  # training: float32 on a half base
        return x + (motion if alpha == 1 else alpha * motion)


class MotionModules(nn.Module):
    """All motion modules of one UNet (4.2); `modules["down_blocks.0.motion_modules.1"]` is one of them.

    sites: name -> width, as motion_sites(unet) gives them. version: one of the release's. positions: the most frames.
    kind: "conv" is the ablation of 5.3. norm: "diffusers" computes every norm as that library does (a module's own
    over all frames, v1's ResNets per frame), so that the two can be compared; it may change at any time. All arguments
    are saved with the weights. Raises AnimkitError for values that do not exist or do not fit the widths.
    """

    def __init__(self, sites: Mapping[str, int], version: str = "v3", positions: int | None = None, heads: int = 8,
                 norm_groups: int = 32, kind: str = "attention", norm: str = "reference"):
        super().__init__()
        if version not in VERSIONS:
            raise AnimkitError(f"unknown motion module version {version!r}: choose one of {', '.join(VERSIONS)}")
        self.sites, self.version, self.kind = dict(sites), version, kind
        self.positions = VERSIONS[version]["positions"] if positions is None else positions
        self.heads, self.norm_groups = heads, norm_groups
        for site, c in self.sites.items():
            set_submodule(self, site, MotionModule(c, heads, self.positions, norm_groups, kind))
        self.norm = norm

    @classmethod
    def for_unet(cls, unet: nn.Module, version: str = "v3", *, positions: int | None = None, heads: int | None = None,
                 norm_groups: int | None = None, kind: str = "attention", norm: str = "reference",
                 seed: int = 0) -> "MotionModules":
        """Fresh motion modules that fit a UNet; inserted, they change nothing yet (except v1's joint ResNet norms).

        heads and norm_groups default to the release's 8 and 32, or to the largest power of two that fits all widths.
        """
        mid = VERSIONS.get(version, {}).get("mid", False)
        sites = motion_sites(getattr(unet, "unet", unet), mid=mid)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(sites, version, positions, heads or math.gcd(8, *sites.values()),
                       norm_groups or math.gcd(32, *sites.values()), kind, norm)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], version: str = "v3", **config) -> "MotionModules":
        """Motion modules with these weights, named as in the release; sites, widths and positions are read off them."""
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
        keys = ("sites", "version", "positions", "heads", "norm_groups", "kind", "norm")
        return {key: getattr(self, key) for key in keys}

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
        """Whether the image UNet's ResNet norms and conv_norm_out see all frames of a clip at once (v1)."""
        return VERSIONS[self.version]["joint_norm"] and self.norm == "reference"

    def __getitem__(self, site: str) -> MotionModule:
        return self.get_submodule(site)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors; each file appears only when whole."""
        save_folder(folder, {"_class_name": "MotionModules", **self.config}, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "MotionModules":
        """Load what save_pretrained wrote; AnimkitError if a file is missing, damaged or does not fit."""
        config, state = load_folder(folder, "MotionModules")
        if not any(".temporal_transformer." in name for name in state) and any("motion_modules" in name for name in state):
            raise AnimkitError(f"{folder} has the names of diffusers' MotionAdapter: open it with "
                               f"open_checkpoint({str(folder)!r}).build().")
        try:
            modules = cls(**config)
        except TypeError as error:
            raise AnimkitError(f"the config of {folder} has other settings than MotionModules take ({error}): use the "
                               "animkit that wrote it, or a newer one") from error
        load_strictly(modules, state)
        return modules


def motion_sites(unet: nn.Module, mid: bool = False) -> dict[str, int]:
    """Where motion modules go and how wide each is: {"down_blocks.0.motion_modules.0": 320, ...} (4.2)."""
    if not hasattr(unet, "down_blocks"):
        raise AnimkitError(f"motion modules are made for a UNet, not for {unet!r}; of an animator, pass animator.video_unet")
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
    """Inside, every temporal attention keeps its last map, {path: (b h w) n f f}; row i is what frame i reads.

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
