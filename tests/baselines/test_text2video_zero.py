"""Text2Video-Zero against diffusers' own pipeline on the same noise; which frames attention reads; the warp."""
import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.deprecated.text_to_video_synthesis import pipeline_text_to_video_zero as theirs
from test_animator import make_motion, make_pipe

import animkit as ak
from animkit.baselines import Text2VideoZero
from animkit.baselines.baseline import read_frames, transformer_blocks
from animkit.baselines.text2video_zero import first_frame, move, source
from tiny import FAMILIES, added, clip_and_text, traces


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


@pytest.fixture(scope="module")
def zero(pipe):
    return Text2VideoZero(pipe)


def last_of(method, prompt, **options):
    """The latents that a call ends in."""
    seen = []
    method(prompt, progress=False, callback=lambda step, t, x: seen.append((step, x)), **options)
    return seen[-1][1], [step for step, _ in seen]


@pytest.mark.filterwarnings("ignore:torch.meshgrid", "ignore:Default grid_sample")  # theirs
@pytest.mark.parametrize("x, y, how, first", [
    (12, 12, {"num_inference_steps": 50}, 2),                         # t1 = 47 steps before the end, 941; t0 = 44, 881
    (30, -7, {"num_inference_steps": 20, "t1": 19, "t0": 18}, 0)])    # 951 and 901: kept before its first step
def test_it_is_diffusers_own_pipeline_on_the_same_noise(pipe, zero, x, y, how, first):
    """All of it: frame 0 alone, the warp, the noise added again, cross-frame attention, guidance."""
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    reference = theirs.TextToVideoZeroPipeline(**parts, scheduler=zero.scheduler, safety_checker=None,
                                               feature_extractor=None, requires_safety_checker=False)
    reference.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = reference("a red bird", video_length=5, negative_prompt="the sea", latents=noise,
                         generator=torch.Generator().manual_seed(1), motion_field_strength_x=x,
                         motion_field_strength_y=y, output_type="latent", **how).images         # f c h w
    again = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(1))  # as its forward_loop draws it
    latents = torch.cat([noise, again])[None].transpose(1, 2)                                   # 1 c f h w
    zero.delta = (x, y)
    found, steps = last_of(zero, "a red bird", frames=5, steps=how["num_inference_steps"], negative_prompt="the sea",
                           guidance=7.5, latents=latents)
    assert found.std() > 0.1 and not torch.allclose(found[:, :, 0], found[:, :, 4], atol=0.1)
    assert torch.allclose(found[0].transpose(0, 1), expected, atol=2e-4)
    assert steps == list(range(first, how["num_inference_steps"])), "a callback sees the part that all frames are denoised in"


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_diffusers_processor_frame_by_frame(family):
    unet = FAMILIES[family]()
    x, text = clip_and_text(b=2, f=3)
    conditions = {"added_cond_kwargs": added(unet, 2)}
    zero = ak.inflate(unet)
    read_frames(zero, first_frame)
    found = zero(x, 500, text, **conditions)
    zero.deflate()
    plain = ak.inflate(unet)
    without = plain(x, 500, text, **conditions)
    plain.fold_text = False
    unet.set_attn_processor(theirs.CrossFrameAttnProcessor2_0(batch_size=2))
    expected = plain(x, 500, text, **conditions)
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, without, atol=1e-3)
    assert torch.allclose(found[:, :, 0], without[:, :, 0], atol=1e-5), "frame 0 reads itself, as ever"


def test_every_spatial_self_attention_reads_frame_0_of_the_same_half(zero):
    """What to_k is given, in a call of two clips with guidance: 4 clips of 3 frames."""
    seen = {}
    blocks = transformer_blocks(zero.video_unet)
    taps = [b.attn1.register_forward_pre_hook(lambda m, args, path=p: seen.setdefault(path, {}).update(q=args[0]))
            for p, b in blocks]
    taps += [b.attn1.to_k.register_forward_hook(lambda m, args, y, path=p: seen[path].update(k=args[0]))
             for p, b in blocks]
    try:
        zero(["a red bird", "the sea"], frames=3, steps=4, progress=False)
    finally:
        for tap in taps:
            tap.remove()
    assert len(seen) == len(blocks) == 4
    for each in seen.values():  # of the last step
        q, k = (t.unflatten(0, (4, 3)) for t in (each["q"], each["k"]))
        assert all(torch.equal(k[clip, i], q[clip, 0]) for clip in range(4) for i in range(3))
        assert not torch.equal(q[:, 0], q[:, 1]) and not torch.equal(q[0], q[1]), "or nothing was tested"


def test_the_image_unet_and_the_animator_never_learn_of_it():
    own = make_pipe()
    before = traces(own.unet)
    animator = ak.Animator(own, make_motion(own.unet))
    animated, clip = traces(own.unet), animator("a bird", frames=3, steps=2, progress=False)
    zero = Text2VideoZero(animator)
    drawn = zero("a bird", frames=3, steps=4, progress=False)
    assert np.array_equal(animator("a bird", frames=3, steps=2, progress=False), clip)
    assert not np.array_equal(drawn, clip)
    assert len(zero("a bird", frames=8, steps=4, progress=False)) == 8, "the motion module has only 6 positions"
    del zero
    assert traces(own.unet) == animated != before


