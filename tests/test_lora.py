"""W + alpha * B A on any layer (4.1, 4.3): live alpha, sums, exact removal and fusing; agreement with PEFT."""
import copy
import gc
import weakref

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import animkit as ak
from animkit.errors import AnimkitError
from animkit.look import new_look
from animkit.lora import LoRA, LowRank
from animkit.motion_module import MotionModules
from tiny import clip_and_text, equal_states, shaken, tiny_unet, traces


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False))


def lora_on(net: nn.Module, seed: int = 1, rank: int = 2, scale: float = 1.0) -> LoRA:
    return shaken(LoRA.for_module(net, lambda path: True, rank, seed=seed, scale=scale), seed=seed)


def by_hand(net: nn.Sequential, x: torch.Tensor, *weighted: tuple[LoRA, float]) -> torch.Tensor:
    """The same net with W + sum of alpha * scale * B A written into its weights."""
    for i in (0, 2):
        w = net[i].weight + sum(a * lora[str(i)].scale * lora[str(i)].up.weight @ lora[str(i)].down.weight
                                for lora, a in weighted)
        x = nn.functional.linear(x, w, net[i].bias)
        x = torch.tanh(x) if i == 0 else x
    return x


def test_fresh_is_the_identity():
    net, x = two_layers(), torch.randn(3, 6)
    y = net(x)
    LoRA.for_module(net, lambda path: True, rank=3).attach(net)
    assert torch.equal(net(x), y)


def test_formula_live_alpha_and_weighted_sums():
    net, x = two_layers(), torch.randn(3, 6)
    a, b = lora_on(net, 1), lora_on(net, 2, rank=3, scale=0.5)
    at_a, at_b = a.attach(net, alpha=0.7), b.attach(net, alpha=-0.2)
    torch.testing.assert_close(net(x), by_hand(net, x, (a, 0.7), (b, -0.2)))
    at_a.alpha = 1.5
    torch.testing.assert_close(net(x), by_hand(net, x, (a, 1.5), (b, -0.2)))
    at_a.alpha = 0
    torch.testing.assert_close(net(x), by_hand(net, x, (b, -0.2)))
    assert (net(x) - by_hand(net, x)).abs().max() > 1e-2 and at_b.alpha == -0.2


def test_a_layer_that_is_called_by_its_arguments_name():
    net = nn.Linear(6, 4)
    holder = nn.ModuleDict({"0": net})
    shaken(LoRA.for_module(holder, lambda path: True, rank=2), seed=3).attach(holder)
    x = torch.randn(3, 6)
    assert torch.equal(net(input=x), net(x)) and not torch.equal(net(x), nn.functional.linear(x, net.weight, net.bias))


def test_a_grouped_convolution_is_refused_by_its_name():
    with pytest.raises(AnimkitError, match="0 is a convolution in 2 groups"):
        LoRA.for_module(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), lambda path: True, 2, kinds=(nn.Conv2d,))


def test_convolutions_where_they_are_asked_for():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(6, 3, 1))
    x = torch.randn(2, 4, 9, 9)
    lora = LoRA.for_module(net, lambda path: True, 2, kinds=(nn.Linear, nn.Conv2d))
    fresh = lora["0"].down.weight  # A between -1 / sqrt(in) and this, as PEFT's, and a convolution has in = 4 * 3 * 3
    assert -1 / 6 <= fresh.min() < -0.15 and 0.15 < fresh.max() <= 1 / 6
    shaken(lora)
    assert lora["0"].down.weight.shape == (2, 4, 3, 3) and lora["0"].up.weight.shape == (6, 2, 1, 1)
    w = [net[i].weight + 0.7 * torch.einsum("or,rchw->ochw", lora[str(i)].up.weight[..., 0, 0], lora[str(i)].down.weight)
         for i in (0, 1)]
    y = nn.functional.conv2d(nn.functional.conv2d(x, w[0], net[0].bias, 2, 1), w[1], net[1].bias)
    at = lora.attach(net, alpha=0.7)
    torch.testing.assert_close(net(x), y)
    at.fuse()
    torch.testing.assert_close(net(x), y)
    with pytest.raises(AnimkitError, match="no Linear layer of Sequential"):
        LoRA.for_module(net, lambda path: True, 2)


