"""What `fit` needs around its loop and a reader may skip: device, signals, the screen, loading, messages."""
import math
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from PIL.Image import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from animkit.errors import AnimkitError
from animkit.training import saving
from animkit.training.draws import generator_at


def accelerator_for(config) -> Accelerator:
    """An Accelerator; in one process, device and precision of an earlier run in the same notebook are forgotten."""
    if "LOCAL_RANK" not in os.environ:
        several = {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys()
        if several and not {"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"} & os.environ.keys():
            raise AnimkitError("accelerate launch was asked for several processes but starts only one on a CPU unless "
                               "--multi_gpu is given too: accelerate launch --multi_gpu --num_processes 2 ...")
        AcceleratorState._reset_state(reset_partial_state=True)
    cpu = config.device == "cpu" or not torch.accelerator.is_available()  # without it, processes do not find each other
    try:
        patient = InitProcessGroupKwargs(timeout=timedelta(days=1))  # the others wait while the first fills the cache
        accelerator = Accelerator(mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.accumulate,
                                  cpu=cpu, kwargs_handlers=[patient])
    except ValueError as error:
        raise AnimkitError(f"accelerate cannot train with mixed_precision={config.mixed_precision!r} here: {error}"
                           ) from error
    if config.mixed_precision == "fp16" and accelerator.device.type in ("cpu", "mps"):
        raise AnimkitError(f"fp16 trains on GPUs only, not on {accelerator.device.type}: take bf16 or no.")
    return accelerator


def fast_precision(device: str | None = None) -> str:
    """bf16 where the device (None: what accelerate finds) computes in it, else no: a processor that only emulates it
    takes many times as long as in float32 (AVX2: 16 times, measured on a training step of a motion module)."""
    if device != "cpu" and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device != "cpu" and torch.accelerator.is_available():
        return "no"
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # torch 2.11 and later
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "no"


def named_trainable(model: nn.Module, parameters: Iterable[nn.Parameter] | None) -> dict[str, nn.Parameter]:
    """The parameters to train, by their names in the model (or "extra.N"); default: those with requires_grad."""
    names = {id(p): n for n, p in model.named_parameters()}
    wanted = list(parameters) if parameters is not None else [p for p in model.parameters() if p.requires_grad]
    if not wanted:
        raise AnimkitError("There is nothing to train: no parameter has requires_grad, and `parameters` named none.")
    return {names.get(id(p), f"extra.{i}"): p for i, p in enumerate(wanted)}


@contextmanager
def only_trainable(model: nn.Module, trainable: dict[str, nn.Parameter]) -> Iterator[None]:
    """Inside, gradients flow to `trainable` alone and the model is in training mode; after it, all is as it was."""
    ours = {id(p) for p in trainable.values()}
    everything = {id(p): p for p in (*model.parameters(), *trainable.values())}.values()
    flags, modes = [(p, p.requires_grad) for p in everything], [(m, m.training) for m in model.modules()]
    model.train()
    for p in everything:
        p.requires_grad_(id(p) in ours)
    try:
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
            p.grad = None
        for m, mode in modes:
            m.training = mode


class Signals:
    """Inside, a first Ctrl-C (or SIGTERM) is only noted in `caught`, so that the step can end; a second interrupts.

    Not one within 2 seconds: Slurm signals every process of a job, and accelerate's launcher passes its own on.
    """

    def __init__(self):
        self.caught: int | None = None
        self.when = 0.0

    def _note(self, number: int, frame) -> None:
        if self.caught is not None:
            if time.monotonic() - self.when > 2:
                raise KeyboardInterrupt
            return
        self.caught, self.when = number, time.monotonic()
        print("\nEnding this step, then saving; press again to stop at once.", file=sys.stderr, flush=True)

    def __enter__(self) -> "Signals":
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Screen:
    """A tqdm bar in a terminal or notebook; elsewhere (nohup) a plain line at most every 10 seconds."""

    def __init__(self, config, start: int, device: str, quiet: bool):
        self.config, self.start, self.device, self.quiet = config, start, device, quiet
        self.began = self.shown = time.monotonic()
        self.recent: list[float] = []
        live = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.bar = tqdm(total=config.steps, initial=start, desc=device) if live and not quiet else None

    def show(self, record: dict, now: bool) -> None:
        if self.quiet:
            return
        step, every = record["step"], self.config.log_every
        self.recent = [*self.recent[-(every - 1):], record["loss"]] if every > 1 else [record["loss"]]
        mean = sum(self.recent) / len(self.recent)
        validated = {k: v for k, v in record.items() if k.startswith("validate/")}
        if self.bar is not None:
            self.bar.update(1)
            if now or step % every == 0:
                self.bar.set_postfix(loss=f"{mean:.4g}", lr=f"{record['lr']:.2g}", **validated)
        elif now or validated or (step % every == 0 and time.monotonic() - self.shown >= 10) or step == self.start + 1:
            self.shown = time.monotonic()
            rate = (step - self.start) / (self.shown - self.began)
            more = "".join(f"  {k} {v:.4g}" for k, v in validated.items())
            print(f"step {step}/{self.config.steps}  loss {mean:.4g}  lr {record['lr']:.2g}{more}  {rate:.3g} steps/s  "
                  f"{(self.config.steps - step) / rate / 60:.1f} min left  on {self.device}",
                  file=sys.stderr, flush=True)

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *error) -> None:
        if self.bar is not None:
            self.bar.close()