@pytest.mark.parametrize("size", [4, 8, 16, 24, 64, 72])
def test_the_warp_is_that_of_diffusers_for_any_size(size):
    x = torch.arange(size * size * 2.0).reshape(1, 2, 1, size, size)
    for dx, dy in ((12, 12), (12, 0), (-5, 40), (100, -100)):
        expected = theirs.create_motion_field_and_warp_latents(dx, dy, list(range(1, 16)), x[:, :, 0].repeat(15, 1, 1, 1))
        found = torch.cat([move(x, k, (dx, dy)) for k in range(1, 16)])[:, :, 0]
        assert torch.equal(found, expected)


def test_the_warp_on_a_known_grid():
    """At Stable Diffusion's 64 latents 12 pixels are 1.5 of them: 1.44, 2.94, 4.44 once the half pixel is off."""
    assert [int(source(64, 12 * k)[0]) for k in range(5)] == [0, 1, 3, 4, 6]
    assert source(8, 64).tolist() == [1, 2, 3, 4, 5, 6, 7, 7], "an eighth of the picture, mirrored at the end"
    assert source(8, -128).tolist() == [1, 0, 0, 1, 2, 3, 4, 5]
    grid = torch.arange(64.0).reshape(1, 1, 1, 8, 8)
    assert torch.equal(move(grid, 0, (12, 12)), grid)
    moved = move(grid, 2, (64, 32))[0, 0, 0]  # two frames on: 2 to the right, 1 down
    assert torch.equal(moved[:7, :6], grid[0, 0, 0, 1:, 2:]) and torch.equal(moved[7], moved[6])
    assert torch.equal(moved[:, 6], grid[0, 0, 0, [1, 2, 3, 4, 5, 6, 7, 7], 7])


def test_times_fall_on_the_nearest_steps(zero):
    scheduler = zero.scheduler
    for steps, times in ((50, [881, 941]), (25, [881, 961]), (20, [901, 951]), (10, [801, 901]), (2, [1, 501])):
        high, low, a = zero.places(scheduler, steps)
        again = type(scheduler).from_config(scheduler.config)
        again.set_timesteps(steps)
        t_low, t_high = int(again.timesteps[low]), int(again.timesteps[high])
        assert [t_low, t_high] == times
        abar = scheduler.alphas_cumprod
        assert a == pytest.approx(float(abar[t_high - 1] / abar[t_low - 1]), rel=1e-4)
    with pytest.raises(ak.AnimkitError, match="needs a step after the one at 941; of 1 there is none"):
        zero("a bird", frames=2, steps=1, progress=False)


def test_its_ddim_is_evenly_spaced_and_clips_nothing_whatever_the_base_has():
    own = diffusers.DDIMScheduler(timestep_spacing="trailing", beta_schedule="scaled_linear", clip_sample=True)
    config = Text2VideoZero(make_pipe(scheduler=own)).scheduler.config
    assert (config.timestep_spacing, config.clip_sample, config.beta_schedule) == ("leading", False, "scaled_linear")


def test_a_call_is_an_animators(zero):
    options = dict(frames=3, steps=4, progress=False)
    together = zero(["a red bird", "the blue sea"], seed=4, **options)
    assert [(c.prompt, c.settings["seed"]) for c in together] == [("a red bird", 4), ("the blue sea", 5)]
    for clip in together:
        alone = zero(clip.prompt, seed=clip.settings["seed"], **options)
        assert np.abs(alone.array.astype(int) - clip.array).max() <= 1
    settings = together[0].settings
    assert settings["method"] == "Text2Video-Zero" and settings["scheduler_config"]["beta_schedule"] == "scaled_linear"
    assert settings["delta"] == zero.delta and settings["times"] == (881, 941)
    one = zero("a bird", frames=1, steps=4, guidance=1.0, progress=False)
    assert len(one) == 1 and zero.defaults["steps"] == 50


@pytest.mark.parametrize("options, said", [
    ({"scheduler": diffusers.EulerDiscreteScheduler()}, "is defined for DDIM: .* got EulerDiscreteScheduler"),
    ({"control": np.zeros((3, 32, 32, 3), np.uint8)}, "takes no control"),
    ({"frames": 0}, "frames .* got 0"),
    ({"height": 20}, "height is a multiple of 8"),
])
def test_bad_calls_are_refused(zero, options, said):
    with pytest.raises(ak.AnimkitError, match=said):
        zero(**{"prompt": "a bird", "frames": 3, "steps": 4, "progress": False, **options})


@pytest.mark.parametrize("options, said", [({"delta": 12}, "delta is two numbers"),
                                           ({"delta": (1, float("nan"))}, "delta is two numbers"),
                                           ({"times": (941, 881)}, "the smaller first"),
                                           ({"times": (0, 881)}, "two timesteps")])
def test_bad_settings_are_refused(pipe, options, said):
    with pytest.raises(ak.AnimkitError, match=said):
        Text2VideoZero(pipe, **options)
