"""Tune-a-Video: attention and temporal layer by hand, what is trained, the inversion and its error, bad input."""
import gc
from functools import partial

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from einops import rearrange
from test_animator import make_motion, make_pipe

import animkit as ak
from animkit.sampling import sample
from animkit.baselines import TuneAVideo
from animkit.baselines.baseline import read_frames, transformer_blocks
from animkit.baselines.tune_a_video import Tuned, first_and_former
from tiny import clip_and_text, equal_states, shaken, tiny_sd2, tiny_unet, traces

FAST = dict(steps=4, progress=False)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def square(frames=3, size=32):
    """A bright square that goes to the right."""
    clip = np.full((frames, size, size, 3), 40, np.uint8)
    for k in range(frames):
        clip[k, 8:20, 4 + 4 * k:16 + 4 * k] = (220, 60, 60)
    return clip


@pytest.fixture(scope="module")
def tuned():
    own = make_pipe()
    animator = ak.Animator(own, make_motion(own.unet))
    return TuneAVideo(animator, square(), "a red bird", steps=12, lr=1e-3, progress=False)


# ---- the network


def by_hand(attention, x, memory):
    """softmax(Q K^T / sqrt d) V of one frame x n c, keys and values from memory m c."""
    q, k, v = attention.to_q(x), attention.to_k(memory), attention.to_v(memory)
    q, k, v = (rearrange(y, "n (heads d) -> heads n d", heads=attention.heads) for y in (q, k, v))
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    return attention.to_out[0](rearrange(weights @ v, "heads n d -> n (heads d)"))


def test_self_attention_is_sparse_causal():
    assert [first_and_former(i) for i in range(4)] == [(0, 0), (0, 0), (0, 1), (0, 2)]
    video_unet = ak.inflate(tiny_unet())
    read_frames(video_unet, first_and_former)
    seen = {}
    for path, block in transformer_blocks(video_unet):
        block.attn1.register_forward_hook(lambda m, args, y, path=path: seen.update({path: (m, args[0], y)}))
    x, text = clip_and_text(b=2, f=4)
    video_unet(x, 500, text)
    assert len(seen) == 4
    for attention, x, y in seen.values():
        x, y = (rearrange(z, "(b f) n c -> b f n c", f=4) for z in (x, y))
        for clip in range(2):
            for i in range(4):
                memory = torch.cat([x[clip, 0], x[clip, max(i - 1, 0)]])
                assert torch.allclose(y[clip, i], by_hand(attention, x[clip, i], memory), atol=1e-5)


@pytest.mark.parametrize("family", [tiny_unet, tiny_sd2])
def test_fresh_parts_change_nothing_and_the_temporal_one_is_the_formula(family):
    unet = family()
    video_unet, (x, text) = ak.inflate(unet), clip_and_text(b=2, f=3)
    before = video_unet(x, 500, text)
    image = unet(x[:, :, 0], 500, text).sample
    state, new = torch.get_rng_state(), Tuned(video_unet)
    assert torch.equal(torch.get_rng_state(), state), "your own random numbers go on as they would"
    new.attach(video_unet)
    assert torch.equal(video_unet(x, 500, text), before), "zero when fresh"
    shaken(new)
    assert not torch.allclose(video_unet(x, 500, text), before, atol=1e-2)
    assert torch.equal(unet(x[:, :, 0], 500, text).sample, image), "outside a VideoUNet it does nothing"

    path, block = transformer_blocks(video_unet)[0]
    attn_temp, norm = new.get_submodule(f"{path}.attn_temp"), new.get_submodule(f"{path}.norm_temp")
    seen = {}
    block.ff.register_forward_hook(lambda m, args, y: seen.update(ff=y))
    block.norm3.register_forward_hook(lambda m, args, y: seen.update(before_ff=args[0]))
    block.register_forward_hook(lambda m, args, y: seen.update(y=y))
    video_unet(x, 500, text)
    z, y = (rearrange(t, "(b f) n c -> b n f c", f=3) for t in (seen["before_ff"] + seen["ff"], seen["y"]))
    for clip in range(2):
        for place in (0, 17, 63):
            along = z[clip, place]                                                              # f c
            expected = along + by_hand(attn_temp, norm(along), norm(along))
            assert torch.allclose(y[clip, place], expected, atol=1e-5)