def fetched(batch: Callable, config, start: int) -> Iterator[Any]:
    """The micro-batches from the one after step `start` on; with config.prefetch > 0 a thread makes them ahead."""
    first, end = start * config.accumulate, config.steps * config.accumulate

    def at(k: int):
        return batch(k, generator_at(config.seed, k, "batch"))

    if config.prefetch <= 0:
        yield from (at(k) for k in range(first, end))
        return
    pool = ThreadPoolExecutor(max_workers=1)
    try:
        waiting = [pool.submit(at, k) for k in range(first, min(first + config.prefetch, end))]
        for k in range(first, end):
            ready = waiting.pop(0)
            if k + config.prefetch < end:
                waiting.append(pool.submit(at, k + config.prefetch))
            yield ready.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def tensors_of(model: nn.Module, trainable: dict[str, nn.Parameter], ema) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint holds as safetensors: the trained weights with the model's buffers, and the average."""
    weights = dict(trainable) | dict(model.named_buffers())
    return {"weights": {n: t.detach().clone() for n, t in weights.items()}} | ({"ema": ema.average} if ema else {})


def optimizers_for(parameters: Iterable[nn.Parameter], config, device: torch.device) -> list[torch.optim.Optimizer]:
    """AdamW; or Muon for the matrices among the parameters and AdamW for the others (Jordan et al. 2024).

    Muon makes each step's matrix of momenta orthogonal, so that a few directions cannot dominate. Its steps are scaled
    to the size of AdamW's, so the same lr serves both (Liu et al. 2025, arXiv 2502.16982).
    """
    parameters = list(parameters)
    matrices = [p for p in parameters if p.ndim == 2] if config.optimizer == "muon" else []
    others = [p for p in parameters if p.ndim != 2] if matrices else parameters
    adamw = [torch.optim.AdamW(others, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay,
                               fused=device.type in ("cpu", "cuda"))] if others else []
    muon = [torch.optim.Muon(matrices, lr=config.lr, weight_decay=config.weight_decay,
                             adjust_lr_fn="match_rms_adamw")] if matrices else []
    return adamw + muon


def check_optimizer(config) -> None:
    """AnimkitError if Muon is chosen but this torch lacks it, or together with fp16, which scales gradients."""
    if config.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise AnimkitError(f"optimizer = 'muon' needs torch 2.9 or newer, and this is {torch.__version__}: choose adamw.")
    if config.optimizer == "muon" and config.mixed_precision == "fp16":
        raise AnimkitError("optimizer = 'muon' goes with mixed_precision bf16 or no, not with fp16, whose gradients are "
                           "scaled for one optimizer: choose adamw, or another precision.")


def torch_state_of(optimizers: list, accelerator: Accelerator) -> dict:
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
    return {"optimizer": [optimizer.state_dict() for optimizer in optimizers], "scaler": scaler}


