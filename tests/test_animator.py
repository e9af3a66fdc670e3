"""Section 4.4: the animator against diffusers' own pipeline; what it promises about noise, batches and bad input."""
import copy
import json
import logging
import re
import shutil
import warnings
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import animkit as ak
from animkit.base import check_size, decode
from animkit.look import new_look
from animkit.opening import open_base
from animkit.prompts import as_read, check_prompt, encode_text
from animkit.sampling import check_steps, sample
from tiny import shaken

WORDS = "a red blue green balloon bird house over the sea rising falling".split()
STEPS = 3


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def logged(caplog, monkeypatch):
    """What the libraries log; they write it to where stderr was when they were imported, which capfd does not see."""
    for library in ("diffusers", "transformers"):
        monkeypatch.setattr(logging.getLogger(library), "propagate", True)
    return caplog


def make_tokenizer():
    """A CLIP tokenizer whose whole English is WORDS: each word is merged from its letters, one by one."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [",", "!", "'"]
    vocab = {piece: i for i, piece in enumerate(letters + [c + "</w>" for c in letters])}
    merges = []

    def pieces_of(word):
        pieces = [*word[:-1], word[-1] + "</w>"]
        for pair in merges:
            places = [i for i in range(len(pieces) - 1) if (pieces[i], pieces[i + 1]) == pair]
            for i in reversed(places):
                pieces[i:i + 2] = ["".join(pair)]
        return pieces

    for word in WORDS:
        while len(pieces := pieces_of(word)) > 1:
            merges.append((pieces[0], pieces[1]))
            vocab.setdefault(pieces[0] + pieces[1], len(vocab))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=12)


def make_pipe(seed=0, scheduler=None):
    """A Stable Diffusion of toy size with random weights: VAE f4 with 8 channels, as the miniature's."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, projection_dim=32, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=8, out_channels=8, block_out_channels=(32, 64), layers_per_block=1,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2)
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 32), layers_per_block=1, latent_channels=8, norm_num_groups=8, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, scaling_factor=0.7)
    own = scheduler or diffusers.PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                               steps_offset=1, skip_prk_steps=True)
    pipe = StableDiffusionPipeline(vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=own,
                                   safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    for part in (vae, unet, text):
        part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


@pytest.fixture(scope="module")
def still(pipe):
    """No motion module."""
    return ak.Animator(pipe)


def make_motion(unet, seed=1):
    """A motion module that has an effect: fresh ones are the identity."""
    modules = ak.MotionModules.for_unet(unet, positions=6)
    generator = torch.Generator().manual_seed(seed)
    for name, p in modules.named_parameters():
        if "proj_out" in name:
            p.data = torch.randn(p.shape, generator=generator) * 0.1
    return modules


@pytest.fixture(scope="module")
def moving():
    own = make_pipe()
    return ak.Animator(own, make_motion(own.unet))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "toy"
    make_pipe().save_pretrained(path)
    return path


# ---- equality with diffusers


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("scheduler", [
    "own", "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler", "LCMScheduler", "TCDScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"])
def test_one_frame_is_the_image_pipeline(pipe, still, scheduler, guidance):
    own = pipe.scheduler
    chosen = own if scheduler == "own" else getattr(diffusers, scheduler).from_config(own.config)
    pipe.scheduler = chosen
    try:
        expected = pipe("a red balloon", negative_prompt="the sea", num_inference_steps=STEPS, guidance_scale=guidance,
                        generator=torch.Generator().manual_seed(5), output_type="np").images[0]
    finally:
        pipe.scheduler = own
    clip = still("a red balloon", frames=1, seed=5, negative_prompt="the sea", steps=STEPS, guidance=guidance,
                 progress=False, scheduler=None if scheduler == "own" else chosen)
    assert expected.std() > 0.01  # a picture, not a flat field on which everything agrees
    assert np.abs(clip.array[0] / 255 - expected).max() <= 0.5 / 255 + 1e-5


def test_latents_are_the_image_pipelines_too(pipe, still):
    noise = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = pipe("a bird", num_inference_steps=STEPS, latents=noise, output_type="latent").images
    seen = []
    still("a bird", frames=1, steps=STEPS, guidance=7.5, latents=noise[:, :, None], progress=False,
          callback=lambda step, t, x: seen.append(x))
    assert torch.allclose(seen[-1][:, :, 0], expected, atol=1e-5)


def test_frames_without_motion_are_pictures_each_alone(pipe, still):
    """Inflated and without motion module, frame i is what the image model draws from frame i's noise."""
    noise = torch.randn(1, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    clip = still("a bird", frames=3, steps=STEPS, latents=noise, progress=False)
    for i in range(3):
        one = pipe("a bird", num_inference_steps=STEPS, latents=noise[:, :, i], output_type="np").images[0]
        assert np.abs(clip.array[i] / 255 - one).max() <= 0.5 / 255 + 1e-5


# ---- noise, batches, seeds


def close(a, b):
    """Equal up to the rounding of one level: a batch may add its numbers in another order."""
    return np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1


@pytest.mark.parametrize("scheduler", [None, diffusers.EulerAncestralDiscreteScheduler()])
def test_every_clip_of_a_batch_can_be_made_alone(moving, scheduler):
    options = dict(frames=3, steps=STEPS, progress=False, negative_prompt="green", scheduler=scheduler)
    together = moving(["a red bird", "the blue sea"], seed=4, clips_per_prompt=2, **options)
    assert [(c.prompt, c.settings["seed"]) for c in together] == [
        ("a red bird", 4), ("a red bird", 5), ("the blue sea", 6), ("the blue sea", 7)]
    for clip in together:
        assert close(clip, moving(clip.prompt, seed=clip.settings["seed"], **options))
    assert not close(together[0], together[1])


def test_settings_make_the_clip_again(moving):
    clip = moving("a red balloon", frames=2, seed=3, steps=2, guidance=3.0, height=16, width=24, negative_prompt="sea",
                  fps=5, progress=False)
    s = json.loads(json.dumps(clip.settings))  # as they come back from a file
    scheduler = getattr(diffusers, s["scheduler"]).from_config(s["scheduler_config"])
    options = ("frames", "seed", "steps", "guidance", "height", "width", "negative_prompt")
    again = moving(clip.prompt, **{option: s[option] for option in options}, scheduler=scheduler, progress=False)
    assert np.array_equal(again, clip) and clip.array.shape == (2, 16, 24, 3) and clip.fps == 5
    assert again.settings["scheduler_config"] == s["scheduler_config"]
    other = moving(clip.prompt, **{option: s[option] for option in options} | {"seed": 4}, progress=False)
    assert not np.array_equal(again, other)


def test_numpys_whole_numbers_are_numbers(moving):
    clip = moving("a bird", frames=np.int64(2), seed=np.int64(11), steps=np.int64(2), progress=False)
    assert np.array_equal(clip, moving("a bird", frames=2, seed=11, steps=2, progress=False))
    assert all(type(clip.settings[name]) is int for name in ("frames", "seed", "steps"))


def test_the_noise_is_drawn_on_the_cpu_as_documented(moving):
    noise = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(11))[None]
    options = dict(frames=3, steps=STEPS, progress=False)
    assert np.array_equal(moving("a bird", seed=11, **options), moving("a bird", seed=0, latents=noise, **options))
    options["scheduler"] = diffusers.EulerAncestralDiscreteScheduler.from_config(moving.scheduler.config)
    assert np.array_equal(moving("a bird", seed=11, **options), moving("a bird", seed=11, latents=noise, **options)), \
        "fresh noise is not the noise that the clip began with once more"


# ---- the scheduler


def test_motion_is_sampled_with_linear_betas(still, moving):
    assert still.scheduler is still.pipe.scheduler
    ddim = moving.scheduler
    assert isinstance(ddim, DDIMScheduler) and ddim.config.beta_schedule == "linear" and not ddim.config.clip_sample
    assert torch.allclose(ddim.betas, torch.linspace(0.00085, 0.012, 1000))
    assert ddim.config.steps_offset == moving.pipe.scheduler.config.steps_offset == 1
    own = SimpleNamespace(scheduler=DDIMScheduler(trained_betas=[0.5] * 9))
    trained = SimpleNamespace(pipe=own, video_unet=moving.video_unet)
    assert ak.Animator.scheduler.fget(trained).betas[0] == DDIMScheduler().betas[0], "betas of the base's own do not stay"
    clip = moving("a bird", frames=2, steps=2, progress=False)
    assert clip.settings["scheduler"] == "DDIMScheduler"
    assert clip.settings["scheduler_config"]["beta_schedule"] == "linear"


def test_a_sampler_on_the_base_s_betas_is_warned_of_with_motion_alone(moving, still):
    kind, options = diffusers.EulerDiscreteScheduler, dict(frames=2, steps=1, progress=False)
    own = kind.from_config(moving.pipe.scheduler.config)
    with pytest.warns(UserWarning, match=r"EulerDiscreteScheduler.from_config\(animator") as told:
        moving("a bird", scheduler=own, **options)
    assert [one.filename for one in told if one.category is UserWarning] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        still("a bird", scheduler=own, **options)


def test_noise_of_a_sampler_s_own_is_the_seed_s(moving):
    """DPMSolverSDEScheduler takes no generators."""
    seeds = []

    class Own(diffusers.EulerDiscreteScheduler):
        noise_sampler_seed = None

        def step(self, model_output, timestep, sample, **how):
            seeds.append(self.noise_sampler_seed)
            return super().step(model_output, timestep, sample, **how)
    moving(["a bird"] * 2, frames=2, steps=1, seed=4, scheduler=Own(), progress=False)
    assert seeds == [[4, 5]]


def test_a_call_leaves_the_scheduler_fresh(moving):
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True)
    first = moving("a bird", frames=2, steps=4, scheduler=scheduler, progress=False)
    assert scheduler.num_inference_steps is None
    assert np.array_equal(first, moving("a bird", frames=2, steps=4, scheduler=scheduler, progress=False))


