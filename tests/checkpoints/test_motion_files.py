"""Motion modules from disk: against diffusers under its rule, against the formulas under the reference's, and back to disk."""
import copy

import file_makers as make
import pytest
import torch
from animkit import AnimkitError, MotionModules, inflate, open_checkpoint, save_checkpoint
from animkit.sampling import sample
from animkit.prompts import encode_prompts
from animkit.windows import in_windows, repeated
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, UNetMotionModel
from test_motion_module import reference

WIDTHS = (32, 32, 64, 64)  # four levels, as SD 1.5
VERSIONS = {"v1": (False, 24), "v2": (True, 32), "v3": (False, 32)}


def brightening(b=2, f=5, size=8):
    """Frames whose mean and spread drift: where statistics are taken then matters."""
    x = torch.randn(b, 4, f, size, size, generator=torch.Generator().manual_seed(3))
    ramp = torch.linspace(0.5, 2, f)[None, None, :, None, None]
    return x * ramp + 2 * ramp, torch.randn(b, 5, 64, generator=torch.Generator().manual_seed(4))


def written(tmp_path, version, widths=WIDTHS):
    adapter = make.adapter(widths, *VERSIONS[version])
    return adapter, make.write(tmp_path / f"{version}.ckpt", make.reference_motion(adapter), "state_dict")


@torch.no_grad()
@pytest.mark.parametrize("version", VERSIONS)
def test_equals_diffusers_under_its_rule_and_shows_the_difference_under_the_references(tmp_path, version):
    unet = make.unet("sd1", WIDTHS)
    adapter, file = written(tmp_path, version)
    theirs = UNetMotionModel.from_unet2d(unet, adapter).eval()
    x, text = brightening()
    expected = theirs(x, 7, text.repeat_interleave(x.shape[2], dim=0)).sample  # it wants one text a frame
    video = inflate(unet)
    video.insert(open_checkpoint(file))
    assert video.motion.version == version
    video.motion.norm = "diffusers"
    assert torch.allclose(video(x, 7, text), expected, atol=1e-5, rtol=1e-5)
    video.motion.norm = "reference"
    difference = (video(x, 7, text) - expected).norm() / expected.norm()
    assert difference > 0.01, "where the norm takes its statistics must show on frames that brighten"


@torch.no_grad()
def test_an_opened_module_equals_the_formulas(tmp_path):
    module = open_checkpoint(written(tmp_path, "v3")[1]).build()["up_blocks.0.motion_modules.2"].double()
    x = torch.randn(2, 64, 5, 3, 4, dtype=torch.double)
    y = module(x.transpose(1, 2).flatten(0, 1), 5).unflatten(0, (2, 5)).transpose(1, 2)
    assert torch.allclose(y, reference(module, x, 5, heads=8, groups=32), atol=1e-4)  # the file has its positions in float32


@pytest.mark.parametrize("version", VERSIONS)
def test_round_trips_are_bit_exact(tmp_path, version):
    adapter, file = written(tmp_path, version)
    modules = open_checkpoint(file).build()
    for number, (out, naming) in enumerate((("a.ckpt", "reference"), ("b.safetensors", "reference"), ("c", "diffusers"))):
        again = open_checkpoint(save_checkpoint(modules.half() if number else modules, tmp_path / out, naming))
        assert again.version == version and again.config["positions"] == VERSIONS[version][1]
        assert again.dtypes == (("float32",), ("float16",), ("float16",))[number]
        state = again.build().state_dict()
        assert state.keys() == modules.state_dict().keys()
        assert all(torch.equal(state[n], t) for n, t in modules.state_dict().items())
    original = open_checkpoint(file).weights
    saved = open_checkpoint(tmp_path / "a.ckpt").weights
    assert saved.keys() == original.keys() and all(torch.equal(saved[n], t) for n, t in original.items())
    theirs = MotionAdapter.from_pretrained(
        tmp_path / "c"
    ).state_dict()  # and diffusers reads what it would have written
    assert theirs.keys() == adapter.state_dict().keys()
    assert all(torch.equal(theirs[n], t.half()) for n, t in adapter.state_dict().items())


def test_a_saved_file_is_no_larger_than_its_tensors(tmp_path):
    """Tensors of a mapped file are views of all of it: saved carelessly, each would bring the whole file along."""
    adapter, file = written(tmp_path, "v3")
    modules = open_checkpoint(save_checkpoint(open_checkpoint(file).build(), tmp_path / "a.safetensors")).build()
    saved = save_checkpoint(modules, tmp_path / "b.ckpt")
    assert saved.stat().st_size < 1.2 * file.stat().st_size