def load(folder: Path, config, model: nn.Module, trainable: dict[str, nn.Parameter], optimizers: list, ema,
         accelerator: Accelerator) -> tuple[int, float]:
    """Put the folder's checkpoint, if any, into model, optimizers and ema; (its step, its seconds) or (0, 0)."""
    found = saving.read(folder)
    if found is None:
        return 0, 0.0
    tensors, torch_state, state = found
    again = "go back to those, train in another folder, or start again: remove this one (of fit, resume=False)"
    default = {field.name: field.default for field in fields(config)}  # for settings that an older run does not name
    now, then = default | config.fixed(), default | state["config"]
    differ = [f"{k} (was {then[k]!r}, now {now[k]!r})" for k in sorted({*now, *then}) if now.get(k) != then.get(k)]
    if differ:
        raise AnimkitError(f"The run in {folder} was begun with other settings: {', '.join(differ)}; {again}.")
    if state["processes"] != accelerator.num_processes:
        raise AnimkitError(f"The run in {folder} was begun on {state['processes']} process(es), now there are "
                           f"{accelerator.num_processes}; {again}.")
    if state["step"] > config.steps:
        raise AnimkitError(f"The run in {folder} has done {state['step']} steps already, more than {config.steps}; {again}.")
    ours = dict(trainable) | dict(model.named_buffers())
    shapes = {n: tuple(t.shape) for n, t in ours.items()}
    if misfit := [n for n in sorted({*shapes, *tensors["weights"]}) if n not in shapes or n not in tensors["weights"]
                  or shapes[n] != tuple(tensors["weights"][n].shape)]:
        raise AnimkitError(f"The run in {folder} trained another model: {len(misfit)} tensors do not fit, "
                           f"{misfit[0]!r} is the first; {again}.")
    with torch.no_grad():
        for name, t in ours.items():
            t.copy_(tensors["weights"][name])
        for name, t in (ema.average if ema else {}).items():
            t.copy_(tensors["ema"][name])
    kept = torch_state["optimizer"]
    for optimizer, its in zip(optimizers, kept if isinstance(kept, list) else [kept], strict=True):
        optimizer.load_state_dict(its)
    if accelerator.scaler and torch_state["scaler"]:
        accelerator.scaler.load_state_dict(torch_state["scaler"])
    return state["step"], state["seconds"]


def validated(validate: Callable, model: nn.Module, step: int, ema) -> tuple[dict[str, float], dict[str, Image]]:
    """The numbers and the pictures of validate(model, step), in eval mode and under the average of the weights if one
    is kept."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            if ema:
                with ema.swapped_in():
                    found = validate(model, step)
            else:
                found = validate(model, step)
    finally:
        for m, mode in modes:
            m.training = mode
    found = {f"validate/{name}": value for name, value in (found or {}).items()}
    pictures = {name: value for name, value in found.items() if isinstance(value, Image)}
    return {name: float(value) for name, value in found.items() if name not in pictures}, pictures


def not_finite(folder: Path, step: int, losses: list[float], norm: float, batch: Callable, config) -> str:
    """The message of a run that a NaN or an infinity ended; the bad batch is made once more to describe it."""
    kept, first = saving.read_state(folder), (step - 1) * config.accumulate
    j = next((j for j, v in enumerate(losses) if not math.isfinite(v)), None)
    what = f"the gradient's norm is {norm}" if j is None else f"the loss is {losses[j]}"
    guilty = range(first, first + config.accumulate) if j is None else [first + j]
    seen = [f"{k} ({_described(batch(k, generator_at(config.seed, k, 'batch')))})" for k in guilty[:2]]
    return (f"Training stopped at step {step}: {what} on micro-batch {' or '.join(seen)}{' ...' * (len(guilty) > 2)}; "
            + (f"the checkpoint of step {kept['step']} in {folder} is kept" if kept else f"{folder} has no checkpoint")
            + ": look at that batch, or train in another folder with a lower lr.")


def _described(batch: Any) -> str:
    if isinstance(batch, Tensor):
        finite = "" if not batch.is_floating_point() or bool(batch.isfinite().all()) else ", not all finite"
        return f"{'x'.join(map(str, batch.shape)) or 'number'}{finite}"
    if isinstance(batch, dict):
        return ", ".join(f"{k} {_described(v)}" for k, v in batch.items())
    if isinstance(batch, (list, tuple)):
        return f"[{', '.join(_described(v) for v in batch[:4])}{', ...' if len(batch) > 4 else ''}]"
    return repr(batch)[:60]
