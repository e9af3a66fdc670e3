"""Single files in the original naming: the same numbers as the models they were made from, and as diffusers' own
loader gives."""
import contextlib
import copy

import file_makers as make
import pytest
import torch
from animkit import Animator, AnimkitError, inflate, new_domain_adapter, open_checkpoint
from animkit.checkpoints.architecture import architecture
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

VERSIONS = ["sd1", "sd2", "sdxl"]


def conditions(unet, b=2):
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(b, 5, unet.config.cross_attention_dim, generator=generator)
    if unet.config.addition_embed_type is None:
        return text, {}
    return text, {"added_cond_kwargs": {"text_embeds": torch.randn(b, 32, generator=generator), "time_ids": torch.ones(b, 6)}}


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
def test_every_part_draws_as_its_original(tmp_path, version):
    state, parts = make.single_file(version)
    checkpoint = open_checkpoint(make.write(tmp_path / "base.ckpt", state, "state_dict"))
    made = checkpoint.components(tokenizer=object())
    assert all(same(made[name], part) for name, part in parts.items())
    text, added = conditions(parts["unet"])
    x, ids = torch.randn(2, 4, 8, 8), torch.arange(3, 60)[None]
    assert torch.equal(made["unet"](x, 5, text, **added).sample, parts["unet"](x, 5, text, **added).sample)
    assert torch.equal(made["vae"].decode(x).sample, parts["vae"].decode(x).sample)
    assert torch.equal(made["vae"].encode(x[:, :3]).latent_dist.mean, parts["vae"].encode(x[:, :3]).latent_dist.mean)
    for name in parts.keys() - {"unet", "vae"}:
        for layer in (-1, -2):
            a, b = (m(ids, output_hidden_states=True).hidden_states[layer] for m in (made[name], parts[name]))
            assert torch.equal(a, b)
        assert torch.equal(made[name](ids)[0], parts[name](ids)[0])


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
def test_the_unet_equals_diffusers_own_loading_of_the_file(tmp_path, version):
    state, parts = make.single_file(version)
    file = make.write(tmp_path / "base.safetensors", state)
    parts["unet"].save_config(tmp_path / "config" / "unet")
    theirs = UNet2DConditionModel.from_single_file(
        str(file), config=str(tmp_path / "config"), subfolder="unet", local_files_only=True
    )
    ours = open_checkpoint(file).unet()
    assert same(ours, theirs)
    text, added = conditions(ours)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(ours(x, 5, text, **added).sample, theirs(x, 5, text, **added).sample)


@pytest.mark.parametrize("version", VERSIONS)
def test_pipelines_and_their_configs(tmp_path, version):
    checkpoint = open_checkpoint(make.write(tmp_path / "base.safetensors", make.single_file(version)[0]))
    tokenizer = _tokenizer()
    pipe = checkpoint.pipeline(tokenizer=tokenizer)
    assert type(pipe) is (StableDiffusionXLPipeline if version == "sdxl" else StableDiffusionPipeline)
    assert pipe.scheduler.config.prediction_type == ("v_prediction" if version == "sd2" else "epsilon")
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"
    assert pipe.vae.config.scaling_factor == (0.13025 if version == "sdxl" else 0.18215)
    assert checkpoint.pipeline(tokenizer=tokenizer, prediction="epsilon").scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_tokenizer_fills_prompts_up_as_each_text_encoder_was_trained(tmp_path, version):
    """Given as an object or as a folder alike: no attention mask hides what fills them."""
    from transformers import CLIPTokenizer
    vocab = {"!": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3, "a": 4}
    given = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77, pad_token="<|endoftext|>")
    given.save_pretrained(tmp_path / "given")
    checkpoint = open_checkpoint(make.write(tmp_path / "base.safetensors", make.single_file(version)[0]))
    for tokenizer in (given, tmp_path / "given"):
        made = checkpoint.components(tokenizer=tokenizer)
        fill = {name: one.pad_token for name, one in made.items() if name.startswith("tokenizer")}
        assert fill == {"sd1": {"tokenizer": "<|endoftext|>"}, "sd2": {"tokenizer": "!"},
                        "sdxl": {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}}[version]
    assert given.pad_token == "<|endoftext|>"


