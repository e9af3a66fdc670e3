"""The one training loop: VAE, CLIP, UNet, domain adapter, motion module and MotionLoRA all go through `fit`."""
import json
import math
import signal
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Iterable, Literal

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from animkit.errors import AnimkitError
from animkit.files import make_folder
from animkit.heap import keep_freed_memory
from animkit.training import plumbing, saving
from animkit.training.draws import generator_at, rank_and_world, seed_at
from animkit.training.ema import EMA
from animkit.training.history import History, Log

Batch = Any
Loss = Callable[[nn.Module, Batch, torch.Generator], Tensor | tuple[Tensor, dict[str, float]]]

LATER = ("optimizer",)  # settings that older runs do not have: they had the default


def check_settings(config: Any, **sensible: bool) -> None:
    """AnimkitError that names the first setting, a field of the dataclass, which is not sensible."""
    for name, ok in sensible.items():
        if not ok:
            raise AnimkitError(f"{type(config).__name__}.{name} = {getattr(config, name)!r} makes no sense; see its "
                               f"comment in {type(config).__module__.replace('.', '/')}.py.")


@dataclass(frozen=True)
class LoopConfig:
    """How to train. A run resumes only under the same settings, except those after the line `free`."""
    lr: float = 1e-4
    warmup: int = 0                                   # steps over which lr rises from 0
    schedule: Literal["constant", "cosine"] = "constant"
    floor: float = 0.0                                # cosine falls to lr * floor at the last step
    optimizer: Literal["adamw", "muon"] = "adamw"     # muon: for matrices, AdamW for the rest
    betas: tuple[float, float] = (0.9, 0.999)         # AdamW's
    weight_decay: float = 1e-2
    clip_norm: float = 1.0                            # 0: no clipping
    accumulate: int = 1                               # micro-steps whose gradients are averaged into one step
    ema: float = 0.0                                  # decay of the average of the weights; 0: none
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "no"  # auto becomes bf16 where it is fast here, else no
    seed: int = 0
    # free to change on resume:
    steps: int = 1000
    checkpoint_seconds: float = 60
    log_every: int = 20
    validate_every: int = 0                           # 0: only after the last step
    prefetch: int = 0                                 # batches fetched ahead by a thread, for slow decoders
    device: str | None = None                         # None: what accelerate finds; or "cpu"

    def __post_init__(self):
        if self.mixed_precision == "auto":
            object.__setattr__(self, "mixed_precision", plumbing.fast_precision(self.device))
        check_settings(self, lr=0 < self.lr < math.inf, floor=0 <= self.floor <= 1, seed=0 <= self.seed < 2**63,
                       betas=all(0 <= beta < 1 for beta in self.betas), weight_decay=0 <= self.weight_decay < math.inf,
                       checkpoint_seconds=self.checkpoint_seconds >= 0, prefetch=self.prefetch >= 0,
                       validate_every=self.validate_every >= 0, warmup=self.warmup >= 0, accumulate=self.accumulate >= 1,
                       schedule=self.schedule in ("constant", "cosine"), ema=0 <= self.ema < 1,
                       clip_norm=self.clip_norm >= 0, steps=self.steps >= 1, log_every=self.log_every >= 1,
                       device=self.device in (None, "cpu"),
                       mixed_precision=self.mixed_precision in ("no", "bf16", "fp16"),
                       optimizer=self.optimizer in ("adamw", "muon"))
        plumbing.check_optimizer(self)

    def lr_at(self, step: int) -> float:
        """The learning rate of step 1, 2, ...: linear warm-up, then constant, or half a cosine down to lr * floor."""
        if step <= self.warmup:
            return self.lr * step / self.warmup
        if self.schedule == "constant":
            return self.lr
        done = min(1.0, (step - self.warmup - 1) / max(1, self.steps - self.warmup - 1))
        return self.lr * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done)))

    def fixed(self) -> dict:
        """The settings that a resumed run must share."""
        free = ("steps", "checkpoint_seconds", "log_every", "validate_every", "prefetch", "device")
        return json.loads(json.dumps({k: v for k, v in known_before(asdict(self)).items() if k not in free}))


def known_before(settings: dict) -> dict:
    """A LoopConfig's settings, without those in LATER that are at the default: older runs are still recognised."""
    return {k: v for k, v in settings.items() if k not in LATER or v != getattr(LoopConfig, k)}


class _Objective(nn.Module):
    """The loss as a module's forward, so that accelerate's autocast and gradient averaging hold for any loss."""

    def __init__(self, model: nn.Module, loss: Loss, trainable: Iterable[nn.Parameter]):
        super().__init__()
        self.model, self.loss, self.trainable = model, loss, nn.ParameterList(trainable)

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict]:
        result = self.loss(self.model, batch, generator)
        value, extras = result if isinstance(result, tuple) else (result, {})
        if torch.is_grad_enabled() and not value.requires_grad:
            raise AnimkitError("The loss depends on none of the parameters to train: look at both.")
        return value, extras