def test_a_change_of_query_is_the_tuned_weight_itself():
    """(W + change) x = W x + change x: the same network as one whose own W_Q were trained."""
    unet, (x, text) = tiny_unet(), clip_and_text(b=1, f=2)
    video_unet = ak.inflate(unet)
    new = Tuned(video_unet)
    for path in new.paths:
        new.get_submodule(path).weight.data.normal_(std=0.2)
    new.attach(video_unet)
    found = video_unet(x, 500, text)
    video_unet.deflate()
    for path in new.paths:
        unet.get_submodule(path).weight.data += new.get_submodule(path).weight
    assert torch.allclose(ak.inflate(unet)(x, 500, text), found, atol=1e-5)


# ---- what is trained


def test_the_trainable_set_is_the_papers():
    """The reference code: names that end in attn1.to_q, attn2.to_q or lie in attn_temp; its norm_temp stays."""
    video_unet = ak.inflate(tiny_unet())
    new = Tuned(video_unet)
    names = {id(p): name for name, p in new.named_parameters()}
    found = {names[id(p)] for p in new.trainable()}
    blocks = [path for path, _ in transformer_blocks(video_unet)]
    assert len(blocks) == 4 and found == {f"{block}.{end}" for block in blocks for end in (
        "attn1.to_q.weight", "attn2.to_q.weight", "attn_temp.to_q.weight", "attn_temp.to_k.weight",
        "attn_temp.to_v.weight", "attn_temp.to_out.0.weight", "attn_temp.to_out.0.bias")}
    sizes = {path: tuple(new.get_submodule(path).weight.shape) for path in new.paths}
    assert all(sizes[path] == tuple(video_unet.unet.get_submodule(path).weight.shape) for path in new.paths)


def test_tuning_learns_the_clip_and_leaves_the_base_as_it_was(tuned):
    assert len(tuned.history.losses) == 12 and tuned.history.ended == "finished"
    fresh = make_pipe()
    assert equal_states(tuned.pipe.unet.state_dict(), fresh.unet.state_dict())
    new, start = dict(tuned.tuned.named_parameters()), dict(Tuned(ak.inflate(fresh.unet)).named_parameters())
    moved = {name for name in new if not torch.equal(new[name], start[name])}
    assert moved == {name for name in new if ".norm_temp." not in name}
    assert not any(p.requires_grad for p in tuned.tuned.parameters())
    assert all(p.grad is None for p in tuned.pipe.unet.parameters()), "no gradient is kept for what stays"


def test_gradient_checkpointing_gives_the_same_gradients():
    """The layers are run again in backward, when the call's number of frames is no longer there to be read."""
    grads = []
    for checkpointing in (False, True):
        unet, (x, text) = tiny_unet().train(), clip_and_text(b=2, f=3)
        video_unet = ak.inflate(unet)
        read_frames(video_unet, first_and_former)
        new = shaken(Tuned(video_unet))
        new.attach(video_unet)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        video_unet(x, 500, text).square().mean().backward()
        grads.append([p.grad for p in new.trainable()])
    assert all(torch.allclose(plain, again, atol=1e-5) for plain, again in zip(*grads))
    assert all(g.abs().max() > 0 for g in grads[0])


def test_the_loss_falls_on_the_clip(tuned):
    """The denoising error on the clip, same noise and timesteps, with the parts and with fresh ones."""
    from animkit.training.losses import denoising_loss

    def error(video_unet):
        with torch.no_grad():
            return np.mean([float(denoising_loss(video_unet, tuned.z, tuned.text, torch.Generator().manual_seed(k),
                                                 scheduler=tuned.scheduler)) for k in range(6)])
    fresh = ak.inflate(make_pipe().unet)
    read_frames(fresh, first_and_former)
    assert error(tuned.video_unet) < error(fresh)