def _tokenizer():
    from transformers import CLIPTokenizer
    return CLIPTokenizer(vocab={"a": 0, "a</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3}, merges=[], model_max_length=77)


def test_marks_of_v_prediction_are_read(tmp_path):
    """SDXL finetunes carry empty tensors as marks; Stability's metadata says it in words."""
    from safetensors.torch import save_file

    state, _ = make.single_file("sdxl")
    file = make.write(tmp_path / "vpred.safetensors", state | {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])})
    checkpoint, tokenizer = open_checkpoint(file), _tokenizer()
    scheduler = checkpoint.components(tokenizer=tokenizer)["scheduler"].config
    assert (scheduler.prediction_type, scheduler.rescale_betas_zero_snr) == ("v_prediction", True)
    save_file(make.single_file("sd2")[0], tmp_path / "base.safetensors", {"modelspec.prediction_type": "epsilon"})
    scheduler = open_checkpoint(tmp_path / "base.safetensors").components(tokenizer=tokenizer)["scheduler"].config
    assert (scheduler.prediction_type, scheduler.rescale_betas_zero_snr) == ("epsilon", False)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_of_another_prediction_is_no_look(tmp_path, version):
    """Unless its base predicts the same; an unmarked SD 2.x may predict either."""
    state, _ = make.single_file(version)
    marked = make.write(tmp_path / "vpred.safetensors", state | {"v_pred": torch.zeros(1)})
    plain = make.write(tmp_path / "plain.safetensors", state)
    for prediction in ("epsilon", "v_prediction"):
        base = open_checkpoint(plain).pipeline(tokenizer=_tokenizer(), prediction=prediction)
        animator = Animator(base, motion=False)
        for file, own in ((marked, "v_prediction"), (plain, None if version == "sd2" else "epsilon")):
            fits = own in (None, prediction)
            refused = pytest.raises(AnimkitError, match=f"prediction is '{own}' and the base's is '{prediction}'.* as the base")
            with contextlib.nullcontext() if fits else refused:
                animator.insert(file, name="look")
                animator.remove("look")
            assert "look" not in animator.alpha


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_half_files_stay_half_and_are_not_copied(tmp_path, suffix):
    state, _ = make.single_file("sd1", torch.float16)
    checkpoint = open_checkpoint(make.write(tmp_path / f"half{suffix}", state))
    unet = checkpoint.unet()
    assert {p.dtype for p in unet.parameters()} == {torch.float16}
    stored = {t.data_ptr() for t in checkpoint.weights.values()}
    assert all(p.data_ptr() in stored for p in unet.parameters())
    assert {p.dtype for p in checkpoint.unet(torch.float32).parameters()} == {torch.float32}
    one, two = (open_checkpoint(checkpoint.path) for _ in range(2))
    stored = {t.data_ptr() for t in one.weights.values()}
    first, second = (one.components(tokenizer=object()) for _ in range(2))
    for part in ("unet", "vae", "text_encoder"):  # every part takes the file's own tensors over, one model alone
        assert all(p.data_ptr() in stored and p.dtype == torch.float16 for p in first[part].parameters())
        assert same(second[part], first[part]) and not any(p.data_ptr() in stored for p in second[part].parameters())
    looks = [two.build_text(make.text().half()).state for _ in range(2)]
    assert all(torch.equal(t, looks[1][n]) and t.data_ptr() != looks[1][n].data_ptr() for n, t in looks[0].items())


