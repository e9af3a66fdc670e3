"""open_checkpoint says what a file is, in whatever naming, wrapper and container; and names what it cannot be."""
import json

import file_makers as make
import pytest
import torch
from animkit import AnimkitError, MotionModules, inflate, open_checkpoint, save_checkpoint
from animkit.checkpoints.motion import to_diffusers_name
from animkit.cli import main

WIDE = (32, 32, 64, 64)  # four levels, as SD 1.5


def motion(mid=False, positions=32, widths=WIDE):
    return make.reference_motion(make.adapter(widths, mid, positions))


def without_positions():
    return {n: t for n, t in motion().items() if not n.endswith(".pe")}


def modules(version="v3"):
    return MotionModules.for_unet(make.unet(), version)


def motion_pairs(names=lambda n: n):
    return {names(n): pair for n, pair in make.pairs(modules("v2"), r"attention_blocks\.\d\.to_").items()}


def spatial():
    return make.pairs(make.unet(), make.SPATIAL)


def xl_kohya():
    unet = make.unet("sdxl")
    made = make.pairs(unet, r"attn1\.to_q")
    names = make.ldm_unet({f"{p}.weight": torch.zeros(1) for p in made}, attention=(False, True, True))
    return make.kohya_lora({n.removeprefix("model.diffusion_model.").removesuffix(".weight"): pair
                            for n, pair in zip(names, made.values())}, 2.0)