def test_removal_leaves_no_trace():
    net, x = two_layers(), torch.randn(3, 6)
    y, before, state = net(x), traces(net), {k: v.clone() for k, v in net.state_dict().items()}
    tensors = [p.data_ptr() for p in net.parameters()]
    first, second = lora_on(net, 1).attach(net), lora_on(net, 2).attach(net)
    assert net.state_dict().keys() == state.keys()  # a checkpoint of the base saves as ever
    first.remove()
    assert not torch.equal(net(x), y)
    second.remove()
    assert torch.equal(net(x), y) and traces(net) == before and equal_states(net.state_dict(), state)
    assert [p.data_ptr() for p in net.parameters()] == tensors


def test_fusing_equals_listening_and_unfusing_is_exact_in_any_order():
    net, x = two_layers(), torch.randn(3, 6)
    plain, state = net(x), {k: v.clone() for k, v in net.state_dict().items()}
    a, b = lora_on(net, 1).attach(net, alpha=0.7), lora_on(net, 2).attach(net, alpha=0.4)
    both = net(x)
    tensors = [p.data_ptr() for p in net.parameters()]
    b.fuse()
    only_b_fused = {k: v.clone() for k, v in net.state_dict().items()}
    a.fuse()
    assert not equal_states(net.state_dict(), only_b_fused)
    torch.testing.assert_close(net(x), both)
    with pytest.raises(AnimkitError, match="unfuse"):
        a.alpha = 0.1
    a.unfuse()  # not the last to be fused
    assert equal_states(net.state_dict(), only_b_fused)
    a.fuse()
    b.unfuse()
    a.remove()  # unfuses
    assert equal_states(net.state_dict(), state)
    b.remove()
    assert torch.equal(net(x), plain) and [p.data_ptr() for p in net.parameters()] == tensors


def test_a_fuse_that_fails_leaves_the_lora_listening(monkeypatch):
    net, x = two_layers(), torch.randn(3, 6)
    state, at = {k: v.clone() for k, v in net.state_dict().items()}, lora_on(net).attach(net, alpha=0.7)
    with_it, delta, asked = net(x), LowRank.delta, []

    def second_fails(low_rank):
        asked.append(low_rank)
        if len(asked) == 2:
            raise RuntimeError("out of memory")
        return delta(low_rank)

    monkeypatch.setattr(LowRank, "delta", second_fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        at.fuse()
    assert not at.fused and torch.equal(net(x), with_it) and equal_states(net.state_dict(), state)


def test_a_lora_on_another_device_is_fused_where_the_layer_is():
    net = two_layers()
    at = lora_on(net).attach(net)
    net.to("meta").requires_grad_(False)
    at.fuse()
    assert at.fused and net[0].weight.device.type == "meta"
    at.unfuse()
    assert net(torch.empty(3, 6, device="meta")).is_meta, "and follows it when it is called"


def test_a_copy_of_a_fused_model_unfuses_by_itself():
    net = two_layers()
    state, at = {k: v.clone() for k, v in net.state_dict().items()}, lora_on(net).attach(net, alpha=0.7)
    at.fuse()
    fused = {k: v.clone() for k, v in net.state_dict().items()}
    twin, own = copy.deepcopy((net, at))
    own.remove()
    assert equal_states(twin.state_dict(), state) and equal_states(net.state_dict(), fused)
    at.remove()
    assert equal_states(net.state_dict(), state)


def test_a_fused_layer_is_freed_with_its_model():
    net = two_layers()
    lora_on(net).attach(net).fuse()
    layer = weakref.ref(net[0])
    del net
    gc.collect()
    assert layer() is None


def test_only_the_lora_learns():
    net, x = two_layers().requires_grad_(False), torch.randn(3, 6)
    lora = LoRA.for_module(net, ["0", "2"], rank=2)
    lora.attach(net)
    net(x).square().sum().backward()
    assert all(lora[path].up.weight.grad.abs().max() > 0 for path in lora.paths)
    assert all(p.grad is None for p in net.parameters())


def test_equals_peft_with_its_alpha_over_rank():
    torch.manual_seed(0)
    net, x = two_layers(), torch.randn(3, 6)
    mine = lora_on(net, 3, rank=4, scale=6 / 4)
    theirs = inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6, target_modules=["0", "2"]), two_layers())
    with torch.no_grad():
        for path in mine.paths:
            layer = theirs.get_submodule(path)
            layer.lora_A["default"].weight.copy_(mine[path].down.weight)
            layer.lora_B["default"].weight.copy_(mine[path].up.weight)
    mine.attach(net)
    torch.testing.assert_close(net(x), theirs(x))


