"""LoRAs from disk: every naming gives the same numbers as PEFT through diffusers, and the same file again when
saved."""
import copy
import json
import re
import warnings

import file_makers as make
import pytest
import torch
from animkit import AnimkitError, inflate, open_checkpoint, save_checkpoint
from animkit.checkpoints.ldm_names import to_ldm_name
from animkit.checkpoints.motion import to_diffusers_name
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

EVERYWHERE = make.SPATIAL + r"|proj_in$|ff\.net\.2$|resnets\.0\.conv1$"


def inputs(f=2):
    return (torch.randn(1, 4, f, 8, 8, generator=torch.Generator().manual_seed(1)),
            torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(2)))


def opened(tmp_path, weights, name="f.safetensors", **options):
    return open_checkpoint(make.write(tmp_path / name, weights), **options)


@torch.no_grad()
def effect(video, checkpoint, alpha=1.0, f=2):
    x, text = inputs(f)
    name = video.insert(checkpoint, alpha=alpha)
    y = video(x, 9, text)
    video.remove(name)
    return y


@torch.no_grad()
@pytest.mark.parametrize("naming", ["kohya", "peft", "diffusers", "first diffusers"])
def test_equals_diffusers_loading_of_the_same_file(tmp_path, naming):
    unet = make.unet()
    made = make.pairs(unet, make.SPATIAL if naming == "first diffusers" else EVERYWHERE)
    weights = {
        "kohya": lambda: make.kohya_lora(made, 2.0),
        "peft": lambda: make.peft_lora(made),
        "diffusers": lambda: make.diffusers_lora(made),
        "first diffusers": lambda: make.reference_lora(made),
    }[naming]()
    checkpoint = opened(tmp_path, weights)
    x, text = inputs(1)
    theirs = StableDiffusionPipeline(
        make.vae(), make.text(), None, copy.deepcopy(unet), None, None, None, requires_safety_checker=False
    )
    if (
        naming == "first diffusers"
    ):  # what animkit takes as it is, diffusers 0.42 wants with a prefix, or it loads nothing
        weights = {f"unet.{n}": t for n, t in weights.items()}
    theirs.load_lora_weights(
        make.write(tmp_path / "theirs.safetensors", weights).parent, weight_name="theirs.safetensors", adapter_name="look"
    )
    theirs.set_adapters("look", 0.7)
    expected = theirs.unet(x[:, :, 0], 9, text).sample
    video = inflate(unet)
    base = video(x, 9, text)
    video.insert(checkpoint, alpha=0.7, name="look")
    assert torch.allclose(video(x, 9, text)[:, :, 0], expected, atol=1e-5)
    assert (expected - base[:, :, 0]).abs().max() > 1e-2
    video.remove("look")
    assert torch.equal(video(x, 9, text), base)


@torch.no_grad()
def test_kohya_for_text_encoder_equals_diffusers(tmp_path):
    text_encoder, unet = make.text(), make.unet()
    weights = make.kohya_lora(make.pairs(unet, "attn1.to_q$"), 3.0) | make.kohya_lora(
        make.pairs(text_encoder, "(q|out)_proj$"), 1.5, "lora_te_text_model_")
    checkpoint = opened(tmp_path, weights)
    theirs = StableDiffusionPipeline(
        make.vae(), copy.deepcopy(text_encoder), None, copy.deepcopy(unet), None, None, None, requires_safety_checker=False
    )
    theirs.load_lora_weights(tmp_path, weight_name="f.safetensors")
    ids = torch.arange(3, 59)[None]
    before = text_encoder(ids)[0]
    attached = checkpoint.build_text(text_encoder).attach(text_encoder)
    assert torch.allclose(text_encoder(ids)[0], theirs.text_encoder(ids)[0], atol=1e-5)
    assert (text_encoder(ids)[0] - before).abs().max() > 1e-3
    attached.remove()
    old = {n.replace("q_proj", "to_q").replace("out_proj", "to_out"): t for n, t in weights.items()}  # diffusers' first names
    again = opened(tmp_path, old, "old.safetensors").build_text(text_encoder)
    assert again.state_dict().keys() == checkpoint.build_text(text_encoder).state_dict().keys()
    with pytest.warns(UserWarning, match="its 4 layers for the text encoder are not used by a UNet alone"):
        inflate(unet).insert(checkpoint)