FILES = {
    "v1": (lambda: motion(positions=24), "motion module", "v1", "reference"),
    "v2": (lambda: motion(mid=True), "motion module", "v2", "reference"),
    "v3": (motion, "motion module", "v3", "reference"),
    "sdxl": (lambda: motion(widths=(32, 64, 64)), "motion module", "sdxl", "reference"),
    "lcm without positions": (without_positions, "motion module", "lcm", "reference"),
    "lcm with longer positions": (lambda: motion(positions=64), "motion module", "lcm", "reference"),
    "a whole UNet around v3": (lambda: motion() | make.unet().state_dict(), "motion module", "v3", "reference"),
    "adapter weights": (lambda: make.adapter(WIDE).state_dict(), "motion module", "v3", "diffusers"),
    "MotionLoRA, reference": (lambda: make.reference_lora(motion_pairs()), "MotionLoRA", "rank 3", "reference"),
    "MotionLoRA, diffusers": (
        lambda: make.diffusers_lora(motion_pairs(to_diffusers_name)), "MotionLoRA", "rank 3", "diffusers"
    ),
    "MotionLoRA, PEFT": (lambda: make.peft_lora(motion_pairs(to_diffusers_name)), "MotionLoRA", "rank 3", "PEFT"),
    "MotionLoRA, kohya": (lambda: make.kohya_lora(motion_pairs()), "MotionLoRA", "rank 3", "kohya"),
    "adapter, reference": (lambda: make.reference_lora(spatial()), "domain adapter", "rank 3", "reference"),
    "adapter or look, diffusers": (lambda: make.diffusers_lora(spatial()), "LoRA", "rank 3", "diffusers"),
    "adapter or look, PEFT": (lambda: make.peft_lora(spatial()), "LoRA", "rank 3", "PEFT"),
    "adapter or look, kohya": (lambda: make.kohya_lora(spatial()), "LoRA", "rank 3", "kohya"),
    "look with text encoder, kohya": (
        lambda: make.kohya_lora(spatial())
        | make.kohya_lora(make.pairs(make.text(), "q_proj|fc1"), prefix="lora_te_text_model_"),
        "LoRA",
        "rank 3",
        "kohya",
    ),
    "look for XL, kohya's block names": (xl_kohya, "LoRA", "rank 3", "kohya"),
    "SD 1": (lambda: make.single_file("sd1")[0], "base model", "sd1", "latent diffusion"),
    "SD 2": (lambda: make.single_file("sd2")[0], "base model", "sd2", "latent diffusion"),
    "SD XL": (lambda: make.single_file("sdxl")[0], "base model", "sdxl", "latent diffusion"),
    "UNet": (lambda: make.unet().state_dict(), "UNet", "sd1", "diffusers"),
    "VAE": (lambda: make.vae().state_dict(), "VAE", "sd1", "diffusers"),
    "VAE, original": (lambda: make.ldm_vae(make.vae().state_dict()), "VAE", "sd1", "latent diffusion"),
    "ControlNet": (lambda: make.controlnet().state_dict(), "ControlNet", "sd1", "diffusers"),
    "ControlNet, original": (
        lambda: make.ldm_controlnet(make.controlnet().state_dict()), "ControlNet", "sd1", "latent diffusion"
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_says_what_a_file_is(tmp_path, what):
    weights, kind, version, naming = FILES[what]
    checkpoint = open_checkpoint(make.write(tmp_path / "file.safetensors", weights()))
    assert (checkpoint.kind, checkpoint.version, checkpoint.format) == (kind, version, naming)
    assert f"{kind} {version}, {naming} naming, {len(checkpoint.weights)} tensors" in checkpoint.describe()


@pytest.mark.parametrize(
    "name, wrap",
    [
        ("f.ckpt", ""),
        ("f.ckpt", "state_dict"),
        ("f.pt", "module."),
        ("f.pth", "module. state_dict config"),
        ("f.bin", "config"),
        ("f.bin", "legacy state_dict module."),
    ],
)
@pytest.mark.parametrize("what", ["v3", "MotionLoRA, reference", "SD 1", "look with text encoder, kohya"])
def test_wrappers_come_off(tmp_path, what, name, wrap):
    weights, kind, version, naming = FILES[what]
    checkpoint = open_checkpoint(make.write(tmp_path / name, weights(), wrap))
    plain = open_checkpoint(make.write(tmp_path / "plain.safetensors", weights()))
    assert (checkpoint.kind, checkpoint.version, checkpoint.format) == (kind, version, naming)
    assert checkpoint.weights.keys() == plain.weights.keys()
    assert all(torch.equal(checkpoint.weights[n], t) for n, t in plain.weights.items())


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("what", ["v3", "adapter, reference", "SD 1", "UNet", "VAE", "ControlNet"])
def test_what_torch_puts_before_every_name_comes_off(tmp_path, what, prefix):
    weights, kind, version, naming = FILES[what]
    plain = open_checkpoint(make.write(tmp_path / "plain.safetensors", weights()))
    file = make.write(tmp_path / "file.safetensors", {prefix + n: t for n, t in weights().items()})
    checkpoint = open_checkpoint(file)
    assert (checkpoint.kind, checkpoint.version, checkpoint.format) == (kind, version, naming)
    assert checkpoint.weights.keys() == plain.weights.keys()


@pytest.mark.parametrize("name, what", [("controlnet", "ControlNet"), ("unet", "UNet"), ("motion_module", "v3")])
def test_the_only_table_in_a_file_holds_the_weights(tmp_path, name, what):
    weights, kind, _, _ = FILES[what]
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}, 1: {"exp_avg": torch.ones(2)}}}
    for contents in ({name: weights()}, {"epoch": 1, name: weights(), "optimizer": optimizer},
                     {"state_dict": {}, name: weights()}, {"models": {name: weights()}}):
        torch.save(contents, tmp_path / "f.ckpt")
        assert open_checkpoint(tmp_path / "f.ckpt").kind == kind


def test_several_tables_in_a_file_are_named(tmp_path):
    torch.save({"unet": make.unet().state_dict(), "vae": make.vae().state_dict()}, tmp_path / "f.ckpt")
    with pytest.raises(AnimkitError, match=r"its tensors lie in inner tables \(unet, vae\)"):
        open_checkpoint(tmp_path / "f.ckpt")
    itself = {"epoch": 1}
    itself["again"] = itself
    torch.save(itself, tmp_path / "f.ckpt")
    with pytest.raises(AnimkitError, match="no tensor in it"):
        open_checkpoint(tmp_path / "f.ckpt")


