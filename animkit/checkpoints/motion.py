"""Motion modules on disk: as the reference release has them, or as diffusers' MotionAdapter, the same in other names."""
from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from animkit.checkpoints.checkpoint import Checkpoint, check_fit, check_numbers, fill, misfit
from animkit.checkpoints.settings import choice, whole
from animkit.errors import AnimkitError
from animkit.motion_module import VERSIONS, MotionModules, motion_sites
from animkit.temporal_transformer import sinusoidal_positions

END = ".temporal_transformer.proj_in.weight"
PE = re.compile(r"(.*\.transformer_blocks\.\d+)\.attention_blocks\.(\d+)\.pos_encoder\.pe$")
SITE = re.compile(r"(?:(?:down|up)_blocks\.\d{1,3}|mid_block)\.motion_modules\.\d{1,3}")
# How many sinusoidal positions a module gets whose file has none: they are computed, not learned.
LCM_POSITIONS = 64
# reference release -> diffusers, below motion_modules.N
NAMES = {"temporal_transformer.": "", ".attention_blocks.0.": ".attn1.", ".attention_blocks.1.": ".attn2.",
         ".norms.0.": ".norm1.", ".norms.1.": ".norm2.", ".ff_norm.": ".norm3."}


def to_diffusers_name(name: str) -> str:
    """down_blocks.0.motion_modules.0.temporal_transformer....attention_blocks.0.to_q -> ....attn1.to_q: MotionAdapter's."""
    for reference, diffusers in NAMES.items():
        name = f"{name}.".replace(reference, diffusers)[:-1]
    return name


def to_reference_name(name: str) -> str:
    """The inverse of to_diffusers_name."""
    name = re.sub(r"(motion_modules\.\d+)\.(?!temporal_transformer\.)", r"\1.temporal_transformer.", name)
    for reference, diffusers in list(NAMES.items())[1:]:
        name = f"{name}.".replace(diffusers, reference)[:-1]
    return name


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reference names -> MotionAdapter's. Its block keeps one set of positions, the reference's one for each attention.

    Raises AnimkitError if a block's two sets differ, since diffusers cannot keep both.
    """
    new: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = PE.match(name)
        if match is None:
            new[to_diffusers_name(name)] = tensor
            continue
        key = to_diffusers_name(match[1]) + ".pos_embed.pe"
        if key in new and not new[key].equal(tensor):
            raise AnimkitError(
                f"{name}: its positions differ from its neighbour's, and diffusers keeps only one set for both: "
                "save this module with format=\"reference\"."
            )
        new[key] = tensor
    return new


def to_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MotionAdapter's names -> the reference's."""
    new: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".pos_embed.pe"):
            block = to_reference_name(name.removesuffix(".pos_embed.pe"))
            new |= {f"{block}.attention_blocks.{i}.pos_encoder.pe": tensor for i in (0, 1)}
        else:
            new[to_reference_name(name)] = tensor
    return new


def sites_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Reference-named weights -> {"down_blocks.0.motion_modules.0": 320, ...}."""
    return {name.removesuffix(END): len(tensor) if tensor.ndim else 0  # 0: damaged, refused by recognise
            for name, tensor in state.items() if name.endswith(END)}


def read_off(state: Mapping[str, Tensor]) -> dict:
    """The config that reference-named weights show: version, kind, positions; heads and norm groups by the release's rule."""
    sites = sites_of(state)
    places = {tensor.shape[1] for name, tensor in state.items() if name.endswith("pos_encoder.pe") and tensor.ndim == 3}
    kind = "conv" if any(".conv.weight" in name for name in state) else "attention"
    down = {site.split(".")[1] for site in sites if site.startswith("down_blocks")}
    if any(site.startswith("mid_block") for site in sites):
        version = "v2"
    elif places == {24}:
        version = "v1"
    else:
        version = "sdxl" if len(down) == 3 else "v3"
    if kind == "attention" and (not places or max(places) > 32):
        version = "lcm"
    return {
        "version": version,
        "kind": kind,
        "positions": max(places, default=LCM_POSITIONS if kind == "attention" else 32),
        "heads": math.gcd(8, *sites.values()),
        "norm_groups": math.gcd(32, *sites.values()),
    }


