"""Section 4.2: the image UNet stays itself inside the video UNet; what is inserted comes and goes without a trace."""
import copy

import pytest
import torch
from diffusers import ControlNetModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from peft import LoraConfig

import animkit as ak
from animkit.errors import AnimkitError
from animkit.insertion import place
from animkit.motion_module import MotionModules
from tiny import FAMILIES, added, clip_and_text, equal_states, shaken, tiny_unet, traces

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def moving(unet=None, version: str = "v3", **config) -> ak.VideoUNet:
    """A video UNet with motion modules of random weights."""
    unet = unet or tiny_unet()
    video_unet = ak.inflate(unet)
    video_unet.insert(shaken(MotionModules.for_unet(unet, version, **config)), name="motion")
    return video_unet


def frame_by_frame(unet, x, t, text, **kwargs) -> torch.Tensor:
    return torch.stack([unet(x[:, :, i], t, text, **kwargs).sample for i in range(x.shape[2])], dim=2)


# ---- what inflation must not change

@families
@torch.no_grad()
def test_one_frame_equals_the_image_unet_exactly(family):
    unet = family()
    x, text = clip_and_text(f=1)
    image = unet(x[:, :, 0], 7, text, added_cond_kwargs=added(unet, 2)).sample
    video_unet = ak.inflate(unet)
    assert torch.equal(video_unet(x, 7, text, added_cond_kwargs=added(unet, 2))[:, :, 0], image)
    for version in ("v1", "v2", "v3"):
        video_unet.insert(MotionModules.for_unet(unet, version))
        assert torch.equal(video_unet(x, 7, text, added_cond_kwargs=added(unet, 2))[:, :, 0], image)


@families
@torch.no_grad()
def test_frames_without_motion_are_the_image_unets_pictures(family):
    """Timesteps, SDXL's conditions and text go to the frames of their own clip, and frames do not see each other."""
    unet = family()
    x, text = clip_and_text(b=3, f=4)
    t = torch.tensor([1, 500, 999])
    expected = frame_by_frame(unet, x, t, text, added_cond_kwargs=added(unet, 3))
    video_unet = ak.inflate(unet)
    close(video_unet(x, t, text, added_cond_kwargs=added(unet, 3)), expected)
    plain = video_unet(x, t, text, added_cond_kwargs=added(unet, 3))
    video_unet.insert(MotionModules.for_unet(unet, "v2"))  # fresh: the identity, to the bit
    assert torch.equal(video_unet(x, t, text, added_cond_kwargs=added(unet, 3)), plain)


@torch.no_grad()
def test_the_weights_are_the_same_tensors_under_the_same_names():
    unet = tiny_unet()
    before = {name: p.data_ptr() for name, p in unet.named_parameters()}
    keys = list(unet.state_dict())
    video_unet = moving(unet)
    video_unet.insert(ak.new_domain_adapter(unet, rank=2))
    assert {name: p.data_ptr() for name, p in unet.named_parameters()} == before
    assert list(unet.state_dict()) == keys and video_unet.deflate() is unet


@torch.no_grad()
def test_the_image_unet_still_draws_images_while_inflated():
    unet = tiny_unet()
    x, text = clip_and_text(f=1)
    image = unet(x[:, :, 0], 7, text).sample
    for version in ("v1", "v3"):
        moving(unet, version)
        assert torch.equal(unet(x[:, :, 0], 7, text).sample, image)


@torch.no_grad()
def test_two_video_unets_around_one_image_unet_do_not_meet():
    unet = tiny_unet()
    x, text = clip_and_text()
    still = ak.inflate(unet)
    plain = still(x, 7, text)
    first = moving(unet)
    moved = first(x, 7, text)
    second = ak.inflate(unet)
    assert torch.equal(still(x, 7, text), plain) and torch.equal(second(x, 7, text), plain)
    assert torch.equal(first(x, 7, text), moved) and not torch.equal(moved, plain)


