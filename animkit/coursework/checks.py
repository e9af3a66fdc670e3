"""The course's exercises, checked in the cell where they are answered: `checks.fold(fold)` at its end says what is wrong.

Each takes the student's function, runs it on small numbers, and compares the result with the library's own. Known
mistakes are named. The docstring of a check says what the function is given and what it must return.
"""
from collections.abc import Callable

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from animkit.coursework.verdict import Wrong, as_tensor, compare, exercise

# Every axis has a size of its own, so that no wrong order can hide behind an equal shape.
B, C, F, H, W = 2, 3, 4, 5, 6


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- 01: image diffusion

@exercise("add noise", "that is the forward process, z_t = sqrt(abar) z_0 + sqrt(1 - abar) eps.")
def add_noise(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """answer(z, eps, abar) -> z_t, for latents and noise c h w and a number abar between 0 and 1."""
    z, eps = _randn(C, H, W), _randn(C, H, W, seed=1)
    for abar in (0.8, 0.3):
        keep, add = abar ** 0.5, (1 - abar) ** 0.5
        compare(f"z_t for abar = {abar}", answer(z.clone(), eps.clone(), abar), keep * z + add * eps, "c h w", {
            "abar and 1 - abar are variances: take the square root of each before you multiply.":
                abar * z + (1 - abar) * eps,
            "the two weights are exchanged: at abar = 1 there must be no noise at all.": add * z + keep * eps,
            "the noise has the weight sqrt(1 - abar), not 1 - sqrt(abar).": keep * z + (1 - keep) * eps})


@exercise("guidance", "negative + s (text - negative): s = 1 gives the text's own, s > 1 goes beyond it.")
def guidance(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """answer(negative, positive, s) -> eps, all noise predictions b c f h w, s the guidance scale."""
    negative, positive = _randn(B, C, F, H, W), _randn(B, C, F, H, W, seed=1)
    for s in (7.5, 1.0):
        compare(f"eps at guidance {s}", answer(negative.clone(), positive.clone(), s),
                negative + s * (positive - negative), "b c f h w", {
            "the two predictions are exchanged: guidance must lead towards the text.": positive + s * (negative - positive),
            "take s times the difference, positive - negative, not s times the prediction.": negative + s * positive,
            "start from the negative prediction: from the positive one you go one step too far.":
                positive + s * (positive - negative)})


# ---- 02: inflation

@exercise("fold", "the image layers now see b f pictures, one after another, clip by clip.")
def fold(answer: Callable[[Tensor], Tensor]) -> None:
    """answer(x) -> the frames of clips b c f h w as a batch of images, (b f) c h w."""
    x = _randn(B, C, F, H, W)
    compare("your batch", answer(x.clone()), rearrange(x, "b c f h w -> (b f) c h w"), "(b f) c h w", {
        "a plain reshape leaves the numbers in their order, so that rows mix channels and frames: bring f beside b "
        "first.": x.reshape(B * F, C, H, W),
        "the order is (f b): all clips' first frames come first. The frames of one clip must follow one another: (b f).":
            rearrange(x, "b c f h w -> (f b) c h w")}, b=B, f=F)


@exercise("unfold", "the clips are back, every frame in its place.")
def unfold(answer: Callable[[Tensor, int], Tensor]) -> None:
    """answer(y, f) -> clips b c f h w from a batch of images (b f) c h w."""
    y = _randn(B * F, C, H, W)
    compare("your result", answer(y.clone(), F), rearrange(y, "(b f) c h w -> b c f h w", f=F), "b c f h w", {
        "a plain reshape to b c f h w takes channels for frames: split (b f) into b and f first, then move f behind c.":
            y.reshape(B, C, F, H, W),
        "the batch is (b f), not (f b): you put frames of one clip into different clips.":
            rearrange(y, "(f b) c h w -> b c f h w", f=F)})


@exercise("a text for every frame", "each frame gets the text of its own clip.")
def text_for_frames(answer: Callable[[Tensor, int], Tensor]) -> None:
    """answer(text, f) -> one text per frame, (b f) n d, from one per clip, b n d."""
    text = _randn(B, H, W)
    compare("your text", answer(text.clone(), F), repeat(text, "b n d -> (b f) n d", f=F), "(b f) n d", {
        "frame 1 of the first clip gets the second clip's words: repeat each clip's text f times in a row "
        "(repeat_interleave), not all texts f times (repeat).": text.repeat(F, 1, 1)}, b=B, f=F)


@exercise("change between frames", "zero for a still, and it grows with every change, motion or flicker.")
def frame_change(answer: Callable[[Tensor], float]) -> None:
    """answer(video) -> the mean |difference| of neighbouring frames, a number; video f h w c, uint8."""
    video = (_randn(F, H, W, 3).sigmoid() * 255).to(torch.uint8)
    wide = video.double()
    step = (wide[1:] - wide[:-1])
    compare("the change", answer(video.clone()), step.abs().mean(), "", {
        "uint8 cannot hold a negative number: 3 - 5 became 254. Turn the video into float (or int) first.":
            (video[1:] - video[:-1]).double().abs().mean(),
        "ups and downs cancel: take the absolute value before the mean.": step.mean(),
        "ups and downs cancel: take the absolute value before the mean, not after it.": step.mean().abs(),
        "you compared the last frame with the first; compare each with the next.": (wide[-1] - wide[0]).abs().mean(),
        "those are neighbouring rows of pixels (h), not neighbouring frames (f).": wide.diff(dim=1).abs().mean(),
        "that is the mean of the squares; take absolute values.": (step ** 2).mean()})


# ---- 03: motion module

@exercise("rows for time", "every place h w of the picture is now a row of its own, f frames long.")
def rows_for_time(answer: Callable[[Tensor, int], Tensor]) -> None:
    """answer(x, f) -> (b h w) f c from the image layers' (b f) c h w."""
    x = _randn(B * F, C, H, W)
    compare("your result", answer(x.clone(), F), rearrange(x, "(b f) c h w -> (b h w) f c", f=F), "(b h w) f c", {
        "a plain reshape keeps the numbers in their order: rows would mix places and channels. Name the axes, then "
        "move them (rearrange, or reshape and permute).": x.reshape(B * H * W, F, C),
        "the batch is (b f), not (f b): your rows mix the frames of different clips.":
            rearrange(x, "(f b) c h w -> (b h w) f c", f=F)}, b=B, h=H, w=W)


@exercise("sinusoidal positions", "position 0 is 0, 1, 0, 1, ... and each pair of channels turns more slowly than the last.")
def sinusoidal_positions(answer: Callable[[int, int], Tensor]) -> None:
    """answer(frames, c) -> PE, frames c, with PE[p, 2i] = sin(p / 10000^(2i/c)), PE[p, 2i+1] = cos(the same)."""
    from animkit.temporal_transformer import sinusoidal_positions as right
    for f, c in ((5, 8), (16, 32)):
        p, i = torch.arange(f)[:, None].double(), torch.arange(c // 2).double()
        angle = p * 10000 ** (-2 * i / c)
        both = torch.stack([angle.sin(), angle.cos()], -1)
        slow = p * 10000 ** (-i / c)
        compare(f"PE for {f} frames and {c} channels", answer(f, c), right(f, c), "f c", {
            "off by one: the first frame is p = 0, so that its row is 0, 1, 0, 1, ...": right(f + 1, c)[1:],
            "all sines come first, then all cosines: they must take turns, sin in channel 2i, cos in 2i + 1.":
                torch.cat([angle.sin(), angle.cos()], -1),
            "sine and cosine are exchanged: sin stands in the even channels.": both.flip(-1).flatten(1),
            "the exponent is 2i/c for the pair i: yours falls half as fast.":
                torch.stack([slow.sin(), slow.cos()], -1).flatten(1),
            "the angle must be p divided by 10000^(2i/c): yours is multiplied.": torch.stack(
                [(p * 10000 ** (2 * i / c)).sin(), (p * 10000 ** (2 * i / c)).cos()], -1).flatten(1)})


@exercise("temporal attention", "every frame takes what it needs from all frames, at its own place in the picture.")
def temporal_attention(answer: Callable[..., Tensor]) -> None:
    """answer(x, positions, to_q, to_k, to_v) -> softmax(Q K^T / sqrt c) V with one head, x n f c (n rows), positions f c.

    Positions are added to x before all three; to_q, to_k, to_v are Linear layers c -> c without bias.
    """
    from animkit.temporal_transformer import TemporalAttention
    n, f, c = 6, F, 8
    library = TemporalAttention(c, heads=1, positions=f)
    with torch.no_grad():
        for i, layer in enumerate((library.to_q, library.to_k, library.to_v)):
            layer.weight.copy_(_randn(c, c, seed=i))
    library.to_out = nn.Identity()
    x, pe = _randn(n, f, c, seed=5), library.pos_encoder.pe[0]

    def wrong(with_q: Tensor, with_v: Tensor, scale: float = c ** -0.5, axis: int = -1) -> Tensor:
        q, k, v = library.to_q(with_q), library.to_k(with_q), library.to_v(with_v)
        return (q @ k.mT * scale).softmax(axis) @ v
    y = x + pe
    with torch.no_grad():
        swapped = [z.transpose(0, 1) for z in (library.to_q(y), library.to_k(y), library.to_v(y))]
        mistakes = {
            "softmax over the wrong axis: for one reading frame (row of Q K^T) the weights of all read frames must add "
            "up to 1, so dim=-1.": wrong(y, y, axis=-2),
            "V without positions: in the motion module they are added to x before Q, K and V alike.": wrong(y, x),
            "no positions at all: add them to x first, or attention cannot tell the order of frames.": wrong(x, x),
            "the scores are not divided by sqrt(c): softmax gets too sharp.": wrong(y, y, scale=1.0),
            "the scores are divided by c: divide by its square root.": wrong(y, y, scale=1 / c),
            "that attends across rows, the places of the picture, not along frames: the frames are dimension 1 of x.":
                ((swapped[0] @ swapped[1].mT * c ** -0.5).softmax(-1) @ swapped[2]).transpose(0, 1)}
        expected = library(x)
        got = answer(x.clone(), pe.clone(), library.to_q, library.to_k, library.to_v)
        compare("the attention's output", got, expected, "row f c", mistakes)


@exercise("zero-initialisation", "a fresh module changes nothing, and its output layer can learn from the first step.")
def zero_init(answer: Callable[[nn.Module], None]) -> None:
    """answer(module) changes a MotionModule in place: module(x, frames) gives x back, and it can still be trained."""
    from animkit.motion_module import MotionModule
    module = MotionModule(8, heads=2, positions=F, norm_groups=4)
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(_randn(*p.shape, seed=i))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    answer(module)
    out = module.temporal_transformer.proj_out
    changed = [name for name, p in module.named_parameters() if name not in before or not torch.equal(p, before[name])]
    more = [name for name in changed if ".proj_out." not in name]
    x = _randn(B * F, 8, H, W)
    y = module(x, F)
    if not changed:
        raise Wrong("nothing has changed: set the module's own weights, in place (nn.init.zeros_ does so).")
    if more:
        raise Wrong(f"you also changed {more[0]}{f' and {len(more) - 1} others' if more[1:] else ''}: zero the output "
                    "layer alone (temporal_transformer.proj_out); if layers before it are zero, it cannot learn.")
    if bool((out.weight == 0).all()) and bool((out.bias != 0).any()):
        raise Wrong("proj_out.weight is zero and its bias is not: every channel is still shifted by a constant.")
    compare("module(x)", y, x, "(b f) c h w", {}, tolerance=1e-6, b=B, f=F)
    if frozen := [name for name, p in module.named_parameters() if not p.requires_grad]:
        raise Wrong(f"{frozen[0]} gets no gradient (requires_grad = False): leave requires_grad True, or it cannot learn.")
    (y - _randn(*x.shape, seed=9)).pow(2).mean().backward()
    if out.weight.grad is None or not out.weight.grad.any():
        raise Wrong("the module is the identity and will stay so: no gradient reaches proj_out.weight.")


# ---- 04: domain adapter

@exercise("LoRA's update", "W x is unchanged, and alpha scales only the correction.")
def lora_update(answer: Callable[..., Tensor]) -> None:
    """answer(x, weight, down, up, alpha) -> y, n out: W x + alpha B A x; weight out in, down (A) rank in, up (B) out rank."""
    x, weight, down, up = _randn(F, 6), _randn(5, 6, seed=1), _randn(2, 6, seed=2), _randn(5, 2, seed=3)
    base, delta = x @ weight.T, x @ down.T @ up.T
    for alpha in (0.5, 1.0, 0.0):
        compare(f"y for alpha = {alpha:g}", answer(x.clone(), weight.clone(), down.clone(), up.clone(), alpha),
                base + alpha * delta, "n out", {
            "alpha is applied twice (to A and to B, or to A and to the sum): use it once.": base + alpha ** 2 * delta,
            "alpha scales W x too: it must scale only the correction B A x.": alpha * (base + delta),
            "W x is missing: LoRA adds to the layer, it does not replace it.": alpha * delta,
            "alpha has no effect: multiply the correction by it.": base + delta,
            "this blends W and B A: W x must stay unchanged at every alpha.": (1 - alpha) * base + alpha * delta,
            "the correction is subtracted.": base - alpha * delta})


@exercise("numbers of a LoRA", "rank (in + out) for each layer, where the layer itself has in times out.")
def lora_numbers(answer: Callable[[int, int, int], int]) -> None:
    """answer(d_in, d_out, rank) -> how many numbers the LoRA of one Linear layer has."""
    from animkit.lora import LoRA
    for d_in, d_out, rank in ((320, 320, 4), (768, 320, 8)):
        lora = LoRA.for_module(nn.Sequential(nn.Linear(d_in, d_out)), ["0"], rank)
        compare(f"the number for {d_in} -> {d_out}, rank {rank}", answer(d_in, d_out, rank),
                torch.tensor(sum(p.numel() for p in lora.parameters())), "", {
            "that is A alone (rank x in): B has out x rank more.": rank * d_in,
            "that is B alone (out x rank): A has rank x in more.": rank * d_out,
            "that is the number of the layer itself: a LoRA has two thin matrices, A and B.": d_in * d_out,
            "A and B are two separate matrices: add their sizes.": rank * d_in * rank * d_out})


@exercise("where the domain adapter sits", "q, k, v and out of both spatial attentions, and nothing else.")
def adapter_targets(answer: Callable[[str], bool]) -> None:
    """answer(path) -> whether the domain adapter adapts the layer of that path, as in UNet.named_modules()."""
    from animkit.domain_adapter import is_target
    block = "down_blocks.0.attentions.0"
    layers = [f"{block}.transformer_blocks.0.{a}.{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v", "to_out.0")]
    layers += [f"{block}.{p}" for p in ("proj_in", "proj_out", "transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2",
                                        "transformer_blocks.0.attn1", "transformer_blocks.0.attn1.to_out.1")]
    temporal = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0"
    layers += [f"{temporal}.to_q", f"{temporal}.to_out.0", "time_embedding.linear_1",
               "down_blocks.0.resnets.0.time_emb_proj", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
    for path in layers:
        said, right = answer(path), is_target(path)
        if bool(said) == right:
            continue
        if right:
            raise Wrong(f"`{path}` must be adapted: the adapter sits on q, k, v and out of attn1 (self) and attn2 (cross).")
        hint = ("it is temporal, in the motion module: the adapter is only in the image layers" if ".motion_modules." in path
                else "it is the dropout behind the output layer, not a Linear layer" if path.endswith("to_out.1")
                else "it is the whole attention, not one of its Linear layers" if path.endswith("attn1")
                else "it is not q, k, v or out of an attention")
        raise Wrong(f"`{path}` must not be adapted: {hint}.")


@exercise("one random frame of each clip", "stage 1 sees pictures, never films.")
def one_random_frame(answer: Callable[[Tensor, torch.Generator], Tensor]) -> None:
    """answer(z, generator) -> b c 1 h w: of each clip of z (b c f h w) one frame, drawn by the generator."""
    b = 12
    z = torch.arange(b * F).reshape(b, 1, F, 1, 1).expand(b, C, F, H, W).double().clone()  # clip k, frame j: k f + j
    seen, alike, drawn, apart = set(), 0, set(), set()
    for seed in range(20):
        got = as_tensor("your result", answer(z.clone(), torch.Generator().manual_seed(seed)))
        if got.shape != (b, C, 1, H, W):
            raise Wrong(f"your result has the shape {tuple(got.shape)}; expected {(b, C, 1, H, W)}, b c f h w with f = 1.")
        clip, frame = got[:, 0, 0, 0, 0] // F, got[:, 0, 0, 0, 0] % F
        if (got != got[:, :1, :, :1, :1]).any() or (frame != frame.round()).any():
            raise Wrong("a result mixes several frames: choose one frame of each clip; do not average or combine frames.")
        if (clip != torch.arange(b)).any():
            k = int((clip != torch.arange(b)).nonzero()[0])
            raise Wrong(f"row {k} holds a frame of clip {int(clip[k])}: clips must keep their order, or captions get mixed up.")
        seen |= {int(j) for j in frame}
        alike += len(set(frame.tolist())) == 1
        drawn.add(tuple(frame.tolist()))
        apart.add(tuple(((frame - frame[0]) % F).tolist()))
    if alike == 20:
        raise Wrong("all clips of a batch get the same frame number: draw one for each clip."
                    if len(seen) > 1 else f"always frame {seen.pop()}: draw it at random.")
    if missing := set(range(F)) - seen:
        raise Wrong(f"frame {min(missing)} never comes up: all f frames, 0 to f - 1, must be equally likely.")
    if len(drawn) == 1:
        raise Wrong("20 generators, and always the same frames: draw them at random, with generator=.")
    if len(apart) == 1:
        raise Wrong("the clips of a batch are always equally far apart, so one draw decides for all: draw one for each clip.")
    a, again = (answer(z.clone(), torch.Generator().manual_seed(3)) for _ in range(2))
    if not torch.equal(torch.as_tensor(a), torch.as_tensor(again)):
        raise Wrong("two generators with the same seed give different frames: pass generator= to every draw.")
    more = torch.cat([torch.as_tensor(answer(z.clone(), torch.Generator().manual_seed(seed)))[:, 0, 0, 0, 0] % F for seed in range(20, 220)])
    share = torch.bincount(more.long(), minlength=F) / len(more)
    if (share - 1 / F).abs().max() > 0.04:
        raise Wrong(f"the frames do not come up equally often, but {', '.join(f'{100 * s:.0f}' for s in share)} % of the time: all f must be equally likely.")


# ---- 05: training the motion module

@exercise("noise and time of a clip", "one t for a clip, noise of its own for every frame.")
def stage2_draw(answer: Callable[[Tensor, int, torch.Generator], tuple[Tensor, Tensor]]) -> None:
    """answer(z, T, generator) -> (t, eps) for clips z b c f h w: t b, whole, 0 to T - 1; eps like z, standard normal."""
    z, T = _randn(64, C, F, H, W), 10
    drawn = answer(z.clone(), T, torch.Generator().manual_seed(0))
    if not isinstance(drawn, (tuple, list)) or len(drawn) != 2:
        raise Wrong("return two things: `return t, eps`.")
    t, eps = as_tensor("t", drawn[0]), as_tensor("eps", drawn[1])
    if t.shape == (64 * F,) or t.shape == (64, F):
        raise Wrong("you drew a t for every frame: the frames of a clip share one, so that t is b.")
    if t.shape != (64,):
        raise Wrong(f"t has the shape {tuple(t.shape)}; expected (64,), b: one for each clip.")
    if (t != t.round()).any():
        raise Wrong("t must be a whole number: it is an index into the table of noise levels.")
    if t.unique().numel() == 1:
        raise Wrong("all clips of the batch have the same t: draw one for each.")
    if t.min() < 0 or t.max() > T - 1:
        raise Wrong(f"t reaches from {int(t.min())} to {int(t.max())}; with T = {T} it must lie in 0 to {T - 1}.")
    if t.min() > 0 or t.max() < T - 1:
        raise Wrong(f"among 64 draws t never was {0 if t.min() > 0 else T - 1}: it must reach from 0 to T - 1.")
    if eps.shape != z.shape:
        raise Wrong(f"eps has the shape {tuple(eps.shape)}; expected that of z, {tuple(z.shape)}.")
    if torch.equal(eps[0], eps[1]):
        raise Wrong("clip 1 has the same noise as clip 0: each clip gets noise of its own.")
    if torch.equal(eps[:, :, 0], eps[:, :, 1]):
        raise Wrong("frame 1 has the same noise as frame 0: each frame gets noise of its own.")
    if eps.min() >= 0:
        raise Wrong("eps is never negative: it looks uniform (rand); it must be standard normal (randn).")
    if abs(float(eps.std()) - 1) > 0.05 or abs(float(eps.mean())) > 0.05:
        raise Wrong(f"eps has mean {float(eps.mean()):.2f} and deviation {float(eps.std()):.2f}; expected 0 and 1.")
    again = answer(z.clone(), T, torch.Generator().manual_seed(0))
    if not torch.equal(as_tensor("t", again[0]), t) or not torch.equal(as_tensor("eps", again[1]), eps):
        raise Wrong("two generators with the same seed give different numbers: pass generator= to every draw.")
    other = answer(z.clone(), T, torch.Generator().manual_seed(1))
    if torch.equal(as_tensor("t", other[0]), t) or torch.equal(as_tensor("eps", other[1]), eps):
        raise Wrong("a generator with another seed gives the same numbers: pass generator= to every draw, and set no seed.")


class _Predictor(nn.Module):
    """Takes the place of the video UNet: its output depends on every input."""

    def forward(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return 0.7 * z_t + (t / 1000)[:, None, None, None, None] + text.mean((1, 2))[:, None, None, None, None]


@exercise("the loss of stage 2", "the same number as the library's loss: noise predicted against noise drawn.")
def stage2_loss(answer: Callable[..., Tensor]) -> None:
    """answer(eps_theta, z, text, t, eps, abar) -> the loss, a scalar.

    eps_theta(z_t, t, text) predicts noise, z and eps b c f h w, text b n d, t b, abar (T) the table of abar_t.
    """
    from animkit.training.config import NoiseConfig
    from animkit.training.draws import randint, randn
    from animkit.training.losses import denoising_loss
    scheduler, model = NoiseConfig().scheduler(), _Predictor()
    abar, z, text = scheduler.alphas_cumprod, _randn(B, C, F, H, W), _randn(B, H, W, seed=1)
    expected = denoising_loss(model, z, text, torch.Generator().manual_seed(7), scheduler=scheduler)
    g = torch.Generator().manual_seed(7)
    t, eps = randint(0, len(abar), (B,), g), randn(z.shape, g)
    a = abar[t].reshape(B, 1, 1, 1, 1)

    def wrong(keep: Tensor, add: Tensor, target: Tensor = eps) -> Tensor:
        return (target - model(keep * z + add * eps, t, text)) ** 2
    first = abar[t[0]]
    given = model, z.clone(), text.clone(), t.clone(), eps.clone(), abar.clone()
    compare("the loss", answer(*given), expected, "", {
        "the target is the noise eps, not the clean latents z: the network predicts noise.": wrong(a**.5, (1-a)**.5, z).mean(),
        "the target is the noise eps, not z_t.": wrong(a**.5, (1-a)**.5, a**.5 * z + (1-a)**.5 * eps).mean(),
        "abar and 1 - abar are variances: multiply by their square roots.": wrong(a, 1 - a).mean(),
        "the weights are exchanged: sqrt(abar) belongs to z, sqrt(1 - abar) to eps.": wrong((1-a)**.5, a**.5).mean(),
        "the noise is missing: eps_theta must be given z_t, not sqrt(abar) z.": ((eps - model(a**.5 * z, t, text)) ** 2).mean(),
        "eps_theta was given the clean z: add the noise first.": ((eps - model(z, t, text)) ** 2).mean(),
        "every clip has its own t: you used the first clip's t for all.": wrong(first**.5, (1-first)**.5).mean(),
        "that is the sum; the loss is the mean over all numbers.": wrong(a**.5, (1-a)**.5).sum(),
        "those are the errors without the square.": wrong(a**.5, (1-a)**.5).sqrt().mean(),
        "that is the square root of the loss: leave it out.": wrong(a**.5, (1-a)**.5).mean().sqrt()})


@exercise("amount of motion", "how far things move, in any direction; pictures of different sizes can be compared.")
def motion_amount(answer: Callable[[Tensor], float]) -> None:
    """answer(flow) -> mean length of the flow f h w 2 (pixels right, down) in percent of the picture's short side."""
    from animkit.metrics.motion import motion_of
    for h, w in ((10, 12), (12, 10)):
        flow = _randn(F, h, w, 2)
        right = motion_of(torch.zeros(F + 1, h, w, 3, dtype=torch.uint8).numpy(), flow.numpy()).amount
        lengths = flow.norm(dim=-1)
        compare(f"the amount in a picture {w} wide and {h} high", answer(flow.clone()), torch.tensor(right), "", {
            "left and right cancel: take the length of each arrow first, the mean last.": 100 * flow.mean((0, 1, 2)).norm() / 10,
            "that is in pixels: divide by the short side, times 100.": lengths.mean(),
            "that is a fraction of the short side; give it in percent, times 100.": lengths.mean() / 10,
            "divide by the short side, the smaller of h and w, not the long one.": 100 * lengths.mean() / 12,
            "the length of an arrow is sqrt(x^2 + y^2), not |x| + |y|.": 100 * flow.abs().sum(-1).mean() / 10,
            "that is the mean of |x| and |y|; the length is sqrt(x^2 + y^2).": 100 * flow.abs().mean() / 10,
            "the square root of x^2 + y^2 is missing.": 100 * (lengths ** 2).mean() / 10})


# ---- 06: MotionLoRA

@exercise("crop path of a zoom", "the window shrinks by the same factor in every frame, as in a lens that zooms.")
def zoom_path(answer: Callable[[int, float], list[float]]) -> None:
    """answer(frames, amount) -> the window's size in each frame of a zoom in: 1 at first, 1 - amount at last."""
    from animkit.data.camera import crop_path
    for frames, amount in ((5, 0.4), (16, 0.3)):
        right = torch.tensor([crop.scale for crop in crop_path("zoom in", frames, amount)], dtype=torch.float64)
        t = torch.arange(frames, dtype=torch.float64) / (frames - 1)
        compare(f"the list of sizes for {frames} frames and amount {amount}", answer(frames, amount), right, "f", {
            "this zooms the wrong way: the window must shrink, so that what is in it grows.": right.flip(0),
            "this zooms the wrong way: sizes above 1 leave the picture.": 1 / right,
            "the size falls by equal steps: let it fall by equal factors, (1 - amount)^t, or the zoom seems to speed up.":
                1 - amount * t,
            "off by one: the last frame must be at t = 1, so divide by frames - 1.":
                (1 - amount) ** (torch.arange(frames, dtype=torch.float64) / frames),
            "off by one: the first frame must see the whole picture, t = 0.":
                (1 - amount) ** (torch.arange(1, frames + 1, dtype=torch.float64) / frames),
            "the last window is `amount` wide; it must be 1 - amount.": amount ** t})


@exercise("composition of LoRAs", "W x once, and every LoRA's correction times its own alpha.")
def compose_loras(answer: Callable[..., Tensor]) -> None:
    """answer(x, weight, loras) -> y: W x + sum of alpha_i B_i A_i x; loras: a list of (down, up, alpha) of any ranks."""
    x, weight = _randn(F, 6), _randn(5, 6, seed=1)
    loras = [(_randn(2, 6, seed=2), _randn(5, 2, seed=3), 0.8), (_randn(3, 6, seed=4), _randn(5, 3, seed=5), -0.5)]
    base, each = x @ weight.T, [x @ a.T @ b.T for a, b, _ in loras]
    alphas = [alpha for *_, alpha in loras]
    right = base + sum(alpha * d for alpha, d in zip(alphas, each))
    got = answer(x.clone(), weight.clone(), [(a.clone(), b.clone(), alpha) for a, b, alpha in loras])
    compare("y", got, right, "n out", {
        "W x is added once for every LoRA: it belongs there once.": right + base,
        "W x is missing.": right - base,
        "this is the mean of the corrections; LoRAs add up.": base + sum(al * d for al, d in zip(alphas, each)) / 2,
        "the alphas have no effect: scale each correction by its own.": base + sum(each),
        "one alpha is used for all: each LoRA has its own.": base + alphas[0] * sum(each),
        "only the last LoRA acts.": base + alphas[1] * each[1], "only the first LoRA acts.": base + alphas[0] * each[0],
        "alpha is applied twice: use each once.": base + sum(al ** 2 * d for al, d in zip(alphas, each)),
        "one alpha has lost its sign: a LoRA may be subtracted.": base + sum(abs(al) * d for al, d in zip(alphas, each))})
    compare("y without LoRAs", answer(x.clone(), weight.clone(), []), base, "n out")


@exercise("amount of a LoRA's change", "the size of the correction beside the size of the weight, by Frobenius norms.")
def relative_change(answer: Callable[..., float]) -> None:
    """answer(weight, down, up, alpha) -> |alpha B A| / |W|, Frobenius norms, a number."""
    weight, down, up = _randn(5, 6, seed=1), _randn(2, 6, seed=2), _randn(5, 2, seed=3)
    delta = up @ down
    for alpha in (0.5, -1.0):
        size = delta.norm() / weight.norm()
        compare(f"the ratio for alpha = {alpha:g}", answer(weight.clone(), down.clone(), up.clone(), alpha),
                abs(alpha) * size, "", {
            "alpha has no effect on your ratio.": size, "a size is never negative: take |alpha|.": alpha * size,
            "that is the ratio of the squared norms.": (alpha * size) ** 2,
            "the norm of a product is not the product of the norms: multiply B A first.":
                abs(alpha) * up.norm() * down.norm() / weight.norm(),
            "the ratio is upside down.": 1 / (abs(alpha) * size)})

# ---- 07: animate anything

@exercise("noise of a seed", "each clip has a seed of its own, and can be drawn again alone.")
def noise_of_seeds(answer: Callable[..., Tensor]) -> None:
    """answer(seed, n, shape) -> standard normal noise of n clips, n c f h w, that of clip i from seed + i alone; shape c f h w."""
    def right(seed: int, n: int, shape: tuple[int, ...], step: int = 1) -> Tensor:
        return torch.stack([_randn(*shape, seed=seed + step * i) for i in range(n)])
    shape = (C, F, H, W)
    for seed in (5, 0):
        got = as_tensor("the noise", answer(seed, 2, shape))
        if got.min() >= 0:
            raise Wrong("the noise is never negative: it looks uniform (rand); it must be standard normal (randn).")
        compare(f"the noise of seed {seed}", got, right(seed, 2, shape), "clip c f h w", {
            "all clips are drawn by one generator: clip 1 depends on clip 0, and cannot be drawn again alone.":
                _randn(2, *shape, seed=seed),
            "all clips have the same noise: clip i has the seed seed + i.": right(seed, 2, shape, step=0),
            "the first clip has the seed itself, not seed + 1.": right(seed + 1, 2, shape)})
    if torch.equal(as_tensor("the noise", answer(5, 1, shape)), right(5, 1, shape).double()):
        return
    raise Wrong("clip 0 has other noise when it is drawn alone than when two clips are drawn.")


@exercise("a clip laid on its side", "time runs to the right, and what stands still draws horizontal lines.")
def time_slice(answer: Callable[[Tensor, int], Tensor]) -> None:
    """answer(video, column) -> that column of pixels of every frame, side by side, h f 3; video f h w 3, uint8."""
    video = (_randn(F, H, W, 3).sigmoid() * 255).to(torch.uint8)
    for column in (2, 0):
        compare("your picture", answer(video.clone(), column), video[:, :, column].transpose(0, 1), "h f c", {
            "time runs downwards: the columns must stand side by side, h first, then f.": video[:, :, column],
            "that is a row of pixels, not a column: axis 1 is h, axis 2 is w.": video[:, column].transpose(0, 1),
            "that is a row of pixels, and time runs downwards: take axis 2, then exchange the first two.": video[:, column],
            "the last frame comes first: time runs to the right.": video[:, :, column].transpose(0, 1).flip(1)})


@exercise("CLIP smoothness", "neighbouring frames, unit vectors, times 100: the paper's measure. A still has 100.")
def clip_smoothness(answer: Callable[[Tensor], float]) -> None:
    """answer(embeddings) -> 100 x mean cosine of each frame with the next; embeddings f d, of any length."""
    from animkit.metrics.clip_scores import smooth_score
    e = _randn(F, 6) + 2
    unit = e / e.norm(dim=-1, keepdim=True)
    pairs = unit @ unit.T
    compare("the smoothness", answer(e.clone()), torch.tensor(smooth_score(unit)), "", {
        "the embeddings are not of length 1: divide each by its length first.": 100 * (e[:-1] * e[1:]).sum(-1).mean(),
        "times 100 is missing.": pairs.diagonal(1).mean(),
        "that is the mean over all pairs of frames; take each with the next.": 100 * pairs.mean(),
        "you compared every frame with the first; compare each with the next.": 100 * pairs[0, 1:].mean(),
        "the products are not added over d: a cosine is a sum.": 100 * (unit[:-1] * unit[1:]).mean(),
        "there are f - 1 pairs of neighbours, not f.": 100 * pairs.diagonal(1).sum() / F})


# ---- 09: at full size

@exercise("numbers of a motion module", "the same as in the library's module, biases included.")
def module_numbers(answer: Callable[[int], int]) -> None:
    """answer(c) -> how many parameters a motion module of width c has (two attentions, positions apart)."""
    from animkit.motion_module import MotionModule
    for c in (32, 64):
        right = sum(p.numel() for p in MotionModule(c).parameters())
        compare(f"the number for c = {c}", answer(c), torch.tensor(right), "", {
            "one attention is missing: a block has two.": right - 4 * c * c - c - 2 * c,
            "one attention is missing (its norm is there): a block has two.": right - 4 * c * c - c,
            "q, k and v have no bias in the motion module.": right + 6 * c,
            "all biases and norms are missing.": 22 * c * c,
            "GEGLU's first layer has twice the inner width: c -> 8 c, then 4 c -> c.": right - 4 * c * c - 4 * c,
            "proj_in and proj_out are missing.": right - 2 * c * c - 2 * c,
            "the four norms are missing, 2 c each.": right - 8 * c})


@exercise("memory of a training", "a frozen number costs 2 bytes; a trained number costs eight times as much.")
def training_bytes(answer: Callable[[int, int], int]) -> None:
    """answer(frozen, trained) -> bytes for so many parameters: frozen in bfloat16; trained, their gradients and Adam's two
    averages in float32."""
    for a, b in ((860, 417), (1000, 30)):
        compare(f"the number of bytes for {a} frozen and {b} trained", answer(a, b), torch.tensor(2 * a + 16 * b), "", {
            "frozen numbers need no gradient and no averages of Adam.": 16 * a + 16 * b,
            "Adam keeps two averages for each trained number, 4 bytes each.": 2 * a + 8 * b,
            "4 bytes per trained number are missing: weight, gradient and two averages take 4 each.": 2 * a + 12 * b,
            "frozen weights are in bfloat16, 2 bytes each.": 4 * a + 16 * b})


@exercise("days of a training", "twice the GPUs, half the days: as long as data come fast enough.")
def gpu_days(answer: Callable[..., float]) -> None:
    """answer(clips, epochs, batch, gpus, seconds) -> days by the clock; batch: clips per GPU and step; seconds: per step."""
    clips, epochs, batch, gpus, seconds = 10_000_000, 3, 5, 7, 1.5  # different formulas give different numbers
    steps = clips * epochs / (batch * gpus)
    days = steps * seconds / 86400
    compare("the number of days", answer(clips, epochs, batch, gpus, seconds), torch.tensor(days, dtype=torch.float64), "", {
        "that is in seconds: a day has 86,400.": days * 86400, "that is in hours.": days * 24,
        "the batch is missing: a step takes `batch` clips on each GPU.": days * batch,
        "more GPUs must take less time: divide by their number.": days * gpus * gpus,
        "the epochs are missing: each clip is seen `epochs` times.": days / epochs,
        "those are GPU-days, the sum over all GPUs; by the clock it is less.": days * gpus})


__all__ = sorted(name for name, check in list(globals().items()) if hasattr(check, "exercise"))
