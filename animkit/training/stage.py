"""What all stages share around the loop: the base and what is frozen in it, data, samples while training, files."""
import copy
import json
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from torch import nn

import animkit
from animkit import samples
from animkit.animator import Animator
from animkit.base import check_size
from animkit.checkpoints import open_checkpoint, save_checkpoint
from animkit.checkpoints.checkpoint import Checkpoint
from animkit.data.cache import fingerprint_of
from animkit.errors import AnimkitError
from animkit.files import make_folder, write_atomically
from animkit.heap import peak_memory
from animkit.motion_module import MotionModules
from animkit.prompts import check_prompt
from animkit.sampling import check_steps
from animkit.show.filmstrip import filmstrip, side_by_side
from animkit.training import plumbing, saving, sources
from animkit.training.config import StageConfig
from animkit.training.history import History, locked
from animkit.training.live import LiveCurve, Pace
from animkit.training.loop import fit


@dataclass
class Trained:
    """What a stage leaves: its weights' `file`, the loss curve, an animator with the part, train.json's content."""
    file: Path
    history: History
    animator: Animator
    record: dict


class Stage:
    """One stage's run in a folder. Raises AnimkitError for settings that do not fit the base, before it trains."""

    def __init__(self, kind: str, config: StageConfig, folder: str | Path, *, quiet: bool = False, command: str = "",
                 seconds: float | None = None):
        self.kind, self.config, self.folder, self.seconds = kind, config, Path(folder), seconds
        self.quiet, self.command, self.began = quiet, command, time.monotonic()
        self.name = self.folder.resolve().name
        self.file = self.folder / f"{self.name}.safetensors"
        self.accelerator = plumbing.accelerator_for(config.training)
        device, half = self.accelerator.device, {"bf16": torch.bfloat16, "fp16": torch.float16}
        frozen = not getattr(config, "full", False) and device.type == "cuda"  # what learns stays in float32
        self.animator = Animator(config.base, motion=False, device=device,
                                 dtype=half.get(config.training.mixed_precision, torch.float32) if frozen
                                 else torch.float32)
        self.video_unet = self.animator.video_unet
        self._frozen: str | None = None  # a hash of the base and of what is frozen in it
        self._check_base()
        if config.gradient_checkpointing:
            self.video_unet.unet.enable_gradient_checkpointing()

    # ---- does all fit?

    def _check_base(self) -> None:
        config, pipe = self.config, self.animator.pipe
        if pipe.unet.config.addition_embed_type:
            raise AnimkitError(f"base: {config.base} is of the XL family, whose further conditions the stages do not "
                               "train with; take a base of Stable Diffusion 1.x or 2.x, or the miniature.")
        try:
            check_size(pipe, self.animator.defaults, config.data.size, config.data.size)
        except AnimkitError as error:
            raise AnimkitError(f"data.size does not fit the base {config.base}: {error}") from error
        for name in ("prediction_type", "num_train_timesteps"):
            self._like_base(name)
        steps = config.sample_steps or self.animator.defaults["steps"]
        try:
            check_steps(self._sampler(), steps)
        except AnimkitError as error:
            raise AnimkitError(f"sample_steps is {steps}, and samples are drawn by noise: {error}") from error
        for prompt in config.prompts or ():
            check_prompt(prompt, pipe.tokenizer, self.animator.defaults["vocabulary"])

    def needs_betas_of_base(self) -> None:
        """The stages that learn from images use the base's own noise schedule (4.1)."""
        for name in ("beta_schedule", "beta_start", "beta_end"):
            self._like_base(name)

    def _like_base(self, name: str) -> None:
        own, base = getattr(self.config.noise, name), self.animator.pipe.scheduler.config.get(name)
        if base is not None and own != base:
            raise AnimkitError(f"noise.{name} is {own}, but the base {self.config.base} was trained with {base}: set "
                               f"noise.{name} to that.")

    # ---- what is at work

    def insert(self, part: nn.Module) -> None:
        """Insert the part to be trained, with alpha 1 and in float32."""
        motion = part if isinstance(part, MotionModules) else self.video_unet.motion
        if motion is not None and self.config.data.frames > motion.positions:
            raise AnimkitError(f"data.frames is {self.config.data.frames}, more than the {motion.positions} positions "
                               "of the motion module.")
        self._frozen = fingerprint_of(self.video_unet)
        self.video_unet.insert(part, alpha=1, name=self.kind, dtype=torch.float32)

    def insert_frozen(self, setting: str, alpha: float) -> None:
        """Insert what a setting (domain_adapter, motion_module) names, if it names something."""
        if getattr(self.config, setting) is not None:
            checkpoint = self.open(setting, setting.replace("_", " "))
            try:
                self.video_unet.insert(checkpoint, alpha=alpha, name=setting)
            except AnimkitError as error:
                raise AnimkitError(f"{setting}: {checkpoint.path} does not fit the base {self.config.base}: {error}"
                                   ) from error

    def open(self, setting: str, kind: str) -> Checkpoint:
        """The file, the finished run's folder, or the sample that a setting names; AnimkitError if it is no `kind`."""
        name = getattr(self.config, setting)
        path = Path(name)
        own = path / f"{path.resolve().name}.safetensors"
        if not own.exists() and (path / "train.json").exists():  # the folder was copied or renamed since
            own = path / json.loads((path / "train.json").read_text())["file"]
        found = [p for p in (own, path) if p.exists()]
        for sample in (name, f"{name}.safetensors"):
            with suppress(AnimkitError):
                found.append(samples.path(sample))
        if not found:
            raise AnimkitError(f"{setting}: there is no file, no run and no sample {name!r}; train it first, or set "
                               f"{setting} to its file.")
        if found[0].is_dir() and (found[0] / "log.jsonl").exists():
            raise AnimkitError(f"{setting}: the run in {name} has not ended yet ({own.name} is not there); let it end.")
        checkpoint = open_checkpoint(found[0])
        if checkpoint.kind not in (kind, *["LoRA"] * (kind == "domain adapter")):
            raise AnimkitError(f"{setting}: {found[0]} is a {checkpoint.kind}, not a {kind}.")
        return checkpoint

    def like_start(self, modules: MotionModules) -> None:
        """AnimkitError if `version`, `kind` or `heads`, meant for fresh motion modules, differ from `start`."""
        for name in ("version", "kind", "heads"):
            own, found = getattr(self.config, name), getattr(modules, name)
            if own not in (None, found):
                raise AnimkitError(f"{name} is {own!r}, but start: {self.config.start} has {found!r}: set {name} to that, "
                                   "or leave start out to train from nothing.")

    # ---- what is learned from

    def videos(self, **shot) -> sources.Source:
        """The clips of `data`, of one shot type if asked for; latents and text computed once, in <folder>/../cache."""
        return self._source(lambda: sources.videos(self.config.data, self.config.training.seed, shot))

    def images(self) -> sources.Source:
        """The captioned images of `data`."""
        return self._source(lambda: sources.images(self.config.data, self.config.training.seed))

    def _source(self, clips: Callable) -> sources.Source:
        self._same_settings()
        with self.accelerator.main_process_first():  # it fills the cache for all
            return sources.Source(self.animator.pipe, clips(), self.config.data, self.config.training.seed,
                                  self.folder.parent / "cache", self.quiet)

    def _same_settings(self) -> None:
        """A run goes on only under the settings that it began with, on the same base and frozen parts."""
        now = json.loads(json.dumps(asdict(self.config)))
        for free in ("training", "prompts", "sample_steps", "gradient_checkpointing"):  # `fit` looks at training itself
            del now[free]
        del now["data"]["workers"]
        self._frozen = self._frozen or fingerprint_of(self.video_unet)
        now |= {"kind": self.kind, "weights of the base and of frozen parts": self._frozen[:16]}
        path, main = self.folder / "settings.json", self.accelerator.is_main_process
        make_folder(self.folder)
        with locked(self.folder) if main else nullcontext():  # another run that is training here keeps its settings
            self._compare_or_note(path, now, main)

    def _compare_or_note(self, path: Path, now: dict, main: bool) -> None:
        if path.exists() and saving.read_state(self.folder):
            try:
                then, now = map(_dotted, (_with_defaults(json.loads(path.read_text()), now, self.config), now))
            except (OSError, ValueError, AttributeError, TypeError) as error:
                raise AnimkitError(f"{path}, what the run there was begun with, cannot be read ({error}): delete the folder to "
                                   "train from the start, or train in another.") from error
            differ = [f"{k} (was {then.get(k)!r}, now {now.get(k)!r})" for k in {**now, **then}
                      if now.get(k) != then.get(k)]
            if differ:
                raise AnimkitError(f"The run in {self.folder} was begun with other settings: {', '.join(differ)}; go "
                                   "back to those, or train in another folder.")
        elif main:
            write_atomically(path, lambda file: Path(file).write_text(json.dumps(now, indent=1)))

    # ---- training

    def learn(self, part: nn.Module, loss: Callable, source: sources.Source) -> Trained:
        """Train `part`, and nothing else; then write its files."""
        config = self.config
        fixed = dict(scheduler=config.noise.scheduler(), empty=source.empty, drop=config.drop_captions,
                     min_snr_gamma=config.min_snr_gamma, snr_plus_one=config.snr_plus_one,
                     towards_noise=config.towards_noise)
        prompts = self._prompts(source)
        prepared = time.monotonic() - self.began
        self._same_settings()  # once more: another run may have begun here, and ended, while the clips were prepared
        history = fit(self.video_unet, lambda model, batch, draw: loss(model, *source.tensors(batch), draw, **fixed),
                      source.batch, config.training, self.folder, parameters=part.parameters(), quiet=self.quiet,
                      validate=lambda _, step: self._sample(prompts, step), watch=_Watch(self.folder),
                      stop=self.seconds)
        if not history.records and self.accelerator.is_main_process:
            raise AnimkitError(f"The run in {self.folder} has ended, but its log.jsonl is gone: put that back, or train "
                               "in another folder.")
        if history.ema:
            history.ema.copy_to_model()
        record = {}
        if history.ended == "stopped":
            self._say(f"{self.folder}: stopped at step {history.records[-1]['step'] if history.records else '?'} of "
                      f"{config.training.steps}; the same command goes on")
        else:
            if self.accelerator.is_main_process:
                record = self._write(part, history, source, prepared)
            self.accelerator.wait_for_everyone()
        return Trained(self.file, history, self.animator, record)

    def _prompts(self, source: sources.Source) -> list[str]:
        """Those of the settings; else the first three captions whose words the base knows."""
        prompts = list(self.config.prompts or ())
        for caption in () if prompts else source.captions[:20]:
            with suppress(AnimkitError):
                check_prompt(caption, self.animator.pipe.tokenizer, self.animator.defaults["vocabulary"])
                prompts.append(caption)
        if source.captions and not prompts:
            self._say(f"The captions have words that the base {self.config.base} never learned, so no samples are drawn "
                      "of them; set prompts to some in its own words.")
        return prompts if self.config.prompts else prompts[:3]

    def _sampler(self) -> DDIMScheduler:
        return DDIMScheduler.from_config(self.animator.scheduler.config, **asdict(self.config.noise))

    def _sample(self, prompts: list[str], step: int) -> dict:
        """Draw clips (of motion stages) or stills of the prompts with the stage's own betas: samples/step-000500.png, a
        .mp4 of clips, and a picture for TensorBoard."""
        frames = self.config.data.frames if self.video_unet.motion is not None else 1
        size = self.config.data.size
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This .* has the base's own betas")  # so has the training, then
            clips = [self.animator(prompt, frames=frames, seed=i, steps=self.config.sample_steps, height=size, width=size,
                                   scheduler=self._sampler(), progress=False) for i, prompt in enumerate(prompts)]
        if not clips:
            return {}
        path = self.folder / "samples" / f"step-{step:06d}"
        strip = filmstrip(clips, labels=prompts if frames > 1 else None)
        strip.save(path.with_suffix(".png"))
        if frames > 1:
            side_by_side(clips, labels=prompts).save(path.with_suffix(".mp4"))
        return {"samples": strip.image}

    # ---- files

    def _write(self, part: nn.Module, history: History, source: sources.Source, prepared: float) -> dict:
        last, path, unet = history.records[-1], self.folder / "train.json", self.video_unet.unet
        if last["seconds"] <= history.before and self.file.exists() and path.exists():  # this call trained nothing
            record = json.loads(path.read_text())
            if record.get("steps") == last["step"]:
                self._say(f"{self.file} is there already, after {last['step']} steps; for more, set training.steps")
                return record  # the run had ended before: this says what made the file
        state = {name: t.detach().cpu().half().contiguous() for name, t in part.state_dict().items()}
        if odd := [name for name, t in state.items() if not t.isfinite().all()]:
            raise AnimkitError(f"{odd[0]} has numbers that float16 cannot hold: the run diverged; lower training.lr.")
        if part is unet:
            write_atomically(self.file, lambda file: save_file(state, file, {"format": "pt"}))
        else:
            save_checkpoint(copy.deepcopy(part).cpu().half(), self.file,
                            "diffusers" if self.kind == "look" else "reference", kind=self.kind)
        device, recent = self.accelerator.device, history.losses[-50:]
        record = {"stage": self.kind, "command": self.command, "file": self.file.name, "steps": last["step"],
                  "minutes": round(last["seconds"] / 60, 2), "minutes_preparing": round(prepared / 60, 2),
                  "device": torch.cuda.get_device_name(device) if device.type == "cuda"
                  else f"{device}, {torch.get_num_threads()} thread(s)",
                  "processes": self.accelerator.num_processes, "peak_memory_mb": _peak_memory(device),
                  "final_loss": round(float(recent.mean()), 5), "seed": self.config.training.seed,
                  "clips": source.count, "skipped": len(source.skipped) if source.skipped is not None else 0,
                  "skipped_videos": sorted(source.skipped.why) if source.skipped is not None else [],
                  "parameters": sum(p.numel() for p in part.parameters()),
                  "animkit": animkit.__version__, "torch": torch.__version__, "settings": asdict(self.config)}
        record = json.loads(json.dumps(record))  # as it will be read
        write_atomically(path, lambda file: Path(file).write_text(json.dumps(record, indent=1) + "\n"))
        self._say(f"{self.file}: {self.kind}, {record['steps']} steps in {record['minutes']:g} minutes on "
                  f"{record['device']}, loss {record['final_loss']:.4g}")
        return record

    def _say(self, what: str) -> None:
        if self.accelerator.is_main_process and not self.quiet:
            print(what, file=sys.stderr)


