"""The training loop: exact resume after a kill, the arithmetic of plain torch, clear errors, two processes."""
import errno
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from animkit.errors import AnimkitError
from animkit.training import EMA, History, LiveCurve, LoopConfig, fit, loop, plumbing, randn, saving, shard, stage

TABLE = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))


def tiny_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 12), nn.Dropout(0.2), nn.Tanh(), nn.Linear(12, 1))


def batch(k, generator):
    rows = shard(torch.randint(0, len(TABLE), (8,), generator=generator))
    return {"x": TABLE[rows], "rows": rows}


def loss(model, x, generator):
    noisy = x["x"] + 0.1 * randn(x["x"].shape, generator)
    value = (model(noisy) - x["x"].prod(1, keepdim=True)).square().mean()
    return value, {"twice": 2 * value.item()}


def no_dropout() -> nn.Module:
    model = tiny_model()
    model[1] = nn.Identity()
    return model


def plain_loss(model, x, generator):
    return (model(x["x"]) - x["x"].prod(1, keepdim=True)).square().mean()


CONFIG = LoopConfig(steps=60, lr=1e-2, warmup=5, schedule="cosine", accumulate=2, ema=0.99, seed=7, device="cpu")


def weights(folder: Path, name: str = "weights") -> dict:
    return load_file(folder / "checkpoint" / f"{name}.safetensors")


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- resume

def slow_run(folder: Path, steps: int) -> None:
    """In a process of its own, to be killed: saves at every step, so that many kills hit the saving itself."""
    torch.set_num_threads(1)

    def slow(k, generator):
        with open(folder.parent / f"asked-{folder.name}", "a") as file:
            file.write(f"{k}\n")
        time.sleep(0.001)
        return batch(k, generator)

    fit(tiny_model(), loss, slow, replace(CONFIG, steps=steps, checkpoint_seconds=0), folder, quiet=True)


def test_killed_at_random_moments_equals_unbroken_bit_for_bit(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["animkit.training.loop", "torch.utils.tensorboard"])
    steps, broken, chance = 90, tmp_path / "broken", random.Random(os.getpid())
    whole = context.Process(target=slow_run, args=(tmp_path / "whole", steps))
    whole.start()
    killed_at, begun, asked = [], [], tmp_path / "asked-broken"
    for part in range(1, 4):
        begun.append(saving.read_state(broken)["step"] if part > 1 else 0)
        asked.unlink(missing_ok=True)
        run = context.Process(target=slow_run, args=(broken, steps))
        run.start()
        until = time.monotonic() + 60
        while not (broken / "log.jsonl").exists() or len(History.of(broken).records) < part * steps // 5:
            assert run.is_alive() and time.monotonic() < until
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.03))
        run.kill()
        run.join()
        killed_at.append(len(History.of(broken).records))
        assert int(asked.read_text().split()[0]) == begun[-1] * CONFIG.accumulate, "from its last checkpoint, not anew"
    assert 0 < begun[1] < begun[2]
    last = context.Process(target=slow_run, args=(broken, steps))
    last.start()
    for run in (last, whole):
        run.join(60)
        assert run.exitcode == 0
    assert 0 < killed_at[0] < killed_at[-1] < steps
    a, b = History.of(tmp_path / "whole"), History.of(broken)
    assert a.steps.tolist() == b.steps.tolist() == list(range(1, steps + 1))
    assert a.losses.tolist() == b.losses.tolist()
    assert equal(weights(tmp_path / "whole"), weights(broken)), f"killed at {killed_at}"
    assert equal(weights(tmp_path / "whole", "ema"), weights(broken, "ema"))


def test_checkpoints_come_by_time(tmp_path, monkeypatch):
    now, written = [0.0], []

    def ten_seconds(k, generator):
        now[0] += 10
        return batch(k, generator)

    def noted(*args, write=saving.write):
        written.append(args[-1]["step"])
        write(*args)

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(saving, "write", noted)
    for steps in (8, 9, 10):
        config = replace(CONFIG, steps=steps, accumulate=1, checkpoint_seconds=25)
        history = fit(tiny_model(), loss, ten_seconds, config, tmp_path, quiet=True)
    assert written == [3, 6, 8, 9, 10]  # after 30 and 60 seconds, and at the end
    assert history.seconds.tolist() == list(range(10, 101, 10)) and history.before == 90, "of all calls together"