@torch.no_grad()
def test_size_not_a_multiple_of_the_unets():
    x, text = clip_and_text(size=9)
    unet = tiny_unet()
    expected = frame_by_frame(unet, x, 7, text)
    close(ak.inflate(unet)(x, 7, text), expected)
    assert moving(unet)(x, 7, text).shape == x.shape


# ---- motion

@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
@torch.no_grad()
def test_frames_see_each_other_only_through_motion_modules(version):
    video_unet = moving(version=version)
    x, text = clip_and_text(f=4)
    y = video_unet(x, 7, text)
    changed = x.clone()
    changed[0, :, 3] = torch.randn(4, 8, 8)
    z = video_unet(changed, 7, text)
    assert (y - z)[0, :, 0].abs().max() > 1e-4  # another frame of this clip
    close(y[1], z[1])  # another clip


@torch.no_grad()
def test_places_are_those_of_the_paper():
    """The middle block: between attention and second ResNet; elsewhere after the pair, or after a lone ResNet."""
    unet = tiny_unet()
    for name, layer in {"down_blocks.0.motion_modules.0": unet.down_blocks[0].attentions[0],
                        "down_blocks.1.motion_modules.0": unet.down_blocks[1].resnets[0],
                        "up_blocks.0.motion_modules.1": unet.up_blocks[0].resnets[1],
                        "up_blocks.1.motion_modules.1": unet.up_blocks[1].attentions[1],
                        "mid_block.motion_modules.0": unet.mid_block.attentions[0]}.items():
        assert place(unet, name)[1] is layer
    video_unet, x = moving(unet, "v2"), clip_and_text(f=3)
    seen = {}
    module = video_unet.motion["mid_block.motion_modules.0"]
    module.register_forward_hook(lambda m, args, y: seen.update(out=y))
    unet.mid_block.resnets[1].register_forward_pre_hook(lambda m, args: seen.update(into=args[0]))
    video_unet(x[0], 7, x[1])
    assert torch.equal(seen["out"], seen["into"])


@torch.no_grad()
def test_v1_normalises_resnets_over_all_frames():
    """Against ResNet norms written out: one statistic for a whole clip, conv_norm_out too."""
    unet = tiny_unet()
    video_unet = ak.inflate(unet)
    x, text = clip_and_text(f=3)
    x = x + torch.randn(2, 1, 3, 1, 1) * 3
    plain = video_unet(x, 7, text)
    video_unet.insert(MotionModules.for_unet(unet, "v1"))  # fresh, so that only the norms differ
    joint = video_unet(x, 7, text)
    assert (joint - plain).abs().max() > 1e-3
    video_unet.alpha["motion"] = 0
    assert torch.equal(video_unet(x, 7, text), plain), "at alpha 0 it is the image model"
    video_unet.alpha["motion"] = 1
    taken = []
    for norm in (unet.down_blocks[0].resnets[0].norm1, unet.mid_block.resnets[0].norm2, unet.conv_norm_out):
        def check(m, args, y):
            z = args[0].transpose(1, 2).flatten(0, 1) if args[0].ndim == 5 else args[0]  # (b f) c h w
            z = z.unflatten(0, (2, 3)).transpose(1, 2)  # b c f h w
            g = z.unflatten(1, (m.num_groups, -1))
            mean, var = g.mean((2, 3, 4, 5), keepdim=True), g.var((2, 3, 4, 5), unbiased=False, keepdim=True)
            w = ((g - mean) / torch.sqrt(var + m.eps)).flatten(1, 2) * m.weight[:, None, None, None]
            close(y.reshape(2, 3, *y.shape[1:]).transpose(1, 2) if y.ndim == 4 else y, w + m.bias[:, None, None, None])
            taken.append(m)
        norm.register_forward_hook(check)
    video_unet(x, 7, text)
    assert len(taken) == 3
    video_unet.motion.norm = "diffusers"
    unet.conv_norm_out._forward_hooks.popitem()
    unet.mid_block.resnets[0].norm2._forward_hooks.popitem()
    unet.down_blocks[0].resnets[0].norm1._forward_hooks.popitem()
    assert torch.equal(video_unet(x, 7, text), plain)


# ---- text