def test_guidance_is_the_formula():
    """eps(x, negative) + g (eps(x, text) - eps(x, negative)), worked by hand for the simplest network and scheduler."""
    class Network:
        def __call__(self, x, t, text, added_cond_kwargs=None):
            return text.mean((1, 2))[:, None, None, None, None].expand_as(x)

    class Subtract:
        init_noise_sigma, timesteps = 2.0, torch.tensor([3, 2, 1])
        def set_timesteps(self, steps, device): pass
        def scale_model_input(self, x, t): return x
        def step(self, eps, t, x, return_dict): return (x - eps,)

    x = torch.ones(1, 1, 2, 1, 1)
    text = torch.stack([torch.full((3, 2), 0.25), torch.full((3, 2), 1.0)])
    guided = sample(Network(), x, text, Subtract(), guidance=4.0, progress=False)
    assert torch.allclose(guided, 2 - 3 * (0.25 + 4 * 0.75) * x)
    assert torch.allclose(sample(Network(), x, text[1:], Subtract(), guidance=1.0, progress=False), 2 - 3 * x)


class OneStep:
    """A scheduler whose step gives eps back, so that `sample` returns what it asked the network for."""
    init_noise_sigma, timesteps = 1.0, torch.tensor([300])
    config = SimpleNamespace(num_train_timesteps=600)
    def set_timesteps(self, steps, device): pass
    def scale_model_input(self, x, t): return x
    def step(self, eps, t, x, return_dict): return (eps,)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_guided_parts_are_conditions_with_weights_of_their_own(guidance):
    """The formula of `towards`, term by term, from the video UNet itself; two parts guided and a third in place as ever."""
    animator = ak.Animator(make_pipe(), make_motion(make_pipe().unet))
    for seed, (name, alpha) in enumerate({"left": 0.7, "in": -1.2, "ink": 0.5}.items()):
        lora = ak.LoRA.for_module(animator.pipe.unet, ["to_q", "to_v"], rank=2) if name == "ink" else \
            ak.new_motion_lora(animator.video_unet.motion, 2)
        animator.insert(shaken(lora, seed, 0.5), alpha=alpha, name=name)
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 8, 3, 8, 8, generator=g), torch.tensor(300)
    text = torch.randn(2 * 2 if guidance > 1 else 2, 12, 32, generator=g)
    found = sample(animator.video_unet, x, text, OneStep(), guidance=guidance, guided={"left": 4, "in": -2}, progress=False)
    assert dict(animator.alpha) == {"motion": 1, "left": 0.7, "in": -1.2, "ink": 0.5}

    def alone(words, **alphas):
        for name, alpha in ({"left": 0, "in": 0} | alphas).items():
            animator.alpha[name] = alpha
        return animator.video_unet(x, t, words)

    negative, positive = alone(text[:2]), alone(text[-2:])
    left, nearer = alone(text[-2:], **{"left": 0.7}), alone(text[-2:], **{"in": -1.2})
    expected = negative + guidance * (positive - negative) if guidance > 1 else positive
    expected = expected + 4 * (left - positive) - 2 * (nearer - positive)
    assert (left - positive).abs().max() > 0.01 and torch.allclose(found, expected, atol=1e-4)