@pytest.mark.parametrize("second", [False, True])
def test_a_kill_between_the_two_renames_or_after_them_leaves_a_checkpoint(tmp_path, second):
    fit(tiny_model(), loss, batch, replace(CONFIG, steps=10), tmp_path, quiet=True)
    shutil.copytree(tmp_path / "checkpoint", tmp_path / "of step 10")
    fit(tiny_model(), loss, batch, replace(CONFIG, steps=20), tmp_path, quiet=True)
    (tmp_path / ("of step 10" if second else "checkpoint")).rename(tmp_path / "checkpoint.old")
    (tmp_path / "checkpoint.tmp").mkdir()
    (tmp_path / "checkpoint.tmp" / "weights.safetensors").write_bytes(b"half")
    with open(tmp_path / "log.jsonl", "a") as log:
        log.write('{"step": 21, "lo')
    asked = []
    history = fit(tiny_model(), loss, lambda k, generator: asked.append(k) or batch(k, generator),
                  replace(CONFIG, steps=25), tmp_path, quiet=True)
    assert history.steps.tolist() == list(range(1, 26)) and asked[0] == 20 * CONFIG.accumulate
    assert sorted(p.name for p in tmp_path.glob("checkpoint*")) == ["checkpoint"]


def with_buffers() -> nn.Module:
    return nn.Sequential(*tiny_model()[:2], nn.BatchNorm1d(12), *tiny_model()[2:])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stop_and_go_on_equals_unbroken(tmp_path, optimizer):
    constant = replace(CONFIG, schedule="constant", optimizer=optimizer)
    whole, parts = with_buffers(), with_buffers()
    a = fit(whole, loss, batch, constant, tmp_path / "a", quiet=True)
    stopped = fit(parts, loss, batch, constant, tmp_path / "b", stop=lambda seconds: seconds > 0, quiet=True)
    assert stopped.ended == "stopped" and stopped.steps.tolist() == [1]
    again = fit(with_buffers(), loss, batch, constant, tmp_path / "b", stop=0, quiet=True)
    assert again.ended == "stopped" and again.steps.tolist() == [1]  # the time was over before it began
    fit(with_buffers(), loss, batch, replace(constant, steps=31, prefetch=3), tmp_path / "b", quiet=True)
    parts, asked = with_buffers(), []
    b = fit(parts, loss, lambda k, generator: asked.append(k) or batch(k, generator), replace(constant, log_every=7),
            tmp_path / "b", quiet=True)
    assert asked == list(range(31 * CONFIG.accumulate, 60 * CONFIG.accumulate)), "what was done is not done again"
    assert a.ended == b.ended == "finished"
    assert a.losses.tolist() == b.losses.tolist() and len(a.losses) == 60
    assert equal(whole.state_dict(), parts.state_dict())
    assert equal(a.ema.average, b.ema.average)


def test_a_finished_run_is_finished_whatever_time_it_is_given(tmp_path):
    """As when it was killed after its last checkpoint, before its files were written: the same call then writes them."""
    fit(tiny_model(), loss, batch, CONFIG, tmp_path, quiet=True)
    assert fit(tiny_model(), loss, batch, CONFIG, tmp_path, stop=0, quiet=True).ended == "finished"
    one = fit(tiny_model(), loss, batch, replace(CONFIG, steps=1, warmup=0), tmp_path / "one", stop=0, quiet=True)
    assert one.ended == "finished" and one.steps.tolist() == [1], "its first step was its last"


