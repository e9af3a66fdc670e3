"""Stable Diffusion at its real size: every name and shape on no memory, and, slowly, real files loaded and run within
12 GiB."""
import os
import re
import subprocess
import sys
from pathlib import Path

import file_makers as make
import pytest
import torch
from accelerate import init_empty_weights
from animkit import inflate
from animkit.checkpoints import lora, motion
from animkit.checkpoints.architecture import architecture, unet_config
from animkit.checkpoints.original_naming import text_state, unet_state
from diffusers import UNet2DConditionModel

SITES = {  # SD 1.5's and SDXL's places for motion modules, written out: level -> width, two going down, three coming up
    "sd1": [(f"down_blocks.{i}", 2, c) for i, c in enumerate((320, 640, 1280, 1280))]
    + [(f"up_blocks.{i}", 3, c) for i, c in enumerate((1280, 1280, 640, 320))],
    "sdxl": [(f"down_blocks.{i}", 2, c) for i, c in enumerate((320, 640, 1280))]
    + [(f"up_blocks.{i}", 3, c) for i, c in enumerate((1280, 640, 320))]}
# version -> (UNet, positions, tensors, parameters): reference/paper.md's table
RELEASED = {
    "v1": ("sd1", 24, 560, 417_137_600),
    "v2": ("sd1", 32, 588, 453_209_280),
    "v3": ("sd1", 32, 560, 417_137_600),
    "sdxl": ("sdxl", 32, 420, 236_779_200),
}