def test_a_guided_part_is_steered_by_a_control_as_the_rest_is():
    """A control that answers by the rows it is given: the guided half meets its own rows' steering, and their text's."""
    seen = []

    def control(x, t, text, added):
        seen.append((len(x), float(text[0, 0, 0])))
        return {"steer": len(x)}

    class Network:
        alpha = {"pan": 1.0}
        def __call__(self, x, t, text, added_cond_kwargs=None, steer=None):
            assert steer == len(x) == len(text) == len(added_cond_kwargs["sizes"]) and added_cond_kwargs["sizes"][-1, 1] == 1
            return self.alpha["pan"] * text.mean((1, 2))[:, None, None, None, None].expand_as(x)

    x, text = torch.ones(1, 1, 2, 1, 1), torch.stack([torch.full((3, 2), 0.25), torch.full((3, 2), 1.0)])
    found = sample(Network(), x, text, OneStep(), guidance=4.0, guided={"pan": 5.0}, added={"sizes": torch.eye(2)},
                   control=control, progress=False)
    assert torch.allclose(found, torch.full_like(x, 5.0)) and seen == [(2, 0.25), (1, 1.0)]


@torch.no_grad()
def test_below_its_share_of_the_timesteps_a_guided_part_acts_as_ever():
    """At t = 300 of 600: guided until 0.49 it is guided, until 0.5 it is what it is without a word of it."""
    animator = ak.Animator(make_pipe(), make_motion(make_pipe().unet))
    animator.insert(shaken(ak.new_motion_lora(animator.video_unet.motion, 2)), name="pan")
    g = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 8, 3, 8, 8, generator=g), torch.randn(2, 12, 32, generator=g)
    plain, over, under, whole = (sample(animator.video_unet, x, text, OneStep(), guidance=3.0, progress=False, **how) for how in
                                 ({}, {"guided": {"pan": 6}, "guided_until": 0.5}, {"guided": {"pan": 6}, "guided_until": 0.49},
                                  {"guided": {"pan": 6}, "guided_until": 0}))
    assert torch.equal(plain, over) and torch.equal(under, whole) and (under - over).abs().max() > 0.01


def test_guided_leaves_alphas_and_settings_as_they_should_be():
    animator = ak.Animator(make_pipe(), make_motion(make_pipe().unet))
    animator.insert(shaken(ak.new_motion_lora(animator.video_unet.motion, 2)), alpha=0.5, name="pan")
    options = dict(frames=2, steps=STEPS, guidance=3.0, progress=False)
    plain, none, drawn = (animator("a bird", **options, guided=guided) for guided in (None, {}, {"pan": 6}))
    assert np.array_equal(plain, none) and not close(plain, drawn)
    assert drawn.settings["guided"] == {"pan": 6.0} and "guided" not in plain.settings
    assert drawn.settings["guided_until"] == 0.3
    animator.alpha["pan"] = 0
    still, idle = (animator("a bird", **options, guided=guided) for guided in (None, {"pan": 6}))
    assert np.array_equal(still, idle) and "guided" not in idle.settings, "what does not act is not guided towards"
    animator.alpha["pan"] = 0.5
    again = animator("a bird", **options, guided={"pan": 6}, clips_per_prompt=2)[0]
    assert close(drawn, again)

    def stop(step, t, x):
        raise KeyboardInterrupt

    animator.video_unet.unet.register_forward_hook(lambda *args: stop(*args))
    with pytest.raises(KeyboardInterrupt):
        animator("a bird", **options, guided={"pan": 6})
    assert animator.alpha["pan"] == 0.5


@torch.no_grad()
def test_below_its_share_of_the_timesteps_an_eased_part_has_less_of_its_alpha():
    """At t = 300 of 600: eased below 0.5 it acts with its share, in `towards` as well; below 0.49 it acts as ever."""
    animator = ak.Animator(make_pipe(), make_motion(make_pipe().unet))
    animator.insert(shaken(ak.new_motion_lora(animator.video_unet.motion, 2), 0, 0.5), alpha=0.8, name="pan")
    g = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 8, 3, 8, 8, generator=g), torch.randn(2, 12, 32, generator=g)

    def drawn(motion=1.0, pan=0.8, **how):
        animator.alpha["motion"], animator.alpha["pan"] = motion, pan
        try:
            return sample(animator.video_unet, x, text, OneStep(), guidance=3.0, progress=False, **how)
        finally:
            assert dict(animator.alpha) == {"motion": motion, "pan": pan}

    eased = {"motion": 0.25, "pan": 0.5}
    plain, now, later = drawn(), drawn(eased=eased, eased_below=0.5), drawn(eased=eased, eased_below=0.49)
    assert torch.equal(plain, later) and (plain - now).abs().max() > 0.01
    assert torch.equal(now, drawn(motion=0.25, pan=0.4))
    both = drawn(guided={"pan": 6}, eased=eased)
    assert torch.equal(both, drawn(motion=0.25, pan=0.4, guided={"pan": 6})) and (both - now).abs().max() > 0.01


def test_eased_acts_in_the_last_steps_alone_and_is_told():
    animator = ak.Animator(make_pipe(), make_motion(make_pipe().unet))
    options = dict(frames=2, steps=4, guidance=3.0, progress=False)
    plain, none, eased = (animator("a bird", **options, eased=each) for each in (None, {}, {"motion": 0}))
    assert np.array_equal(plain, none) and not close(plain, eased)
    assert eased.settings["eased"] == {"motion": 0.0} and eased.settings["eased_below"] == 0.5
    assert "eased" not in plain.settings and animator.alpha["motion"] == 1
    by_hand = animator("a bird", **options, callback=lambda step, t, x: animator.alpha.__setitem__("motion", float(step < 1)))
    assert np.array_equal(by_hand, eased), "two of the four steps lie above half of the timesteps"


def test_steps_in_two_parts_are_the_same_steps():
    def network(x, t, text, added_cond_kwargs=None):
        return 0.1 * x
    how = dict(text=None, scheduler=diffusers.EulerDiscreteScheduler(), steps=4, guidance=1.0, progress=False)
    x = torch.ones(1, 1, 2, 1, 1)
    whole, begun = sample(network, x, **how), sample(network, x, **how, part=slice(0, 2))
    assert torch.equal(sample(network, begun, **how, part=slice(2, None)), whole)


def test_the_size_of_a_base_that_is_not_square():
    unet = SimpleNamespace(config=SimpleNamespace(sample_size=[8, 16], block_out_channels=(32, 64)))
    assert check_size(SimpleNamespace(vae_scale_factor=4, unet=unet), {}, None, None) == (32, 64)


def test_callback_sees_each_step(moving):
    seen = []
    moving("a bird", frames=2, steps=4, progress=False,
           callback=lambda step, t, x: seen.append((step, int(t), x.shape)))
    assert [s for s, _, _ in seen] == [0, 1, 2, 3] and {shape for _, _, shape in seen} == {(1, 8, 2, 8, 8)}
    assert [t for _, t, _ in seen] == sorted((t for _, t, _ in seen), reverse=True)


