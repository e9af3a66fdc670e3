"""The three losses against their formulas, on a tiny UNet; nothing is computed for what is frozen and lies before."""
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn

from animkit.errors import AnimkitError
from animkit.inflation import inflate
from animkit.motion_lora import new_motion_lora
from animkit.motion_module import MotionModules
from animkit.training import draws
from animkit.training.losses import (denoising_loss, domain_adapter_loss, drop_captions, motion_lora_loss,
                                     motion_module_loss, snr_weight, timesteps)

SCHEDULER = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, steps_offset=1)
Z = torch.randn(3, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0))  # b c f h w
TEXT = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(1))  # b n d
EMPTY = torch.zeros(1, 6, 16)


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Spy(nn.Module):
    """Stands for the UNet: keeps what it is asked, answers with a fixed fraction of it."""

    def forward(self, x, t, text):
        self.x, self.t, self.text = x, t, text
        return 0.25 * x


def tiny_video_unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
            norm_num_groups=8, cross_attention_dim=16, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True)
    return inflate(unet.requires_grad_(False))


def with_motion():
    video_unet = tiny_video_unet()
    motion = MotionModules.for_unet(video_unet.unet)
    with torch.no_grad():  # a fresh module is the identity, and most of its gradients are zero
        for p in motion.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator(2)))
    video_unet.insert(motion)
    return video_unet, motion


# ---- the formulas

def test_motion_module_loss_is_equation_7():
    spy = Spy()
    value = motion_module_loss(spy, Z, TEXT, generator(), scheduler=SCHEDULER, drop=0)
    assert spy.t.shape == (3,) and spy.x.shape == Z.shape and torch.equal(spy.text, TEXT)
    betas = torch.linspace(0.00085, 0.012, 1000)
    abar = torch.cumprod(1 - betas, 0)[spy.t].view(3, 1, 1, 1, 1)
    eps = (spy.x - abar.sqrt() * Z) / (1 - abar).sqrt()
    torch.testing.assert_close(value, ((eps - 0.25 * spy.x) ** 2).mean())
    torch.testing.assert_close(value, motion_lora_loss(spy, Z, TEXT, generator(), scheduler=SCHEDULER, drop=0))
    frames = eps.permute(2, 0, 1, 3, 4).flatten(1)  # f ...: noise is standard normal and independent between frames
    assert abs(eps.mean()) < 0.1 and abs(eps.std() - 1) < 0.1
    assert (torch.corrcoef(frames) - torch.eye(5)).abs().max() < 0.2


def test_domain_adapter_loss_is_the_image_loss_of_one_random_frame():
    spy, seen = Spy(), set()
    for seed in range(40):
        value = domain_adapter_loss(spy, Z, TEXT, generator(seed), scheduler=SCHEDULER, drop=0)
        assert spy.x.shape == (3, 4, 1, 8, 8)
        abar = SCHEDULER.alphas_cumprod[spy.t].view(3, 1, 1, 1, 1)
        misfit = []
        for f in range(5):  # the noise is white only if the frame is the right one
            eps = (spy.x - abar.sqrt() * Z[:, :, f:f + 1]) / (1 - abar).sqrt()
            misfit.append((((eps - 0.25 * spy.x) ** 2).flatten(1)).mean(1))
        fits = torch.stack(misfit)  # f b
        choices = torch.cartesian_prod(*[torch.arange(5)] * 3)
        match = [tuple(c.tolist()) for c in choices if torch.isclose(fits[c, torch.arange(3)].mean(), value, rtol=1e-5)]
        assert match
        seen |= {f for c in match for f in c} if len(match) == 1 else set()
    assert seen == {0, 1, 2, 3, 4}


def test_timesteps_cover_the_schedule_and_the_generator_decides():
    spy, t = Spy(), timesteps(900, SCHEDULER, generator())
    assert t.min() < 20 and t.max() > 980 and t.max() <= 999 and abs(t.float().mean() - 499.5) < 40
    one, other = (denoising_loss(spy, Z, TEXT, generator(s), scheduler=SCHEDULER) for s in (3, 3))
    assert one == other != denoising_loss(spy, Z, TEXT, generator(4), scheduler=SCHEDULER)