@pytest.mark.parametrize("number, ends", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_ctrl_c_ends_the_step_saves_and_says_how_to_go_on(tmp_path, capfd, number, ends):
    def interrupted(k, generator):
        if k == 20:  # the first micro-batch of step 11
            signal.raise_signal(number)
        return batch(k, generator)

    before = signal.getsignal(number)
    with pytest.raises(ends):
        fit(tiny_model(), loss, interrupted, CONFIG, tmp_path, quiet=True)
    assert signal.getsignal(number) is before
    assert "the same call goes on" in capfd.readouterr().err
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 11
    model = tiny_model()
    history = fit(model, loss, batch, CONFIG, tmp_path, quiet=True)
    unbroken = tiny_model()
    assert history.losses.tolist() == fit(unbroken, loss, batch, CONFIG, tmp_path / "b", quiet=True).losses.tolist()
    assert equal(model.state_dict(), unbroken.state_dict())


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch):
    """From Slurm, and passed on by the launcher: the step is still to end, and to be saved."""
    now = [5.0]
    monkeypatch.setattr(plumbing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with plumbing.Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert signals.caught == signal.SIGTERM
        now[0] += 3
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_resume_false_begins_again(tmp_path):
    first = fit(tiny_model(), loss, batch, CONFIG, tmp_path, quiet=True)
    shutil.copytree(tmp_path / "checkpoint", tmp_path / "checkpoint.old")
    second = fit(tiny_model(), loss, batch, replace(CONFIG, lr=2e-3), tmp_path, resume=False, quiet=True)
    assert first.steps.tolist() == second.steps.tolist() and first.losses[-1] != second.losses[-1]


# ---- arithmetic

def test_fit_is_this_plain_loop(tmp_path):
    """Warm-up, cosine, accumulation, clipping, AdamW and EMA against the same thing written with torch alone."""
    config = replace(CONFIG, clip_norm=0.05, floor=0.1, weight_decay=0.1)
    fixed = [{"x": TABLE[8 * k % 56:][:8]} for k in range(120)]

    ours = no_dropout()
    history = fit(ours, plain_loss, lambda k, g: fixed[k], config, tmp_path, quiet=True)

    plain, average = no_dropout(), [p.detach().clone() for p in no_dropout().parameters()]
    adam = torch.optim.AdamW(plain.parameters(), lr=0, betas=(0.9, 0.999), weight_decay=0.1)
    losses, norms = [], []
    for step in range(1, 61):
        progress = max(0, step - 6) / 54
        rate = 1e-2 * min(1, step / 5) * (0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2)
        adam.param_groups[0]["lr"] = rate
        adam.zero_grad()
        both = [plain_loss(plain, fixed[2 * step - 2 + j], None) for j in range(2)]
        (sum(both) / 2).backward()
        norms.append(nn.utils.clip_grad_norm_(plain.parameters(), 0.05).item())
        adam.step()
        losses.append(sum(both).item() / 2)
        for mean, p in zip(average, plain.parameters()):
            d = min(0.99, (1 + step) / (10 + step))
            mean.mul_(d).add_(p.detach(), alpha=1 - d)
        assert history["lr"][step - 1] == pytest.approx(rate)
    assert max(norms) > 0.05  # the clipping did something
    assert history.losses == pytest.approx(losses, rel=1e-4) and history["norm"] == pytest.approx(norms, rel=1e-3)
    for a, b, mean, (name, p) in zip(ours.parameters(), plain.parameters(), average, plain.named_parameters()):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(history.ema.average[name], mean, atol=1e-5, rtol=1e-4)


def test_muon_takes_the_matrices_and_adamw_the_rest(tmp_path):
    """Against Newton and Schulz's iteration O written out: B = 0.95 B + 0.05 G; W loses 0.2 sqrt(max(m, n)) lr O(0.95 B + 0.05 G)."""
    config = replace(CONFIG, optimizer="muon", accumulate=1, steps=8, warmup=0, schedule="constant", clip_norm=0,
                     weight_decay=0.1, ema=0)

    ours, plain = no_dropout(), no_dropout()
    fit(ours, plain_loss, lambda k, g: {"x": TABLE[8 * k:][:8]}, config, tmp_path, quiet=True)
    matrices = [p for p in plain.parameters() if p.ndim == 2]
    momenta = [torch.zeros_like(p) for p in matrices]
    adamw = torch.optim.AdamW([p for p in plain.parameters() if p.ndim != 2], lr=1e-2, weight_decay=0.1)
    for k in range(8):
        plain.zero_grad()
        plain_loss(plain, {"x": TABLE[8 * k:][:8]}, None).backward()
        adamw.step()
        for p, momentum in zip(matrices, momenta):
            momentum.lerp_(p.grad, 0.05)
            x = p.grad.lerp(momentum, 0.95).bfloat16()
            x = x / x.norm()
            x = x.T if (tall := x.shape[0] > x.shape[1]) else x
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            x = x.T if tall else x
            with torch.no_grad():
                p.mul_(1 - 1e-2 * 0.1).sub_(1e-2 * 0.2 * math.sqrt(max(p.shape)) * x.float())
    other = no_dropout()
    fit(other, plain_loss, lambda k, g: {"x": TABLE[8 * k:][:8]}, replace(config, optimizer="adamw"), tmp_path / "adamw", quiet=True)
    for a, b, adamws in zip(ours.parameters(), plain.parameters(), other.parameters()):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-2)
        assert a.ndim != 2 or (a - adamws).abs().mean() > 5e-3


