"""Section 4.2: the motion module equals the reference's mathematics, written out here again, and diffusers' too."""
import json
import math
import os

import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from torch import Tensor

import animkit as ak
from animkit.checkpoints import save_checkpoint
from animkit.errors import AnimkitError
from animkit.files import save_folder
from animkit.motion_module import MotionModule, MotionModules, motion_sites, record_attention
from animkit.temporal_transformer import TemporalAttention, attention_weights, sinusoidal_positions
from tiny import added, clip_and_text, equal_states, shaken, tiny_sdxl, tiny_unet

SD15 = dict(block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8, cross_attention_dim=768)


def reference(module: MotionModule, x: Tensor, f: int, heads: int, groups: int) -> Tensor:
    """One motion module in einsum and for-loops, from the release's description alone; b c f h w -> b c f h w."""
    w = {k: v.double() for k, v in module.temporal_transformer.state_dict().items()}
    x = x.double()
    b, c, _, h, wd = x.shape

    y = x.reshape(b, groups, c // groups, f, h, wd)  # GroupNorm of each frame: over a group's channels and the picture
    mean, var = y.mean(dim=(2, 4, 5), keepdim=True), y.var(dim=(2, 4, 5), unbiased=False, keepdim=True)
    y = ((y - mean) / torch.sqrt(var + 1e-6)).reshape(x.shape)
    y = y * w["norm.weight"][None, :, None, None, None] + w["norm.bias"][None, :, None, None, None]

    def linear(z, name):
        out = torch.einsum("bfhwi,oi->bfhwo", z, w[name + ".weight"])
        return out + w[name + ".bias"] if name + ".bias" in w else out

    def layer_norm(z, name):
        z = (z - z.mean(-1, keepdim=True)) / torch.sqrt(z.var(-1, unbiased=False, keepdim=True) + 1e-5)
        return z * w[name + ".weight"] + w[name + ".bias"]

    y = linear(torch.einsum("bcfhw->bfhwc", y), "proj_in")
    for a in range(2):
        name = f"transformer_blocks.0.attention_blocks.{a}"
        z = layer_norm(y, f"transformer_blocks.0.norms.{a}")
        place = torch.zeros(f, c, dtype=torch.float64)
        for p in range(f):
            for i in range(0, c, 2):
                place[p, i], place[p, i + 1] = math.sin(p / 10000 ** (i / c)), math.cos(p / 10000 ** (i / c))
        z = z + place[None, :, None, None, :]
        q, k, v = (linear(z, f"{name}.to_{m}").reshape(b, f, h, wd, heads, c // heads) for m in "qkv")
        scores = torch.einsum("bihwnd,bjhwnd->bhwnij", q, k) / math.sqrt(c // heads)
        out = torch.einsum("bhwnij,bjhwnd->bihwnd", scores.softmax(-1), v).reshape(b, f, h, wd, c)
        y = y + linear(out, f"{name}.to_out.0")
    z = linear(layer_norm(y, "transformer_blocks.0.ff_norm"), "transformer_blocks.0.ff.net.0.proj")
    value, gate = z[..., : 4 * c], z[..., 4 * c:]
    y = y + linear(value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2))), "transformer_blocks.0.ff.net.2")
    return x + torch.einsum("bfhwc->bcfhw", linear(y, "proj_out"))


def test_one_module_equals_the_formulas():
    torch.manual_seed(0)
    module = shaken(MotionModule(32, heads=4, positions=32, norm_groups=8))
    x = torch.randn(2, 32, 5, 3, 4)
    with torch.no_grad():
        y = module(x.transpose(1, 2).flatten(0, 1), frames=5).unflatten(0, (2, 5)).transpose(1, 2)
    assert (y - x).abs().max() > 0.1
    torch.testing.assert_close(y.double(), reference(module, x, 5, heads=4, groups=8), rtol=1e-4, atol=1e-4)


def test_positions_are_those_of_diffusers():
    from diffusers.models.embeddings import SinusoidalPositionalEmbedding
    assert torch.equal(sinusoidal_positions(32, 64)[None], SinusoidalPositionalEmbedding(64, 32).pe)


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_parameters_of_the_release(version):
    """Paper's widths, counted without allocating them."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15)
        modules = MotionModules.for_unet(unet, version)
    assert (modules.heads, modules.norm_groups) == (8, 32)
    assert sum(p.numel() for p in modules.parameters()) == {"v2": 453_209_280}.get(version, 417_137_600)
    state = modules.state_dict()
    assert len(state) == {"v2": 588}.get(version, 560)
    pe = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.pos_encoder.pe"
    assert state[pe].shape == (1, {"v1": 24}.get(version, 32), 320)
    for name, shape in {"norm.weight": (320,), "proj_in.weight": (320, 320), "proj_in.bias": (320,),
                        "transformer_blocks.0.attention_blocks.0.to_q.weight": (320, 320),
                        "transformer_blocks.0.attention_blocks.1.to_out.0.bias": (320,),
                        "transformer_blocks.0.norms.1.weight": (320,),
                        "transformer_blocks.0.ff.net.0.proj.weight": (2560, 320),
                        "transformer_blocks.0.ff.net.2.weight": (320, 1280),
                        "transformer_blocks.0.ff_norm.bias": (320,), "proj_out.bias": (320,)}.items():
        assert state["down_blocks.0.motion_modules.0.temporal_transformer." + name].shape == shape
    assert ("mid_block.motion_modules.0.temporal_transformer.norm.weight" in state) == (version == "v2")


def test_parameters_of_sdxl():
    with torch.device("meta"):
        unet = UNet2DConditionModel(block_out_channels=(320, 640, 1280),
                                    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                                    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"))
        modules = MotionModules.for_unet(unet, "v3")
    assert sum(p.numel() for p in modules.parameters()) == 236_779_200
    assert (len(modules.sites), len(modules.state_dict())) == (15, 420)


def to_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Release names -> MotionAdapter's (formats.md)."""
    out = {}
    for key, value in state.items():
        key = key.replace(".temporal_transformer", "").replace("ff_norm", "norm3")
        for i in range(2):
            key = key.replace(f"attention_blocks.{i}.pos_encoder", "pos_embed")
            key = key.replace(f"attention_blocks.{i}", f"attn{i + 1}").replace(f"norms.{i}", f"norm{i + 1}")
        out[key] = value
    return out


@pytest.mark.parametrize("family", [tiny_unet, tiny_sdxl])
@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_whole_unet_equals_diffusers_under_its_norm_rule(version, family):
    unet = family()
    modules = shaken(MotionModules.for_unet(unet, version, norm_groups=unet.config.norm_num_groups, norm="diffusers"))
    widths = unet.config.block_out_channels
    adapter = MotionAdapter(block_out_channels=widths, motion_layers_per_block=1, motion_num_attention_heads=8,
                            motion_norm_num_groups=unet.config.norm_num_groups, motion_max_seq_length=modules.positions,
                            use_motion_mid_block=version == "v2")
    adapter.load_state_dict(to_diffusers(modules.state_dict()))
    theirs = UNetMotionModel.from_unet2d(unet, adapter).eval()
    if family is tiny_sdxl:  # from_unet2d of 0.42.1 forgets SDXL's add_embedding and leaves it random
        theirs.add_embedding.load_state_dict(unet.add_embedding.state_dict())
    video_unet = ak.inflate(unet)
    video_unet.insert(modules)
    x, text = clip_and_text(f=4)
    x = x + torch.linspace(0, 3, 4)[None, None, :, None, None]  # brightness drifts, so that the norm's rule matters
    with torch.no_grad():
        a = video_unet(x, 500, text, added_cond_kwargs=added(unet, 2))
        b = theirs(x, 500, text.repeat_interleave(4, dim=0), added_cond_kwargs=added(unet, 2)).sample  # text per frame
        modules.norm = "reference"
        c = video_unet(x, 500, text, added_cond_kwargs=added(unet, 2))
    assert (a - b).norm() / b.norm() < 1e-5
    assert (c - b).norm() / b.norm() > 1e-3  # and the reference's rule is another one


def test_fresh_is_the_identity_and_reproducible():
    unet = tiny_unet()
    one, same, other = (MotionModules.for_unet(unet, "v2", seed=seed) for seed in (3, 3, 4))
    assert equal_states(one.state_dict(), same.state_dict())
    assert not equal_states(one.state_dict(), other.state_dict())
    x = torch.randn(6, 32, 4, 4)
    assert torch.equal(one["down_blocks.0.motion_modules.0"](x, frames=3), x)


def test_making_modules_leaves_the_random_numbers_alone():
    unet = tiny_unet()
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    MotionModules.for_unet(unet)
    assert torch.equal(torch.randn(3), expected)


def test_recorded_maps_are_the_attention_and_change_nothing():
    torch.manual_seed(0)
    attention = shaken(TemporalAttention(32, heads=4, positions=16))
    x = torch.randn(6, 5, 32)
    plain = attention(x)
    with record_attention(attention) as maps:
        explicit = attention(x)
    torch.testing.assert_close(plain, explicit, rtol=1e-5, atol=1e-6)  # SDPA = softmax(Q K^T / sqrt d) V
    (weights,) = maps.values()
    z = attention.pos_encoder(x)
    q, k = (to(z).reshape(6, 5, 4, 8).transpose(1, 2) for to in (attention.to_q, attention.to_k))
    assert weights.shape == (6, 4, 5, 5) and not weights.requires_grad and torch.equal(weights, attention_weights(q, k))
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, 4, 5))
    maps.clear()
    attention(x)
    assert not maps  # outside, nothing is recorded