def test_timesteps_can_be_drawn_towards_noise():
    even, noisy = (timesteps(4000, SCHEDULER, generator(), power).float() / 1000 for power in (1.0, 0.5))
    assert abs(even.mean() - 1 / 2) < 0.02 and abs(noisy.mean() - 2 / 3) < 0.02, "the mean of sqrt(u) is 2/3"
    assert abs((noisy < 0.5).float().mean() - 0.25) < 0.03 and noisy.max() <= 0.999
    spy = Spy()
    motion_module_loss(spy, Z, TEXT, generator(), scheduler=SCHEDULER, drop=0, towards_noise=0.5)
    assert torch.equal(spy.t, timesteps(3, SCHEDULER, generator(), 0.5))
    with pytest.raises(AnimkitError, match="towards_noise = 0"):
        timesteps(3, SCHEDULER, generator(), 0)


def test_v_prediction():
    v = DDIMScheduler.from_config(SCHEDULER.config, prediction_type="v_prediction")
    spy = Spy()
    value = denoising_loss(spy, Z, TEXT, generator(), scheduler=v)
    abar = v.alphas_cumprod[spy.t].view(3, 1, 1, 1, 1)
    eps = (spy.x - abar.sqrt() * Z) / (1 - abar).sqrt()
    torch.testing.assert_close(value, ((abar.sqrt() * eps - (1 - abar).sqrt() * Z - 0.25 * spy.x) ** 2).mean())


def test_a_tenth_of_the_captions_is_dropped_whole():
    text, empty = torch.ones(4000, 2, 3), torch.zeros(2, 3)
    dropped = drop_captions(text, empty, 0.1, generator()).flatten(1)
    assert set(dropped.mean(1).tolist()) == {0.0, 1.0}
    assert 0.08 < 1 - dropped.mean().item() < 0.12
    assert torch.equal(drop_captions(text, empty, 0.0, generator()), text)
    spy = Spy()
    motion_module_loss(spy, Z, TEXT, generator(), scheduler=SCHEDULER, empty=EMPTY, drop=1.0)
    assert torch.equal(spy.text, EMPTY.expand(3, -1, -1))