def test_a_run_of_before_there_was_muon_goes_on(tmp_path):
    whole, parts = tiny_model(), tiny_model()
    fit(whole, loss, batch, CONFIG, tmp_path / "a", quiet=True)
    fit(parts, loss, batch, CONFIG, tmp_path / "b", stop=lambda seconds: seconds > 0, quiet=True)
    state, kept = tmp_path / "b/checkpoint/state.json", tmp_path / "b/checkpoint/optimizer.pt"
    assert "optimizer" not in json.loads(state.read_text())["config"], "what a run is known by is as it was"
    assert replace(CONFIG, optimizer="muon").fixed()["optimizer"] == "muon"
    torch_state = torch.load(kept, weights_only=True)
    torch.save(torch_state | {"optimizer": torch_state["optimizer"][0]}, kept)
    with pytest.raises(AnimkitError, match="optimizer .was 'adamw', now 'muon'"):
        fit(tiny_model(), loss, batch, replace(CONFIG, optimizer="muon"), tmp_path / "b", quiet=True)
    parts = tiny_model()
    fit(parts, loss, batch, CONFIG, tmp_path / "b", quiet=True)
    assert equal(whole.state_dict(), parts.state_dict())


def test_every_micro_step_draws_anew_and_by_its_number_alone(tmp_path):
    def drawn_by(folder, seed):
        numbers = []

        def watched(model, x, generator):
            numbers.append((x.item(), torch.rand(1, generator=generator).item(), torch.rand(1).item()))
            return model[0].bias.sum() * 0

        fit(tiny_model(), watched, lambda k, g: torch.rand(1, generator=g), replace(CONFIG, steps=5, seed=seed),
            tmp_path / folder, quiet=True)
        return numbers

    one = drawn_by("one", 1)
    assert len(one) == 10 and len({n for triple in one for n in triple}) == 30  # batch, noise, dropout: all different
    assert drawn_by("again", 1) == one != drawn_by("other", 2)


def test_only_the_parameters_named_are_trained(tmp_path):
    model = tiny_model()
    model[0].weight.requires_grad_(False)
    model.eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    outside, state = nn.Parameter(torch.ones(1)), torch.get_rng_state()

    def watched(model, x, generator):
        assert model.training
        return loss(model, x, generator)[0] + outside.square().sum()

    fit(model, watched, batch, CONFIG, tmp_path, parameters=[model[3].bias, outside], quiet=True)
    assert torch.equal(torch.get_rng_state(), state) and outside < 1
    changed = [n for n, t in model.state_dict().items() if not torch.equal(t, before[n])]
    assert changed == ["3.bias"] and set(weights(tmp_path)) == {"3.bias", "extra.1"}
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True] and not model.training
    assert all(p.grad is None for p in model.parameters())


def test_ema_swaps_in_and_out_and_validation_sees_it(tmp_path):
    seen = {}

    def validate(model, step):
        seen[step] = {n: t.clone() for n, t in model.state_dict().items()}
        return {"training": float(model.training or torch.is_grad_enabled())}

    model = tiny_model()
    history = fit(model, loss, batch, replace(CONFIG, validate_every=25), tmp_path, validate=validate, quiet=True)
    assert list(seen) == [25, 50, 60] and equal(seen[60], history.ema.average)
    shown = history["validate/training"]
    assert shown[[24, 49, 59]].tolist() == [0, 0, 0] and math.isnan(shown[0])
    own = {n: t.clone() for n, t in model.state_dict().items()}
    assert not equal(own, seen[60])
    with history.ema.swapped_in():
        assert equal(model.state_dict(), seen[60])
    assert equal(model.state_dict(), own)
    unwatched = fit(tiny_model(), loss, batch, CONFIG, tmp_path / "b", quiet=True)
    assert unwatched.losses.tolist() == history.losses.tolist()  # validation changes nothing
    history.ema.copy_to_model()
    assert equal(model.state_dict(), seen[60])


def test_ema_of_half_precision_weights_stays_float32():
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    ema = EMA({"p": p}, 0.9)
    with torch.no_grad():
        p.zero_()
    ema.update(1)
    assert ema.average["p"].dtype == torch.float32
    torch.testing.assert_close(ema.average["p"], torch.full((3,), 2 / 11))


def test_bf16_autocast_trains_float32_weights(tmp_path):
    kinds = set()

    def watched(model, x, generator):
        kinds.add(model(x["x"]).dtype)
        return loss(model, x, generator)

    model = tiny_model()
    history = fit(model, watched, batch, replace(CONFIG, mixed_precision="bf16"), tmp_path, quiet=True)
    assert kinds == {torch.bfloat16} and model[0].weight.dtype == torch.float32
    assert history.losses[-20:].mean() < history.losses[:5].mean()
    fit(tiny_model(), loss, batch, CONFIG, tmp_path / "b", quiet=True)  # another precision in the same process