def module(c: int, positions: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one released motion module of width c, from the format's description."""
    shapes = {
        "norm.weight": (c,),
        "norm.bias": (c,),
        "proj_in.weight": (c, c),
        "proj_in.bias": (c,),
        "proj_out.weight": (c, c),
        "proj_out.bias": (c,),
    }
    block = "transformer_blocks.0."
    for i in (0, 1):
        attention = f"{block}attention_blocks.{i}."
        shapes |= {f"{attention}to_{h}.weight": (c, c) for h in "qkv"}
        shapes |= {
            f"{attention}to_out.0.weight": (c, c),
            f"{attention}to_out.0.bias": (c,),
            f"{attention}pos_encoder.pe": (1, positions, c),
        }
        shapes |= {f"{block}norms.{i}.{leaf}": (c,) for leaf in ("weight", "bias")}
    return shapes | {
        f"{block}ff.net.0.proj.weight": (8 * c, c),
        f"{block}ff.net.0.proj.bias": (8 * c,),
        f"{block}ff.net.2.weight": (c, 4 * c),
        f"{block}ff.net.2.bias": (c,),
        f"{block}ff_norm.weight": (c,),
        f"{block}ff_norm.bias": (c,),
    }


def places(version: str) -> list[tuple[str, int]]:
    unet, *_ = RELEASED[version]
    sites = [(f"{block}.motion_modules.{j}", c) for block, count, c in SITES[unet] for j in range(count)]
    return sites + [("mid_block.motion_modules.0", 1280)] * (version == "v2")


def released_motion(version: str) -> dict[str, tuple[int, ...]]:
    return {f"{site}.temporal_transformer.{name}": shape for site, c in places(version)
            for name, shape in module(c, RELEASED[version][1]).items()}


def released_motion_lora(rank: int = 64) -> dict[str, tuple[int, ...]]:
    return {
        f"{site}.temporal_transformer.transformer_blocks.0.attention_blocks.{i}.processor.to_{h}_lora.{half}.weight": (
            shape
        )
        for site, c in places("v2")
        for i in (0, 1)
        for h in ("q", "k", "v", "out")
        for half, shape in (("down", (rank, c)), ("up", (c, rank)))
    }


def released_adapter(rank: int = 128) -> dict[str, tuple[int, ...]]:
    widths = {"down_blocks.0": (320, 2), "down_blocks.1": (640, 2), "down_blocks.2": (1280, 2), "mid_block": (1280, 1),
              "up_blocks.1": (1280, 3), "up_blocks.2": (640, 3), "up_blocks.3": (320, 3)}
    return {
        f"{block}.attentions.{j}.transformer_blocks.0.attn{i}.processor.to_{h}_lora.{half}.weight": shape
        for block, (c, count) in widths.items()
        for j in range(count)
        for i in (1, 2)
        for h in ("q", "k", "v", "out")
        for half, shape in (("down", (rank, 768 if i == 2 and h in "kv" else c)), ("up", (c, rank)))
    }


def on_meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def video_on_meta(version: str):
    with init_empty_weights():
        return inflate(UNet2DConditionModel.from_config(architecture(version)["unet"]))


def insert(video, checkpoint):
    part = checkpoint.build(video)
    with init_empty_weights(include_buffers=True):
        return video.insert(part)


@pytest.mark.parametrize("version", RELEASED)
def test_every_name_and_shape_of_the_released_motion_modules(version):
    base, positions, tensors, parameters = RELEASED[version]
    shapes = released_motion(version)
    checkpoint = motion.recognise(Path("released.ckpt"), on_meta(shapes), {}, {})
    assert (checkpoint.version, len(checkpoint.weights), checkpoint.parameters) == (version, tensors, parameters)
    video = video_on_meta(base)
    modules = checkpoint.build(video)
    assert {n: tuple(t.shape) for n, t in modules.state_dict().items()} == shapes
    assert (modules.positions, modules.heads, modules.norm_groups) == (positions, 8, 32)
    assert sum(p.numel() for p in modules.parameters()) == parameters
    assert len(modules.sites) == {"v2": 21, "sdxl": 15}.get(version, 20)
    adapter = motion.to_diffusers(
        checkpoint.weights | {n: torch.zeros(t.shape) for n, t in checkpoint.weights.items() if n.endswith(".pe")}
    )
    from diffusers import MotionAdapter
    with init_empty_weights(include_buffers=True):
        theirs = MotionAdapter(
            block_out_channels=architecture(base)["unet"]["block_out_channels"],
            motion_max_seq_length=positions,
            use_motion_mid_block=version == "v2",
        )
    assert {n: t.shape for n, t in theirs.state_dict().items()} == {n: t.shape for n, t in adapter.items()}


def test_every_name_and_shape_of_the_domain_adapter():
    shapes = released_adapter()
    checkpoint = lora.recognise(Path("v3_sd15_adapter.ckpt"), on_meta(shapes), {}, {}, True)
    assert (checkpoint.kind, checkpoint.version, len(checkpoint.weights)) == ("domain adapter", "rank 128", 256)
    assert 97.3 < 4 * checkpoint.parameters / 2**20 < 97.4  # MiB in float32; the released file, names and all, has 97.4
    video = video_on_meta("sd1")
    built = checkpoint.build(video)
    spatial = [n for n, m in video.unet.named_modules() if isinstance(m, torch.nn.Linear) and re.search(make.SPATIAL, n)]
    assert sorted(built.paths) == sorted(spatial) and len(built.paths) == 128


def test_every_name_and_shape_of_a_motion_lora():
    shapes = released_motion_lora()
    checkpoint = lora.recognise(Path("v2_lora_ZoomIn.ckpt"), on_meta(shapes), {}, {}, True)
    assert (checkpoint.kind, checkpoint.version, len(checkpoint.weights)) == ("MotionLoRA", "rank 64", 336)
    assert round(4 * checkpoint.parameters / 1e6) == 77
    video = video_on_meta("sd1")
    insert(video, motion.recognise(Path("v2.ckpt"), on_meta(released_motion("v2")), {}, {}))
    assert len(checkpoint.build(video).paths) == 168
    v3 = video_on_meta("sd1")
    insert(v3, motion.recognise(Path("v3.ckpt"), on_meta(released_motion("v3")), {}, {}))
    loose = lora.recognise(Path("v2_lora_ZoomIn.ckpt"), on_meta(shapes), {}, {}, False)
    whole = loose.build(v3)
    with pytest.warns(UserWarning, match="8 of its 168 layers"):
        assert len(whole.attach(v3.unet, v3.motion).layers) == 160


@pytest.mark.parametrize("version", ["sd1", "sd2", "sdxl"])
def test_a_full_size_single_file_has_its_config_read_off(version):
    """From the original names alone, on no memory: the config that is derived is the one that stands in the kit."""
    known = architecture(version)["unet"]
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(known)
    attention = tuple("CrossAttn" in name for name in known["down_block_types"])
    named = make.ldm_unet(unet.state_dict(), attention=attention)
    state = unet_state(Path("x"), named)
    read = unet_config(state, pooled=1280)
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in unet.state_dict().items()}
    for key, value in known.items():
        if key not in ("sample_size", "upcast_attention"):
            assert read[key] == value, key