def test_min_snr_weighs_each_clip_as_hang_et_al():
    spy = Spy()
    value = denoising_loss(spy, Z, TEXT, generator(), scheduler=SCHEDULER, min_snr_gamma=5.0)
    abar = SCHEDULER.alphas_cumprod[spy.t].view(3, 1, 1, 1, 1)
    eps = (spy.x - abar.sqrt() * Z) / (1 - abar).sqrt()
    snr = (abar / (1 - abar)).flatten()
    each = ((eps - 0.25 * spy.x) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(value, (torch.minimum(snr, torch.tensor(5.0)) / snr * each).mean())
    t = torch.tensor([0, 999])
    assert snr_weight(SCHEDULER, t, 5.0)[0] < 0.01 and snr_weight(SCHEDULER, t, 5.0)[1] == 1


def test_snr_plus_one_is_the_loss_of_v():
    """Salimans & Ho, section 4: the error of eps so weighted is that of v = sqrt(abar) eps - sqrt(1 - abar) z_0."""
    spy = Spy()
    value = denoising_loss(spy, Z, TEXT, generator(), scheduler=SCHEDULER, snr_plus_one=True)
    abar = SCHEDULER.alphas_cumprod[spy.t].view(3, 1, 1, 1, 1)
    a, s = abar.sqrt(), (1 - abar).sqrt()
    eps, guess = (spy.x - a * Z) / s, 0.25 * spy.x
    v, v_guess = a * eps - s * Z, a * guess - s * (spy.x - s * guess) / a
    torch.testing.assert_close(value, ((v - v_guess) ** 2).mean())
    v_prediction = DDIMScheduler.from_config(SCHEDULER.config, prediction_type="v_prediction")
    assert torch.equal(snr_weight(v_prediction, spy.t, snr_plus_one=True), torch.ones(3))
    with pytest.raises(AnimkitError, match="choose one"):
        denoising_loss(spy, Z, TEXT, generator(), scheduler=SCHEDULER, min_snr_gamma=5.0, snr_plus_one=True)
    with pytest.raises(AnimkitError, match="min_snr_gamma = 0 makes no sense"):
        denoising_loss(spy, Z, TEXT, generator(), scheduler=SCHEDULER, min_snr_gamma=0)


def test_two_ranks_draw_the_rows_of_one(monkeypatch):
    spy = Spy()
    z, text = torch.cat([Z, -Z])[:4], torch.cat([TEXT, -TEXT])[:4]
    whole = denoising_loss(spy, z, text, generator(), scheduler=SCHEDULER, empty=EMPTY, drop=0.5)
    x, t, dropped = spy.x, spy.t, spy.text
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(draws, "rank_and_world", lambda: (rank, 2))
        own = slice(2 * rank, 2 * rank + 2)
        parts.append(denoising_loss(spy, z[own], text[own], generator(), scheduler=SCHEDULER, empty=EMPTY, drop=0.5))
        assert torch.equal(spy.x, x[own]) and torch.equal(spy.t, t[own]) and torch.equal(spy.text, dropped[own])
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_half_precision_latents_and_shapes_that_do_not_fit():
    value = motion_module_loss(Spy(), Z.bfloat16(), TEXT, generator(), scheduler=SCHEDULER, drop=0)
    assert value.dtype == torch.float32
    for odd in (Z[:, :, 0], Z[:, :, :0]):
        with pytest.raises(AnimkitError, match="latents b c f h w"):
            motion_module_loss(Spy(), odd, TEXT, generator(), scheduler=SCHEDULER, drop=0)
    with pytest.raises(AnimkitError, match="3 clips, but text is"):
        motion_module_loss(Spy(), Z, TEXT[:2], generator(), scheduler=SCHEDULER, drop=0)
    for loss in (motion_module_loss, domain_adapter_loss):
        with pytest.raises(AnimkitError, match="pass empty="):
            loss(Spy(), Z, TEXT, generator(), scheduler=SCHEDULER)
    with pytest.raises(AnimkitError, match="same text encoder"):
        motion_module_loss(Spy(), Z, TEXT, generator(), scheduler=SCHEDULER, empty=EMPTY[:, :3])
    sample = DDIMScheduler.from_config(SCHEDULER.config, prediction_type="sample")
    with pytest.raises(AnimkitError, match="predicts 'sample'"):
        motion_module_loss(Spy(), Z, TEXT, generator(), scheduler=sample, drop=0)


# ---- on the real classes

@pytest.mark.parametrize("stage", ["motion module", "MotionLoRA of the last block"])
def test_no_graph_for_what_is_frozen_and_lies_before_the_first_trainable(stage):
    """Counts what autograd keeps: nothing until the first trainable module has run, something after it."""
    video_unet, motion = with_motion()
    motion.requires_grad_(False)
    if stage == "motion module":
        motion.requires_grad_(True)
        first = motion["down_blocks.0.motion_modules.0"]
    else:
        lora = new_motion_lora(motion, rank=2).select(lambda path: path.startswith("up_blocks.1"))
        video_unet.insert(lora)
        first = motion["up_blocks.1.motion_modules.0"]
    kept, at_first, outputs = [], [], []
    first.register_forward_pre_hook(lambda *_: at_first.append(len(kept)) if not at_first else None)
    for module in video_unet.unet.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, a, y: outputs.append((bool(at_first), y.requires_grad)))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
        loss = motion_module_loss(video_unet, Z, TEXT, generator(), scheduler=SCHEDULER, empty=EMPTY)
    assert at_first == [0] and len(kept) > 20 and loss.requires_grad
    before, after = ([grad for reached, grad in outputs if reached is side] for side in (False, True))
    assert len(before) >= 8 and not any(before)  # conv_in, the time embedding, the first resnet
    assert after[-1] and any(after)


def test_plain_attention_on_a_cpu_gives_the_fused_kernels_loss_and_gradients(monkeypatch):
    from contextlib import nullcontext

    from animkit.training import losses
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 32), layers_per_block=1,
        norm_num_groups=8, cross_attention_dim=16, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    video_unet = inflate(unet)
    assert isinstance(losses.short_attention(torch.device("cpu"), video_unet), nullcontext), "in float32 the fused kernel"
    with torch.autocast("cpu", torch.bfloat16):
        plain = losses.short_attention(torch.device("cpu"), video_unet)  # used in float32 below, where rounding hides nothing
        unet.enable_gradient_checkpointing()
        assert isinstance(losses.short_attention(torch.device("cpu"), video_unet), nullcontext), "backward computes again"
    unet.disable_gradient_checkpointing()
    assert not isinstance(plain, nullcontext)
    found = []
    for way in (lambda device, model: plain, lambda device, model: nullcontext()):
        monkeypatch.setattr(losses, "short_attention", way)
        unet.zero_grad()
        loss = denoising_loss(video_unet, Z, TEXT, generator(), scheduler=SCHEDULER)
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None])))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert found[0][1].abs().max() > 0 and torch.allclose(found[0][1], found[1][1], atol=1e-5)