def test_modules_whose_positions_share_memory_are_saved(tmp_path):
    """A MotionAdapter has one set of positions for both attentions of a block; opened, they are the same tensor."""
    folder = save_checkpoint(MotionModules.for_unet(make.unet("sd1", WIDTHS)), tmp_path / "adapter", "diffusers")
    modules = open_checkpoint(folder).build()
    modules.save_pretrained(tmp_path / "ours")
    again = MotionModules.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in modules.state_dict().items())


def test_what_the_references_form_cannot_tell_is_not_lost_silently(tmp_path):
    unet = make.unet("sd1", WIDTHS)
    odd = MotionModules.for_unet(unet, "v1", positions=16, heads=4)
    with pytest.raises(AnimkitError, match="would lose the version, heads, positions|would lose the version, heads"):
        save_checkpoint(odd, tmp_path / "odd.ckpt")
    other_norm = MotionModules.for_unet(unet, "v3", norm="diffusers")
    with pytest.raises(AnimkitError, match="would lose the norm of"):
        save_checkpoint(other_norm, tmp_path / "norm.ckpt")
    assert open_checkpoint(save_checkpoint(other_norm, tmp_path / "norm.safetensors")).build().norm == "diffusers"
    again = open_checkpoint(save_checkpoint(odd, tmp_path / "odd.safetensors")).build()
    assert again.config == odd.config
    again = open_checkpoint(save_checkpoint(odd, tmp_path / "odd", "diffusers"))
    assert again.format == "diffusers" and again.build().config == odd.config  # though MotionAdapter knows no versions
    assert MotionAdapter.from_pretrained(tmp_path / "odd").config.motion_num_attention_heads == 4
    for format, said in (("diffusers", "a folder"), ("kohya", "unknown motion module format 'kohya'")):
        with pytest.raises(AnimkitError, match=said):
            save_checkpoint(odd, tmp_path / "odd.ckpt", format)
    conv = MotionModules.for_unet(unet, "v3", kind="conv")
    with pytest.raises(AnimkitError, match="no motion modules of convolutions"):
        save_checkpoint(conv, tmp_path / "conv", "diffusers")
    assert open_checkpoint(save_checkpoint(conv, tmp_path / "conv.safetensors")).build().kind == "conv"


def test_learned_positions_that_differ_have_no_place_in_diffusers(tmp_path):
    modules = open_checkpoint(written(tmp_path, "v3")[1]).build()
    modules["down_blocks.0.motion_modules.0"].temporal_transformer.transformer_blocks[0].attention_blocks[0].pos_encoder.pe += 1
    with pytest.raises(AnimkitError, match="only one set"):
        save_checkpoint(modules, tmp_path / "out", "diffusers")


def test_loading_is_all_or_nothing(tmp_path):
    adapter, file = written(tmp_path, "v3")
    state = make.reference_motion(adapter)
    names = [n for n in state if "norms.0" in n][:12]
    for name in names:
        del state[name]
    state["down_blocks.0.motion_modules.0.temporal_transformer.extra"] = torch.ones(1)
    state["up_blocks.1.motion_modules.0.temporal_transformer.proj_out.bias"] = torch.ones(7)
    video = inflate(make.unet("sd1", WIDTHS))
    before = copy.deepcopy(video.state_dict())
    with pytest.raises(AnimkitError) as error:
        video.insert(open_checkpoint(make.write(tmp_path / "bad.ckpt", state)))
    said = str(error.value)
    assert "12 tensors missing" in said and "and 2 more" in said and sum(n in said for n in names) == 10
    assert "1 tensor left over: down_blocks.0.motion_modules.0.temporal_transformer.extra" in said
    assert "proj_out.bias (7,) for (64,)" in said and "Nothing was loaded" in said
    assert not video.alpha and video.state_dict().keys() == before.keys()


def test_an_adapter_that_may_be_a_converted_v1_says_so(tmp_path):
    """diffusers' script drops v1's positions and gives 32: the tensors are then v3's."""
    def notes(mid, positions):
        make.adapter(WIDTHS, mid, positions).save_pretrained(tmp_path)
        return open_checkpoint(tmp_path).notes
    assert not any("v1" in note for mid, positions in ((True, 32), (False, 24)) for note in notes(mid, positions))
    assert any("or a v1 that diffusers' script converted" in note for note in notes(False, 32))
    assert open_checkpoint(written(tmp_path, "v3")[1]).notes == []
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.config["version"] = "v1"
    assert (checkpoint.build().version, checkpoint.build().positions) == ("v1", 32)