def test_a_sparse_control_is_named_in_its_table_and_in_diffusers_folder(tmp_path):
    torch.save({"controlnet": sparse_control(), "epoch": 1}, tmp_path / "f.ckpt")
    make.controlnet().save_pretrained(tmp_path / "folder")
    config = tmp_path / "folder" / "config.json"
    config.write_text(config.read_text().replace("ControlNetModel", "SparseControlNetModel"))
    for path in (tmp_path / "f.ckpt", tmp_path / "folder"):
        with pytest.raises(AnimkitError, match="this is a SparseCtrl"):
            open_checkpoint(path)


def test_folders_of_diffusers_peft_and_animkit(tmp_path):
    make.adapter(WIDE, mid=True).save_pretrained(tmp_path / "adapter")
    modules("v1").save_pretrained(tmp_path / "own")
    make.controlnet().save_pretrained(tmp_path / "control")
    make.unet("sdxl").save_pretrained(tmp_path / "unet", variant="fp16")
    found = {f.name: open_checkpoint(f) for f in tmp_path.iterdir()}
    assert {n: (c.kind, c.version, c.format) for n, c in found.items()} == {
        "adapter": ("motion module", "v2", "diffusers"), "own": ("motion module", "v1", "animkit"),
        "control": ("ControlNet", "sd1", "diffusers"), "unet": ("UNet", "sdxl", "diffusers")}
    (tmp_path / "adapter" / "model_index.json").write_text("{}")
    with pytest.raises(AnimkitError, match="a whole diffusers pipeline"):
        open_checkpoint(tmp_path / "adapter")


def test_ranks_alphas_and_text_encoders_are_told(tmp_path):
    look = make.kohya_lora(make.pairs(make.unet(), "attn1.to_q", 4), 2.0) | make.kohya_lora(
        make.pairs(make.text(), "q_proj", 8), 8.0, "lora_te_text_model_")
    checkpoint = open_checkpoint(make.write(tmp_path / "look.safetensors", look))
    assert checkpoint.version == "ranks 4 to 8"
    assert checkpoint.notes == ["2 layers are on the text encoder", "alpha / rank: 0.5, 1.0"]
    both = make.reference_lora(spatial() | motion_pairs())
    checkpoint = open_checkpoint(make.write(tmp_path / "both.ckpt", both))
    assert checkpoint.kind == "LoRA"
    assert checkpoint.notes == [f"{len(motion_pairs())} layers are on the motion module, {len(spatial())} on the image UNet"]


def test_own_files_say_which_lora_they_are(tmp_path):
    from animkit.lora import LoRA
    lora = LoRA.for_module(make.unet(), ["attn1.to_q"], 2)
    for kind in ("domain adapter", None):
        save_checkpoint(lora, tmp_path / "a.safetensors", "kohya", kind=kind)
        assert open_checkpoint(tmp_path / "a.safetensors").kind == (kind or "LoRA")
    save_checkpoint(lora, tmp_path / "a.ckpt", "animkit")
    assert open_checkpoint(tmp_path / "a.ckpt").kind == "domain adapter", "by its names alone"


def nine_channels(prefix=""):
    state = make.single_file("sd1")[0]
    key = "model.diffusion_model.input_blocks.0.0.weight"
    return {**state, key: torch.zeros(32, 9, 3, 3)}


def sparse_control():
    encoder = {n: t for n, t in motion().items() if n.startswith("down_blocks.")}
    return {f"module.{n}": t for n, t in (make.controlnet().state_dict() | encoder).items()}