class MotionModuleCheckpoint(Checkpoint):
    """A motion module file of any naming; build() gives MotionModules that fit a UNet."""

    def state(self) -> dict[str, Tensor]:
        """The weights under the reference's names, with positions added if the file has none."""
        state = to_reference(self.weights) if self.format == "diffusers" else dict(self.weights)
        if self.config["kind"] == "attention" and not any(name.endswith(".pe") for name in state):
            for site, c in sites_of(state).items():
                pe = sinusoidal_positions(self.config["positions"], c)[None].to(state[site + END].dtype)
                state |= {
                    f"{site}.temporal_transformer.transformer_blocks.0.attention_blocks.{i}.pos_encoder.pe": pe
                    for i in (0, 1)
                }
        return state

    def build(self, video_unet: nn.Module | None = None) -> MotionModules:
        state = self.state()
        sites = sites_of(state)
        mid = any(site.startswith("mid_block") for site in sites)
        if video_unet is not None:
            place = motion_sites(getattr(video_unet, "unet", video_unet), mid)
            wrong = [f"{site} of width {c} for {place[site]}" for site, c in sites.items() if place.get(site, c) != c]
            missing, extra = [s for s in place if s not in sites], [s for s in sites if s not in place]
            if wrong or missing or extra:
                raise misfit(
                    self.path,
                    "the UNet's places for motion modules",
                    missing,
                    extra,
                    wrong,
                    f"this is a {self.version} motion module for widths {', '.join(map(str, _widths(sites)))}.",
                )
        config = dict(self.config)
        # The release has three structures; SDXL's and LCM's differ from these in widths and positions only.
        config["version"] = (
            self.config["version"] if self.config["version"] in ("v1", "v2", "v3") else "v2" if mid else "v3"
        )
        check_numbers(self.path, state)
        with torch.device("meta"):  # shapes alone: no memory is taken twice, and none for a misfit
            try:
                modules = MotionModules(sites, **config)
            except AnimkitError as error:
                raise AnimkitError(f"{self.path}: {error}") from None
        check_fit(self.path, modules, state)
        fill(modules, self._hand_out(state))
        modules.norm = config.get("norm", "reference")
        return modules


def _widths(sites: Mapping[str, int]) -> list[int]:
    return sorted(set(sites.values()))


