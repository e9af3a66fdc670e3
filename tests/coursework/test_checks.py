"""Exercises: right answers pass, an empty one is still to do, and planted wrong ones are told what is wrong."""
import math

import numpy as np
import pytest
import torch
from einops import rearrange, repeat
from torch import nn

from animkit.coursework import checks
from animkit.coursework.verdict import Verdict, Wrong, compare


def attention(x, positions, to_q, to_k, to_v, scale=None, axis=-1, v_of=None):
    y = x + positions
    q, k, v = to_q(y), to_k(y), to_v(y if v_of is None else v_of)
    return (q @ k.transpose(-1, -2) * (x.shape[-1] ** -0.5 if scale is None else scale)).softmax(axis) @ v


def positions(frames, c, first=0):
    p, pe = torch.arange(first, first + frames).float()[:, None], torch.zeros(frames, c)
    pe[:, 0::2], pe[:, 1::2] = (fn(p / 10000 ** (torch.arange(0, c, 2) / c)) for fn in (torch.sin, torch.cos))
    return pe


def zero(module):
    nn.init.zeros_(module.temporal_transformer.proj_out.weight)
    nn.init.zeros_(module.temporal_transformer.proj_out.bias)


def zero_all(module):
    for p in module.parameters():
        nn.init.zeros_(p)


def zero_and_freeze(module):
    zero(module)
    module.temporal_transformer.proj_out.requires_grad_(False)


def random_frame(z, generator):
    chosen = torch.randint(0, z.shape[2], (len(z),), generator=generator)
    return z[torch.arange(len(z)), :, chosen].unsqueeze(2)


def draw(z, T, generator):
    return torch.randint(0, T, (len(z),), generator=generator), torch.randn(z.shape, generator=generator)


def loss(model, z, text, t, eps, abar):
    a = abar[t].view(-1, 1, 1, 1, 1)
    return (eps - model(a.sqrt() * z + (1 - a).sqrt() * eps, t, text)).pow(2).mean()