@pytest.mark.parametrize("gpu, processor, device, wanted", [
    (None, {"avx512_bf16": True}, None, "bf16"), (None, {"amx_bf16": True}, "cpu", "bf16"),
    (None, {"avx2": True, "avx512_bf16": False}, None, "no"),
    (None, None, None, "no"),                                          # torch before 2.11 does not say
    ("computes", {"avx2": True}, None, "bf16"), ("computes", {"avx2": True}, "cpu", "no"),
    ("emulates", {"avx512_bf16": True}, None, "no"), ("emulates", {"avx512_bf16": True}, "cpu", "bf16"),  # a T4
    ("apple", {"bf16": True}, None, "no")])
def test_bf16_is_fast_where_the_device_computes_in_it(monkeypatch, gpu, processor, device, wanted):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu in ("computes", "emulates"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                        lambda including_emulation=True: gpu == "computes" or including_emulation)
    if processor is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    assert plumbing.fast_precision(device) == wanted


def test_auto_takes_what_is_fast_here_and_the_run_keeps_it(tmp_path, monkeypatch):
    def config(steps, precision="auto"):
        return replace(CONFIG, steps=steps, mixed_precision=precision)

    for here in ("no", "bf16"):
        monkeypatch.setattr(plumbing, "fast_precision", lambda device: here if device == "cpu" else "of the GPU")
        assert config(2).mixed_precision == here
        fit(tiny_model(), loss, batch, config(2), tmp_path / here, quiet=True)
    assert saving.read_state(tmp_path / "no")["config"]["mixed_precision"] == "no"
    with pytest.raises(AnimkitError, match=r"mixed_precision \(was 'no', now 'bf16'\)"):  # on another machine
        fit(tiny_model(), loss, batch, config(3), tmp_path / "no", quiet=True)
    assert fit(tiny_model(), loss, batch, config(3, "no"), tmp_path / "no", quiet=True).steps.tolist() == [1, 2, 3]


def test_a_thread_ahead_changes_nothing_and_takes_the_waiting(tmp_path):
    """Step k, which waits until batch k + 1 is being made, waits for ever without such a thread."""
    asked, ahead = [threading.Event() for _ in range(16)], []

    def noted(k, generator):
        asked[k].set()
        time.sleep(0.01)
        return batch(k, generator) | {"k": k}

    def patient(model, x, generator):
        ahead.append(asked[x["k"] + 1].wait(20 if reads_ahead else 0))
        return loss(model, x, generator)

    config, reads_ahead = replace(CONFIG, steps=15, accumulate=1), False
    a = fit(tiny_model(), patient, noted, config, tmp_path / "a", quiet=True)
    assert not any(ahead) and a["wait"][2:].min() >= 0.01
    asked, ahead, reads_ahead = [threading.Event() for _ in range(16)], [], True
    asked[15].set()  # no step comes after the last
    b = fit(tiny_model(), patient, noted, replace(config, prefetch=2), tmp_path / "b", quiet=True)
    assert all(ahead) and len(ahead) == 15 and a.losses.tolist() == b.losses.tolist()


# ---- faults

@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_names_step_and_batch_and_keeps_the_checkpoint(tmp_path, where):
    def bad(model, x, generator):
        value, _ = loss(model, x, generator)
        if x["k"] != 35:  # the second micro-batch of step 18
            return value
        return value * float("nan") if where == "loss" else (value - value.detach()).sqrt()

    def numbered(k, generator):
        return batch(k, generator) | {"k": k}

    fit(tiny_model(), bad, numbered, replace(CONFIG, steps=15), tmp_path, quiet=True)
    before = weights(tmp_path)
    batches = r"35 \(.*k 35\)" if where == "loss" else r"34 \(.*k 34\) or 35 \(.*k 35\)"
    with pytest.raises(AnimkitError, match=rf"step 18: .*nan on micro-batch {batches}; the checkpoint of step 15"):
        fit(tiny_model(), bad, numbered, CONFIG, tmp_path, quiet=True)
    assert equal(before, weights(tmp_path))
    assert History.of(tmp_path).steps[-1] == 17
    assert fit(tiny_model(), loss, batch, CONFIG, tmp_path, quiet=True).steps.tolist() == list(range(1, 61))


