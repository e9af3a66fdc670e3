"""Settings of the stages: a YAML file per scale (configs/), read strictly: an unknown setting is an error."""
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from animkit.errors import AnimkitError
from animkit.training.loop import LoopConfig, check_settings
from animkit.training.losses import check_weighting
from animkit.training.presets import find_config
from animkit.world.looks import BASE_LOOKS


@dataclass(frozen=True)
class NoiseConfig:
    """The forward process as diffusers' schedulers take it: the base's betas for images, linear for motion (4.2)."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_train_timesteps: int = 1000
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    steps_offset: int = 1
    clip_sample: bool = False

    def __post_init__(self):
        check_settings(self, beta_start=0 < self.beta_start <= self.beta_end, beta_end=self.beta_start <= self.beta_end < 1,
                       num_train_timesteps=self.num_train_timesteps >= 1, steps_offset=self.steps_offset in (0, 1))

    def scheduler(self):
        """A DDIMScheduler with these settings."""
        from diffusers import DDIMScheduler
        return DDIMScheduler(**asdict(self))


@dataclass(frozen=True)
class WorldConfig:
    """How the cartoon world draws clips, for `source: world`; more in data.world_clips.WorldRecipe."""
    looks: tuple[str, ...] = BASE_LOOKS
    web: bool = False                                 # soft, compressed and watermarked, as web video is
    moving: float = 0.95                              # the share of things that move
    moves: float = 0.0                                # the share whose camera moves; captions do not say it
    seed: int = 0

    def __post_init__(self):
        check_settings(self, moving=0 <= self.moving <= 1, moves=0 <= self.moves <= 1, seed=self.seed >= 0)


@dataclass(frozen=True)
class DataConfig:
    """The training data. `source`: "world" (the cartoon world), a folder of videos (for a look: of images), a WebVid
    CSV (its files in `videos`), or WebDataset shards (.tar, streamed)."""
    source: str
    batch: int                                        # per process and micro-step
    size: int = 256                                   # pixels
    videos: str | None = None                         # the folder of a CSV's videos
    count: int | None = None                          # how many clips or images; null: all there are
    frames: int = 16
    stride: int = 4
    crop: Literal["centre", "random"] = "centre"
    flip: bool = False                                # not where left and right matter: captions, pans, rolls
    workers: int = 1                                  # threads that decode, or processes that draw the world
    cache: bool = True                                # latents and text computed once; false: at every step
    world: WorldConfig = field(default_factory=WorldConfig)

    def __post_init__(self):
        check_settings(self, batch=self.batch >= 1, size=self.size >= 1, count=self.count is None or self.count >= 1,
                       frames=self.frames >= 1, stride=self.stride >= 1, workers=self.workers >= 1)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """The settings that all stages have."""
    base: str = "miniature"                           # what Animator takes; by default the file's own `base`
    data: DataConfig
    training: LoopConfig = field(default_factory=LoopConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    drop_captions: float = 0.1                        # the share of captions replaced by "", for guidance
    min_snr_gamma: float | None = None                # nearly clean timesteps count less; 5 is usual; null: the paper's
    snr_plus_one: bool = False                        # noisy timesteps count as for v-prediction; false: the paper's
    towards_noise: float = 1.0                        # t = 1000 u^this: 1 is even, below 1 more often near noise
    gradient_checkpointing: bool = False
    prompts: tuple[str, ...] | None = None            # of samples drawn during training; null: captions of the data
    sample_steps: int | None = None                   # steps of the sampler for these; null: the base's

    def __post_init__(self):
        check_settings(self, drop_captions=0 <= self.drop_captions <= 1, rank=getattr(self, "rank", 1) >= 1,
                       sample_steps=self.sample_steps is None or self.sample_steps >= 1)
        check_weighting(self.towards_noise, self.min_snr_gamma, self.snr_plus_one)


@dataclass(frozen=True, kw_only=True)
class DomainAdapterConfig(StageConfig):
    """4.1: spatial LoRA on single random frames of the videos."""
    rank: int = 128


@dataclass(frozen=True, kw_only=True)
class MotionModuleConfig(StageConfig):
    """4.2: the motion module on clips; base and domain adapter frozen."""
    domain_adapter: str | None = None                 # a file, inserted with alpha 1; null: none (the ablation)
    version: Literal["v1", "v2", "v3"] = "v3"
    kind: Literal["attention", "conv"] = "attention"
    heads: int | None = None                          # null: the release's 8, or what divides all widths
    start: str | None = None                          # a motion module of this shape to start from; null: the identity


@dataclass(frozen=True, kw_only=True)
class MotionLoRAConfig(StageConfig):
    """4.3: temporal LoRA on 20 to 50 clips of one shot type."""
    motion_module: str
    shot: str | None                                  # one of data.camera.SHOTS; null: the clips as they are, which show it
    camera: Literal["crop", "scene"] = "crop"         # moving crops (the paper's), or the world's own camera
    amount: float = 0.3                               # how far it moves: crop 0 to 1; scene 1 is the whole move
    rank: int = 64
    domain_adapter: str | None = None


@dataclass(frozen=True, kw_only=True)
class LookConfig(StageConfig):
    """A personalised base: a LoRA on captioned images, or (full: true) all of the UNet, as DreamBooth does."""
    rank: int = 32
    layers: Literal["linear", "convolutions"] = "linear"  # of the UNet that get the LoRA: see look.py
    full: bool = False


STAGES = {"domain_adapter": DomainAdapterConfig, "motion_module": MotionModuleConfig, "motion_lora": MotionLoRAConfig,
          "look": LookConfig}


def load_config(path: str | Path, stage: str, overrides: Iterable[str] = ()) -> StageConfig:
    """The settings of a stage ("motion-module" or "motion_module") in a YAML file, or those shipped as "miniature" or
    "sd15"; override: "training.steps=500".

    Every section of the file is checked, not only the one asked for. Raises AnimkitError that names the setting, and
    the nearest known one, for a setting that does not exist, is missing, or has a value of the wrong kind.
    """
    stage = stage.replace("-", "_")
    if stage not in STAGES:
        raise AnimkitError(f"There is no stage {stage!r}; there are {', '.join(STAGES)}.")
    path = find_config(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_NoDuplicates) or {}
    except OSError as error:
        raise AnimkitError(f"The settings {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AnimkitError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise AnimkitError(f"{path} must hold sections such as {', '.join(STAGES)}, not a {type(content).__name__}.")
    for name in content.keys() - STAGES.keys() - {"base"}:
        raise AnimkitError(f"{path} has a section {name!r} that is not known{_nearest(str(name), ['base', *STAGES])}.")
    shared = {"base": content["base"]} if "base" in content else {}
    sections = {name: shared | _mapping(content[name], f"{path}: {name}") for name in STAGES if name in content}
    if stage not in sections:
        raise AnimkitError(f"{path} has no section {stage}; it has {', '.join(sections) or 'none'}.")
    for override in overrides:
        _override(sections[stage], override, STAGES[stage])
    built = {name: _build(STAGES[name], values, f"{path}: {name}") for name, values in sections.items()}
    return built[stage]


def _override(values: dict, override: str, kind: type) -> None:
    """Put "a.b=value" (the value in YAML) into nested dicts."""
    setting, equals, value = override.partition("=")
    setting = setting.strip()
    if not equals or not setting:
        raise AnimkitError(f"An override reads setting=value, such as training.steps=500; {override!r} does not.")
    left_out = setting in _sections(kind) and value.strip() in ("", "null", "~")  # a section of the file, as if not there
    if not left_out and setting not in _settings(kind):
        raise AnimkitError(f"There is no setting {setting!r} to override{_nearest(setting, _settings(kind))}.")
    *parents, last = setting.split(".")
    for parent in parents:
        if values.setdefault(parent, {}) is None:  # "training:" with nothing under it
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise AnimkitError(f"The override {override!r} sets a part of {parent}, which is {values!r} in the file and "
                               "must hold settings.")
    try:
        values[last] = {} if left_out else yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise AnimkitError(f"The value of the override {override!r} is not valid YAML.") from error


def _build(kind: type, values: Any, where: str, prefix: str = "", root: type | None = None) -> Any:
    """A dataclass from nested dicts, every name and every value checked."""
    root, hints, given = root or kind, typing.get_type_hints(kind), {}
    values = _mapping(values, f"{where}{'.' if prefix else ''}{prefix.rstrip('.')}")
    for name, value in values.items():
        if name not in hints:
            raise AnimkitError(f"{where} has no setting {prefix}{name}{_nearest(f'{prefix}{name}', _settings(root))}.")
        hint = hints[name]
        given[name] = (_build(hint, value, where, f"{prefix}{name}.", root) if is_dataclass(hint)
                       else _value(hint, value, f"{where}: {prefix}{name}"))
    for f in fields(kind):
        if f.name not in given and f.default is MISSING and f.default_factory is MISSING:
            raise AnimkitError(f"{where} lacks the setting {prefix}{f.name}, which has no default.")
    try:
        return kind(**given)
    except AnimkitError as error:
        raise AnimkitError(f"{where}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """The value as its type hint wants it. A number may be a word, for YAML reads 1e-4 as one."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value is False and "no" in options:  # YAML 1.1 reads a bare no as false
            return "no"
        if value in options:
            return value
    elif origin in (types.UnionType, typing.Union):
        if value is None and type(None) in options:
            return None
        return _value(next(o for o in options if o is not type(None)), value, where)
    elif origin is tuple and options[-1] is Ellipsis:
        if isinstance(value, (list, tuple)) and value:
            return tuple(_value(options[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    elif origin is tuple:
        if isinstance(value, (list, tuple)) and len(value) == len(options):
            return tuple(_value(o, v, where) for o, v in zip(options, value))
    elif hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif type(value) is hint:
        return value
    wanted = (f"one of {', '.join(map(repr, options))}" if origin is Literal
              else "a list of at least one" if options[-1:] == (Ellipsis,)
              else f"{len(options)} numbers" if origin is tuple
              else {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[hint])
    raise AnimkitError(f"{where} is {value!r}; it must be {wanted}.")


def _settings(kind: type, prefix: str = "") -> list[str]:
    """All dotted names of a config class."""
    hints, names = typing.get_type_hints(kind), []
    for f in fields(kind):
        nested = is_dataclass(hints[f.name])
        names += _settings(hints[f.name], f"{prefix}{f.name}.") if nested else [f"{prefix}{f.name}"]
    return names


def _sections(kind: type, prefix: str = "") -> list[str]:
    """The dotted names of the settings that hold settings."""
    nested = {f"{prefix}{name}": hint for name, hint in typing.get_type_hints(kind).items() if is_dataclass(hint)}
    return [*nested, *(name for section, hint in nested.items() for name in _sections(hint, f"{section}."))]


def _nearest(name: str, known: list[str]) -> str:
    leaf = {k.split(".")[0]: k.split(".")[0] for k in known} | {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    found = (difflib.get_close_matches(name, known, 1, 0.6)
             or [leaf[m] for m in difflib.get_close_matches(name.rsplit(".", 1)[-1], leaf, 1, 0.6)])
    return f"; the nearest is {found[0]}" if found else f"; known are {', '.join(known)}"


def _mapping(value: Any, where: str) -> dict:
    if not isinstance(value, Mapping):
        raise AnimkitError(f"{where} must hold settings, one a line, not {value!r}.")
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in value.items()}


class _NoDuplicates(yaml.SafeLoader):
    """YAML in which a setting written twice is an error; in standard YAML the last one would win silently."""

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is set twice", node.start_mark)
        return super().construct_mapping(node, deep)