def test_scales_of_kohya_and_peft(tmp_path):
    unet = make.unet()
    video, made = inflate(unet), make.pairs(unet, "attn1.to_q$", rank=4)
    assert {float(m.scale) for m in _layers(opened(tmp_path, make.kohya_lora(made, 2.0)).build(video))} == {0.5}
    assert {float(m.scale) for m in _layers(opened(tmp_path, make.kohya_lora(made, None)).build(video))} == {1.0}
    peft = make.peft_lora(made, "base_model.model.")
    (tmp_path / "adapter").mkdir()
    save_file(peft, tmp_path / "adapter" / "adapter_model.safetensors")
    for config, scale in (({"lora_alpha": 8}, 2.0), ({"lora_alpha": 8, "use_rslora": True}, 4.0)):
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
        assert {float(m.scale) for m in _layers(open_checkpoint(tmp_path / "adapter").build(video))} == {scale}


def _layers(lora):
    return [lora[path] for path in lora.paths]


@torch.no_grad()
def test_a_lora_saved_by_diffusers_with_its_alpha_in_the_metadata(tmp_path):
    unet = make.unet()
    theirs = copy.deepcopy(unet)
    theirs.add_adapter(LoraConfig(r=4, lora_alpha=12, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(theirs),
                                              unet_lora_adapter_metadata=theirs.peft_config["default"].to_dict())
    x, text = inputs(1)
    expected = theirs(x[:, :, 0], 9, text).sample
    assert torch.allclose(effect(inflate(unet), open_checkpoint(tmp_path), f=1)[:, :, 0], expected, atol=1e-5)


@torch.no_grad()
def test_kohya_s_block_names_of_sdxl(tmp_path):
    unet = make.unet("sdxl")
    made = make.pairs(unet, r"attn[12]\.to_|proj_in$|ff\.net|resnets\.1\.conv2$|emb_proj|samplers\.0\.conv$|conv_in|linear_1$")
    names = make.ldm_unet({f"{p}.weight": torch.zeros(1) for p in made}, attention=(False, True, True))
    names = [n.removeprefix("model.diffusion_model.").removesuffix(".weight") for n in names]
    original = make.kohya_lora(dict(zip(names, made.values())), 2.0)
    video = inflate(unet)
    a = opened(tmp_path, original).build(video)
    b = opened(tmp_path, make.kohya_lora(made, 2.0), "g.safetensors").build(video)
    assert set(a.paths) == set(b.paths) == set(made)
    assert all(torch.equal(a.state_dict()[n], t) for n, t in b.state_dict().items())


@pytest.mark.parametrize("version", ["sd1", "sdxl"])
def test_names_of_the_original_code_agree_with_diffusers_renaming(version):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
    unet = make.unet(version)
    state = unet.state_dict()
    named = {f"model.diffusion_model.{to_ldm_name(n, 2, unet)}": torch.tensor(i) for i, n in enumerate(state)}
    assert len(named) == len(state)
    xl = {"addition_embed_type": "text_time"} if version == "sdxl" else {}
    back = convert_ldm_unet_checkpoint(named, {"layers_per_block": 2, "class_embed_type": None, **xl})
    assert [int(back[n]) for n in state] == list(range(len(state)))


def v2_lora(tmp_path):
    video = inflate(make.unet())
    video.insert(opened(tmp_path, make.reference_motion(make.adapter(mid=True)), "v2.ckpt"), name="motion")
    return video, make.reference_lora(make.pairs(video.motion, r"attention_blocks\.\d\.to_"))


def test_a_v2_motion_lora_on_v3_needs_strict_false_and_says_it_once(tmp_path):
    v2, weights = v2_lora(tmp_path)
    v3 = inflate(make.unet())
    v3.insert(opened(tmp_path, make.reference_motion(make.adapter()), "v3.ckpt"), name="motion")
    with pytest.raises(AnimkitError, match=r"8 layers left over: mid_block.*open_checkpoint\(path, strict=False\)"):
        v3.insert(opened(tmp_path, weights, "zoom.ckpt"))
    assert list(v3.alpha) == ["motion"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        v3.insert(opened(tmp_path, weights, "zoom.ckpt", strict=False), name="zoom")
    assert [str(w.message) for w in said if "layers have no place" in str(w.message)] == [
        "zoom.ckpt: 8 of its 128 layers have no place in the motion modules and are left out (it was trained on a v2"
        " module, whose middle block this one lacks)."
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        v2.insert(opened(tmp_path, weights, "zoom.ckpt", strict=False))  # nothing to say where everything has its place


@torch.no_grad()
def test_the_two_files_of_motion_director(tmp_path):
    """AnimateDiff-MotionDirector adapts every Linear of the temporal blocks, and keeps the last word of a name apart:
    to_out.processor.0_lora, ff.net.0.processor.proj_lora; in the spatial file proj_in_lora, ff.net.2_lora."""
    video, _ = v2_lora(tmp_path)

    def apart(made, before):
        return {re.sub(r"\.(\w+)$", rf".{before}\1_lora.{half}.weight", path): tensor
                for path, pair in made.items() for half, tensor in zip(("down", "up"), pair)}

    temporal = make.pairs(video.motion, r"attention_blocks\.\d\.to_|ff\.net")
    attention, rest = make.pairs(video.unet, make.SPATIAL), make.pairs(video.unet, r"proj_in$|ff\.net")
    for kind, theirs, made in (
        ("MotionLoRA", apart(temporal, "processor."), temporal),
        ("LoRA", make.reference_lora(attention) | apart(rest, ""), attention | rest),
    ):
        checkpoint = opened(tmp_path, theirs)
        assert checkpoint.kind == kind
        assert torch.equal(effect(video, checkpoint), effect(video, opened(tmp_path, make.peft_lora(made), "peft.safetensors")))


@torch.no_grad()
def test_what_strict_false_leaves_out_is_only_the_middle_block(tmp_path):
    v2, weights = v2_lora(tmp_path)
    rest = {n: t for n, t in weights.items() if "mid_block" not in n}
    v3 = inflate(make.unet())
    v3.insert(opened(tmp_path, make.reference_motion(make.adapter()), "v3.ckpt"))
    with pytest.warns(UserWarning):
        partial = effect(v3, opened(tmp_path, weights, "zoom.ckpt", strict=False))
    assert torch.equal(partial, effect(v3, opened(tmp_path, rest, "rest.ckpt")))


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", "base_model.model."])
def test_what_other_programs_put_before_a_layer_and_peft_around_it(tmp_path, prefix):
    unet = make.unet()
    made = make.pairs(unet, "attn1.to_q$")
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    assert set(opened(tmp_path, make.peft_lora(made, prefix)).build(inflate(unet)).paths) == set(made)


def test_all_or_nothing(tmp_path):
    unet = make.unet()
    video, good = inflate(unet), make.peft_lora(make.pairs(unet, "to_q$"))
    names = list(good)
    for change, sentence in (
        ({names[0]: None}, "(down half)"),
        ({names[1]: None}, "(up half)"),
        (
            {"unet.nowhere.to_q.lora_A.weight": torch.ones(3, 8), "unet.nowhere.to_q.lora_B.weight": torch.ones(8, 3)},
            "1 layer left over: nowhere.to_q",
        ),
        ({names[0]: torch.ones(3, 99)}, "for a weight"),
        ({names[0]: torch.ones(2, good[names[0]].shape[1])}, "the rank of"),
        ({"stray": torch.ones(1)}, "1 tensor left over: stray"),
    ):
        weights = {n: t for n, t in (good | change).items() if t is not None}
        with pytest.raises(AnimkitError) as error:
            video.insert(opened(tmp_path, weights))
        assert sentence in str(error.value), sentence
    assert not video.alpha
    with pytest.raises(AnimkitError, match="insert a motion module first"):
        video.insert(opened(tmp_path, v2_lora(tmp_path)[1]))


def test_one_layer_s_alpha_is_missed(tmp_path):
    weights = make.kohya_lora(make.pairs(make.unet(), "attn1.to_q$"), 2.0)
    name = next(n for n in weights if n.endswith(".alpha"))
    del weights[name]
    layer = name.removeprefix("lora_unet_").removesuffix(".alpha")
    with pytest.raises(AnimkitError, match=rf"1 tensor missing: {layer} \(alpha\)"):
        opened(tmp_path, weights)


def test_a_1x1_convolution_s_lora_goes_on_a_linear_and_back(tmp_path):
    sd1, sd2 = make.unet("sd1"), make.unet("sd2")
    made = make.pairs(sd1, "proj_in$")
    for unet in (sd1, sd2):
        lora = opened(tmp_path, make.kohya_lora(made)).build(inflate(unet))
        assert all(lora[p].delta().shape == unet.get_submodule(p).weight.shape for p in lora.paths)


@pytest.mark.parametrize("naming", ["reference", "diffusers", "kohya", "animkit"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_round_trips_are_bit_exact(tmp_path, naming, suffix):
    video, weights = v2_lora(tmp_path)
    for number, source in enumerate((weights, make.reference_lora(make.pairs(make.unet(), make.SPATIAL)))):
        lora = opened(tmp_path, {n: t.half() for n, t in source.items()}, f"{number}.ckpt").build(video)
        again = open_checkpoint(save_checkpoint(lora, tmp_path / f"out{number}{suffix}", naming))
        state, own = again.build(video).state_dict(), lora.state_dict()
        assert state.keys() == own.keys() and all(torch.equal(state[n], t) and t.dtype == state[n].dtype for n, t in own.items())
        if naming == "reference":
            assert again.weights.keys() == source.keys()
            assert all(torch.equal(again.weights[n], t.half()) for n, t in source.items())


@torch.no_grad()
def test_a_scale_survives_every_naming(tmp_path):
    unet = make.unet()
    video = inflate(unet)
    lora = opened(tmp_path, make.kohya_lora(make.pairs(unet, make.SPATIAL), 2.0)).build(video)
    expected = effect(video, lora)
    for naming in ("reference", "diffusers", "kohya", "animkit"):
        assert torch.allclose(
            effect(video, open_checkpoint(save_checkpoint(lora, tmp_path / "out.safetensors", naming))), expected, atol=1e-5
        )
    kohya = save_checkpoint(lora, tmp_path / "kohya.safetensors", "kohya")
    assert {float(t) for n, t in open_checkpoint(kohya).weights.items() if n.endswith("alpha")} == {2.0}


def test_a_look_s_two_halves_are_saved_together(tmp_path):
    unet, text_encoder = make.unet(), make.text()
    weights = make.kohya_lora(make.pairs(unet, "attn1.to_q$")) | make.kohya_lora(
        make.pairs(text_encoder, "q_proj$"), prefix="lora_te_text_model_"
    )
    look = opened(tmp_path, weights)
    halves = look.build(inflate(unet), text_too=True), look.build_text(text_encoder)
    saved = open_checkpoint(save_checkpoint(halves[0], tmp_path / "out.safetensors", "kohya", text_encoder=halves[1]))
    assert saved.weights.keys() == weights.keys() and all(torch.equal(saved.weights[n], t) for n, t in weights.items())
    with pytest.raises(AnimkitError, match="no place for a text encoder"):
        save_checkpoint(halves[0], tmp_path / "out.safetensors", "reference", text_encoder=halves[1])


def test_saving_refuses_clearly(tmp_path):
    unet = make.unet()
    lora = opened(tmp_path, make.kohya_lora(make.pairs(unet, "ff.net.2$"))).build(inflate(unet))
    for call, sentence in ((lambda: save_checkpoint(lora, tmp_path / "x.safetensors"), "only to_q, to_k, to_v"),
                           (lambda: save_checkpoint(lora, tmp_path / "x.zip", "kohya"), "must end in .safetensors"),
                           (lambda: save_checkpoint(lora, tmp_path / "x.ckpt", "webui"), "unknown LoRA format"),
                           (lambda: save_checkpoint(unet, tmp_path / "x.ckpt"), "only MotionModules and LoRA")):
        with pytest.raises(AnimkitError, match=sentence):
            call()
    assert not list(tmp_path.glob("x.*"))


@torch.no_grad()
def test_a_v2_motion_lora_stays_whole_when_the_motion_module_is_changed_under_it(tmp_path):
    """v3 first, then v2: the middle block comes to act; and back to v3, where it has no place."""
    v2, weights = v2_lora(tmp_path)
    plain = opened(tmp_path, make.reference_motion(make.adapter()), "v3.ckpt")
    x, text = inputs()
    v2.insert(opened(tmp_path, weights, "zoom.ckpt", strict=False), alpha=0.5, name="zoom")
    for naming in (lambda w: w, lambda w: {to_diffusers_name(n): t for n, t in w.items()}):
        video = inflate(make.unet())
        video.insert(plain, name="motion")
        with pytest.warns(UserWarning, match="8 of its 128 layers"):
            video.insert(opened(tmp_path, naming(weights), "zoom.ckpt", strict=False), alpha=0.5, name="zoom")
        on_v3 = video(x, 9, text)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            video.insert(open_checkpoint(tmp_path / "v2.ckpt"), name="motion")
        assert torch.equal(video(x, 9, text), v2(x, 9, text))
        with pytest.warns(UserWarning, match="8 of its 128 layers"):
            video.insert(open_checkpoint(tmp_path / "v3.ckpt"), name="motion")
        assert torch.equal(video(x, 9, text), on_v3) and video.alpha["zoom"] == 0.5
        lora = next(p for p in video.parts if p is not video.motion)
        saved = open_checkpoint(save_checkpoint(lora, tmp_path / "again.safetensors"))
        assert len(saved.weights) == len(weights)  # nothing of it was lost on the way
    with pytest.warns(UserWarning, match="8 of its 128 layers"):
        v2.insert(plain, name="motion")  # and so where it began on v2
    assert torch.equal(v2(x, 9, text), on_v3)


def test_strict_false_names_what_else_it_leaves_out(tmp_path):
    unet = make.unet()
    strange = {f"unet.nowhere{i}.to_q.lora_{h}.weight": torch.ones(2, 2) for i in range(12) for h in "AB"}
    look = make.peft_lora(make.pairs(unet, "attn1.to_q$")) | strange
    with pytest.warns(UserWarning, match="12 of its .* are left out: nowhere0.to_q, .*, and 2 more"):
        inflate(unet).insert(opened(tmp_path, look, strict=False))
    with pytest.raises(AnimkitError, match="12 layers left over"):
        inflate(unet).insert(opened(tmp_path, strange, strict=False))


def test_a_text_encoder_s_lora_from_peft_is_known_as_one(tmp_path):
    names = {f"text_model.{n}": pair for n, pair in make.pairs(make.text(), "q_proj$").items()}
    with pytest.raises(AnimkitError, match="for the text encoder alone"):
        opened(tmp_path, make.peft_lora(names, "base_model.model."))


def test_what_no_lora_is_made_of(tmp_path):
    made = make.pairs(make.unet(), "attn1.to_q$")
    whole = {n: t.int() for n, t in make.peft_lora(made).items()}
    twice = {n.replace("_A.", f"_A.{a}.").replace("_B.", f"_B.{a}."): t for n, t in make.peft_lora(made).items()
             for a in ("default", "other")}
    flat = {n: t[0] for n, t in make.peft_lora(made).items()}
    for weights, sentence in ((make.kohya_lora(made, float("nan")), "alpha is nan"), (twice, "two LoRAs in one file"),
                              (flat, "which no LoRA has"),
                              (make.kohya_lora(made, float("inf")), "alpha is inf"), (whole, "is of int32")):
        with pytest.raises(AnimkitError, match=sentence):
            opened(tmp_path, weights)


def test_the_folder_of_a_training_run_is_taken_for_its_file(tmp_path):
    (tmp_path / "mine").mkdir()
    opened(tmp_path / "mine", make.peft_lora(make.pairs(make.unet(), "attn1.to_q$")), "mine.safetensors")
    checkpoint = open_checkpoint(tmp_path / "mine")
    assert (checkpoint.kind, checkpoint.name) == ("LoRA", "mine")


def test_a_look_that_may_be_a_domain_adapter_says_so(tmp_path):
    made = make.pairs(make.unet(), make.SPATIAL)
    for naming in (make.peft_lora, make.diffusers_lora, make.kohya_lora):
        checkpoint = opened(tmp_path, naming(made))
        assert checkpoint.kind == "LoRA" and "or a domain adapter" in checkpoint.notes[0]
    assert opened(tmp_path, make.peft_lora(make.pairs(make.unet(), "attn1.to_q$"))).notes == []


@pytest.mark.parametrize("naming", ["kohya", "PEFT", "diffusers"])
def test_xl_s_two_text_encoders_each_get_their_own(tmp_path, naming):
    unet, encoders = make.unet("sdxl"), {"text_encoder": make.text(64), "text_encoder_2": make.text(32, projection=32)}
    made = {part: make.pairs(encoder, "v_proj$", seed=i) for i, (part, encoder) in enumerate(encoders.items())}
    old = {part: {f"text_model.{n.removeprefix('text_model.')}": pair for n, pair in pairs.items()}
           for part, pairs in made.items()}
    write, prefixes = {"kohya": (make.kohya_lora, ("lora_te1_", "lora_te2_")),
                       "PEFT": (make.peft_lora, ("text_encoder.", "text_encoder_2.")),
                       "diffusers": (make.diffusers_lora, ("text_encoder.", "text_encoder_2."))}[naming]
    weights = write(make.pairs(unet, "attn1.to_q$"))
    for part, prefix in zip(made, prefixes):
        weights |= write(old[part], prefix=prefix)
    checkpoint = opened(tmp_path, weights)
    assert "2 layers are on the second text encoder" in checkpoint.notes
    for part, encoder in encoders.items():
        state = checkpoint.build_text(encoder, part).state_dict()
        for name, (down, up) in made[part].items():
            assert torch.equal(state[f"{name}.down.weight"], down) and torch.equal(state[f"{name}.up.weight"], up)


@pytest.mark.parametrize("patterns, scale", [
    ({}, 2.0), ({"to_q": 4}, 1.0), ({"q": 4}, 2.0), ({"^to_q": 4}, 2.0), ({r"attn1\.to_q$": 4}, 1.0),
    ({"(a+)+": 4}, "which is no layer's name"), ({"to_.": 4}, 1.0)], ids=str)
def test_alpha_patterns_are_names_and_never_run_as_expressions(tmp_path, patterns, scale):
    made = make.peft_lora(make.pairs(make.unet(), "attn1.to_q$", rank=4))
    said = json.dumps({"unet.lora_alpha": 8, "unet.alpha_pattern": patterns})
    save_file(made, tmp_path / "l.safetensors", {"lora_adapter_metadata": said})
    if isinstance(scale, str):
        with pytest.raises(AnimkitError, match=scale):
            open_checkpoint(tmp_path / "l.safetensors")
    else:
        lora = open_checkpoint(tmp_path / "l.safetensors").build(inflate(make.unet()))
        assert {float(layer.scale) for layer in _layers(lora)} == {scale}