def test_pruned_and_damaged_files_are_refused(tmp_path):
    state, _ = make.single_file("sd1")
    only = {n: t for n, t in state.items() if n.startswith("model.diffusion_model.")}
    with pytest.raises(AnimkitError, match="no vae and no text_encoder"):
        open_checkpoint(make.write(tmp_path / "pruned.safetensors", only)).components(tokenizer=object())
    assert isinstance(open_checkpoint(tmp_path / "pruned.safetensors").unet(), UNet2DConditionModel)
    assert open_checkpoint(tmp_path / "pruned.safetensors").build_text(make.text()) is None
    without_vae = {n: t for n, t in state.items() if not n.startswith("first_stage_model.")}
    with pytest.raises(AnimkitError, match=r"no vae .* as its base, open_checkpoint\(this\).pipeline\(vae="):
        open_checkpoint(make.write(tmp_path / "novae.safetensors", without_vae)).components(tokenizer=object())
    names = [n for n in only if "transformer_blocks.0.norm2" in n]
    for change, sentence in (
        (dict.fromkeys(names), "tensors missing"),
        ({"model.diffusion_model.input_blocks.1.0.in_layers.2.weight": torch.ones(5, 5)}, "of another shape"),
        ({"model.diffusion_model.strange.weight": torch.ones(2)}, "left over: model.diffusion_model.strange.weight"),
        ({"model.diffusion_model.input_blocks.1.1.strange": torch.ones(2)}, "left over"),
        ({"another_model.weight": torch.ones(2)}, "left over: another_model.weight"),
        ({"cond_stage_model.transformer.text_model.final_layer_norm.weight": None}, "missing"),
        ({"first_stage_model.decoder.norm_out.weight": None}, "missing"),
        ({"first_stage_model.post_quant_conv.strange": torch.ones(1)}, "left over"),
    ):
        weights = {n: t for n, t in (state | change).items() if t is not None}
        with pytest.raises(AnimkitError) as error:
            open_checkpoint(make.write(tmp_path / "bad.safetensors", weights)).components(tokenizer=object())
        assert sentence in str(error.value), (sentence, str(error.value))


@torch.no_grad()
def test_a_whole_model_as_a_look_scales_and_leaves_no_trace(tmp_path):
    state, _ = make.single_file("sd1")
    moved = {n: t + 0.01 if t.is_floating_point() else t for n, t in state.items()}
    file = make.write(tmp_path / "toonyou.ckpt", moved, "state_dict")
    unet = make.unet()
    original = {n: p for n, p in unet.named_parameters()}
    pointers, values = {n: p.data_ptr() for n, p in original.items()}, copy.deepcopy(unet.state_dict())
    video = inflate(unet)
    x, text = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 5, 64)
    base = video(x, 3, text)
    look = open_checkpoint(file)
    with pytest.warns(UserWarning, match="toonyou.ckpt: its text encoder is not used by a UNet alone"):
        video.insert(look, name="toon")
    assert torch.equal(video(x, 3, text), inflate(open_checkpoint(file).unet())(x, 3, text))
    twin = copy.deepcopy(video)
    twin.alpha["toon"] = 0
    assert torch.equal(twin(x, 3, text), base)  # and not what was at work when it was copied
    video.alpha["toon"] = 0.5
    name = "conv_in.weight"
    assert torch.allclose(original[name], values[name] + 0.005, atol=1e-6)
    other = {n: t - 0.02 if t.is_floating_point() else t for n, t in state.items()}
    with pytest.warns(UserWarning):
        video.insert(open_checkpoint(make.write(tmp_path / "other.ckpt", other)), alpha=0.25, name="other")
    assert torch.allclose(original[name], values[name] + 0.005 - 0.005, atol=1e-6)  # several add up
    video.remove("toon")
    assert torch.allclose(original[name], values[name] - 0.005, atol=1e-6)
    video.alpha["other"] = 0
    assert torch.equal(video(x, 3, text), base)
    video.remove("other")
    assert all(p.data_ptr() == pointers[n] and torch.equal(p, values[n]) for n, p in unet.named_parameters())
    with pytest.warns(UserWarning):
        video.insert(look, name="toon")
    video.insert(new_domain_adapter(unet, 2), name="adapter")
    video._inserted["adapter"].work.fuse()
    for call in (lambda: video.remove("toon"), lambda: video.alpha.__setitem__("toon", 0.5)):
        with pytest.raises(AnimkitError, match="a LoRA is fused .* unfuse"):
            call()
        assert dict(video.alpha) == {"toon": 1.0, "adapter": 1.0}, "and nothing has changed"
    assert all(torch.equal(p, values[n]) for n, p in video.deflate().named_parameters())
    with pytest.raises(AnimkitError, match="tensors"), pytest.warns(UserWarning):
        inflate(make.unet("sd2")).insert(open_checkpoint(file))