def test_a_killed_run_goes_on_and_each_source_has_its_own(tmp_path, monkeypatch):
    from animkit.baselines import tune_a_video as module
    own, loss, calls = make_pipe(), module.denoising_loss, []

    def killed(*args, **how):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return loss(*args, **how)

    def tune(caption, folder=tmp_path, steps=4):
        return TuneAVideo(own, square(), caption, steps=steps, lr=1e-3, folder=folder, progress=False)

    monkeypatch.setattr(module, "LoopConfig", partial(module.LoopConfig, checkpoint_seconds=0))
    straight = tune("a red bird", folder=None)
    monkeypatch.setattr(module, "denoising_loss", killed)
    with pytest.raises(RuntimeError, match="killed"):
        tune("a red bird")
    half = tune("a red bird")
    assert len(calls) == 3 + 2, "it went on after the second of four steps"
    assert equal_states(half.tuned.state_dict(), straight.tuned.state_dict())
    again = tune("a red bird")
    assert len(calls) == 5 and len(again.history.losses) == 4, "found, not trained again"
    assert equal_states(again.tuned.state_dict(), straight.tuned.state_dict())
    tune("a blue bird"), tune("a red bird", steps=2)
    assert len(calls) == 5 + 4 + 2 and len(list(tmp_path.iterdir())) == 3
    for k, part in enumerate((own.vae, own.text_encoder), 4):
        next(part.parameters()).data.add_(0.1)
        tune("a red bird", steps=2)
        assert len(list(tmp_path.iterdir())) == k, "another VAE codes the source otherwise, another encoder the caption"


# ---- inversion


def test_inversion_is_the_formula():
    """One step by hand, then many: the noise that a network predicts without looking at x comes off again exactly."""
    class Network:
        def __call__(self, x, t, text, added_cond_kwargs=None, **how):
            return torch.full_like(x, float(t) / 1000)

    method = object.__new__(TuneAVideo)  # only its inversion
    method.video_unet, method.empty = Network(), torch.zeros(1, 2, 3)
    method.z = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1)
    x, abar = method.z, scheduler.alphas_cumprod
    for now, then in ((0, 1), (1, 251), (251, 501), (501, 751)):  # 4 steps; x_0 has the first step's abar
        eps = then / 1000
        x = abar[then].sqrt() * (x - (1 - abar[now]).sqrt() * eps) / abar[now].sqrt() + (1 - abar[then]).sqrt() * eps
    found = method.invert(4, scheduler)
    assert torch.allclose(found, x, atol=1e-4)
    for steps in (4, 50):
        drawn = sample(Network(), method.invert(steps, scheduler), method.empty, scheduler, steps, guidance=1, progress=False)
        assert torch.allclose(drawn, method.z, atol=1e-3)


class Gaussian:
    """The right eps for data from a normal distribution, E[eps | x_t] = sqrt(1 - abar_t) x_t, as a network."""

    def __init__(self, scheduler):
        self.abar = scheduler.alphas_cumprod

    def __call__(self, x, t, text, **how):
        return (1 - self.abar[int(t)]).sqrt() * x