def is_target(path):
    return any(f".{a}.{p}" in path for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v", "to_out.0"))


def compose(x, weight, loras):
    return x @ weight.T + sum(alpha * x @ a.T @ b.T for a, b, alpha in loras)


def normal(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


RIGHT = {
    "add_noise": lambda z, eps, a: math.sqrt(a) * z + math.sqrt(1 - a) * eps,
    "guidance": lambda n, p, s: (1 - s) * n + s * p,
    "fold": lambda x: x.permute(0, 2, 1, 3, 4).flatten(0, 1),
    "unfold": lambda y, f: y.reshape(-1, f, *y.shape[1:]).transpose(1, 2),
    "text_for_frames": lambda text, f: text.repeat_interleave(f, 0),
    "frame_change": lambda v: np.abs(np.diff(v.numpy().astype(int), axis=0)).mean(),
    "rows_for_time": lambda x, f: rearrange(x, "(b f) c h w -> (b h w) f c", f=f),
    "sinusoidal_positions": positions, "temporal_attention": attention, "zero_init": zero,
    "lora_update": lambda x, w, a, b, alpha: x @ (w + alpha * b @ a).T,
    "lora_numbers": lambda i, o, r: r * (i + o), "adapter_targets": is_target, "one_random_frame": random_frame,
    "stage2_draw": draw, "stage2_loss": loss,
    "motion_amount": lambda flow: 100 * flow.pow(2).sum(-1).sqrt().mean() / min(flow.shape[1:3]),
    "zoom_path": lambda f, amount: [(1 - amount) ** (i / (f - 1)) for i in range(f)],
    "compose_loras": compose,
    "relative_change": lambda w, a, b, alpha: abs(alpha) * torch.linalg.norm(b @ a) / torch.linalg.norm(w),
    "noise_of_seeds": lambda seed, n, shape: torch.stack([normal(shape, seed + i) for i in range(n)]),
    "time_slice": lambda video, column: video[:, :, column].swapaxes(0, 1),
    "clip_smoothness": lambda e: 100 * torch.cosine_similarity(e[:-1], e[1:]).mean(),
    "module_numbers": lambda c: 22 * c * c + 21 * c,
    "training_bytes": lambda frozen, trained: 2 * frozen + 16 * trained,
    "gpu_days": lambda clips, epochs, batch, gpus, s: clips * epochs / batch / gpus * s / 86400,
}

WRONG = [
    ("add_noise", lambda z, e, a: a * z + (1 - a) * e, "square root"),
    ("add_noise", lambda z, e, a: (1 - a) ** .5 * z + a ** .5 * e, "exchanged"),
    ("add_noise", lambda z, e, a: a ** .5 * z + (1 - a ** .5) * e, "not 1 - sqrt"),
    ("guidance", lambda n, p, s: p + s * (n - p), "exchanged"),
    ("guidance", lambda n, p, s: n + s * p, "difference"),
    ("guidance", lambda n, p, s: p + s * (p - n), "one step too far"),
    ("fold", lambda x: x.reshape(8, 3, 5, 6), "plain reshape"),
    ("fold", lambda x: rearrange(x, "b c f h w -> (f b) c h w"), r"order is \(f b\)"),
    ("fold", lambda x: x.flatten(0, 1), r"shape \(6, 4, 5, 6\); expected \(8, 3, 5, 6\), \(b f\) c h w"),
    ("fold", lambda x: RIGHT["fold"](x) * (torch.arange(8) != 5).view(8, 1, 1, 1),
     r"at row 5 \(b 1, frame 1\), c 0, h 0, w 0; expected"),
    ("fold", lambda x: None, "forget `return`"),
    ("fold", lambda x: x.no_such_thing, r"AttributeError.*at your line `.*no_such_thing"),
    ("unfold", lambda y, f: y.reshape(2, 3, f, 5, 6), "takes channels for frames"),
    ("unfold", lambda y, f: rearrange(y, "(f b) c h w -> b c f h w", f=f), "frames of one clip into different"),
    ("unfold", lambda y, f: y.reshape(2, f, 3, 5, 6), "shape"),
    ("text_for_frames", lambda t, f: t.repeat(f, 1, 1), "second clip's words"),
    ("text_for_frames", lambda t, f: t, "shape"),
    ("text_for_frames", lambda t, f: repeat(t[:1], "1 n d -> m n d", m=2 * f), "b 1, frame 0"),
    ("frame_change", lambda v: (v[1:] - v[:-1]).float().mean(), "uint8"),
    ("frame_change", lambda v: v.float().diff(dim=0).mean(), "cancel"),
    ("frame_change", lambda v: v.float().diff(dim=1).abs().mean(), "rows of pixels"),
    ("frame_change", lambda v: (v[-1].float() - v[0].float()).abs().mean(), "last frame with the first"),
    ("rows_for_time", lambda x, f: x.reshape(60, f, 3), "plain reshape"),
    ("rows_for_time", lambda x, f: rearrange(x, "(f b) c h w -> (b h w) f c", f=f), "different clips"),
    ("rows_for_time", lambda x, f: rearrange(x, "(b f) c h w -> b (f h w) c", f=f), "shape"),
    ("sinusoidal_positions", lambda f, c: positions(f, c, 1), "off by one"),
    ("sinusoidal_positions", lambda f, c: torch.cat([positions(f, c)[:, ::2], positions(f, c)[:, 1::2]], 1), "take turns"),
    ("sinusoidal_positions", lambda f, c: positions(f, c).unflatten(1, (-1, 2)).flip(-1).flatten(1), "exchanged"),
    ("sinusoidal_positions", lambda f, c: positions(f, 2 * c).unflatten(1, (-1, 2))[:, :c // 2].flatten(1), "exponent"),
    ("temporal_attention", lambda *a: attention(*a, axis=-2), "wrong axis"),
    ("temporal_attention", lambda *a: attention(*a, v_of=a[0]), "V without positions"),
    ("temporal_attention", lambda *a: attention(*a, scale=1), "not divided"),
    ("temporal_attention", lambda x, p, *a: attention(x, 0 * p, *a), "no positions at all"),
    ("temporal_attention", lambda x, p, q, k, v: (q(x + p).mT @ k(x + p)).softmax(-1), "shape"),
    ("temporal_attention", lambda x, *a: attention(x.add_(a[0]), 0 * a[0], *a[1:]), "in place"),
    ("zero_init", zero_all, "also changed .*proj_in|also changed .*norm"),
    ("zero_init", zero_and_freeze, "requires_grad = False"),
    ("zero_init", lambda m: nn.init.zeros_(m.temporal_transformer.proj_out.weight), "bias"),
    ("zero_init", lambda m: nn.init.zeros_(m.temporal_transformer.proj_out.bias), r"module\(x\) is"),
    ("zero_init", lambda m: None, "nothing has changed"),
    ("zero_init", lambda m: (zero(m), m.temporal_transformer.proj_out.register_forward_hook(lambda m, x, y: 0 * y)), "no gradient"),
    ("lora_update", lambda x, w, a, b, al: x @ w.T + al * (al * x @ a.T) @ b.T, "twice"),
    ("lora_update", lambda x, w, a, b, al: al * x @ (w + b @ a).T, "scales W x"),
    ("lora_update", lambda x, w, a, b, al: al * x @ (b @ a).T, "W x is missing"),
    ("lora_update", lambda x, w, a, b, al: x @ (w + b @ a).T, "no effect"),
    ("lora_update", lambda x, w, a, b, al: x @ w.add_(al * b @ a).T, "in place"),
    ("lora_numbers", lambda i, o, r: r * i, "A alone"),
    ("lora_numbers", lambda i, o, r: i * o, "layer itself"),
    ("lora_numbers", lambda i, o, r: r * i * r * o, "add their"),
    ("adapter_targets", lambda p: ".attn1." in p, "`.*attn1.to_out.1` must not be adapted|attn2.to_q` must be adapted"),
    ("adapter_targets", lambda p: "attn2" in p and is_target(p), "attn1.to_q` must be adapted"),
    ("adapter_targets", lambda p: p.endswith(("to_q", "to_k", "to_v", "to_out.0")), "temporal"),
    ("one_random_frame", lambda z, g: z[:, :, :1], "always frame 0"),
    ("one_random_frame", lambda z, g: z[:, :, [int(torch.randint(0, 4, (1,), generator=g))]], "one for each clip"),
    ("one_random_frame", lambda z, g: z[torch.arange(12), :, torch.randint(0, 3, (12,), generator=g)].unsqueeze(2), "never comes"),
    ("one_random_frame", lambda z, g: z[torch.arange(12), :, (torch.rand(12, generator=g) * 3).round().long()].unsqueeze(2), "equally often"),
    ("one_random_frame", lambda z, g: z[torch.arange(12), :, (torch.randint(0, 4, (1,), generator=g) + torch.arange(12)) % 4].unsqueeze(2), "one draw"),
    ("one_random_frame", lambda z, g: z.mean(2, keepdim=True), "mixes"),
    ("one_random_frame", lambda z, g: random_frame(z.flip(0), g), "row 0 holds a frame of clip 11"),
    ("one_random_frame", lambda z, g: random_frame(z, None), "generator="),
    ("one_random_frame", lambda z, g: z[torch.arange(12), :, torch.arange(12) % 4].unsqueeze(2), "always the same frames"),
    ("one_random_frame", lambda z, g: random_frame(z, torch.manual_seed(0)), "always the same frames"),
    ("stage2_draw", lambda z, T, g: (torch.randint(0, T, (len(z) * z.shape[2],), generator=g), draw(z, T, g)[1]), "every frame"),
    ("stage2_draw", lambda z, T, g: (draw(z, T, g)[0], draw(z, T, g)[1][:, :, :1].expand(z.shape)), "same noise"),
    ("stage2_draw", lambda z, T, g: (torch.randint(1, T, (len(z),), generator=g), draw(z, T, g)[1]), "never was 0"),
    ("stage2_draw", lambda z, T, g: (draw(z, T, g)[0], torch.rand(z.shape, generator=g)), "uniform"),
    ("stage2_draw", lambda z, T, g: draw(z, T, None), "generator="),
    ("stage2_draw", lambda z, T, g: draw(z, T + 1, g), "must lie in 0 to 9"),
    ("stage2_draw", lambda z, T, g: (draw(z, T, g)[0][:1].expand(len(z)), draw(z, T, g)[1]), "all clips of the batch"),
    ("stage2_draw", lambda z, T, g: (draw(z, T, g)[0], draw(z[:1], T, g)[1].expand(z.shape)), "clip 1 has the same noise"),
    ("stage2_draw", lambda z, T, g: (draw(z, T, g)[0], 2 * draw(z, T, g)[1]), "deviation 2"),
    ("stage2_draw", lambda z, T, g: (torch.arange(len(z)) % T, draw(z, T, g)[1]), "another seed"),
    ("stage2_draw", lambda z, T, g: draw(z, T, torch.manual_seed(0)), "another seed"),
    ("stage2_loss", lambda m, z, x, t, e, a: loss(m, z, x, t, e, a ** 2), "square roots|the loss is"),
    ("stage2_loss", lambda m, z, x, t, e, a: loss(m, z, x, t, e, 1 - a), "exchanged"),
    ("stage2_loss", lambda m, z, x, t, e, a: loss(m, z, x, t, e, a) * z.numel(), "sum"),
    ("stage2_loss", lambda m, z, x, t, e, a: (e - m(z, t, x)).pow(2).mean(), "clean z"),
    ("motion_amount", lambda v: 100 * v.mean((0, 1, 2)).norm() / 10, "cancel"),
    ("motion_amount", lambda v: v.norm(dim=-1).mean(), "pixels"),
    ("motion_amount", lambda v: 100 * v.norm(dim=-1).mean() / v.shape[1], "smaller of h and w"),
    ("motion_amount", lambda v: 100 * v.norm(dim=-1).mean() / v.shape[2], "smaller of h and w"),
    ("motion_amount", lambda v: 100 * v.abs().mean() / 10, "length is"),
    ("zoom_path", lambda f, a: RIGHT["zoom_path"](f, a)[::-1], "wrong way"),
    ("zoom_path", lambda f, a: [1 - a * i / (f - 1) for i in range(f)], "equal factors"),
    ("zoom_path", lambda f, a: [(1 - a) ** (i / f) for i in range(f)], "off by one: the last"),
    ("zoom_path", lambda f, a: RIGHT["zoom_path"](f, a)[:-1], "shape"),
    ("compose_loras", lambda x, w, l: sum(x @ (w + al * b @ a).T for a, b, al in l) if l else x @ w.T, "once for every"),
    ("compose_loras", lambda x, w, l: compose(x, w, [(a, b, 1) for a, b, _ in l]), "no effect"),
    ("compose_loras", lambda x, w, l: compose(x, w, l[-1:]), "only the last"),
    ("compose_loras", lambda x, w, l: compose(x, w, l) if l else torch.zeros(4, 5), "y without LoRAs is 0"),
    ("compose_loras", lambda x, w, l: compose(x, w, [(a, b.mul_(al), 1) for a, b, al in l]), "in place"),
    ("compose_loras", lambda x, w, l: compose(x, w, [(a, b, al / 2) for a, b, al in l]), "mean"),
    ("relative_change", lambda w, a, b, al: al * (b @ a).norm() / w.norm(), "negative"),
    ("relative_change", lambda w, a, b, al: abs(al) * b.norm() * a.norm() / w.norm(), "norm of a product"),
    ("relative_change", lambda w, a, b, al: (b @ a).norm() / w.norm(), "no effect"),
    ("noise_of_seeds", lambda s, n, shape: normal((n, *shape), s), "one generator"),
    ("noise_of_seeds", lambda s, n, shape: normal(shape, s).expand(n, *shape), "same noise"),
    ("noise_of_seeds", lambda s, n, shape: torch.rand(n, *shape), "uniform"),
    ("noise_of_seeds", lambda s, n, shape: RIGHT["noise_of_seeds"](s + (n == 1), n, shape), "when it is drawn alone"),
    ("time_slice", lambda v, column: v[:, :, column], "downwards"),
    ("time_slice", lambda v, column: v[:, column].swapaxes(0, 1), "a row of pixels, not"),
    ("time_slice", lambda v, column: v[:, :, column].swapaxes(0, 1).flip(1), "last frame comes first"),
    ("clip_smoothness", lambda e: 100 * (e[:-1] * e[1:]).sum(-1).mean(), "length 1"),
    ("clip_smoothness", lambda e: torch.cosine_similarity(e[:-1], e[1:]).mean(), "times 100"),
    ("clip_smoothness", lambda e: 100 * torch.cosine_similarity(e[:1], e[1:]).mean(), "with the first"),
    ("module_numbers", lambda c: 22 * c * c, "biases"), ("module_numbers", lambda c: 18 * c * c + 20 * c, "attention"),
    ("module_numbers", lambda c: 22 * c * c + 27 * c, "no bias"),
    ("training_bytes", lambda a, b: 16 * (a + b), "no gradient"), ("training_bytes", lambda a, b: 2 * a + 8 * b, "averages"),
    ("training_bytes", lambda a, b: 4 * a + 16 * b, "bfloat16"),
    ("gpu_days", lambda c, e, b, g, s: c * e / b / g * s, "seconds"), ("gpu_days", lambda c, e, b, g, s: c * e / b * s / 86400, "GPU-days"),
    ("gpu_days", lambda c, e, b, g, s: c * e / g * s / 86400, "batch"),
    ("gpu_days", lambda c, e, b, g, s: c * s / (g * e) / 86400, "the number of days"),
    ("gpu_days", lambda c, e, b, g, s: c * s / b ** 2 / 86400, "the number of days"),
]


def test_every_exercise_has_a_right_answer_and_three_wrong_ones_here():
    assert sorted(RIGHT) == checks.__all__
    assert {name: n for name in RIGHT if (n := sum(w[0] == name for w in WRONG)) < 3} == {}


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass_and_empty_ones_are_to_do(name):
    def empty(*args, **kwargs):
        raise NotImplementedError

    verdict = getattr(checks, name)(RIGHT[name])
    assert verdict.ok, verdict
    verdict.grade()
    todo = getattr(checks, name)(empty)
    assert todo.state == "to do"
    unknown = checks.frame_change(lambda video: torch.nn.functional.mse_loss(video[1:], video[:-1]))  # of uint8
    assert unknown.state == "wrong" and "NotImplementedError" in unknown.message
    with pytest.raises(NotImplementedError):
        todo.grade()


@pytest.mark.parametrize("name, answer, message", WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_wrong_answers_are_told_what_is_wrong(name, answer, message):
    verdict = getattr(checks, name)(answer)
    assert verdict.state == "wrong"
    with pytest.raises(AssertionError, match=message):
        verdict.grade()


@pytest.mark.parametrize("name", RIGHT)
def test_nonsense_is_wrong_and_never_stops_the_notebook(name):
    for nonsense in (lambda *a: None, lambda *a: "word", lambda *a: torch.zeros(7, 7), lambda: 1, lambda *a: float("nan"), 3):
        if name == "adapter_targets" or name == "zero_init":  # these take any answer for a truth value, or none
            nonsense = (lambda *a: False) if name == "adapter_targets" else (lambda m: None)
        assert getattr(checks, name)(nonsense).state == "wrong"


def test_a_check_leaves_the_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    checks.zero_init(zero)
    assert torch.equal(torch.rand(1), expected)


def test_a_verdict_shows_itself_and_keeps_markup_in_its_place():
    shown = Verdict("fold", "wrong", "`x < 3` has the shape (2, 3)")._repr_mimebundle_()
    assert "<code>x &lt; 3</code>" in shown["text/html"] and 'role="status"' in shown["text/html"]
    assert shown["text/plain"].startswith("Not yet (fold)")


def test_compare_names_the_first_wrong_frame():
    right = torch.zeros(2, 3, 4)
    got = right.clone()
    got[1, 2, 3] = 1
    with pytest.raises(Wrong, match=r"x is 1 at b 1, frame 2, c 3; expected 0, and 4 % of all"):
        compare("x", got, right, "b f c")
    with pytest.raises(Wrong, match=r"at row 1 \(b 0, frame 1\), c 0"):
        compare("x", torch.tensor([[0.], [9.]]), torch.zeros(2, 1), "(b f) c", b=1, f=2)
    compare("x", right.numpy(), right, "b f c")
    with pytest.raises(Wrong, match=r"x is 1\.0004 at n 0; expected 1\.0001\."):  # and not "is 1; expected 1"
        compare("x", torch.tensor([1.0004]).double().round(decimals=6), torch.tensor([1.0001]).double().round(decimals=6), "n")