def test_attention_in_portions_is_the_same(monkeypatch):
    torch.manual_seed(0)
    attention, x = shaken(TemporalAttention(32, heads=4, positions=16)), torch.randn(7, 5, 32)
    whole = attention(x)
    monkeypatch.setattr("animkit.temporal_transformer.MOST_ROWS", 3)
    torch.testing.assert_close(attention(x), whole)


def test_maps_of_a_whole_unet_are_named_by_site():
    unet = tiny_unet()
    video_unet = ak.inflate(unet)
    video_unet.insert(MotionModules.for_unet(unet, "v3"))
    x, text = clip_and_text(b=1, f=3)
    with torch.no_grad(), ak.record_attention(video_unet.motion) as maps:
        video_unet(x, 5, text)
    assert len(maps) == 2 * len(video_unet.motion.sites)
    key = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0"
    assert maps[key].shape == (64, 8, 3, 3)


def test_frames_see_each_other_and_their_order():
    torch.manual_seed(0)
    module = shaken(MotionModule(32, heads=4, norm_groups=8))
    x = torch.randn(4, 32, 2, 2)
    y = module(x, frames=4)
    flipped = module(x.flip(0), frames=4).flip(0)
    assert (y - flipped).abs().max() > 1e-3  # positions
    changed = x.clone()
    changed[3] = torch.randn(32, 2, 2)
    assert (module(changed, frames=4)[0] - y[0]).abs().max() > 1e-4  # frame 0 sees frame 3
    two = module(torch.cat([x, changed]), frames=4), module(torch.cat([x, x]), frames=4)
    assert torch.equal(two[0][:4], two[1][:4]) and not torch.equal(two[0][4:], two[1][4:])  # clips do not see clips