class _Watch:
    """The loss curve as it grows: loss.png at most every half minute and at the end, and a figure in a notebook."""

    def __init__(self, folder: Path):
        self.path, self.pace, self.live = folder / "loss.png", Pace(30), LiveCurve()

    def __call__(self, history: History) -> None:
        self.live(history)
        if not self.pace.due(history):
            return
        from matplotlib.figure import Figure
        figure = Figure(figsize=(6, 3), layout="constrained")
        with self.pace:
            history.plot(figure.subplots())
            write_atomically(self.path, lambda file: figure.savefig(file, format="png", dpi=120))


def _peak_memory(device: torch.device) -> int | None:
    """MB: of the device where it counts them, else of this process; None where the system does not tell."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6)
    peak = peak_memory()
    return None if peak is None else round(peak / 1e6)


def _dotted(settings: dict) -> dict:
    """{"data": {"batch": 4}} -> {"data.batch": 4}."""
    return {f"{name}.{inner}" if inner else name: value for name, held in settings.items()
            for inner, value in (_dotted(held) if isinstance(held, dict) else {"": held}).items()}


def _with_defaults(then: dict, now: dict, config: Any) -> dict:
    """Settings that an older animkit wrote, completed with the defaults of those that it did not know yet."""
    whole = dict(then)
    for field in (field for field in fields(config) if field.name in now):
        value = getattr(config, field.name)
        if field.name in then:
            if is_dataclass(value) and isinstance(then[field.name], dict):
                whole[field.name] = _with_defaults(then[field.name], now[field.name], value)
        elif field.default is not MISSING:
            whole[field.name] = json.loads(json.dumps(field.default))
    return whole