@torch.no_grad()
@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_controlnet_equals_its_original(tmp_path, naming):
    control = make.controlnet()
    weights = control.state_dict() if naming == "diffusers" else make.ldm_controlnet(control.state_dict())
    ours = open_checkpoint(make.write(tmp_path / "control.ckpt", weights, "state_dict")).build()
    x, text, hint = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 64), torch.rand(1, 3, 16, 16)
    a, b = (m(x, 3, text, controlnet_cond=hint, return_dict=False) for m in (ours, control))
    assert torch.equal(a[1], b[1]) and all(torch.equal(i, j) for i, j in zip(a[0], b[0]))
    with pytest.raises(AnimkitError, match="stands beside the UNet, not in it"):
        inflate(make.unet()).insert(open_checkpoint(tmp_path / "control.ckpt"))


@pytest.mark.parametrize("version, parameters", [("sd1", 859_520_964), ("sd2", 865_910_724), ("sdxl", 2_567_463_684)])
def test_the_kits_configs_have_the_known_sizes(version, parameters):
    from accelerate import init_empty_weights
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(architecture(version)["unet"])
    assert sum(p.numel() for p in unet.parameters()) == parameters


def test_a_diffusers_unet_folder_keeps_its_own_config(tmp_path):
    unet = make.unet("sd2", (32, 96))  # heads that shapes do not tell
    unet.save_pretrained(tmp_path)
    again = open_checkpoint(tmp_path).unet()
    assert again.config.attention_head_dim == unet.config.attention_head_dim and same(again, unet)