def test_a_module_for_another_unet_is_refused(tmp_path):
    file = written(tmp_path, "v3")[1]
    with pytest.raises(AnimkitError, match="does not fit the UNet's places"):
        inflate(make.unet("sdxl", (32, 64, 64))).insert(open_checkpoint(file))
    with pytest.raises(AnimkitError, match="of width 32 for 96"):
        inflate(make.unet("sd1", (32, 96, 64, 64))).insert(open_checkpoint(file))


@torch.no_grad()
def test_a_module_without_positions_takes_64_sinusoidal_ones(tmp_path):
    adapter = make.adapter(WIDTHS, False, 32)
    state = {n: t for n, t in make.reference_motion(adapter).items() if not n.endswith(".pe")}
    checkpoint = open_checkpoint(make.write(tmp_path / "AnimateLCM.ckpt", state))
    assert checkpoint.notes == ["positions: none in the file, 64 used"]
    modules, known = checkpoint.build(), open_checkpoint(written(tmp_path, "v3")[1]).build()
    assert modules.positions == 64
    x = torch.randn(5, 32, 3, 3)
    site = "down_blocks.0.motion_modules.0"
    assert torch.allclose(modules[site](x, 5), known[site](x, 5), atol=1e-6)
    assert modules[site](torch.randn(40, 32, 3, 3), 40).isfinite().all()


def test_the_file_s_dtype_is_kept_and_nothing_is_shared_by_two_builds(tmp_path):
    half = {n: t.half() for n, t in make.reference_motion(make.adapter(WIDTHS)).items()}
    checkpoint = open_checkpoint(make.write(tmp_path / "half.safetensors", half))
    one, two = checkpoint.build(), checkpoint.build()
    assert {t.dtype for t in one.state_dict().values()} == {torch.float16}
    name = "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"
    assert one.state_dict()[name].data_ptr() == checkpoint.weights[name].data_ptr()  # not held twice
    with torch.no_grad():
        one.get_parameter(name).zero_()
    assert torch.equal(two.state_dict()[name], half[name])
    assert all(p.requires_grad for p in one.parameters())


@torch.no_grad()
def test_exported_module_and_motion_lora_give_diffusers_pipeline_the_same_clip(tmp_path):
    """Ours under diffusers' rule against AnimateDiffPipeline on what we exported: the same latents within 1e-4."""
    unet, vae, text_encoder = make.unet("sd1", WIDTHS), make.vae(), make.text(64)
    ours = copy.deepcopy(unet)
    video = inflate(ours)
    video.insert(open_checkpoint(written(tmp_path, "v2")[1]))
    video.motion.norm = "diffusers"
    made = make.pairs(video.motion, r"attention_blocks\.\d\.to_")
    video.insert(open_checkpoint(make.write(tmp_path / "zoom.ckpt", make.reference_lora(made))), name="zoom")
    adapter = MotionAdapter.from_pretrained(save_checkpoint(video.motion, tmp_path / "adapter", "diffusers"))
    save_checkpoint(next(p for p in video.parts if p is not video.motion), tmp_path / "zoom.safetensors", "diffusers")

    scheduler = DDIMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False)
    pipe = AnimateDiffPipeline(vae, text_encoder, _tokenizer(), copy.deepcopy(unet), adapter, scheduler)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    positive, negative = (torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    arguments = dict(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        num_frames=5,
        num_inference_steps=4,
        guidance_scale=7.5,
        latents=noise.clone(),
        height=16,
        width=16,
        output_type="latent",
    )

    def latents():
        return sample(video, noise, torch.cat([negative, positive]), scheduler, steps=4, guidance=7.5, progress=False)

    without = pipe(**arguments).frames
    pipe.load_lora_weights(tmp_path, weight_name="zoom.safetensors", adapter_name="zoom")
    theirs = pipe(**arguments).frames
    assert (theirs - without).abs().max() > 0.01
    assert torch.allclose(latents(), theirs, atol=1e-4)
    drawn = vae.decode(latents()[:, :, 2] / vae.config.scaling_factor).sample
    assert torch.allclose(drawn, vae.decode(theirs[:, :, 2] / vae.config.scaling_factor).sample, atol=1e-4)
    video.alpha["zoom"] = 0
    assert torch.allclose(latents(), without, atol=1e-4)
    video.motion.norm = "reference"
    assert (latents() - without).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["a cat", {0: "a cat", 2: "a dog", 5: "a bird"}])