def test_a_nan_is_told_of_while_a_thread_reads_ahead(tmp_path):
    """The guilty batch is made again only when the thread has ended: what reads a stream cannot do both at once."""
    reading = threading.Lock()

    def one_reader(k, generator):
        assert reading.acquire(blocking=False), "two read at once"
        time.sleep(0.05)
        reading.release()
        return batch(k, generator) | {"k": k}

    def bad(model, x, generator):
        return loss(model, x, generator)[0] * (float("nan") if x["k"] == 3 else 1)

    with pytest.raises(AnimkitError, match=r"step 4: the loss is nan on micro-batch 3 \(.*k 3\)"):
        fit(tiny_model(), bad, one_reader, replace(CONFIG, accumulate=1, prefetch=4), tmp_path, quiet=True)


def run_on_a_full_disk(folder: Path, answer) -> None:
    import resource
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))  # the growing log reaches it
    try:
        fit(tiny_model(), loss, batch, replace(CONFIG, checkpoint_seconds=0, log_every=10**6), folder, quiet=True)
    except AnimkitError as error:
        return answer.put(str(error))
    answer.put("no error")


def test_a_full_disk_stops_with_a_word_and_the_old_checkpoint_intact(tmp_path):
    context = multiprocessing.get_context("forkserver")
    answer = context.Queue()
    run = context.Process(target=run_on_a_full_disk, args=(tmp_path, answer))
    run.start()
    said = answer.get(timeout=60)
    run.join()
    state = json.loads((tmp_path / "checkpoint" / "state.json").read_text())
    assert 5 < state["step"] < 60
    assert f"the one of step {state['step']} is intact" in said and "free some disk space" in said
    history = fit(tiny_model(), loss, batch, CONFIG, tmp_path, quiet=True)
    unbroken = fit(tiny_model(), loss, batch, CONFIG, tmp_path / "b", quiet=True)
    assert history.losses.tolist() == unbroken.losses.tolist()


def test_a_checkpoint_is_written_where_only_files_open_for_writing_can_be_synced(tmp_path, monkeypatch):
    """As on Windows, whose FlushFileBuffers refuses others."""
    fcntl = pytest.importorskip("fcntl")
    sync = os.fsync

    def as_windows(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", as_windows)
    fit(tiny_model(), loss, batch, replace(CONFIG, steps=2), tmp_path, quiet=True)
    assert saving.read_state(tmp_path)["step"] == 2


@pytest.mark.parametrize("most, cut", [(5000, "weights.safetensors"), (9000, "optimizer.pt")])
def test_a_disk_that_fills_in_mid_checkpoint_leaves_the_old_one_whole(tmp_path, most, cut):
    """What safetensors and torch raise then are errors of their own."""
    resource = pytest.importorskip("resource")

    def wide():
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return nn.Sequential(nn.Linear(6, 200), nn.Tanh(), nn.Linear(200, 1))

    fit(wide(), loss, batch, replace(CONFIG, steps=5), tmp_path, quiet=True)
    before = {file.name: file.read_bytes() for file in (tmp_path / "checkpoint").iterdir()}
    assert len(before[cut]) > most > len(before["weights.safetensors"]) * (cut == "optimizer.pt")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        with pytest.raises(AnimkitError, match="step 8 could not be written .*the one of step 5 is intact: free some"):
            fit(wide(), loss, batch, replace(CONFIG, steps=8), tmp_path, quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name: file.read_bytes() for file in (tmp_path / "checkpoint").iterdir()} == before
    assert [path.name for path in tmp_path.glob("checkpoint*")] == ["checkpoint"]
    assert fit(wide(), loss, batch, replace(CONFIG, steps=8), tmp_path, quiet=True).steps.tolist() == list(range(1, 9))


def test_other_settings_are_named(tmp_path):
    fit(tiny_model(), loss, batch, replace(CONFIG, steps=2), tmp_path, quiet=True)
    with pytest.raises(AnimkitError, match=r"lr \(was 0.01, now 0.5\), seed \(was 7, now 8\)"):
        fit(tiny_model(), loss, batch, replace(CONFIG, lr=0.5, seed=8), tmp_path, quiet=True)
    with pytest.raises(AnimkitError, match="has done 2 steps already, more than 1; .*train in another folder"):
        fit(tiny_model(), loss, batch, replace(CONFIG, steps=1), tmp_path, quiet=True)
    assert replace(CONFIG, device=None, validate_every=9).fixed() == CONFIG.fixed()
    state = tmp_path / "checkpoint" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"processes": 2}))
    with pytest.raises(AnimkitError, match="begun on 2 process.es., now there are 1; go back"):
        fit(tiny_model(), loss, batch, CONFIG, tmp_path, quiet=True)