def test_progress_says_the_device(moving, capsys):
    moving("a bird", frames=2, steps=2)
    assert "2 frames on cpu" in capsys.readouterr().err
    moving("a bird", frames=2, steps=2, progress=False)
    assert "frames on" not in capsys.readouterr().err


def test_decoding_in_slices_is_decoding_at_once():
    pipe = make_pipe()
    pipe.vae.register_to_config(shift_factor=0.3)
    latents = torch.randn(2, 8, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    at_once = decode(pipe.vae, latents, frames_at_once=100)
    assert at_once.shape == (2, 5, 16, 16, 3) and at_once.dtype == torch.uint8
    assert close(at_once, decode(pipe.vae, latents, frames_at_once=3))
    with torch.no_grad():
        one = pipe.vae.decode(latents[1, :, 2][None] / 0.7 + 0.3).sample[0].permute(1, 2, 0)
    assert close(at_once[1, 2], ((one / 2 + 0.5).clamp(0, 1) * 255).round())


# ---- what is inserted


def test_motion_goes_in_and_out_without_a_trace():
    animator = ak.Animator(make_pipe())
    options = dict(frames=3, steps=STEPS, progress=False)
    before = animator("a bird", **options)
    motion = make_motion(animator.pipe.unet)
    name = animator.insert(motion)
    within = animator("a bird", **options)
    assert not close(before, within)
    animator.remove(name)
    assert np.array_equal(before, animator("a bird", **options))


def test_a_look_by_alpha():
    animator = ak.Animator(make_pipe())
    look = ak.LoRA.for_module(animator.pipe.unet, ["to_q", "to_v"], rank=4)
    for p in look.parameters():
        p.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    options = dict(frames=2, steps=STEPS, progress=False)
    plain = animator("a bird", **options)
    assert animator.insert(look, alpha=0.8, name="ink") == "ink"
    strong = animator("a bird", **options)
    animator.alpha["ink"] = 0.0
    assert not close(plain, strong) and strong.settings["alpha"] == {"ink": 0.8}
    assert np.array_equal(plain, animator("a bird", **options))
    animator.remove("ink")
    for call in (lambda: animator.remove("ink"), lambda: animator.alpha.__setitem__("ink", 1.0)):
        with pytest.raises(ak.AnimkitError, match="ink"):
            call()


def test_a_look_for_unet_and_text_encoder_follows_alpha_in_both(tmp_path):
    """kohya naming: the effective scale is alpha / rank; half of such a look is in the text encoder."""
    animator = ak.Animator(make_pipe())
    generator, weights = torch.Generator().manual_seed(0), {}
    places = {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q": (64, 64),
              "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (32, 32),
              "lora_te_text_model_encoder_layers_1_mlp_fc1": (64, 32)}
    for name, (rows, columns) in places.items():
        weights[f"{name}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
        weights[f"{name}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
        weights[f"{name}.alpha"] = torch.tensor(1.0)
    save_file(weights, tmp_path / "ink.safetensors")
    text_encoder = animator.pipe.text_encoder
    linear = next(m for n, m in text_encoder.named_modules() if n.endswith("layers.0.self_attn.q_proj"))
    x = torch.randn(1, 32, generator=generator)
    before = linear(x)
    delta = x @ (weights["lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"]
                 @ weights["lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"]).T / 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert animator.insert(ak.open_checkpoint(tmp_path / "ink.safetensors"), alpha=0.8) == "ink"
    assert torch.allclose(linear(x), before + 0.8 * delta, atol=1e-5)
    animator.alpha["ink"] = 0.25
    assert torch.allclose(linear(x), before + 0.25 * delta, atol=1e-5) and animator.video_unet.alpha["ink"] == 0.25
    animator.remove("ink")
    assert torch.equal(linear(x), before) and dict(animator.alpha) == {}
    animator.insert(tmp_path / "ink.safetensors", name="again")
    assert torch.allclose(linear(x), before + delta, atol=1e-5)
    del animator  # the pipeline was held: nothing of the look stays in it
    assert torch.equal(linear(x), before)


def test_an_unknown_look_lists_the_known(tmp_path, monkeypatch):
    from animkit import samples
    (tmp_path / "looks").mkdir()
    (tmp_path / "looks" / "ink.safetensors").touch()
    monkeypatch.setattr(samples, "root", lambda: tmp_path)
    animator = ak.Animator(make_pipe())
    with pytest.raises(ak.AnimkitError, match=r"'inc' is neither a file .* did you mean 'ink'\? \(looks: ink\)"):
        animator.insert("inc")


# ---- from files


def test_a_unet_alone_is_no_base(tmp_path, still):
    """Whole single files in the original naming: tests/checkpoints."""
    save_file(still.pipe.unet.state_dict(), tmp_path / "unet.safetensors")
    with pytest.raises(ak.AnimkitError, match="unet.safetensors"):
        ak.Animator(tmp_path / "unet.safetensors", device="cpu")


def test_a_folder_draws_what_its_pipeline_draws(folder, still):
    animator = ak.Animator(folder, device="cpu")
    options = dict(frames=2, steps=STEPS, seed=2, progress=False)
    assert close(animator("a bird", **options), still("a bird", **options))
    assert [animator.defaults[k] for k in ("steps", "guidance", "frames")] == [25, 7.5, 16]


def test_animkit_json_sets_defaults_and_brings_the_motion_module(folder, tmp_path):
    base = shutil.copytree(folder, tmp_path / "toy")
    (base / "animkit.json").write_text(json.dumps({"steps": 2, "guidance": 3.0, "frames": 4, "height": 16, "fps": 6}))
    clip = ak.Animator(base, device="cpu")("a bird", progress=False)
    assert clip.array.shape == (4, 16, 32, 3) and clip.fps == 6
    assert (clip.settings["steps"], clip.settings["guidance"]) == (2, 3.0)
    assert clip.settings["scheduler"] == "PNDMScheduler"
    make_motion(make_pipe().unet).save_pretrained(tmp_path / "motion_module")
    animator = ak.Animator(base, device="cpu")
    assert animator.video_unet.motion.positions == 6 and dict(animator.alpha) == {"motion": 1.0}
    assert ak.Animator(base, motion=False, device="cpu").video_unet.motion is None
    (base / "animkit.json").unlink()
    assert ak.Animator(base, device="cpu").video_unet.motion is None, "that beside another's base is not its own"
    for text in ("{steps", "[25]"):
        (base / "animkit.json").write_text(text)
        with pytest.raises(ak.AnimkitError, match="animkit.json' is not JSON"):
            ak.Animator(base)


def damage_truncated(base):
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def damage_missing_tensors(base, part="unet", name="diffusion_pytorch_model.safetensors"):
    weights = load_file(base / part / name)
    weights.pop(sorted(weights)[0])
    save_file(weights, base / part / name, metadata={"format": "pt"})


def damage_text_encoder(base):
    damage_missing_tensors(base, "text_encoder", "model.safetensors")


def damage_shape(base):
    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    key = sorted(weights)[0]
    weights[key] = weights[key].new_zeros(3)
    save_file(weights, file, metadata={"format": "pt"})


def damage_config(base):
    (base / "unet" / "config.json").write_text("{")


def damage_no_file(base):
    (base / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def renamed(part, name, change):
    """Damage: the tensors of a part's file go by other names, as DDP and torch.compile write them."""
    def damage(base):
        weights = load_file(base / part / name)
        save_file({change(key): t for key, t in weights.items()}, base / part / name, metadata={"format": "pt"})
    return damage


def damage_a_gap_that_counting_misses(base):
    """Files of older libraries hold one more tensor, of positions, which could make up for a missing one."""
    file = base / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    weights.pop(sorted(weights)[-1])
    save_file(weights | {"text_model.embeddings.position_ids": torch.arange(12)}, file, metadata={"format": "pt"})


def as_bin(part, old, new, gone):
    """Damage: a part as a pickle, as old folders have it, without its first `gone` tensors."""
    def damage(base):
        weights = load_file(base / part / old)
        (base / part / old).unlink()
        torch.save({key: weights[key] for key in sorted(weights)[gone:]}, base / part / new)
    return damage


UNET, TEXT = ("unet", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")


@pytest.mark.parametrize("damage", [
    damage_truncated, damage_missing_tensors, damage_text_encoder, damage_shape, damage_config, damage_no_file,
    damage_a_gap_that_counting_misses, renamed(*UNET, "module.{}".format), renamed(*TEXT, "module.{}".format),
    renamed(*TEXT, "_orig_mod.{}".format), as_bin(*UNET, "diffusion_pytorch_model.bin", 3),
    as_bin(*TEXT, "pytorch_model.bin", 3)])
def test_damaged_weights_are_refused(folder, tmp_path, damage):
    base = shutil.copytree(folder, tmp_path / "toy")
    damage(base)
    with pytest.raises(ak.AnimkitError, match="toy") as caught:
        ak.Animator(base, device="cpu")
    assert "\n" not in str(caught.value)


def test_older_folders_are_whole(folder, tmp_path, still):
    """Pickles, positions among the text encoder's tensors, attention of the VAE by its old names, fp16 alone."""
    base = shutil.copytree(folder, tmp_path / "toy")
    as_bin(*UNET, "diffusion_pytorch_model.bin", 0)(base)
    weights = load_file(base / TEXT[0] / TEXT[1])
    save_file(weights | {"text_model.embeddings.position_ids": torch.arange(12)}, base / TEXT[0] / TEXT[1],
              metadata={"format": "pt"})
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old_name(key):
        for new, was in old.items():
            key = key.replace(f".{new}.", f".{was}.") if "attentions" in key else key
        return key
    renamed("vae", UNET[1], old_name)(base)
    options = dict(frames=1, steps=1, progress=False)
    assert close(ak.Animator(base, device="cpu")("a bird", **options), still("a bird", **options))
    still.pipe.save_pretrained(tmp_path / "half", variant="fp16")
    assert close(ak.Animator(tmp_path / "half", device="cpu")("a bird", **options), still("a bird", **options))


@pytest.mark.parametrize("gone", ["some", "all"])
def test_a_folder_without_a_tokenizer_is_refused_or_given_one(folder, tmp_path, gone, still):
    """transformers makes up an empty one, and all prompts would be one."""
    base = shutil.copytree(folder, tmp_path / "toy")
    shutil.copytree(base / "tokenizer", tmp_path / "tokenizer")
    if gone == "all":
        shutil.rmtree(base / "tokenizer")
    else:
        [(base / "tokenizer" / n).unlink(missing_ok=True) for n in ("tokenizer.json", "vocab.json", "merges.txt")]
    with pytest.raises(ak.AnimkitError, match="toy/tokenizer' holds no tokenizer"):
        ak.Animator(base, device="cpu")
    options = dict(frames=1, steps=1, progress=False)
    for given in (tmp_path, still.pipe.tokenizer):
        drawn = ak.Animator(base, device="cpu", tokenizer=given)("a red bird", **options)
        assert close(drawn, still("a red bird", **options))


def test_a_tokenizer_that_does_not_fit_is_refused_before_a_prompt_is(folder):
    long = make_tokenizer()
    long.model_max_length = int(1e30)
    with pytest.raises(ak.AnimkitError, match="makes prompts of up to .* tokens; .* words and 12 tokens: give"):
        ak.Animator(folder, device="cpu", tokenizer=long)
    wordy = make_tokenizer()
    wordy.add_tokens(["zeppelin"])
    with pytest.raises(ak.AnimkitError, match=f"knows {len(wordy):,} words"):
        ak.Animator(folder, device="cpu", tokenizer=wordy)


def test_what_a_look_has_for_a_text_encoder_that_the_base_lacks_is_told(tmp_path):
    animator = ak.Animator(make_pipe())
    weights = {}
    for layer in ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q", "lora_te2_text_model_encoder_layers_0_mlp_fc1"):
        weights |= {f"{layer}.lora_up.weight": torch.ones(64, 2), f"{layer}.lora_down.weight": torch.ones(2, 64)}
    save_file(weights, tmp_path / "xl.safetensors")
    with pytest.warns(UserWarning, match="xl: what it has for text_encoder_2 does nothing here"):
        animator.insert(tmp_path / "xl.safetensors")


def test_motion_modules_follow_a_unet_that_is_moved():
    pipe = make_pipe()
    animator = ak.Animator(pipe, make_motion(pipe.unet))
    pipe.unet.to("meta")
    x, text = torch.empty(1, 8, 2, 8, 8, device="meta"), torch.empty(1, 12, 32, device="meta")
    assert animator.video_unet(x, torch.empty((), device="meta"), text).device.type == "meta"


def test_motion_takes_motion_modules_alone(folder, tmp_path, moving):
    from animkit.checkpoints import save_checkpoint
    look = new_look(make_pipe().unet, rank=2)
    save_checkpoint(look, tmp_path / "look.safetensors", "diffusers", kind="look")
    for motion in (tmp_path / "look.safetensors", ak.open_checkpoint(tmp_path / "look.safetensors"), folder / "unet"):
        with pytest.raises(ak.AnimkitError, match="given as a motion module"):
            ak.Animator(folder, motion=motion, device="cpu")
    moving.video_unet.motion.save_pretrained(tmp_path / "mm")
    animator = ak.Animator(folder, motion=ak.open_checkpoint(tmp_path / "mm"), device="cpu")
    assert dict(animator.alpha) == {"motion": 1.0}


@pytest.mark.parametrize("options, said", [
    ({"device": "gpu"}, "no device 'gpu' here"), ({"device": "cuda:99"}, "no device 'cuda:99' here"),
    ({"dtype": "float16"}, "dtype is torch.float32.* got 'float16'"), ({"dtype": torch.int32}, "got torch.int32")])
def test_devices_and_dtypes_that_are_none_are_refused(folder, options, said):
    with pytest.raises(ak.AnimkitError, match=said):
        ak.Animator(folder, **options)


def test_what_an_animator_inserted_into_a_held_pipeline_leaves_with_it():
    pipe = make_pipe()
    look = shaken(new_look(pipe.unet, 2))

    def drawn(inserted):
        animator = ak.Animator(pipe, motion=False)
        for name in inserted:
            animator.insert(look, name=name)
        return animator("a red balloon", frames=1, steps=STEPS, progress=False).array.astype(int)

    plain, inked = drawn([]), drawn(["look"])
    assert np.abs(inked - plain).max() > 3, "the look does something"
    assert np.array_equal(drawn([]), plain) and np.array_equal(drawn(["look"]), inked), "once, not once more"


def test_alphas_are_mappings_to_the_end(moving):
    for alphas in (moving.alpha, moving.video_unet.alpha):
        assert alphas.get("ink") is None and alphas.get("ink", 0.5) == 0.5 and alphas.get("motion", 0.5) == 1


def test_dtype_and_tokenizer_of_a_pipeline_that_one_holds(logged):
    pipe = make_pipe()
    assert ak.Animator(pipe, motion=False, dtype=torch.bfloat16).pipe.unet.dtype == torch.bfloat16
    assert not logged.messages, "of modules that stay in float32, for there are none"
    assert ak.Animator(pipe, motion=False).pipe.unet.dtype == torch.bfloat16, "it stays as it is"
    with pytest.raises(ak.AnimkitError, match="a pipeline that you hold has its own"):
        ak.Animator(pipe, tokenizer=pipe.tokenizer)


@pytest.mark.parametrize("steps, scheduler, said", [
    (600, None, "begin at timestep 600 of 1000: take at most 333"), (1000, None, "begin at timestep 1000 of 1000"),
    (60, diffusers.LCMScheduler(), "LCMScheduler cannot take 60 steps"), (1, diffusers.PNDMScheduler(), "cannot take 1 steps")])
def test_steps_that_would_not_begin_at_noise_are_refused(steps, scheduler, said, pipe):
    animator = ak.Animator(pipe, motion=False)
    scheduler = scheduler or DDIMScheduler(steps_offset=1)
    with pytest.raises(ak.AnimkitError, match=said):
        animator("a red balloon", frames=1, steps=steps, scheduler=scheduler)


@pytest.mark.parametrize("steps", [1, 2, 25, 50, 150, 333])
def test_steps_as_people_take_them_are_not(steps):
    check_steps(DDIMScheduler(steps_offset=1), steps)
    check_steps(DDIMScheduler(timestep_spacing="trailing"), 3 * steps)


def test_after_offload_nothing_stays_on_the_device_at_the_end_or_at_an_interruption():
    animator = ak.Animator(make_pipe(), motion=False)
    sent_back = []
    animator.pipe._all_hooks = [SimpleNamespace(offload=lambda: sent_back.append("vae"))]
    animator("a red balloon", frames=1, steps=1, progress=False)
    assert sent_back == ["vae"]

    def stop(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        animator("a red balloon", frames=1, steps=1, progress=False, callback=stop)
    assert sent_back == ["vae", "vae"]


def test_a_pipeline_whose_weights_come_and_go_with_each_layer_is_refused():
    from accelerate import cpu_offload
    pipe = make_pipe()
    cpu_offload(pipe.unet, torch.device("cpu"))  # what enable_sequential_cpu_offload does to each model, for a GPU
    with pytest.raises(ak.AnimkitError, match="enable_sequential_cpu_offload.* offload\\(\\) of its animator"):
        ak.Animator(pipe)


def test_text_carries_no_graph(pipe):
    assert next(pipe.text_encoder.parameters()).requires_grad
    assert not encode_text(pipe, ["a bird"], "", True, (32, 32), torch.device("cpu"))[0].requires_grad


def test_offload_to_no_device_is_refused(folder):
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ak.AnimkitError, match=f"no device '{device}' here"):
            ak.Animator(folder, device="cpu").offload(device)


def test_a_path_that_begins_at_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert ak.Animator("~/toy", device="cpu").video_unet.motion is None
    with pytest.raises(ak.AnimkitError, match="no base model at '~/toi'"):
        ak.Animator("~/toi")


def test_a_hub_name_that_cannot_be_fetched_is_not_called_damaged(monkeypatch):
    asked = {}
    monkeypatch.setattr("animkit.opening.DiffusionPipeline.from_pretrained",
                        lambda *args, **how: asked.update(how) or (_ for _ in ()).throw(OSError("We couldn't connect")))
    with pytest.raises(ak.AnimkitError, match="check the name, and that this machine is online .We couldn't connect"):
        ak.Animator("nobody/nothing")
    assert asked["safety_checker"] is None  # given, so not fetched


def test_weights_that_are_not_finite_are_refused():
    broken = make_pipe()
    broken.unet.conv_out.weight.data[0] = float("nan")
    with pytest.raises(ak.AnimkitError, match="not finite"):
        ak.Animator(broken)("a bird", frames=1, steps=1, progress=False)


@pytest.mark.parametrize("prompt, notation", [("a (red bird:1.2)", r"\(red bird:1.2\)"), ("a bird <lora:ink:0.8>", "<lora:ink:0.8>"),
                                              ("a (red) bird, 16:9", None), ("a <cat-toy>", None)])
def test_the_notation_of_web_uis_is_no_secret_to_the_user(prompt, notation):
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 77
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check_prompt(prompt, tokenizer)
    said = [str(w.message) for w in said]
    assert not said if notation is None else re.search(f"as plain letters: {notation}", said[0])


def test_an_ip_adapter_in_the_unet_is_refused_before_anything_is_drawn():
    own = make_pipe()
    own.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")  # as pipe.load_ip_adapter() does
    with pytest.raises(ak.AnimkitError, match="IP-Adapter in this UNet.*pipe.unload_ip_adapter()"):
        ak.Animator(own)("a bird", frames=1, steps=1, progress=False)


def test_a_vae_s_file_as_the_base_is_told_where_it_goes(tmp_path):
    make_pipe().vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(ak.AnimkitError, match="is not inserted into a UNet; give it with the base"):
        ak.Animator(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")


def test_a_textual_inversion_goes_into_the_text_encoder(tmp_path):
    """As the error for its file says; in the negative prompt too."""
    own = ak.Animator(make_pipe(), device="cpu")
    torch.save({"string_to_param": {"*": torch.randn(2, 32)}, "name": "bad"}, tmp_path / "bad.pt")
    with pytest.raises(ak.AnimkitError, match="animator.pipe.load_textual_inversion"):
        own.insert(tmp_path / "bad.pt")
    how = dict(frames=1, steps=2, progress=False)
    before = own("a bird", negative_prompt="bad", **how)
    own.pipe.load_textual_inversion(tmp_path / "bad.pt", token="bad")
    assert (own("a bird", negative_prompt="bad", **how).array != before.array).any()


def test_a_vae_that_overflows_in_half_precision_draws_no_black_frames():
    """Some VAEs do, without saying so in their config; float32 holds the same numbers."""
    vae, z = make_pipe().vae, torch.randn(1, 8, 2, 8, 8, generator=torch.Generator().manual_seed(5))
    vae.post_quant_conv.weight.data *= 1e5  # its output is above 65504, and the norms after it take the scale out
    vae.half()
    expected = decode(copy.deepcopy(vae).float(), z)
    assert expected.float().std() > 1 and (expected == decode(vae, z)).all()
    assert vae.dtype == torch.float16
    vae.decoder.conv_out.bias.data[0] = float("nan")
    with pytest.raises(ak.AnimkitError, match="The VAE drew numbers that are not finite"):
        decode(vae, z)


@pytest.mark.parametrize("base, said", [
    ("no/such/place", "no base model at 'no/such/place'"),
    ("minature", "no base model at 'minature'"),
    ("models/toonyou.safetensors", "no base model at 'models/toonyou.safetensors'"),
    (3, "int"),
])
def test_what_is_no_base_is_refused(base, said):
    with pytest.raises(ak.AnimkitError, match=said):
        ak.Animator(base)


def test_a_folder_or_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(ak.AnimkitError, match="model_index.json"):
        ak.Animator(tmp_path)
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 100)
    with pytest.raises(ak.AnimkitError, match="junk.safetensors"):
        ak.Animator(tmp_path / "junk.safetensors")


# ---- SDXL


def make_xl():
    toy = make_pipe()
    config = CLIPTextConfig(**toy.text_encoder.config.to_dict() | {"hidden_size": 16})
    second = CLIPTextModelWithProjection(config).eval()
    torch.manual_seed(3)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=8, out_channels=8, block_out_channels=(32, 64), layers_per_block=1,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=48, attention_head_dim=2, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8).eval()
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=toy.vae, text_encoder=toy.text_encoder, text_encoder_2=second, tokenizer=toy.tokenizer,
        tokenizer_2=toy.tokenizer, unet=unet, scheduler=diffusers.EulerDiscreteScheduler(), add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_sdxl_one_frame_is_the_image_pipeline(tmp_path):
    """Two text encoders, and conditions that say the picture's size."""
    pipe = make_xl()
    for negative in ("the sea", ""):
        options = {"negative_prompt": negative} if negative else {}
        expected = pipe("a red balloon", num_inference_steps=STEPS, generator=torch.Generator().manual_seed(5),
                        guidance_scale=7.5, height=24, width=32, output_type="np", **options).images[0]
        clip = ak.Animator(pipe)("a red balloon", frames=1, seed=5, steps=STEPS, guidance=7.5, height=24,
                                 progress=False, **options)
        assert clip.array.shape == (1, 24, 32, 3) and expected.std() > 0.01
        assert np.abs(clip.array[0] / 255 - expected).max() <= 0.5 / 255 + 1e-5
    pipe.save_pretrained(tmp_path / "xl")
    opened = ak.Animator(tmp_path / "xl", device="cpu")
    assert close(opened("a red balloon", frames=1, seed=5, steps=STEPS, guidance=7.5, height=24, progress=False), clip)
    ddim = ak.Animator(pipe, ak.MotionModules.for_unet(pipe.unet)).scheduler
    assert torch.allclose(ddim.betas.sqrt(), torch.linspace(ddim.config.beta_start**0.5, 0.02**0.5, 1000))


def test_an_sdxl_folder_without_its_tokenizers_is_given_both(tmp_path):
    """The second fills prompts up with "!", as its text encoder was trained."""
    pipe = make_xl()
    pipe.save_pretrained(tmp_path / "xl")
    shutil.copytree(tmp_path / "xl" / "tokenizer", tmp_path / "given")
    for part in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(tmp_path / "xl" / part)
    for given in (tmp_path / "given", pipe.tokenizer):
        opened = ak.Animator(tmp_path / "xl", tokenizer=given, device="cpu").pipe
        assert opened.tokenizer.pad_token == pipe.tokenizer.pad_token
        assert opened.tokenizer_2.pad_token == "!" != pipe.tokenizer.pad_token


class Elsewhere(torch.nn.Module):
    """A model that says where it is."""

    def __init__(self, device):
        super().__init__()
        self.device, self.moved = torch.device(device), []

    def to(self, device):
        self.moved.append(device)


@pytest.mark.parametrize("offloaded", [False, True])
def test_models_that_training_left_behind_follow_the_unet(offloaded):
    """fit(device="cpu") moves the video UNet alone; what is offloaded, or without memory yet, stays."""
    text, vae, gone = Elsewhere("cuda"), Elsewhere("cpu"), Elsewhere("meta")
    pipe = SimpleNamespace(components={"text_encoder": text, "vae": vae, "x": gone, "tokenizer": object(), "none": None})
    if offloaded:
        pipe._offload_device = torch.device("cuda")
    ak.Animator._join(SimpleNamespace(pipe=pipe), torch.device("cpu"))
    assert [one.moved for one in (text, vae, gone)] == [[] if offloaded else [torch.device("cpu")], [], []]


# ---- bad calls


@pytest.mark.parametrize("options, said", [
    ({"frames": 0}, "frames .* got 0"),
    ({"frames": 7}, "7 frames .* 6 positions"),
    ({"frames": 2.5}, "frames .* got 2.5"),
    ({"steps": 0}, "steps .* got 0"),
    ({"clips_per_prompt": 0}, "clips_per_prompt .* got 0"),
    ({"seed": "x"}, "seed .* 'x'"),
    ({"seed": 2**64}, "seed .* got 18446744073709551616"),
    ({"guidance": float("nan")}, "guidance .* nan"),
    ({"guidance": -1}, "guidance is a number of at least 0; got -1"),
    ({"guidance": "high"}, "guidance .* 'high'"),
    ({"fps": 0}, "fps .* got 0"),
    ({"scheduler": DDIMScheduler}, "scheduler .*from_config.* got <class"),
    ({"scheduler": "ddim"}, "scheduler .* 'ddim'"),
    ({"height": 0}, "height is a multiple of 8 .* got 0"),
    ({"height": 20}, "height is a multiple of 8 .* got 20"),
    ({"width": 12}, "width is a multiple of 8 .* got 12"),
    ({"latents": torch.zeros(1, 8, 2, 4, 4), "frames": 2}, r"latents .* \(1, 8, 2, 8, 8\)"),
    ({"latents": np.zeros((1, 8, 2, 8, 8)), "frames": 2}, r"latents have the type ndarray"),
    ({"steps": 1001}, "steps is at most 1000.* got 1001"),
    ({"scheduler": diffusers.FlowMatchEulerDiscreteScheduler()}, "scheduler is a diffusers scheduler"),
    ({"scheduler": diffusers.CogVideoXDPMScheduler()}, "scheduler is a diffusers scheduler"),  # its step asks for more
    ({"scheduler": diffusers.DDPMWuerstchenScheduler()}, "scheduler is a diffusers scheduler"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"negative_prompt": None}, "negative_prompt is one text"),
    ({"prompt": [3]}, "prompt"),
    ({"negative_prompt": 3}, "negative"),
    ({"guided": {"motion": 2}, "guided_until": 2}, "guided_until .* got 2"),
    ({"guided": "motion"}, "guided is {name: number}.* 'motion'"),
    ({"eased": {"motion": 0.6}, "eased_below": -0.1}, "eased_below is a share .* got -0.1"),
    ({"eased": 0.6}, "eased is {name: number}.* 0.6"),
    ({"eased": {"zoom": 0.6}}, "eased is inserted as 'zoom'; there is: motion"),
    ({"eased": {"motion": float("nan")}}, r"eased\['motion'\] .* nan"),
    ({"guided": {"zoom": 5}}, "'zoom'; there is: motion"),
    ({"guided": {"motion": float("inf")}}, r"guided\['motion'\] .* inf"),
    ({"guided": {"motion": "much"}}, r"guided\['motion'\] .* 'much'"),
])
def test_bad_calls_are_refused(moving, options, said):
    with pytest.raises(ak.AnimkitError, match=said):
        moving(**{"prompt": "a bird", "frames": 2, "steps": 1, "progress": False, **options})


def test_most_frames_the_module_takes(moving):
    assert len(moving("a bird", frames=6, steps=1, progress=False)) == 6


def test_a_closed_vocabulary_names_unknown_words(folder, tmp_path):
    base = shutil.copytree(folder, tmp_path / "toy")
    (base / "animkit.json").write_text('{"vocabulary": "closed"}')
    animator = ak.Animator(base, device="cpu")
    options = dict(frames=1, steps=1, progress=False)
    animator("A red bird, over the sea!", **options)  # capitals and marks are no words
    with pytest.raises(ak.AnimkitError, match=r"'purple'.*'baloon' \(near: balloon\)"):
        animator("a purple baloon over the sea", **options)
    with pytest.raises(ak.AnimkitError, match="horse"):
        animator("a bird", negative_prompt="a horse", **options)


def test_an_is_read_as_a_where_only_a_is_known(folder, tmp_path):
    base = shutil.copytree(folder, tmp_path / "toy")
    options = dict(frames=1, steps=2, progress=False)
    for vocabulary in ("closed", ["a", "bird", "house"]):
        (base / "animkit.json").write_text(json.dumps({"vocabulary": vocabulary}))
        animator = ak.Animator(base, device="cpu")
        clip = animator("An bird", negative_prompt="an house", **options)
        assert clip.prompt == "An bird"
        assert np.array_equal(clip, animator("a bird", negative_prompt="a house", **options))
        with pytest.raises(ak.AnimkitError, match="'can'"):
            animator("can bird", **options)
    full = SimpleNamespace(convert_tokens_to_ids={"a</w>": 1, "an</w>": 2}.get, unk_token_id=0)  # CLIP's own knows both
    assert as_read("an orange bird", full) == "an orange bird"


def test_a_listed_vocabulary_is_taken_by_the_word(folder, tmp_path):
    base = shutil.copytree(folder, tmp_path / "toy")
    (base / "animkit.json").write_text(json.dumps({"vocabulary": ["Red", "bird"]}))
    animator = ak.Animator(base, device="cpu")
    animator("red bird!", frames=1, steps=1, progress=False)
    with pytest.raises(ak.AnimkitError, match=r"'balloon', in"):  # one token, and yet not in the list
        animator("red balloon", frames=1, steps=1, progress=False)


def test_an_open_vocabulary_takes_any_word(still):
    still("a zebra", frames=1, steps=1, progress=False)


def test_a_prompt_too_long_says_what_is_cut(still, capfd):
    long = "a red bird over the blue sea a green house falling"  # 11 words; 12 places less start and end take 10
    with pytest.warns(UserWarning, match="12 tokens .* 'falling'"):
        still(long, frames=1, steps=1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        still(long.rsplit(" ", 1)[0], frames=1, steps=1, progress=False)
    assert "truncated" not in capfd.readouterr().err  # said once, by us


def test_importing_does_not_load_torch():
    import subprocess
    import sys
    code = "import sys, animkit; animkit.AnimkitError; assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_is_silent_and_leaves_the_libraries_as_they_were(folder, capfd, logged):
    from diffusers.utils import logging as own
    own.set_verbosity_info()
    try:
        ak.Animator(folder, device="cpu")
        assert own.get_verbosity() == own.INFO and own.is_progress_bar_enabled()
    finally:
        own.set_verbosity_warning()
    assert capfd.readouterr() == ("", "") and not logged.messages


@pytest.mark.parametrize("config, said", [
    ({"in_channels": 9}, "takes 9 channels and its VAE gives 8"),
    ({"time_cond_proj_dim": 32}, "LCM"),
])
def test_bases_that_want_more_than_text_are_refused(config, said):
    pipe = make_pipe()
    pipe.unet = UNet2DConditionModel.from_config(pipe.unet.config, **config)
    with pytest.raises(ak.AnimkitError, match=said):
        ak.Animator(pipe)


def test_says_what_it_is(moving):
    assert repr(moving) == ("Animator on StableDiffusionPipeline, inserted: motion (alpha 1); torch.float32 on cpu")


def test_open_base_takes_a_pipeline_as_it_is(pipe):
    same, defaults, beside = open_base(pipe)
    assert same is pipe and defaults["vocabulary"] == "open" and beside is None