def recognise(path: Path, weights: dict[str, Tensor], metadata: Mapping, config: Mapping) -> Checkpoint | None:
    """A MotionModuleCheckpoint if these are a motion module's weights, else None; config: of the config.json beside them."""
    if any("pos_encoder.positional_encoding" in name or ".temporal_attentions." in name for name in weights):
        raise AnimkitError(
            f"{path}: this is a HotShot-XL motion module; its temporal layers have another structure (8 frames, other "
            "places), so animkit cannot use it: take an AnimateDiff SDXL module."
        )
    sparse = any("controlnet_down_blocks." in name for name in weights) and any("motion_modules." in n for n in weights)
    if sparse or config.get("_class_name") == "SparseControlNetModel":
        raise AnimkitError(
            f"{path}: this is a SparseCtrl (a ControlNet with motion modules of its own), which animkit does not"
            " support: take a plain motion module, or a plain ControlNet."
        )
    motion, notes = _one_set(path, weights)
    if not motion:
        return None
    if config.get("conv_in_channels") or any(
        name.endswith("conv_in.weight") and tensor.ndim == 4 and tensor.shape[1] == 9
        for name, tensor in weights.items()
    ):
        raise AnimkitError(
            f"{path}: this is a PIA module, whose UNet takes 9 channels (a conditioning picture beside the latents): "
            "animkit animates text to image models of 4; take a plain motion module."
        )
    others = sum("motion_modules." not in name for name in weights)
    if others:
        notes.append(f"{others} other tensors (the image UNet around it) are left out")
    ours = config.get("_class_name") == "MotionModules"  # if not, the metadata may have what MotionAdapter's lacks
    own = _own_config(metadata) or (config if ours else None)
    format = "reference" if any(".temporal_transformer." in name for name in motion) else "diffusers"
    state = motion if format == "reference" else to_reference(motion)
    if not sites_of(state):
        raise AnimkitError(
            f"{path}: it has motion_modules tensors, but no proj_in among them: this is a part of a motion module; "
            "get the whole file."
        )
    odd = [site + END for site in sites_of(state) if not _possible(site, tuple(state[site + END].shape))]
    if odd:
        raise AnimkitError(f"{path}: {odd[0]} has a name or the shape {tuple(state[odd[0]].shape)} that no motion "
                           "module has; the file is damaged: fetch it again.")
    settings = read_off(state)
    version = settings["version"]
    if own:
        settings |= _checked(path, own)
        version, format = settings["version"], "animkit" if ours else format
    elif config:
        settings |= {
            "heads": whole(path, config, "motion_num_attention_heads", 8),
            "norm_groups": whole(path, config, "motion_norm_num_groups", 32),
        }
    if format == "diffusers" and not own and (version, settings["positions"]) == ("v3", 32):
        notes.append(
            "v3, or a v1 that diffusers' script converted, which looks the same; if it is one, set"
            " .config[\"version\"] = \"v1\" before it is inserted"
        )
    if version == "lcm":
        notes.append(
            "positions:"
            f" {'none in the file, ' if not any(n.endswith('.pe') for n in state) else ''}{settings['positions']} used"
        )
    return MotionModuleCheckpoint(path, motion, "motion module", version, format, settings, notes)


def _possible(site: str, shape: tuple[int, ...]) -> bool:
    """Whether a motion module can be at this site with a proj_in of this shape. It must be c c, so that a small file
    cannot ask for a huge c: positions of width c are computed if the file has none."""
    return bool(SITE.fullmatch(site)) and len(shape) == 2 and shape[0] == shape[1] > 0


def _one_set(path: Path, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors of motion modules, without the prefix of their names; notes). A second set is left out, with a note, if it
    is training's running average ("ema"). AnimkitError if it is unclear which of two sets is meant."""
    sets: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if "motion_modules." in name:
            before = re.match(r"(.*\.)?(?=(down_blocks|up_blocks|mid_block)\.)", name)
            before = before[0] if before else ""
            sets.setdefault(before, {})[name.removeprefix(before)] = tensor
    plain = [before for before in sets if "ema" not in before.lower()] or list(sets)
    if len(plain) > 1:
        names = " and ".join(before + next(iter(sets[before])) for before in plain[:2])
        raise AnimkitError(
            f"{path}: it holds {len(plain)} sets of motion modules ({names}); save the one you mean alone."
        )
    motion = sets[plain[0]] if plain else {}
    averages = sum(map(len, sets.values())) - len(motion)
    return motion, [f"{averages} tensors of a running average (EMA) are left out"] if averages else []


def _checked(path: Path, own: Mapping) -> dict:
    """The settings of our own config, each checked. Raises AnimkitError for an impossible one."""
    options = {"version": tuple(VERSIONS), "kind": ("attention", "conv"), "norm": ("reference", "diffusers")}
    return {key: choice(path, key, own[key], known) for key, known in options.items() if key in own} | {
        key: whole(path, own, key, 1) for key in ("positions", "heads", "norm_groups") if key in own}


def _own_config(metadata: Mapping) -> dict | None:
    """The config in the safetensors metadata of animkit's own files; None in other files."""
    try:
        config = json.loads(metadata.get("config", "null"))
    except (ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) and config.get("_class_name") == "MotionModules" else None