def test_convolution_of_the_ablation_has_equal_parameters_and_interface():
    unet = tiny_unet()
    conv, attention = (MotionModules.for_unet(unet, "v3", kind=kind) for kind in ("conv", "attention"))
    assert sum(p.numel() for p in conv.parameters()) == sum(p.numel() for p in attention.parameters())
    x = torch.randn(4, 32, 3, 3)
    module = conv["down_blocks.0.motion_modules.0"]
    assert torch.equal(module(x, frames=4), x)
    module = shaken(module)
    y = module(x, frames=4)
    changed = x.clone()
    changed[1] = torch.randn(32, 3, 3)
    assert (module(changed, frames=4)[0] - y[0]).abs().max() > 1e-4
    with pytest.raises(AnimkitError, match="no Linear layer"):  # and a MotionLoRA finds no attention to sit on
        ak.new_motion_lora(conv, rank=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    module = shaken(MotionModule(32, heads=4, norm_groups=8), scale=0.02)
    x = torch.randn(4, 32, 3, 3)
    expected = module(x, frames=4)
    result = module.to(dtype)(x.to(dtype), frames=4)
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.05)
    assert module(x, frames=4).dtype == torch.float32  # a module in another precision than its base


def test_save_and_load(tmp_path):
    unet = tiny_unet()
    modules = shaken(MotionModules.for_unet(unet, "v2", positions=20, heads=4))
    modules.save_pretrained(tmp_path / "motion")
    assert sorted(os.listdir(tmp_path / "motion")) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert json.loads((tmp_path / "motion" / "config.json").read_text())["version"] == "v2"
    for place in (tmp_path / "motion", tmp_path / "motion" / "diffusion_pytorch_model.safetensors"):
        loaded = MotionModules.from_pretrained(place)
        assert loaded.config == modules.config
        assert equal_states(loaded.state_dict(), modules.state_dict())


def test_half_precision_survives_saving(tmp_path):
    modules = MotionModules.for_unet(tiny_unet()).half()
    modules.save_pretrained(tmp_path)
    loaded = MotionModules.from_pretrained(tmp_path)
    assert equal_states(loaded.half().state_dict(), modules.state_dict())