def test_over_and_under_peft():
    """Ours hooks the layer that PEFT wraps, so that either may come and go first."""
    x = torch.randn(3, 6)
    config = LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    for ours_first in (True, False):
        net = two_layers()
        plain, lora = net(x), lora_on(net, 1)
        alone = by_hand(net, x, (lora, 0.5))
        if ours_first:
            attached = lora.attach(net, alpha=0.5)
        peft = inject_adapter_in_model(config, net)
        if not ours_first:
            assert not any("lora_" in p or "base_layer" in p for p in LoRA.for_module(net, lambda path: True, 2).paths)
            attached = lora.attach(net, alpha=0.5)
        both = peft(x)
        attached.alpha = 0
        only_peft = peft(x)
        attached.alpha = 0.5
        for path in lora.paths:
            peft.get_submodule(path).enable_adapters(False)
        torch.testing.assert_close(peft(x), alone)
        assert (both - only_peft).abs().max() > 1e-2 and (both - alone).abs().max() > 1e-2
        recurse_remove_peft_layers(net)  # what diffusers' unload_lora_weights does; ours stays
        torch.testing.assert_close(net(x), alone)
        attached.remove()
        assert torch.equal(net(x), plain)


def test_convolutions_which_kohya_files_hold():
    torch.manual_seed(0)
    for kernel in (1, 3):
        conv, x = nn.Conv2d(3, 5, kernel, stride=2, padding=kernel // 2), torch.randn(2, 3, 8, 8)
        net = nn.ModuleDict({"conv": conv})
        lora = LoRA.from_state_dict({"conv.down.weight": torch.randn(2, 3, kernel, kernel),
                                     "conv.up.weight": torch.randn(5, 2, 1, 1)}, scale=0.5)
        plain, at = conv(x), lora.attach(net, alpha=0.8)
        listened = conv(x)
        delta = torch.einsum("or,rikl->oikl", lora["conv"].up.weight[:, :, 0, 0], lora["conv"].down.weight) * 0.5
        expected = nn.functional.conv2d(x, conv.weight + 0.8 * delta, conv.bias, 2, kernel // 2)
        torch.testing.assert_close(listened, expected, rtol=1e-4, atol=1e-5)
        at.fuse()
        torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)
        at.remove()
        assert torch.equal(conv(x), plain)


def test_state_dict_keys_and_round_trip():
    net = two_layers()
    plain, scaled = lora_on(net), lora_on(net, scale=0.25)
    assert list(plain.state_dict()) == ["0.down.weight", "0.up.weight", "2.down.weight", "2.up.weight"]
    assert plain["0"].down.weight.shape == (2, 6) and plain["0"].up.weight.shape == (5, 2) and plain.rank == 2
    assert "0.scale" in scaled.state_dict()
    again = LoRA.from_state_dict(scaled.state_dict())
    assert equal_states(again.state_dict(), scaled.state_dict()) and again["2"].scale == 0.25
    assert again["2"].up.weight.data_ptr() != scaled["2"].up.weight.data_ptr(), "a file's own numbers are not trained"
    assert LoRA.from_state_dict(plain.state_dict(), scale={"0": 1.0, "2": 0.5})["2"].scale == 0.5
    fresh = LoRA.for_module(net, ["0", "2"], 2, seed=9)
    fresh.load_state_dict(plain.state_dict())
    assert equal_states(fresh.state_dict(), plain.state_dict())
    assert not equal_states(LoRA.for_module(net, ["0"], 2, seed=1).state_dict(),
                            LoRA.for_module(net, ["0"], 2, seed=2).state_dict())


def test_half_precision_base_with_a_float_lora():
    net, x = two_layers(), torch.randn(3, 6)
    lora = lora_on(net)
    expected = by_hand(net, x, (lora, 1.0))
    net.to(torch.bfloat16)
    lora.attach(net)
    y = net(x.to(torch.bfloat16))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


def test_text_encoder():
    config = CLIPTextConfig(vocab_size=50, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
                            num_attention_heads=2, max_position_embeddings=8, projection_dim=16)
    encoder, ids = CLIPTextModel(config).eval(), torch.randint(0, 50, (2, 8))
    y = encoder(ids).last_hidden_state
    lora = shaken(LoRA.for_module(encoder, ["q_proj", "k_proj", "v_proj", "out_proj"], rank=2))
    assert len(lora.paths) == 8
    attached = lora.attach(encoder)
    assert (encoder(ids).last_hidden_state - y).abs().max() > 1e-3
    attached.remove()
    assert torch.equal(encoder(ids).last_hidden_state, y)


def test_errors():
    net = two_layers()
    with pytest.raises(AnimkitError, match="rank must be at least 1"):
        LoRA.for_module(net, ["0"], rank=0)
    with pytest.raises(AnimkitError, match="no Linear layer of Sequential .* to_q"):
        LoRA.for_module(net, ["to_q"], rank=1)
    other = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    short = nn.Sequential(nn.Linear(6, 5))
    before = traces(other), traces(short)
    with pytest.raises(AnimkitError, match="made for another base: 0 has shape \\(9, 6\\).*\\(5, 6\\)"):
        lora_on(net).attach(other)
    with pytest.raises(AnimkitError, match="1 of the LoRA's 2 layers .* first is 2"):
        lora_on(net).attach(short)
    assert (traces(other), traces(short)) == before  # nothing was set to work in part
    nested = nn.Sequential(nn.Sequential(nn.Linear(6, 9)), nn.Tanh(), nn.Linear(9, 4))
    with pytest.raises(AnimkitError, match="0 is a Sequential, which has no weight"):
        lora_on(net).attach(nested)
    with pytest.raises(AnimkitError, match="a.alpha breaks the rule"):
        LoRA.from_state_dict({"a.down.weight": torch.zeros(1, 2), "a.up.weight": torch.zeros(2, 1),
                              "a.alpha": torch.ones(())})
    with pytest.raises(AnimkitError, match="a.up.weight breaks the rule"):
        LoRA.from_state_dict({"a.down.weight": torch.zeros(1, 2)})
    with pytest.raises(AnimkitError, match="rank 3 and its up.weight 2"):
        LoRA.from_state_dict({"a.down.weight": torch.zeros(3, 2), "a.up.weight": torch.zeros(2, 2)})
    with pytest.raises(AnimkitError, match="at least one layer"):
        LoRA.from_state_dict({})


def test_a_layer_that_is_never_called_is_refused_and_the_rest_adapted():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    y, lora = net(x), lora_on(net)
    with pytest.raises(AnimkitError, match="self_attn.out_proj is inside torch's MultiheadAttention"):
        lora.attach(net)
    lora.select(lambda path: "self_attn" not in path).attach(net)
    assert (net(x) - y).abs().max() > 1e-3


def test_layers_that_diffusers_fused_are_refused_until_they_are_not():
    unet = tiny_unet()
    video_unet, (x, text) = ak.inflate(unet), clip_and_text()
    adapter = shaken(ak.new_domain_adapter(unet, rank=2))
    plain = video_unet(x, 7, text)
    unet.fuse_qkv_projections()
    before = traces(unet)
    with pytest.raises(AnimkitError, match="attn1.to_q is fused .* unet.unfuse_qkv_projections"):
        video_unet.insert(adapter)
    assert not video_unet.alpha and traces(unet) == before
    unet.unfuse_qkv_projections()
    video_unet.insert(adapter)
    assert (video_unet(x, 7, text) - plain).abs().max() > 1e-3


def test_each_is_made_for_what_a_video_unet_holds_or_says_what_it_wants():
    video_unet = ak.inflate(tiny_unet())
    for none in (video_unet, video_unet.motion):
        with pytest.raises(AnimkitError, match="no motion module to make a MotionLoRA for"):
            ak.new_motion_lora(none, rank=2)
    modules = MotionModules.for_unet(video_unet)
    video_unet.insert(modules)
    for make, held in ((ak.new_motion_lora, modules), (ak.new_domain_adapter, video_unet.unet), (new_look, video_unet.unet)):
        a, b, other = (make(of, 2, seed=seed).state_dict() for of, seed in ((video_unet, 3), (held, 3), (held, 4)))
        assert equal_states(a, b) and not equal_states(b, other)
    for make in (ak.new_domain_adapter, MotionModules.for_unet):
        with pytest.raises(AnimkitError, match="of an animator, pass animator.video_unet"):
            make(object())


def test_select_keeps_some_layers_and_the_same_weights():
    lora = lora_on(two_layers())
    part = lora.select(lambda path: path == "2")
    assert part.paths == ("2",) and part["2"] is lora["2"]


# ---- which layers: 4.1 and 4.3

def test_release_sizes_of_the_domain_adapter_and_motion_lora():
    with torch.device("meta"):
        unet = UNet2DConditionModel(block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8,
                                    cross_attention_dim=768)
        modules = MotionModules.for_unet(unet, "v2")
    adapter, zoom = ak.new_domain_adapter(unet), ak.new_motion_lora(modules)
    sizes = {name: (len(lora.state_dict()), sum(p.numel() for p in lora.parameters()) * 4 / 1e6)
             for name, lora in {"adapter": adapter, "zoom": zoom}.items()}
    assert sizes["adapter"][0] == 256 and abs(sizes["adapter"][1] - 102.1) < 0.2  # 97.4 MiB
    assert sizes["zoom"][0] == 336 and abs(sizes["zoom"][1] - 77.4) < 0.2
    k = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    assert adapter[k].down.weight.shape == (128, 768)
    assert {path.split(".")[-1] for path in adapter.paths} == {"to_q", "to_k", "to_v", "0"}


def test_both_adapters_act_where_the_paper_says():
    unet = tiny_unet()
    video_unet = ak.inflate(unet)
    video_unet.insert(shaken(MotionModules.for_unet(unet)))
    adapter, zoom = ak.new_domain_adapter(unet, rank=4), ak.new_motion_lora(video_unet.motion, rank=4)
    assert all(".attn1." in path or ".attn2." in path for path in adapter.paths)
    assert all(".motion_modules." in path and ".attention_blocks." in path for path in zoom.paths)
    x, text = clip_and_text()
    with torch.no_grad():
        plain = video_unet(x, 9, text)
        for name, lora in {"adapter": adapter, "zoom": zoom}.items():
            video_unet.insert(lora, name=name)
            assert torch.equal(video_unet(x, 9, text), plain)  # fresh
            shaken(lora)
            assert (video_unet(x, 9, text) - plain).abs().max() > 1e-3
            video_unet.alpha[name] = 0
            assert torch.equal(video_unet(x, 9, text), plain)