def counted_keys(unet) -> list[int]:
    """Batch sizes that text keys are computed for."""
    sizes = []
    for name, layer in unet.named_modules():
        if name.endswith("attn2.to_k"):
            layer.register_forward_hook(lambda m, args, y: sizes.append(args[0].shape[0]))
    return sizes


@pytest.mark.parametrize("processor", [AttnProcessor2_0, AttnProcessor, lambda: SlicedAttnProcessor(2)])
@families
@torch.no_grad()
def test_text_keys_once_a_prompt_equal_the_plain_way(family, processor):
    unet = family()
    unet.set_attn_processor(processor())
    video_unet = moving(unet)
    x, text = clip_and_text(f=4)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    for kwargs in ({}, {"encoder_attention_mask": mask}):
        sizes = counted_keys(unet)
        folded = video_unet(x, 7, text, added_cond_kwargs=added(unet, 2), **kwargs)
        assert set(sizes) == {2}
        sizes.clear()
        video_unet.fold_text = False
        plain = video_unet(x, 7, text, added_cond_kwargs=added(unet, 2), **kwargs)
        assert set(sizes) == {8}
        video_unet.fold_text = True
        close(folded, plain)
        repeated = text.repeat_interleave(4, dim=0)  # as one prompt a frame
        if not kwargs:
            assert torch.equal(video_unet(x, 7, repeated, added_cond_kwargs=added(unet, 2)), plain)


@torch.no_grad()
def test_one_prompt_a_frame():
    unet = tiny_unet()
    x, _ = clip_and_text(b=2, f=3)
    text = torch.randn(6, 5, 24)
    expected = torch.stack([unet(x[:, :, i], 7, text[i::3]).sample for i in range(3)], dim=2)
    close(ak.inflate(unet)(x, 7, text), expected)