def test_a_save_that_fails_leaves_the_old_files(tmp_path, monkeypatch):
    modules = MotionModules.for_unet(tiny_unet())
    modules.save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(tensors, path, metadata):
        open(path, "wb").write(b"half of it")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(AnimkitError, match="No space left on device"):
        shaken(modules).save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_damaged_and_wrong_files(tmp_path):
    modules = MotionModules.for_unet(tiny_unet())
    with pytest.raises(AnimkitError, match="no diffusion_pytorch_model.safetensors"):
        MotionModules.from_pretrained(tmp_path / "absent")
    modules.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:200])
    with pytest.raises(AnimkitError, match="damaged"):
        MotionModules.from_pretrained(tmp_path)
    file.write_bytes(whole[:-100])
    with pytest.raises(AnimkitError, match="damaged"):
        MotionModules.from_pretrained(tmp_path)
    MotionAdapter(block_out_channels=(32, 64), motion_norm_num_groups=8).save_pretrained(tmp_path / "theirs")
    with pytest.raises(AnimkitError, match="does not hold MotionModules"):
        MotionModules.from_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_text("[]")
    with pytest.raises(AnimkitError, match="does not hold MotionModules"):
        MotionModules.from_pretrained(tmp_path / "theirs")
    save_checkpoint(modules, tmp_path / "adapter-v1.5", "diffusers")  # a folder, for all its dot
    with pytest.raises(AnimkitError, match="names of diffusers' MotionAdapter: open it with open_checkpoint"):
        MotionModules.from_pretrained(tmp_path / "adapter-v1.5")
    save_folder(tmp_path / "newer", {"_class_name": "MotionModules", **modules.config, "bias": 1}, modules.state_dict())
    with pytest.raises(AnimkitError, match="other settings than MotionModules take"):
        MotionModules.from_pretrained(tmp_path / "newer")


def test_from_state_dict_reads_sites_and_positions_and_takes_all_or_nothing():
    modules = shaken(MotionModules.for_unet(tiny_unet(), "v2", positions=20))
    state = modules.state_dict()
    loaded = MotionModules.from_state_dict(state, "v2", norm_groups=modules.norm_groups)
    assert loaded.sites == modules.sites and loaded.positions == 20 and equal_states(loaded.state_dict(), state)
    key = next(key for key in state if key.endswith("ff_norm.bias"))
    with pytest.raises(AnimkitError, match="1 of the weights .* are missing.*ff_norm.bias"):
        MotionModules.from_state_dict({k: v for k, v in state.items() if k != key}, "v2")
    with pytest.raises(AnimkitError, match="are unknown.*surplus"):
        MotionModules.from_state_dict({**state, "surplus": torch.zeros(1)}, "v2")
    with pytest.raises(AnimkitError, match="another shape"):
        MotionModules.from_state_dict({**state, key: torch.zeros(3)}, "v2")
    with pytest.raises(AnimkitError, match="no motion module"):
        MotionModules.from_state_dict({"a": torch.zeros(1)})


def test_clear_errors():
    unet = tiny_unet()
    with pytest.raises(AnimkitError, match="40 frames .* 32 positions"):
        MotionModule(32)(torch.zeros(40, 32, 1, 1), frames=40)
    with pytest.raises(AnimkitError, match="unknown motion module version 'v4'.*v1, v2, v3"):
        MotionModules.for_unet(unet, "v4")
    with pytest.raises(AnimkitError, match="width 32 .* 5 heads"):
        MotionModules.for_unet(unet, heads=5)
    with pytest.raises(AnimkitError, match="attention.*conv"):
        MotionModules.for_unet(unet, kind="lstm")
    with pytest.raises(AnimkitError, match="reference.*diffusers"):
        MotionModules.for_unet(unet, norm="batch")


def test_sites_are_the_papers_places():
    assert list(motion_sites(tiny_unet(), mid=True)) == [
        "down_blocks.0.motion_modules.0", "down_blocks.1.motion_modules.0", "up_blocks.0.motion_modules.0",
        "up_blocks.0.motion_modules.1", "up_blocks.1.motion_modules.0", "up_blocks.1.motion_modules.1",
        "mid_block.motion_modules.0"]


@pytest.mark.parametrize("of", [{"heads": 0}, {"positions": 0}, {"norm_groups": 0}])
def test_counts_below_1_are_refused(of):
    with pytest.raises(AnimkitError, match="of a motion module are at least 1"):
        MotionModules({"down_blocks.0.motion_modules.0": 32}, **of)