@pytest.mark.parametrize("version", ["sd1", "sdxl"])
def test_what_other_programs_leave_in_a_file_is_no_part_of_the_model(tmp_path, version):
    """Merges carry CLIP's projection, which Stable Diffusion does not use; old files, textual inversion's training."""
    state, parts = make.single_file(version)
    clip = {"sd1": "cond_stage_model", "sdxl": "conditioner.embedders.0"}[version]
    extra = [f"{clip}.{n}" for n in ("logit_scale", "text_projection", "transformer.text_projection.weight",
                                     "transformer.text_model.text_projection.weight")]
    extra = dict.fromkeys([*extra, "embedding_manager.embedder.transformer.x"], torch.ones(2, 2))
    checkpoint = open_checkpoint(make.write(tmp_path / "base.safetensors", state | extra))
    made = checkpoint.components(tokenizer=object())
    assert all(same(made[name], part) for name, part in parts.items())
    assert "tensors of training, or of CLIP's" in checkpoint.notes[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_that_lacks_what_its_config_is_read_off(tmp_path, version):
    state, parts = make.single_file(version)
    attention = [n for n in state if n.startswith("model.") and "attn2.to_k" in n]
    token = next(n for n in state if n.endswith("token_embedding.weight"))
    for change in (
        {"model.diffusion_model.input_blocks.1.0.out_layers.3.weight": None},
        {"model.diffusion_model.input_blocks.1.0.out_layers.3.weight": torch.tensor(1.0)},
        {"model.diffusion_model.input_blocks.1.0.out_layers.3.weight": torch.ones(10**6, 1)},  # a width for terabytes
        dict.fromkeys(attention),
        {"first_stage_model.decoder.conv_in.weight": None},
        {"first_stage_model.encoder.down.0.block.0.conv1.weight": torch.ones(())},
        {token: None},
        {token: torch.ones(3)},
    ):
        weights = {n: t for n, t in (state | change).items() if t is not None}
        with pytest.raises(AnimkitError):
            open_checkpoint(make.write(tmp_path / "bad.safetensors", weights)).components(tokenizer=object())


def test_a_tokenizer_with_more_words_than_the_text_encoder_is_refused(tmp_path):
    """Its numbers would point outside the embedding."""
    file = make.write(tmp_path / "base.safetensors", make.single_file("sd1")[0])
    with pytest.raises(AnimkitError, match="the tokenizer knows 61 words and the file's text encoder 60"):
        open_checkpoint(file).components(tokenizer=range(61))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer/tokenizer.json"])
def test_a_tokenizer_beside_the_file_is_found(tmp_path, monkeypatch, name):
    """transformers 5 saves it as tokenizer.json alone; where there is none, the folder is said to have been tried."""
    from animkit.checkpoints import tokenizer as tokenizers

    monkeypatch.setattr(tokenizers, "HUB", ())
    monkeypatch.setattr(tokenizers, "PACKAGES", ())
    monkeypatch.delenv("ANIMKIT_TOKENIZER", raising=False)
    checkpoint = open_checkpoint(make.write(tmp_path / "base.safetensors", make.single_file("sd1")[0]))
    with pytest.raises(AnimkitError, match=f"the folder {tmp_path} "):
        checkpoint.components()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    _tokenizer().backend_tokenizer.save(str(tmp_path / name))
    assert checkpoint.components()["tokenizer"]("a").input_ids == [2, 1, 3]


@pytest.mark.parametrize("version, prefix", [("sd2", "cond_stage_model.model."),
                                             ("sdxl", "conditioner.embedders.1.model.")])
def test_nothing_of_an_openclip_text_encoder_is_dropped(tmp_path, version, prefix):
    """diffusers' renaming takes the names it knows and leaves the others, without a word."""
    state, _ = make.single_file(version)
    for name in ("strange.weight", "text_projection.weight", "ln_finally.weight"):
        checkpoint = open_checkpoint(make.write(tmp_path / "b.safetensors", state | {prefix + name: torch.ones(2, 2)}))
        with pytest.raises(AnimkitError, match=f"1 tensor left over: {prefix}{name}"):
            checkpoint.components(tokenizer=object())


def test_a_text_encoder_saved_without_the_layer_that_sd2_does_not_use(tmp_path):
    """As trainers save it, who have diffusers' model and write it back in the original names."""
    state, parts = make.single_file("sd2")
    whole = make.ldm_open_clip(parts["text_encoder"].state_dict(), "cond_stage_model.model.")
    state = {n: t for n, t in state.items() if not n.startswith("cond_stage_model.")} | whole
    made = open_checkpoint(make.write(tmp_path / "base.safetensors", state)).text_encoder()
    assert same(made, parts["text_encoder"])


def test_a_vae_alone_has_the_factor_of_the_base_it_is_given_to(tmp_path):
    vae = open_checkpoint(make.write(tmp_path / "vae.safetensors", make.ldm_vae(make.vae(4).state_dict())))
    for version, factor in (("sd1", 0.18215), ("sdxl", 0.13025)):
        base = open_checkpoint(make.write(tmp_path / f"{version}.safetensors", make.single_file(version)[0]))
        made = base.components(tokenizer=object(), vae=vae)["vae"]
        assert made.config.scaling_factor == factor and same(made, make.vae(4))
        assert vae.vae(version=version).config.scaling_factor == factor
    with pytest.raises(AnimkitError, match="unknown version 'sd9': choose one of sd1, sd2, sdxl"):
        vae.vae(version="sd9")
    make.vae().save_pretrained(tmp_path / "own", safe_serialization=True)
    config = tmp_path / "own" / "config.json"
    config.write_text(config.read_text().replace("0.18215", "0.5"))
    assert open_checkpoint(tmp_path / "own").vae(version="sdxl").config.scaling_factor == 0.5
    with pytest.raises(AnimkitError, match="does not fit a VAE alone; 1 tensor left over: cond_stage_model.x"):
        open_checkpoint(make.write(tmp_path / "vae.safetensors", make.ldm_vae(make.vae().state_dict()) | {
            "cond_stage_model.x": torch.ones(1)}))


def test_a_stable_diffusion_around_a_controlnet_is_left_out_and_counted(tmp_path):
    control = make.ldm_controlnet(make.controlnet().state_dict())
    around = {"first_stage_model.x": torch.ones(1), "model.diffusion_model.y": torch.ones(1)}
    assert open_checkpoint(make.write(tmp_path / "c.safetensors", control)).notes == []
    checkpoint = open_checkpoint(make.write(tmp_path / "c.safetensors", control | around))
    assert checkpoint.notes == ["2 other tensors (the Stable Diffusion around it) are left out"]
    assert same(checkpoint.controlnet(), make.controlnet())
