"""offload(): the same clip, each model called to the device in turn, the motion modules and LoRAs with their UNet."""
from types import SimpleNamespace

import file_makers as make
import numpy as np
import pytest
import torch
from animkit import AnimkitError, Animator, open_checkpoint
from test_from_files import animator, draw, files  # noqa: F401 (a fixture)


def test_offloading_draws_the_same_clip_and_moves_what_belongs_together(files, monkeypatch):  # noqa: F811
    from accelerate.hooks import CpuOffload

    parts = dict(motion=files["v2"], looks=[files["ink"]], motion_loras={files["zoom"]: 0.8})
    plain, a = draw(animator(files, **parts)), animator(files, **parts)
    came, pre = [], CpuOffload.pre_forward
    monkeypatch.setattr(
        CpuOffload, "pre_forward", lambda self, module, *x, **k: (came.append(module), pre(self, module, *x, **k))[1]
    )
    unet = a.pipe.unet
    assert a.offload(device="cpu") is a  # the hooks are the same for any device; this machine's only one is the CPU
    assert a.pipe.unet is unet and a.device == torch.device("cpu:0") and a.pipe.vae.use_slicing
    # frames leave the VAE one by one and not together, which rounds its sums otherwise: by one step of 255 at most
    assert np.abs(draw(a).astype(int) - plain).max() <= 1
    order = [m for i, m in enumerate(came) if i == 0 or m is not came[i - 1]]
    assert order == [a.pipe.text_encoder, a.video_unet, a.pipe.vae]
    # each sends the one before it back to main memory when its own turn comes
    assert [m._hf_hook.prev_module_hook.model for m in order[1:]] == order[:-1] and order[
        0
    ]._hf_hook.prev_module_hook is None
    moved = {id(m) for m in a.video_unet.modules()}  # what goes to the device with the video UNet
    assert all(id(part) in moved for part in (a.video_unet.motion, a.pipe.unet, *a.video_unet.parts))
    a.pipe.vae.disable_slicing()
    assert np.array_equal(draw(a), plain)
    a.remove("ZoomIn")
    a.insert(files["roll"], alpha=0.3)  # later parts come along too
    assert all(id(part) in {id(m) for m in a.video_unet.modules()} for part in a.video_unet.parts)
    assert np.abs(draw(a).astype(int) - plain).max() > 1


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU here")
def test_offloading_without_a_gpu_is_refused(files):  # noqa: F811
    with pytest.raises(AnimkitError, match="no GPU to offload from"):
        animator(files).offload()


def test_a_half_file_is_cast_only_on_its_way_to_the_device(files, tmp_path, monkeypatch):  # noqa: F811
    """Until `.to(device, dtype)`, which casts parameter by parameter, every part is as small as in its file."""
    from test_from_files import tokenizer
    seen = {}
    state = {n: t.half() if t.is_floating_point() else t for n, t in open_checkpoint(files["base"]).weights.items()}
    file = make.write(tmp_path / "half.safetensors", state)
    plain = torch.nn.Module.to

    def to(self, *args, **kwargs):
        if len(list(self.parameters())) > 10 and type(self).__name__ not in seen:
            seen[type(self).__name__] = {p.dtype for p in self.parameters()}
        return plain(self, *args, **kwargs)
    monkeypatch.setattr(torch.nn.Module, "to", to)
    a = Animator(file, tokenizer=tokenizer(), device="cpu")
    assert {n: seen[n] for n in ("UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel")} == dict.fromkeys(
        ("UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel"), {torch.float16})
    assert {p.dtype for p in a.pipe.unet.parameters()} == {torch.float32}


def test_sdxl_s_vae_is_upcast_for_decoding_and_comes_back_bit_for_bit():
    from animkit.base import decode
    vae = make.vae().half()
    vae.register_to_config(force_upcast=True)
    before = {n: t.clone() for n, t in vae.state_dict().items()}
    latents = torch.randn(1, 4, 2, 4, 4)
    drawn = decode(vae, latents)
    assert vae.dtype == torch.float16 and all(torch.equal(t, before[n]) for n, t in vae.state_dict().items())
    single = vae.float()
    assert torch.equal(drawn, decode(single, latents))


def test_sd1_s_vae_is_not_upcast_though_its_config_says_so(files, monkeypatch):  # noqa: F811
    """diffusers takes True where a config says nothing, and its Stable Diffusion pipelines do not look at it."""
    import animkit.animator as module
    plain, told = module.decode, []
    monkeypatch.setattr(module, "decode", lambda *args, **how: told.append(how) or plain(*args, **how))
    a = animator(files)
    assert a.pipe.vae.config.force_upcast
    draw(a)
    assert told == [{"upcast": False}]
    vae, seen = make.vae().half(), []
    monkeypatch.setattr(type(vae), "decode", lambda self, z: seen.append(z.dtype) or SimpleNamespace(sample=z[:, :3]))
    for upcast in (False, True):
        plain(vae, torch.randn(1, 4, 2, 4, 4), upcast=upcast)
    assert seen == [torch.float16, torch.float32]


def test_a_vae_without_these_settings_decodes():
    from animkit.base import decode
    from diffusers import AsymmetricAutoencoderKL
    vae = AsymmetricAutoencoderKL(down_block_out_channels=(32,), up_block_out_channels=(32,), norm_num_groups=32)
    assert "shift_factor" not in vae.config
    assert decode(vae, torch.randn(1, 4, 2, 4, 4)).shape[:2] == (1, 2)