@pytest.mark.parametrize("layers", [24, 23])
def test_a_full_size_sd2_text_encoder_whichever_layers_its_file_has(layers):
    """The release has OpenCLIP's 24, of which SD 2 reads 23; what trainers write back has these 23."""
    from transformers import CLIPTextConfig, CLIPTextModel
    with init_empty_weights():
        text = CLIPTextModel(CLIPTextConfig(**architecture("sd2")["text_encoder"]))
    prefix = "cond_stage_model.model."
    named = make.ldm_open_clip(text.state_dict(), prefix, extra_layer=layers == 24)
    named[f"{prefix}text_projection"] = torch.empty(1024, 1024, device="meta")
    state = text_state(Path("x"), named, "sd2", "text_encoder")
    own = {n.removeprefix("text_model."): t.shape for n, t in text.state_dict().items()}
    assert {n: t.shape for n, t in state.items()} == own


# ---------------------------------------------------------------------------------------------------- with real memory
RUN = """
import sys, time
import torch
from animkit import Animator
from animkit.heap import peak_memory
from transformers import CLIPTokenizer
torch.set_num_threads(int(sys.argv[2]))
folder, start = sys.argv[1], time.time()
animator = Animator.from_files(
    base=f"{folder}/base.safetensors", motion=f"{folder}/v3_sd15_mm.ckpt", adapter={f"{folder}/v3_adapter.ckpt": 0.5},
    motion_loras={f"{folder}/ZoomIn.ckpt": 0.8}, strict=False, tokenizer=f"{folder}/tokenizer", device="cpu")
loaded = time.time()
parts = {p.data_ptr(): p.nbytes for m in (animator.pipe.unet, animator.video_unet.motion) for p in m.parameters()}
clip = animator("a cat", frames=16, steps=1, guidance=7.5, height=64, width=64, progress=False)
print("frames", len(clip), "unique", len({frame.tobytes() for frame in __import__("numpy").asarray(clip)}),
      "parameters", sum(parts.values()) // 4, "load", round(loaded - start), "run", round(time.time() - loaded),
      "peak", peak_memory())
"""


def fill(shape, dtype, tile=torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))) -> torch.Tensor:
    """Random numbers in no time: a tile over and over, at another place for each size; scaled so that activations stay
    finite."""
    count = int(torch.Size(shape).numel())
    flat = tile.roll(count % 1009).repeat(count // len(tile) + 1)[:count]
    fan = max(1, count // shape[0]) if len(shape) > 1 else 1
    return (flat * (0.5 / fan**0.5 if fan > 1 else 0.02) + (len(shape) == 1) * 0.5).reshape(shape).to(dtype)


@pytest.mark.slow
@pytest.mark.full_size
@pytest.mark.timeout(7200)
def test_full_size_files_run_one_guided_step_within_12_gib(tmp_path):
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    known = architecture("sd1")
    with init_empty_weights():
        unet, vae = UNet2DConditionModel.from_config(known["unet"]), AutoencoderKL.from_config(known["vae"])
        text = CLIPTextModel(CLIPTextConfig(**known["text_encoder"]))
    named = make.ldm_unet(unet.state_dict(), attention=(True, True, True, False))
    named |= {
        n: (
            t[:, :, None, None] if n.endswith((".q.weight", ".k.weight", ".v.weight", "proj_out.weight")) and t.ndim == 2 else t
        )
        for n, t in make.ldm_vae(vae.state_dict(), levels=4).items()
    } | make.ldm_clip(text.state_dict())
    base = {n: fill(t.shape, torch.float16) for n, t in named.items()}
    base["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(base, tmp_path / "base.safetensors")  # half precision, as pruned community files are: 2.1 GB
    del base
    for name, shapes in (
        ("v3_sd15_mm", released_motion("v3")), ("v3_adapter", released_adapter()), ("ZoomIn", released_motion_lora())
    ):
        torch.save(
            {n: fill(s, torch.float32) for n, s in shapes.items()}, tmp_path / f"{name}.ckpt"
        )  # float32, as released
    assert 1.66e9 < (tmp_path / "v3_sd15_mm.ckpt").stat().st_size < 1.69e9
    letters = [chr(c) for c in range(97, 123)]
    CLIPTokenizer(
        vocab={p: i for i, p in enumerate([*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"])},
        merges=[],
        model_max_length=77,
    ).save_pretrained(tmp_path / "tokenizer")
    # a process of its own, so that its peak is its own
    out = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path), os.environ.get("OMP_NUM_THREADS", "2")],
        capture_output=True,
        text=True,
        timeout=5400,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    line = [line for line in out.stdout.splitlines() if line.startswith("frames")][-1]
    print(line)
    said = dict(zip(line.split()[::2], map(int, line.split()[1::2])))
    assert said["frames"] == 16 and said["unique"] > 1
    assert said["parameters"] == 859_520_964 + 417_137_600
    assert said["peak"] < 12 * 2**30, f"{said['peak'] / 2**30:.1f} GiB"