class Foreign(AttnProcessor2_0):
    """A user's own attention processor, which expects what the image UNet gives: (b f) n c."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        assert hidden_states.shape[0] == text.shape[0] == 6 and hidden_states.shape[1] in (64, 16)
        return 0.5 * super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, **kwargs)


@torch.no_grad()
def test_foreign_attention_processors_see_what_they_know():
    unet = tiny_unet()
    x, text = clip_and_text(b=2, f=3)
    plain = ak.inflate(unet)(x, 7, text)
    unet.set_attn_processor(Foreign())
    y = ak.inflate(unet)(x, 7, text)
    assert (y - plain).abs().max() > 1e-4
    unet.set_attn_processor(AttnProcessor2_0())
    assert torch.equal(ak.inflate(unet)(x, 7, text), plain)


# ---- other features of the image UNet

@torch.no_grad()
def test_peft_lora_after_inflation():
    unet = tiny_unet()
    video_unet = ak.inflate(unet)
    x, text = clip_and_text()
    plain = video_unet(x, 7, text)
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    styled = video_unet(x, 7, text)
    assert (styled - plain).abs().max() > 1e-3
    close(styled, frame_by_frame(unet, x, 7, text))
    video_unet.insert(shaken(ak.new_domain_adapter(unet, rank=2)), name="adapter")  # ours beside PEFT's
    assert (video_unet(x, 7, text) - styled).abs().max() > 1e-3
    unet.disable_adapters()
    video_unet.remove("adapter")
    assert torch.equal(video_unet(x, 7, text), plain)
    unet.enable_adapters()
    assert torch.equal(video_unet(x, 7, text), styled)


@torch.no_grad()
def test_controlnet_residuals():
    unet = tiny_unet()
    controlnet = shaken(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 16))).eval()
    x, text = clip_and_text(f=3)
    depth = torch.randn(2, 3, 3, 16, 16)  # b c f H W
    down, mid = zip(*(controlnet(x[:, :, i], 7, text, depth[:, :, i], return_dict=False) for i in range(3)))
    expected = torch.stack([unet(x[:, :, i], 7, text, down_block_additional_residuals=down[i],
                                 mid_block_additional_residual=mid[i]).sample for i in range(3)], dim=2)
    video_unet = ak.inflate(unet)
    stacked = [torch.stack(level, dim=2) for level in zip(*down)]  # b c f h w
    as_clips = {"down_block_additional_residuals": stacked, "mid_block_additional_residual": torch.stack(mid, dim=2)}
    flat = {key: [v.transpose(1, 2).flatten(0, 1) for v in value] if isinstance(value, list)
            else value.transpose(1, 2).flatten(0, 1) for key, value in as_clips.items()}
    close(video_unet(x, 7, text, **as_clips), expected)
    close(video_unet(x, 7, text, **flat), expected)
    assert (video_unet(x, 7, text) - expected).abs().max() > 1e-3
    once = {"down_block_additional_residuals": down[0], "mid_block_additional_residual": mid[0]}
    close(video_unet(x, 7, text, **once)[:, :, 0], expected[:, :, 0])  # one condition for the whole clip


@torch.no_grad()
def test_ip_adapter_folds_and_takes_one_image_a_frame():
    unet = tiny_unet()
    keys = {}
    for i, (name, layer) in enumerate((n, m) for n, m in unet.named_modules() if n.endswith("attn2")):
        for which in ("k", "v"):
            keys[f"{2 * i + 1}.to_{which}_ip.weight"] = torch.randn(layer.to_k.out_features, 24)
    projection = {"proj.weight": torch.randn(4 * 24, 10), "proj.bias": torch.zeros(96), "norm.weight": torch.ones(24),
                  "norm.bias": torch.zeros(24)}
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": keys}])
    x, text = clip_and_text(f=3)
    images = torch.randn(2, 1, 10)
    expected = frame_by_frame(unet, x, 7, text, added_cond_kwargs={"image_embeds": [images]})
    video_unet = ak.inflate(unet)
    y = video_unet(x, 7, text, added_cond_kwargs={"image_embeds": [images]})
    close(y, expected)
    assert (y - video_unet(x, 7, text, added_cond_kwargs={"image_embeds": [images.flip(0)]})).abs().max() > 1e-3
    each = images.repeat_interleave(3, dim=0)
    close(video_unet(x, 7, text, added_cond_kwargs={"image_embeds": [each]}), expected)


@pytest.mark.parametrize("config, given", [
    ({"num_class_embeds": 5}, {"class_labels": torch.tensor([1, 4])}),
    ({"time_cond_proj_dim": 6}, {"timestep_cond": torch.eye(2, 6)}),
    ({"addition_embed_type": "text", "addition_embed_type_num_heads": 4}, {}),
    ({"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 24, "cross_attention_dim": 20}, {})], ids=str)
@torch.no_grad()
def test_rarer_conditions_go_to_the_frames_of_their_clip(config, given):
    unet = tiny_unet(**config)
    x, text = clip_and_text(f=3)
    close(ak.inflate(unet)(x, 7, text, **given), frame_by_frame(unet, x, 7, text, **given))


@torch.no_grad()
def test_t2i_adapter_residuals():
    unet = tiny_unet()
    x, text = clip_and_text(f=3)
    features = [torch.randn(2, 3, 32, 8, 8), torch.randn(2, 3, 64, 4, 4)]  # b f c h w, one a level
    expected = torch.stack([unet(x[:, :, i], 7, text, down_intrablock_additional_residuals=[z[:, i] for z in features])
                            .sample for i in range(3)], dim=2)
    given = [z.flatten(0, 1) for z in features]
    y = ak.inflate(unet)(x, 7, text, down_intrablock_additional_residuals=given)
    close(y, expected)
    assert len(given) == 2 and (y - ak.inflate(unet)(x, 7, text)).abs().max() > 1e-3


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_gradient_checkpointing_covers_motion_modules_and_keeps_each_calls_frames(version):
    video_unet = moving(version=version)
    x, text = clip_and_text(f=4)
    calls = []
    for site in video_unet.motion.sites:
        video_unet.motion[site].temporal_transformer.register_forward_pre_hook(lambda m, args: calls.append(args[1]))

    def gradients() -> list[torch.Tensor]:
        video_unet.zero_grad()
        calls.clear()
        long, short = video_unet(x, 7, text), video_unet(x[:, :, :2], 9, text)  # two calls before one backward
        (long.square().mean() + short.square().mean()).backward()
        return [p.grad.clone() for p in video_unet.motion.parameters()]

    plain, sites = gradients(), len(video_unet.motion.sites)
    assert sorted(calls) == [2] * sites + [4] * sites
    video_unet.unet.enable_gradient_checkpointing()
    functions = [getattr(m, "_gradient_checkpointing_func", None) for m in video_unet.unet.modules()]
    checkpointed = gradients()
    assert functions == [getattr(m, "_gradient_checkpointing_func", None) for m in video_unet.unet.modules()]
    assert sorted(calls) == [2] * 2 * sites + [4] * 2 * sites  # each ran a second time, on its own number of frames
    assert all(torch.equal(a, b) or torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(plain, checkpointed))
    assert max(g.abs().max() for g in plain) > 1e-4


def test_only_what_is_inserted_learns():
    video_unet = moving()
    x, text = clip_and_text()
    video_unet(x, 7, text).square().mean().backward()
    assert all(p.grad is not None for p in video_unet.motion.parameters())
    assert all(p.grad is None for p in video_unet.unet.parameters())
    parts = [len(list(part.parameters())) for part in (video_unet, video_unet.unet, video_unet.motion)]
    assert parts[0] == parts[1] + parts[2]


# ---- inserting and removing

@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
@torch.no_grad()
def test_no_trace_of_what_was_inserted(version):
    unet = tiny_unet()
    x, text = clip_and_text()
    untouched = traces(unet)
    video_unet = ak.inflate(unet)
    before, plain = traces(unet), video_unet(x, 7, text)
    state = {key: value.clone() for key, value in unet.state_dict().items()}
    motion = shaken(MotionModules.for_unet(unet, version))
    video_unet.insert(motion, name="motion")
    video_unet.insert(shaken(ak.new_domain_adapter(unet, 2)), name="adapter")
    video_unet.insert(shaken(ak.new_motion_lora(motion, 2)), name="zoom")
    assert not torch.equal(video_unet(x, 7, text), plain)
    for name in ("motion", "zoom", "adapter"):
        video_unet.remove(name)
    assert traces(unet) == before and torch.equal(video_unet(x, 7, text), plain)
    assert all(count == (0, 0, 0, 0) for count in (v[:4] for v in traces(motion).values()))
    assert not video_unet.alpha and len(video_unet.parts) == 0 and equal_states(unet.state_dict(), state)
    video_unet.insert(motion)
    assert video_unet.deflate() is unet and traces(unet) == untouched


@torch.no_grad()
def test_another_motion_module_takes_the_place_of_the_first():
    unet = tiny_unet()
    x, text = clip_and_text()
    only_second = moving(unet, seed=1)(x, 7, text)
    video_unet = moving(unet, "v1", seed=0)
    assert video_unet.insert(shaken(MotionModules.for_unet(unet, "v3", seed=1))) == "motion"
    assert dict(video_unet.alpha) == {"motion": 1.0} and torch.equal(video_unet(x, 7, text), only_second)


@torch.no_grad()
def test_alpha_is_live_for_motion_and_lora():
    video_unet = moving()
    x, text = clip_and_text()
    full = video_unet(x, 7, text)
    video_unet.alpha["motion"] = 0
    close(video_unet(x, 7, text), ak.inflate(video_unet.unet)(x, 7, text))
    video_unet.alpha["motion"] = 0.5
    half = video_unet(x, 7, text)
    assert not torch.equal(half, full)
    video_unet.alpha["motion"] = 1
    assert torch.equal(video_unet(x, 7, text), full)
    video_unet.insert(shaken(ak.new_domain_adapter(video_unet.unet, 2)), alpha=0.25, name="look")
    assert video_unet.alpha == {"motion": 1.0, "look": 0.25}
    assert repr(video_unet.alpha) == "{'motion': 1.0, 'look': 0.25}"
    quarter = video_unet(x, 7, text)
    video_unet.alpha["look"] = 0
    assert torch.equal(video_unet(x, 7, text), full) and not torch.equal(quarter, full)


@torch.no_grad()
def test_two_motion_loras_add_up():
    video_unet = moving()
    x, text = clip_and_text()
    zoom, roll = (shaken(ak.new_motion_lora(video_unet.motion, 2, seed=seed), seed=seed) for seed in (1, 2))
    path = zoom.paths[0]
    layer, z = video_unet.motion.get_submodule(path), torch.randn(3, 32)
    base = layer(z)
    video_unet.insert(zoom, alpha=0.5, name="zoom")
    video_unet.insert(roll, alpha=0.7, name="roll")
    deltas = [lora[path].up.weight @ lora[path].down.weight for lora in (zoom, roll)]
    close(layer(z), base + 0.5 * z @ deltas[0].T + 0.7 * z @ deltas[1].T)


@torch.no_grad()
def test_motion_loras_follow_to_the_next_motion_module_or_say_why_not():
    unet = tiny_unet()
    video_unet = moving(unet)
    x, text = clip_and_text()
    zoom = shaken(ak.new_motion_lora(video_unet.motion, 2))
    video_unet.insert(zoom, alpha=0.5, name="zoom")
    second = shaken(MotionModules.for_unet(unet, "v3", seed=1))
    video_unet.insert(second, name="second")
    expected = moving(unet, seed=1)
    expected.insert(zoom, alpha=0.5)
    assert torch.equal(video_unet(x, 7, text), expected(x, 7, text))
    expected.deflate()

    v2 = moving(unet, "v2")
    v2.insert(shaken(ak.new_motion_lora(v2.motion, 2)), name="zoom")
    before, hooks = v2(x, 7, text), traces(v2.motion)
    with pytest.raises(AnimkitError, match="8 of the LoRA's 56 layers .*mid_block"):
        v2.insert(MotionModules.for_unet(unet, "v3"))
    assert torch.equal(v2(x, 7, text), before) and traces(v2.motion) == hooks  # nothing changed

    v2.remove("motion")  # the MotionLoRA waits, alpha and all
    assert dict(v2.alpha) == {"zoom": 1.0}
    close(v2(x, 7, text), ak.inflate(unet)(x, 7, text))
    v2.alpha["zoom"] = 0.3
    v2.insert(shaken(MotionModules.for_unet(unet, "v2")), name="motion")
    assert v2.alpha["zoom"] == 0.3
    v2.alpha["zoom"] = 1
    assert torch.equal(v2(x, 7, text), before)


@torch.no_grad()
def test_insert_builds_what_a_checkpoint_describes():
    class Weights:
        name = "ink"

        def build(self, video_unet):
            return shaken(ak.new_domain_adapter(video_unet.unet, 2))
    video_unet = ak.inflate(tiny_unet())
    assert video_unet.insert(Weights()) == "ink" and video_unet.insert(Weights(), name="ink again") == "ink again"
    assert list(video_unet.alpha) == ["ink", "ink again"]


@torch.no_grad()
def test_inserted_parts_take_the_unets_dtype_unless_told():
    unet = tiny_unet().to(torch.bfloat16)
    video_unet = ak.inflate(unet)
    video_unet.insert(shaken(MotionModules.for_unet(unet)))
    assert video_unet.motion.state_dict().popitem()[1].dtype == torch.bfloat16
    x, text = (z.to(torch.bfloat16) for z in clip_and_text())
    y = video_unet(x, 7, text)
    video_unet.insert(shaken(MotionModules.for_unet(unet)), dtype=torch.float32)  # to train on a base in half precision
    assert video_unet.motion.state_dict().popitem()[1].dtype == torch.float32
    z = video_unet(x, 7, text)
    assert z.dtype == torch.bfloat16 and (y - z).float().norm() < 0.1 * z.float().norm()


@torch.no_grad()
def test_a_copy_stands_alone():
    video_unet = moving()
    x, text = clip_and_text()
    y = video_unet(x, 7, text)
    twin = copy.deepcopy(video_unet)
    shaken(twin.motion)
    assert torch.equal(video_unet(x, 7, text), y) and not torch.equal(twin(x, 7, text), y)
    twin.deflate()
    assert torch.equal(video_unet(x, 7, text), y)


# ---- errors

@torch.no_grad()
def test_bad_input_is_named():
    unet = tiny_unet()
    video_unet = ak.inflate(unet)
    x, text = clip_and_text()
    image = unet(x[:, :, 0], 7, text).sample
    for bad in (x[:, :, 0], x[:, :, :0], x[:, :3]):
        with pytest.raises(AnimkitError, match="clips b c f h w, here with c = 4"):
            video_unet(bad, 7, text)
    for bad in (torch.randn(5, 5, 24), text[0]):
        with pytest.raises(AnimkitError, match="text for 2 clips is 2 n d \\(or 6 n d"):
            video_unet(x, 7, bad)
    with pytest.raises(AnimkitError, match="text has width 23 and this UNet reads width 24"):
        video_unet(x, 7, text[:, :, 1:])
    with pytest.raises(AnimkitError, match="SDXL UNet also needs .* text_embeds"):
        ak.inflate(FAMILIES["sdxl"]())(x, 7, text)
    with pytest.raises(AnimkitError, match="a condition of shape \\(5,\\) fits neither 2 clips nor 6 frames"):
        video_unet(x, torch.arange(5), text)
    with pytest.raises(AnimkitError, match="UNet2DConditionModel, not Linear"):
        ak.inflate(torch.nn.Linear(1, 1))
    with pytest.raises(AnimkitError, match=r"torch.compile has wrapped .*pipe.unet = pipe.unet._orig_mod, "):
        ak.inflate(torch.compile(unet))
    with pytest.raises(AnimkitError, match="cannot insert a str"):
        video_unet.insert("ink.safetensors")
    motion = MotionModules.for_unet(unet, positions=4)
    with pytest.raises(AnimkitError, match="'zoom' is a MotionLoRA and there is no motion module"):
        video_unet.insert(ak.new_motion_lora(motion, 2), name="zoom")
    video_unet.insert(motion, name="motion")
    with pytest.raises(AnimkitError, match="5 frames .* 4 positions"):
        video_unet(*(lambda c: (c[0], 7, c[1]))(clip_and_text(f=5)))
    assert video_unet(x, 7, text).shape == x.shape  # an error leaves it fit for use
    assert torch.equal(unet(x[:, :, 0], 7, text).sample, image)  # and its hooks asleep
    with pytest.raises(AnimkitError, match="down_blocks.0.motion_modules.0 they have width 64, the UNet has width 32"):
        video_unet.insert(MotionModules.for_unet(tiny_unet(block_out_channels=(64, 64))))
    with pytest.raises(AnimkitError, match="down_blocks.0.motion_modules.1 they have width 32, the UNet has no place"):
        video_unet.insert(MotionModules.for_unet(tiny_unet(layers_per_block=2)))
    with pytest.raises(AnimkitError, match="made for another base"):
        video_unet.insert(ak.new_domain_adapter(tiny_unet(block_out_channels=(64, 64)), 2))
    with pytest.raises(AnimkitError, match="nothing is inserted as 'ink'; there is: motion"):
        video_unet.alpha["ink"] = 1
    with pytest.raises(AnimkitError, match="nothing is inserted as 'ink'"):
        video_unet.remove("ink")
    for alpha in (float("nan"), "much", None, torch.ones(2)):
        with pytest.raises(AnimkitError, match="alpha of 'motion' must be a finite number"):
            video_unet.alpha["motion"] = alpha
        with pytest.raises(AnimkitError, match="finite number"):
            video_unet.insert(ak.new_domain_adapter(unet, 2), alpha=alpha)
    with pytest.raises(AnimkitError, match="already inserted as 'motion'"):
        video_unet.insert(ak.new_domain_adapter(unet, 2), name="motion")
    assert list(video_unet.alpha) == ["motion"]
    video_unet.deflate()
    for use in (lambda: video_unet(x, 7, text), lambda: video_unet.insert(motion)):
        with pytest.raises(AnimkitError, match="deflated"):
            use()
    assert video_unet.deflate() is unet