def fit(model: nn.Module, loss: Loss, batch: Callable[[int, torch.Generator], Batch], config: LoopConfig,
        folder: str | Path, *, validate: Callable[[nn.Module, int], dict | None] | None = None,
        stop: float | Callable[[float], bool] | None = None, parameters: Iterable[nn.Parameter] | None = None,
        resume: bool = True, quiet: bool = False, watch: Callable[[History], None] | None = None) -> History:
    """Train `model` in place and return the loss curve; the same call again continues where it ended.

    A checkpoint is written to `folder` every config.checkpoint_seconds and at the end; resume=False deletes an old one.
    batch(k, generator) returns micro-batch k (of this process: see draws.py); loss(model, batch, generator) its mean
    loss, optionally with a dict of more numbers to log. Both must draw from their generator only (on the CPU): it
    depends on (config.seed, k) alone, so a killed run resumes bit for bit. validate(model, step) runs with the EMA
    weights, if any; of the dict that it returns, numbers are logged and PIL images shown in TensorBoard. stop: seconds
    of training in all, or a function of them. Only `parameters` (default: all with requires_grad) change. The model
    ends with its own weights; `history.ema.copy_to_model()` puts the average in their place. watch(history) is called
    when the log is shown, every `log_every` steps: LiveCurve() draws it in a notebook.
    Raises AnimkitError on a NaN, on a full disk, and on a checkpoint in `folder` of other settings or another model.
    """
    folder = make_folder(folder)
    accelerator = plumbing.accelerator_for(config)
    main, device = accelerator.is_main_process, accelerator.device
    if device.type == "cpu":
        keep_freed_memory()
    trainable = plumbing.named_trainable(model, parameters)
    stop_at = stop if callable(stop) or stop is None else lambda seconds: seconds >= stop
    fork = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

    with plumbing.only_trainable(model, trainable), fork, plumbing.Signals() as signals, ExitStack() as closing:
        objective = _Objective(model, loss, trainable.values()).to(device)
        optimizers = plumbing.optimizers_for(trainable.values(), config, device)
        prepared, *optimizers = accelerator.prepare(objective, *optimizers)
        ema = EMA(trainable, config.ema) if config.ema else None
        if main:
            log = closing.enter_context(Log(folder))
            if not resume:
                saving.remove(folder)
        accelerator.wait_for_everyone()
        start, elapsed = plumbing.load(folder, config, model, trainable, optimizers, ema, accelerator)
        if main:
            log.open_at(start)
        screen = closing.enter_context(plumbing.Screen(config, start, str(device), quiet or not main))
        fetch = plumbing.fetched(batch, config, start)
        closing.callback(fetch.close)
        began = saved = time.monotonic()
        enough = stop_at is not None and 0 < start < config.steps and stop_at(elapsed)

        def write(step: int) -> None:
            if main:
                saving.write(folder, log.file, plumbing.tensors_of(model, trainable, ema),
                             plumbing.torch_state_of(optimizers, accelerator),
                             {"step": step, "seconds": elapsed + time.monotonic() - began, "config": config.fixed(),
                              "processes": accelerator.num_processes, "torch": torch.__version__})

        def save(step: int) -> None:
            write(step)
            accelerator.wait_for_everyone()

        for step in range(start + 1, start + 1 if enough else config.steps + 1):
            lr, losses, extras, wait = config.lr_at(step), [], {}, 0.0
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = lr
            for j in range(config.accumulate):
                k = (step - 1) * config.accumulate + j
                waiting = time.monotonic()
                x = send_to_device(next(fetch), device)
                wait += time.monotonic() - waiting
                torch.manual_seed(seed_at(config.seed, k, "dropout", rank_and_world()[0]))
                last = j == config.accumulate - 1
                with nullcontext() if last else accelerator.no_sync(prepared):
                    value, extra = prepared(x, generator_at(config.seed, k, "loss"))
                    accelerator.backward(value)  # divides by `accumulate`
                losses.append(value.detach().float())
                for name, number in extra.items():
                    extras[name] = extras.get(name, 0.0) + float(number) / config.accumulate
            norm = accelerator.clip_grad_norm_(trainable.values(), config.clip_norm or math.inf)

            # One message tells all processes the loss, and that one got a signal, or the first wants to stop or to save.
            seconds = elapsed + time.monotonic() - began
            halt = float(signals.caught is not None or bool(main and stop_at and stop_at(seconds)))
            due = float(main and time.monotonic() - saved >= config.checkpoint_seconds)
            told = torch.stack([*losses, torch.stack(losses).mean(), *torch.tensor([halt, due], device=device)])
            *each, mean, halt, due = accelerator.reduce(told, "mean").tolist()
            bad_gradient = config.mixed_precision != "fp16" and not math.isfinite(float(norm))  # fp16 skips such steps
            if bad_gradient or not math.isfinite(mean):
                fetch.close()  # end the prefetching thread before the bad batch is made again: a stream has one reader
                raise AnimkitError(plumbing.not_finite(folder, step, each, float(norm), batch, config))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if ema:
                ema.update(step)

            record = {"step": step, "loss": mean, "lr": lr, "norm": float(norm), "seconds": round(seconds, 3),
                      "wait": round(wait, 4), **extras}
            at_end = step == config.steps
            look = validate and (at_end or (config.validate_every and step % config.validate_every == 0))
            if main:
                if look:
                    try:
                        numbers, pictures = plumbing.validated(validate, model, step, ema)
                    except Exception:  # out of memory, a full disk: what was trained until here is kept
                        log.add(record)
                        write(step)
                        raise
                    record.update(numbers)
                    log.draw(pictures, step)
                log.add(record)
                if look or at_end or step % config.log_every == 0:
                    log.show(record)
                    if watch:
                        watch(History(log.records, ema, "finished" if at_end else "running"))
            screen.show(record, at_end)
            if halt or due or at_end:
                save(step)
                saved = time.monotonic()
            if halt:
                enough = not at_end
                break
    if signals.caught is not None:
        print(f"Stopped and saved in {folder}; the same call goes on from there.", file=sys.stderr)
        raise KeyboardInterrupt if signals.caught == signal.SIGINT else SystemExit(128 + signals.caught)
    return History(log.records if main else [], ema, "stopped" if enough else "finished", elapsed)