def test_the_reconstruction_error_falls_with_the_steps(tuned):
    network, errors = tuned.video_unet, []
    tuned.video_unet = Gaussian(tuned.scheduler)
    try:
        for steps in (10, 20, 40, 80):
            clip, error = tuned.reconstruct(steps)
            errors.append(error)
    finally:
        tuned.video_unet = network
    assert all(less < 0.6 * more for more, less in zip(errors, errors[1:])), f"twice the steps, half the error: {errors}"
    assert errors[-1] < 0.05
    with torch.no_grad():
        expected = tuned.pipe.vae.decode(tuned.z[0].transpose(0, 1) / 0.7).sample
    expected = ((expected / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(clip.array - expected).mean() < 1 and clip.array.shape == (3, 32, 32, 3)


def test_the_shipped_miniature_finds_its_source_again():
    """A trained base: far nearer than from noise (about 1.4, two pictures that have nothing in common)."""
    from animkit.world import Scene, Thing, render
    source = render(Scene((Thing("ball", "red", "walking"),), "sea"), 2).uint8
    method = TuneAVideo("miniature", source, "a red ball by the sea, walking", steps=1, progress=False)
    (_, few), (clip, more) = method.reconstruct(3), method.reconstruct(12)
    assert more < few and more < 0.7
    assert np.abs(clip.array.astype(int) - source).mean() < np.abs(clip.array[::-1, ::-1].astype(int) - source).mean()


# ---- drawing


def test_clips_start_from_the_source(tuned):
    clip = tuned("a blue bird", seed=1, **FAST)
    assert np.array_equal(clip, tuned("a blue bird", seed=2, **FAST)), "there is nothing to draw at random"
    assert not np.array_equal(clip, tuned("the sea", seed=1, **FAST))
    settings = clip.settings
    assert settings["method"] == "Tune-a-Video" and settings["source_caption"] == "a red bird"
    assert (settings["frames"], settings["guidance"], settings["tuning_steps"]) == (3, 12.5, 12)
    assert settings["noise"] == "the source's, inverted" and settings["alpha"] == {}
    x, text = tuned.invert(4), []
    tuned.inverted = False
    try:
        free = tuned("a blue bird", latents=x, **FAST)
        assert np.array_equal(free, clip), "the inverted latents are where it starts"
        assert not np.array_equal(tuned("a blue bird", seed=1, **FAST), tuned("a blue bird", seed=2, **FAST))
        assert tuned("a bird", frames=2, **FAST).settings["noise"] == "seed"
    finally:
        tuned.inverted = True


def test_the_animator_never_learns_of_it():
    own = make_pipe()
    animator = ak.Animator(own, make_motion(own.unet))
    before, clip = traces(own.unet), animator("a bird", frames=3, **FAST)
    method = TuneAVideo(animator, square(), "a red bird", steps=1, lr=1e-2, progress=False)
    assert np.array_equal(animator("a bird", frames=3, **FAST), clip)
    del method
    gc.collect()
    assert traces(own.unet) == before


def test_guidance_keeps_its_proportion_to_the_bases_own():
    animator = ak.Animator(make_pipe())
    animator.defaults["guidance"] = 5.0
    assert TuneAVideo(animator, square(2), "a bird", steps=1, progress=False).defaults["guidance"] == pytest.approx(12.5 / 1.5)


def test_a_base_in_bfloat16_is_tuned_in_float32():
    own = make_pipe().to(torch.bfloat16)
    method = TuneAVideo(own, square(2), "a bird", steps=2, lr=1e-2, progress=False)
    assert {p.dtype for p in method.tuned.parameters()} == {torch.float32} and own.unet.dtype == torch.bfloat16
    assert method("a bird", **FAST).array.shape == (2, 32, 32, 3)


@pytest.mark.parametrize("source, caption, options, said", [
    (square(size=20), "a bird", {}, "height is a multiple of 8"),
    (square().astype(float), "a bird", {}, "A clip's frames are uint8"),
    (square()[0], "a bird", {}, "A clip's frames are uint8"),
    (square(), "a bird", {"steps": 0}, "steps"),
    (square(), "a bird", {"lr": -1.0}, "lr"),
    (square(), 3, {}, "caption is a text"),
])
def test_bad_sources_are_refused(source, caption, options, said):
    with pytest.raises(ak.AnimkitError, match=said):
        TuneAVideo(make_pipe(), source, caption, progress=False, **options)


def test_unknown_words_in_the_caption_are_refused():
    animator = ak.Animator(make_pipe())
    animator.defaults["vocabulary"] = "closed"
    with pytest.raises(ak.AnimkitError, match="never learned 'zebra'"):
        TuneAVideo(animator, square(), "a zebra", progress=False)


@pytest.mark.parametrize("options, said", [
    ({"frames": 4}, "clips like its source, 3 frames of 32 x 32"),
    ({"height": 16}, "clips like its source, 3 frames of 32 x 32"),
    ({"latents": torch.zeros(1, 8, 3, 8, 8)}, "set .inverted = False"),
    ({"scheduler": diffusers.EulerDiscreteScheduler()}, "is defined for DDIM"),
    ({"guidance": -1}, "guidance"),
])
def test_bad_calls_are_refused(tuned, options, said):
    with pytest.raises(ak.AnimkitError, match=said):
        tuned("a bird", **{**FAST, **options})