def test_diffusers_free_noise_draws_the_same_long_clip(tmp_path, prompt):
    """Our windows, and our prompts that change, against AnimateDiffPipeline.enable_free_noise, 8 frames in windows of 4:
    the same latents within 1e-4."""
    unet, vae, text_encoder = make.unet("sd1", WIDTHS), make.vae(), make.text(64)
    video, window, stride = inflate(copy.deepcopy(unet)), 4, 2
    video.insert(open_checkpoint(written(tmp_path, "v3")[1]))
    video.motion.norm = "diffusers"
    adapter = MotionAdapter.from_pretrained(save_checkpoint(video.motion, tmp_path / "adapter", "diffusers"))
    scheduler = DDIMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False)
    pipe = AnimateDiffPipeline(vae, text_encoder, _tokenizer(), unet, adapter, scheduler)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_free_noise(context_length=window, context_stride=stride)
    theirs = pipe(prompt, num_frames=8, num_inference_steps=3, guidance_scale=7.5, height=16, width=16, output_type="latent",
                  generator=torch.Generator().manual_seed(0)).frames

    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1, 4, *theirs.shape[2:], generator=generator)
    noise, (text, _) = repeated(drawn, window, stride, [generator]), encode_prompts(pipe, [prompt], "", True, (16, 16), "cpu", 8)

    def latents(noise):
        return sample(video, noise, text, scheduler, steps=3, guidance=7.5, progress=False)

    with in_windows(video.motion, window, stride):
        assert torch.allclose(latents(noise), theirs, atol=1e-4)
        assert (latents(drawn) - theirs).abs().max() > 1e-2
    assert (latents(noise) - theirs).abs().max() > 1e-2


def _tokenizer():
    from transformers import CLIPTokenizer
    vocab = {c: i for i, c in enumerate([chr(c) for c in range(97, 123)] + [chr(c) + "</w>" for c in range(97, 123)])}
    return CLIPTokenizer(vocab=vocab | {"<|startoftext|>": 52, "<|endoftext|>": 53}, merges=[], model_max_length=77)


def test_a_running_average_beside_the_weights_is_not_taken_for_them(tmp_path):
    state = make.reference_motion(make.adapter((32, 32), positions=4))
    average = {n: t + 1 for n, t in state.items()}
    for before in ("ema.", "model_ema.module."):  # whichever of the two comes last in the file
        both = state | {before + n: t for n, t in average.items()}
        checkpoint = open_checkpoint(make.write(tmp_path / "m.ckpt", both))
        assert checkpoint.weights.keys() == state.keys() and "running average" in checkpoint.notes[0]
        assert all(torch.equal(checkpoint.weights[n], t) for n, t in state.items())
    only = open_checkpoint(make.write(tmp_path / "m.ckpt", {f"ema.{n}": t for n, t in average.items()}))
    assert all(torch.equal(only.weights[n], t) for n, t in average.items())
    two = {f"{student}.{n}": t for student in ("teacher", "student") for n, t in state.items()}
    with pytest.raises(AnimkitError, match="2 sets of motion modules"):
        open_checkpoint(make.write(tmp_path / "m.ckpt", two))


def test_weights_that_are_no_real_numbers(tmp_path):
    state = make.reference_motion(make.adapter((32, 32), positions=4))
    name = "down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight"
    for change, sentence in (
        ({n: t.int() for n, t in state.items()}, "is of int32"),
        ({n: t.to(torch.complex64) for n, t in state.items()}, "is of complex64"),
        ({name: torch.tensor(1.0)}, r"the shape \(\) that no motion module has"),
        ({name: torch.ones(10**6, 1)}, r"the shape \(1000000, 1\) that no motion module has"),
        ({name.replace("blocks.0", "blocks.forward"): state[name]}, "has a name .* that no motion module has"),
        ({name.replace("proj_in.weight", "norm.weight"): torch.ones(0)}, "is of no numbers"),
    ):
        with pytest.raises(AnimkitError, match=sentence):
            open_checkpoint(make.write(tmp_path / "m.safetensors", state | change)).build()


def test_what_stands_beside_the_weights_is_named(tmp_path):
    state = make.reference_motion(make.adapter((32, 32), positions=4))
    contents = {"epoch": 3, "ema": {"x": torch.ones(1)}, "optimizer_states": [{}],
                "state_dict": {**state, "animatediff_config": {"layers": 2}, "average": {"y": torch.ones(1)}}}
    torch.save(contents, tmp_path / "m.ckpt")
    checkpoint = open_checkpoint(tmp_path / "m.ckpt")
    assert checkpoint.weights.keys() == state.keys()
    assert checkpoint.notes == ["tensors beside the weights are left out: ema, average"]