def test_another_model_is_refused_and_not_touched(tmp_path):
    fit(tiny_model(), loss, batch, replace(CONFIG, steps=2), tmp_path, quiet=True)
    for other in (nn.Sequential(nn.Linear(6, 13), nn.Tanh(), nn.Linear(13, 1)), nn.Sequential(*tiny_model(), nn.Linear(1, 1))):
        before = {n: t.clone() for n, t in other.state_dict().items()}
        with pytest.raises(AnimkitError, match="another model"):
            fit(other, loss, batch, CONFIG, tmp_path, quiet=True)
        assert equal(before, other.state_dict())


def test_a_full_disk_under_tensorboard_is_an_error_of_ours(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    with pytest.raises(AnimkitError, match="No space left on device.*the last checkpoint is intact"):
        fit(tiny_model(), loss, batch, CONFIG, tmp_path, quiet=True)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    def nested(k, generator):
        fit(tiny_model(), loss, batch, CONFIG, tmp_path, quiet=True)

    with pytest.raises(AnimkitError, match="Another run is training"):
        fit(tiny_model(), loss, nested, CONFIG, tmp_path, quiet=True)
    fit(tiny_model(), loss, batch, replace(CONFIG, steps=2), tmp_path, quiet=True)  # the dead run has let go


def test_a_file_system_without_locks_is_no_other_run(tmp_path, monkeypatch):
    import fcntl

    def unknown(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    assert fit(tiny_model(), loss, batch, replace(CONFIG, steps=2), tmp_path, quiet=True).ended == "finished"


def test_muon_of_a_torch_that_has_none_is_an_error(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(AnimkitError, match="needs torch 2.9 or newer, and this is .*: choose adamw"):
        LoopConfig(optimizer="muon")


def test_nothing_to_train_and_senseless_settings_are_errors(tmp_path):
    with pytest.raises(AnimkitError, match="nothing to train"):
        fit(tiny_model().requires_grad_(False), loss, batch, CONFIG, tmp_path, quiet=True)
    with pytest.raises(AnimkitError, match="depends on none"):
        fit(tiny_model(), lambda m, x, g: x["x"].sum(), batch, CONFIG, tmp_path, quiet=True)
    with pytest.raises(AnimkitError, match="schedule = 'linear'"):
        LoopConfig(schedule="linear")
    with pytest.raises(AnimkitError, match="optimizer = 'sgd'"):
        LoopConfig(optimizer="sgd")
    with pytest.raises(AnimkitError, match="bf16 or no, not with fp16"):
        LoopConfig(optimizer="muon", mixed_precision="fp16")
    with pytest.raises(AnimkitError, match="device = 'cuda:7'"):
        LoopConfig(device="cuda:7")
    with pytest.raises(AnimkitError, match="fp16"):
        fit(tiny_model(), loss, batch, replace(CONFIG, mixed_precision="fp16"), tmp_path, quiet=True)


def test_a_launch_that_starts_one_process_of_two_says_so(tmp_path, monkeypatch):
    for name, value in {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"}.items():
        monkeypatch.setenv(name, value)  # what `accelerate launch --cpu --num_processes 2` leaves without MPI
    with pytest.raises(AnimkitError, match="--multi_gpu"):
        fit(tiny_model(), loss, batch, CONFIG, tmp_path, quiet=True)


# ---- what one sees

def test_without_a_terminal_few_plain_lines(tmp_path, capfd, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # other tests import it; no kernel runs here
    history = fit(tiny_model(), loss, batch, replace(CONFIG, log_every=5), tmp_path)
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and lines[0].startswith("step 1/60  loss ") and lines[1].endswith("on cpu")
    assert repr(history).startswith("History(60 steps, last loss")
    assert history["twice"] == pytest.approx(2 * history.losses)


def test_tensorboard_has_the_curve_once_over_a_resumed_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    for steps in (30, 60):
        history = fit(tiny_model(), loss, batch, replace(CONFIG, steps=steps, validate_every=50), tmp_path, quiet=True,
                      validate=lambda model, step: {"step": step})
        time.sleep(1.1)  # TensorBoard orders its files by the second in which they were begun
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = {event.step: event.value for event in board.Scalars("loss")}
    assert list(shown) == [20, 30, 40, 50, 60]
    assert list(shown.values()) == pytest.approx([history.losses[step - 1] for step in shown])
    assert [(e.step, e.value) for e in board.Scalars("validate/step")] == [(30, 30), (50, 50), (60, 60)]


def test_a_watcher_sees_the_curve_grow(tmp_path):
    seen = []
    fit(tiny_model(), loss, batch, CONFIG, tmp_path, quiet=True, watch=lambda h: seen.append((len(h.records), h.ended)))
    assert seen == [(20, "running"), (40, "running"), (60, "finished")]


def test_the_live_curve_is_one_figure_that_changes(monkeypatch):
    import IPython
    import IPython.display
    import matplotlib
    matplotlib.use("Agg")

    class Handle:
        def update(self, picture):
            drawn.append(picture.alt)

    drawn = []
    monkeypatch.setattr(IPython, "get_ipython", lambda shell=MagicMock(): shell)
    monkeypatch.setattr(IPython.display, "display", lambda picture, display_id: drawn.append(picture.alt) or Handle())
    live, records = LiveCurve(every=3600), [{"step": i, "loss": 1 / i, "seconds": i} for i in range(1, 9)]
    live(History(records[:4], ended="running"))
    live(History(records[:6], ended="running"))  # too soon
    live(History(records, ended="finished"))
    assert drawn == ["The loss over 4 steps, from 1 to 0.25", "The loss over 8 steps, from 1 to 0.125"]


@pytest.mark.parametrize("wait", [2, 30])
def test_a_curve_that_takes_long_to_draw_is_drawn_seldom(monkeypatch, tmp_path, wait):
    """In a notebook and as loss.png: at 500,000 steps one drawing takes two seconds, in which all processes wait."""
    import IPython.display
    now, drawn = [0.0], []

    def plot(history, axes):
        drawn.append(now[0])
        now[0] += 2

    monkeypatch.setattr(IPython, "get_ipython", lambda shell=MagicMock(): shell)
    monkeypatch.setattr(IPython.display, "display", MagicMock())
    monkeypatch.setattr(History, "plot", plot)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    watch = LiveCurve() if wait == 2 else stage._Watch(tmp_path)
    if wait == 30:
        watch.live = lambda history: None
    for _ in range(300):
        watch(History([{"step": 1, "loss": 1.0, "seconds": 1.0}], ended="running"))
        now[0] += 1
    assert drawn == [0, 102, 204]


def test_the_curve_draws(tmp_path):
    import matplotlib
    matplotlib.use("Agg")
    history = fit(tiny_model(), loss, batch, CONFIG, tmp_path, quiet=True)
    axes = history.plot()
    drawn = axes.lines[0].get_xydata()
    assert [line.get_color() for line in axes.lines] == ["0.65", "black"], "readable in grey"
    assert drawn[:, 0].tolist() == history.steps.tolist() and drawn[:, 1].tolist() == history.losses.tolist()
    assert axes.lines[1].get_xydata()[0] == pytest.approx([15, history.losses[:15].mean()])


# ---- two processes

DISTRIBUTED = """
import sys, torch
from torch import nn
from animkit.training import LoopConfig, fit, randint, randn, shard
table = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
def batch(k, generator):
    return table[randint(0, 64, (int(sys.argv[2]),), generator)]
def loss(model, x, generator):
    noisy = x + 0.1 * randn(x.shape, generator)
    return (model[1](model[0](noisy).tanh()) - x.prod(1, keepdim=True)).square().mean()
torch.manual_seed(3)
model = nn.ModuleList([nn.Linear(6, 12), nn.Linear(12, 1)])
fit(model, loss, batch, LoopConfig(steps=12, lr=1e-2, accumulate=2, ema=0.9, device="cpu"), sys.argv[1], quiet=True)
"""


def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(DISTRIBUTED)
    root = str(Path(__file__).parents[2])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    two_on_cpu = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]  # --cpu would need MPI
    for name, size, how in [("two", 4, [*launch, *two_on_cpu]), ("one", 8, [sys.executable])]:
        done = subprocess.run([*how, str(script), str(tmp_path / name), str(size)], env=env, timeout=180,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    two, one = History.of(tmp_path / "two"), History.of(tmp_path / "one")
    assert json.loads((tmp_path / "two" / "checkpoint" / "state.json").read_text())["processes"] == 2
    assert len(two.losses) == 12 and two.losses[:10] == pytest.approx(one.losses[:10], abs=1e-4)
    assert one.losses.std() > 1e-3
    for name in ("weights", "ema"):
        for key, value in weights(tmp_path / "one", name).items():
            torch.testing.assert_close(weights(tmp_path / "two", name)[key], value, atol=1e-4, rtol=1e-3)