REFUSED = {
    "HotShot-XL": (
        lambda: {n.replace("pos_encoder.pe", "pos_encoder.positional_encoding"): t for n, t in motion().items()}, "HotShot-XL"
    ),
    "HotShot-XL's places": (
        lambda: {n.replace("motion_modules", "temporal_attentions"): t for n, t in motion().items()}, "HotShot-XL"
    ),
    "text encoder only": (
        lambda: make.kohya_lora(make.pairs(make.text(), "q_proj"), prefix="lora_te_text_model_"), "for the text encoder alone"
    ),
    "inpainting": (nine_channels, "an inpainting model: its UNet takes 9 channels"),
    "inpainting UNet": (
        lambda: {**make.unet().state_dict(), "conv_in.weight": torch.zeros(32, 9, 3, 3)}, "an inpainting model"
    ),
    "InstructPix2Pix": (lambda: {**make.unet().state_dict(), "conv_in.weight": torch.zeros(32, 8, 3, 3)}, "8 channels"),
    "PIA": (lambda: motion() | {"conv_in.weight": torch.zeros(32, 9, 3, 3)}, "channels"),
    "LoHa": (lambda: {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": torch.zeros(4, 2)}, "a LoHa"),
    "LoKr": (lambda: {"lora_unet_mid_block_attentions_0_proj_in.lokr_w1": torch.zeros(4, 2)}, "a LoKr"),
    "DoRA": (
        lambda: {"unet.x.lora_A.weight": torch.zeros(1, 2), "unet.x.lora_magnitude_vector": torch.zeros(2)}, "a DoRA"
    ),
    "refiner": (
        lambda: {
            "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 4, 3, 3),
            "conditioner.embedders.0.model.transformer.resblocks.0.ln_1.weight": torch.zeros(3),
        },
        "the SDXL refiner",
    ),
    "SD 3": (
        lambda: {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(3, 1)},
        "this is Stable Diffusion 3, a transformer",
    ),
    "Flux": (lambda: {"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 1)}, "this is Flux, a transformer"),
    "a LoRA for Flux": (
        lambda: {f"lora_unet_double_blocks_0_img_attn_qkv.lora_{h}.weight": torch.zeros(3, 3) for h in ("up", "down")},
        "this is a LoRA for Flux",
    ),
    "Stable Video Diffusion": (
        lambda: {
            "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 8, 3, 3),
            "model.diffusion_model.input_blocks.1.1.time_stack.0.norm_in.weight": torch.zeros(32),
        },
        "Stable Video Diffusion",
    ),
    "a ControlNet of differences": (
        lambda: make.ldm_controlnet(make.controlnet().state_dict()) | {"difference": torch.zeros(1)},
        "holds differences from its base's weights",
    ),
    "a control-LoRA": (
        lambda: {"lora_controlnet": torch.zeros(1), "input_hint_block.0.weight": torch.zeros(16, 3, 3, 3),
                 "input_blocks.1.1.proj_in.up": torch.zeros(32, 4), "input_blocks.1.1.proj_in.down": torch.zeros(4, 32)},
        "a control-LoRA",
    ),
    "text encoder": (
        lambda: {f"text_model.{n}": t for n, t in make.text().state_dict().items()}, "a text encoder alone"
    ),
    "IP-Adapter": (lambda: {"image_proj.proj.weight": torch.zeros(3, 1)}, "an IP-Adapter"),
    "textual inversion": (lambda: {"emb_params": torch.zeros(3, 768)}, "a textual inversion"),
    "a word's learned_embeds": (lambda: {"<cat-toy>": torch.zeros(64)}, "a textual inversion"),
    "a word of several parts": (lambda: {"<cat>": torch.zeros(8), "<cat>_1": torch.zeros(8)}, "a textual inversion"),
    "a word without brackets": (lambda: {"cat": torch.zeros(2, 1024)}, "a textual inversion"),
    "SDXL's two embeddings of a word": (
        lambda: {"clip_l": torch.zeros(2, 64), "clip_g": torch.zeros(2, 80)}, "a textual inversion"
    ),
    "SparseCtrl": (lambda: sparse_control(), "a SparseCtrl (a ControlNet with motion modules of its own)"),
    "a part": (lambda: {n: t for n, t in motion().items() if "proj_in" not in n}, "a part of a motion module"),
    "one vector": (lambda: {"layer1.weight": torch.zeros(768)}, "of no kind that animkit knows"),
    "something else": (lambda: {"layer1.weight": torch.zeros(3)}, "of no kind that animkit knows"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_names_what_it_cannot_be_and_says_why(tmp_path, what):
    weights, sentence = REFUSED[what]
    with pytest.raises(AnimkitError) as error:
        open_checkpoint(make.write(tmp_path / "file.safetensors", weights()))
    assert sentence in str(error.value)


def test_more_latent_channels_are_no_inpainting(tmp_path):
    """The miniature's latents have 8 channels, going in and coming out."""
    weights = make.unet().state_dict() | {
        "conv_in.weight": torch.zeros(32, 8, 3, 3),
        "conv_out.weight": torch.zeros(8, 32, 3, 3),
        "conv_out.bias": torch.zeros(8),
        "time_embedding.cond_proj.weight": torch.zeros(32, 6),  # and a distilled one's guidance
    }
    unet = open_checkpoint(make.write(tmp_path / "file.safetensors", weights)).unet()
    assert (unet.config.in_channels, unet.config.out_channels, unet.config.time_cond_proj_dim) == (8, 8, 6)


def test_torch_files_without_tensors(tmp_path):
    for contents, sentence in (
        ({}, "no tensor in it"),
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        ({"string_to_param": {"*": torch.ones(3, 768)}}, "a textual inversion"),
        ({"image_proj": {"proj.weight": torch.ones(2)}, "ip_adapter": {"1.to_k_ip.weight": torch.ones(2)}}, "an IP-Adapter"),
    ):
        torch.save(contents, tmp_path / "f.pt")
        with pytest.raises(AnimkitError, match=sentence):
            open_checkpoint(tmp_path / "f.pt")


def test_inspect_prints_a_table(tmp_path, capsys):
    make.write(tmp_path / "mm.ckpt", motion(mid=True), "state_dict")
    assert main(["inspect", str(tmp_path / "mm.ckpt")]) == 0
    table = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()}
    assert table["kind"] == "motion module" and table["version"] == "v2" and table["tensors"] == "588"
    (tmp_path / "page.ckpt").write_text("<html>")
    assert main(["inspect", str(tmp_path / "page.ckpt"), str(tmp_path / "mm.ckpt"), "--tensors"]) == 1
    out = capsys.readouterr().out
    assert (
        "HTML page" in out and "mid_block.motion_modules.0.temporal_transformer.proj_in.weight" in out and "(64, 64)" in out
    )


def test_inspect_prints_no_command_to_the_terminal(tmp_path, capsys):
    lora = make.peft_lora(make.pairs(make.unet(), r"0\.attn1\.to_q$"))
    evil = {f"unet.\x1b]0;owned\x07x.lora_{h}.weight": torch.ones(3, 3) for h in "AB"}
    good = make.write(tmp_path / "a.ckpt", lora | evil)
    bad = make.write(tmp_path / "b.ckpt", {"\x1b[2Jx": torch.ones(1)})
    assert main(["inspect", "--tensors", str(good), str(bad)]) == 1
    out = capsys.readouterr().out
    assert "unet.?]0;owned?x.lora_A.weight" in out and "?[2Jx" in out and "\x1b" not in out and "\x07" not in out


def test_every_recognised_part_goes_into_a_unet_that_it_fits(tmp_path):
    """Not one width or block count is assumed: two UNets of other sizes, one of them SDXL's shape."""
    for version, widths in (("sd1", (32, 96)), ("sdxl", (32, 64, 128))):
        unet = make.unet(version, widths)
        video = inflate(unet)
        video.insert(open_checkpoint(make.write(tmp_path / "mm.ckpt", make.reference_motion(make.adapter(widths, mid=True)))))
        made = make.pairs(unet, make.SPATIAL), make.pairs(video.motion, r"attention_blocks\.\d\.to_")
        for number, pairs in enumerate(made):
            for naming in (make.reference_lora, make.peft_lora, make.diffusers_lora, make.kohya_lora):
                file = make.write(tmp_path / f"{naming.__name__}{number}.safetensors", naming(pairs))
                video.insert(open_checkpoint(file), alpha=0.5)
        assert len(video.alpha) == 9 and json.dumps(dict(video.alpha))
