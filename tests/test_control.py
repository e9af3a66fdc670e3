"""Section 5.4: a ControlNet beside the video UNet, against diffusers' own pipeline; what is taken and refused."""
import logging
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline
from diffusers.models import modeling_utils
from safetensors.torch import load_file, save_file

import animkit as ak
from animkit.control import Control, pictures_of, steer
from animkit.lora import LoRA
from test_animator import make_motion, make_pipe, make_xl
from tiny import added, clip_and_text, shaken, tiny_sdxl

STEPS, SIZE, FRAMES = 3, 32, 4
PROMPT = "a red bird over the sea, rising"


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def make_controlnet(unet, seed=3, widths=(8, 16, 32)):
    """A ControlNet that has an effect: a fresh one gives zeros."""
    torch.manual_seed(seed)
    return shaken(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths), seed, 0.05).eval()


def make_depth(frames=FRAMES, size=SIZE):
    """A ball at distance 2 that goes to the right, before a wall at 8."""
    y, x = np.mgrid[:size, :size]
    return np.stack([np.where((x - 8 - 4 * i) ** 2 + (y - 16) ** 2 < 36, 2.0, 8.0) for i in range(frames)])


@pytest.fixture(scope="module")
def pipe():
    return make_pipe(scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                             steps_offset=1, set_alpha_to_one=False, clip_sample=False))


@pytest.fixture(scope="module")
def controlnet(pipe):
    return make_controlnet(pipe.unet)


@pytest.fixture
def still(pipe, controlnet):
    animator = ak.Animator(pipe)
    animator.insert(controlnet, name="depth")
    return animator


@pytest.fixture
def moving(controlnet):
    pipe = make_pipe()
    animator = ak.Animator(pipe, make_motion(pipe.unet))
    animator.insert(controlnet, name="depth")
    return animator


def draw(animator, control=None, prompt=PROMPT, **options):
    options = {"frames": FRAMES, "steps": STEPS, "progress": False, **options}
    return np.asarray(animator(prompt, control=control, **options)).astype(int)


# ---- equality with diffusers


@pytest.mark.parametrize("guidance, alpha", [(7.5, 1.0), (7.5, 0.4), (1.0, 1.0)])
def test_one_frame_is_diffusers_controlnet_pipeline(pipe, controlnet, still, guidance, alpha):
    theirs = StableDiffusionControlNetPipeline(**pipe.components, controlnet=controlnet, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    pictures = ak.depth_pictures(make_depth(1))
    noise = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = theirs(PROMPT, PIL.Image.fromarray(pictures[0]), height=SIZE, width=SIZE, latents=noise,
                      num_inference_steps=STEPS, guidance_scale=guidance, controlnet_conditioning_scale=alpha,
                      output_type="np").images
    still.alpha["depth"] = alpha
    ours = still(PROMPT, 1, latents=noise[:, :, None], steps=STEPS, guidance=guidance, control=pictures, progress=False)
    assert np.abs(np.asarray(ours) / 255 - expected).max() < 0.6 / 255
    assert np.abs(np.asarray(ours).astype(int) - draw(still, frames=1, guidance=guidance)).max() > 3, "it must act"


def test_every_frame_is_steered_by_its_own_picture_as_if_alone(still):
    depth = make_depth(3)
    noise = torch.randn(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    together = still([PROMPT, "a blue house"], 3, latents=noise, steps=STEPS, control=depth, progress=False)
    for b, prompt in enumerate([PROMPT, "a blue house"]):
        for i in range(3):
            alone = still(prompt, 1, latents=noise[b:b + 1, :, i:i + 1], steps=STEPS, progress=False,
                          control=ak.depth_pictures(depth)[i:i + 1])
            assert np.abs(together[b].array[i].astype(int) - alone.array[0]).max() <= 1


def test_sdxl_residuals_go_to_the_right_frames():
    unet = tiny_sdxl()
    control = Control(make_controlnet(unet, widths=(4, 8)), 0.7)
    x, text = clip_and_text(b=2, f=3)
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    video = ak.inflate(unet)
    ours = video(x, 10, text, added_cond_kwargs=added(unet, 2),
                 **steer([(control, pictures)])(x, torch.tensor(10), text, added(unet, 2)))
    for b in range(2):
        for i in range(3):
            conditions = {key: value[b:b + 1] for key, value in added(unet, 2).items()}
            down, mid = control.model(x[b:b + 1, :, i], 10, text[b:b + 1], pictures[i:i + 1], conditioning_scale=0.7,
                                      added_cond_kwargs=conditions, return_dict=False)
            plain = unet(x[b:b + 1, :, i], 10, text[b:b + 1], added_cond_kwargs=conditions,
                         down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
            assert torch.allclose(ours[b, :, i], plain[0], atol=1e-5)


def test_a_text_for_each_frame_goes_to_its_own_frame():
    unet = tiny_sdxl()
    control, (x, _), text = Control(make_controlnet(unet, widths=(4, 8))), clip_and_text(b=2, f=3), clip_and_text(b=6)[1]
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    down, mid = control.residuals(x, torch.tensor(10), text, pictures, added(unet, 6))
    for row in range(6):  # b f
        i, j = divmod(row, 3)
        conditions = {key: value[row:row + 1] for key, value in added(unet, 6).items()}
        alone_down, alone = control.residuals(x[i:i + 1, :, j:j + 1], torch.tensor(10), text[row:row + 1], pictures[j:j + 1],
                                              conditions)
        assert torch.allclose(mid[row], alone[0], atol=1e-5)
        assert torch.allclose(down[-1][row], alone_down[-1][0], atol=1e-5)


# ---- beside everything else that is inserted


def test_it_acts_beside_motion_and_looks_and_leaves_no_trace(moving):
    lora = shaken(LoRA.for_module(moving.pipe.unet, lambda path: True, rank=2), scale=0.1)
    depth = make_depth()
    plain, steered = draw(moving), draw(moving, depth)
    assert np.abs(plain - steered).max() > 3
    moving.insert(lora, name="ink")
    looked = draw(moving, depth)
    assert np.abs(looked - steered).max() > 3 and np.abs(looked - draw(moving)).max() > 3
    moving.remove("ink")
    assert np.array_equal(draw(moving, depth), steered)
    moving.alpha["depth"] = 0
    assert np.abs(draw(moving, depth) - plain).max() <= 1, "alpha 0 adds zeros"
    moving.remove("depth")
    assert np.array_equal(draw(moving), plain) and dict(moving.alpha) == {"motion": 1.0}


def test_a_fresh_controlnet_changes_nothing(moving):
    plain = draw(moving)
    moving.remove("depth")
    fresh = ControlNetModel.from_unet(moving.pipe.unet, conditioning_embedding_out_channels=(8, 16, 32))
    assert moving.insert(fresh) == "control"
    assert np.abs(draw(moving, make_depth()) - plain).max() <= 1


def test_two_controlnets_add_up(still, pipe):
    still.insert(make_controlnet(pipe.unet, seed=9), name="edges", alpha=0.5)
    depth, edges = make_depth(), make_depth()[::-1]
    both = draw(still, {"depth": depth, "edges": edges})
    still.alpha["edges"] = 0
    assert np.abs(draw(still, {"depth": depth, "edges": edges}) - draw(still, {"depth": depth})).max() <= 1
    assert np.abs(both - draw(still, {"depth": depth})).max() > 1
    with pytest.raises(ak.AnimkitError, match="2 ControlNets .depth, edges."):
        draw(still, depth)


def test_alpha_is_listed_and_live(still):
    assert "depth" in still.alpha and len(still.alpha) == 1 and "depth (alpha 1)" in repr(still)
    with pytest.raises(ak.AnimkitError, match="finite"):
        still.alpha["depth"] = float("nan")
    clip = still(PROMPT, steps=1, progress=False, control=make_depth())
    assert clip.settings["control"] == ["depth"] and clip.settings["alpha"] == {"depth": 1.0}
    assert "control" not in still(PROMPT, 1, steps=1, progress=False).settings


def test_the_clip_has_as_many_frames_as_its_control(still):
    assert len(still(PROMPT, steps=1, progress=False, control=make_depth(3))) == 3


@pytest.mark.parametrize("form", ["folder", "checkpoint"])
def test_files_go_in(pipe, controlnet, still, tmp_path, form):
    path = tmp_path / "depth"
    controlnet.save_pretrained(path)
    animator = ak.Animator(pipe)
    name = animator.insert(ak.open_checkpoint(path), name="depth") if form == "checkpoint" else animator.insert(path)
    assert name == "depth"
    assert np.array_equal(draw(animator, make_depth()), draw(still, make_depth()))


def test_a_file_without_its_config_is_not_taken_for_what_it_is_not(pipe, controlnet, tmp_path):
    controlnet.save_pretrained(tmp_path / "depth")
    weights = load_file(tmp_path / "depth" / "diffusion_pytorch_model.safetensors")
    save_file(weights, tmp_path / "depth.safetensors")
    with pytest.raises(ak.AnimkitError, match="attention_head_dim is 8, the UNet's 2"):  # no tensor tells heads
        ak.Animator(pipe).insert(tmp_path / "depth.safetensors")


@pytest.mark.parametrize("attention", [False, True], ids=["small", "mid"])
def test_the_small_controlnets_of_sdxl_steer_with_and_without_their_config(tmp_path, attention):
    """They have fewer attentions than the base, or none; what they give the UNet has the same shapes."""
    xl = make_xl()
    config = dict(ControlNetModel.from_unet(xl.unet, conditioning_embedding_out_channels=(8, 16, 32)).config)
    torch.manual_seed(3)
    small = shaken(ControlNetModel(**config | {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if attention else "UNetMidBlock2D"}), 3, 0.05).eval()
    small.save_pretrained(tmp_path / "with")
    shutil.copy(tmp_path / "with" / "diffusion_pytorch_model.safetensors", tmp_path / "alone.safetensors")
    found = ak.open_checkpoint(tmp_path / "alone.safetensors")
    read = found.controlnet()
    assert found.version == "sdxl" and read.config.mid_block_type == small.config.mid_block_type
    assert all(torch.equal(tensor, small.state_dict()[name]) for name, tensor in read.state_dict().items())
    animator, options = ak.Animator(xl), dict(frames=2, steps=2, height=SIZE, width=SIZE, progress=False)
    plain = animator("a red bird", **options)
    animator.insert(tmp_path / "with", name="depth")
    assert (animator("a red bird", control={"depth": make_depth(2)}, **options).array != plain.array).any()


# ---- what is given


def test_depth_becomes_pictures_of_inverse_depth():
    pictures = ak.depth_pictures(np.array([[[1.0, 2.0]], [[4.0, np.inf]]]))
    assert pictures.dtype == np.uint8 and pictures.shape == (2, 1, 2, 3)
    assert pictures[..., 0].ravel().tolist() == [255, 128, 64, 0]


def test_every_form_of_the_same_pictures_is_the_same():
    depth = make_depth()
    pictures = ak.depth_pictures(depth)
    expected = pictures_of(pictures)
    assert expected.shape == (FRAMES, 3, SIZE, SIZE) and 0 < expected.min() < expected.max() == 1
    for form in (depth, torch.from_numpy(depth), depth.astype(np.float32), pictures[..., 0], ak.Clip(pictures),
                 [PIL.Image.fromarray(p) for p in pictures], list(pictures)):
        assert torch.equal(pictures_of(form), expected)


@pytest.mark.parametrize("mode", ["P", "RGBA", "HSV", "1", "LA"])
def test_pictures_are_read_by_their_colours_not_by_their_bytes(mode):
    pictures = [PIL.Image.fromarray(p).convert(mode) for p in ak.depth_pictures(make_depth())]
    assert torch.equal(pictures_of(pictures), pictures_of([picture.convert("RGB") for picture in pictures]))
    assert torch.equal(pictures_of(pictures[0]), pictures_of(pictures[:1]))


def test_what_is_transparent_is_white_as_in_a_folder_of_images():
    clear = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (pictures_of([clear]) == 1).all()


def test_it_follows_a_pipeline_that_is_moved_and_nothing_is_said_of_it(moving, monkeypatch):
    moving.pipe.to(torch.bfloat16)
    seen, log = [], modeling_utils.logger  # it warns of modules that should be kept in float32: of none
    monkeypatch.setattr(log, "warning", lambda *said: seen.append(log.isEnabledFor(logging.WARNING)))
    assert np.asarray(draw(moving, make_depth())).any() and seen and not any(seen)


@pytest.mark.parametrize("control, said", [
    (make_depth(3), "3 pictures, and the clip has 4 frames"),
    (make_depth(4, 16), "are 16 x 16 pixels, the clip 32 x 32"),
    (-make_depth(), "distance from the camera, above 0"),
    (np.full((4, 32, 32), np.nan), "4096 pixels that are not"),
    (np.ones((4, 32, 0)), "got the shape .4, 32, 0."),
    (np.full((4, 32, 32), np.inf), "infinite everywhere"),
    (make_depth()[0], "float64 of shape .32, 32."),
    (np.zeros((4, 32, 32, 4), np.uint8), "uint8 of shape .4, 32, 32, 4."),
    (np.zeros((4, 32, 32, 3)), "float64 of shape"),
    ([np.zeros((32, 32, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)], "differ in size"),
    ({"edges": make_depth()}, "No ControlNet is inserted as 'edges'; there is: depth"),
    ("depth.png", "steered by pictures"),
    (np.zeros((32, 32, 3), np.uint8), "this is one picture, of shape .32, 32, 3."),
])
def test_what_cannot_steer_is_refused_in_one_sentence(still, control, said):
    with pytest.raises(ak.AnimkitError, match=said) as caught:
        still(PROMPT, FRAMES, steps=1, progress=False, control=control)
    assert "\n" not in str(caught.value)


def test_control_without_a_controlnet_is_refused(pipe):
    with pytest.raises(ak.AnimkitError, match="no ControlNet is inserted"):
        draw(ak.Animator(pipe), make_depth())


def test_a_controlnet_for_another_base_is_refused(still, pipe):
    other = make_controlnet(tiny_sdxl(), widths=(4, 8, 16))
    with pytest.raises(ak.AnimkitError, match="another base: its in_channels is 4, the UNet's 8"):
        still.insert(other, name="other")
    with pytest.raises(ak.AnimkitError, match="8 times smaller, the base's VAE 4 times"):
        still.insert(make_controlnet(pipe.unet, widths=(4, 8, 16, 16)), name="other")
    with pytest.raises(ak.AnimkitError, match="already inserted as 'depth'"):
        still.insert(make_controlnet(pipe.unet), name="depth")
    with pytest.raises(ak.AnimkitError, match="already inserted as 'depth'"):
        still.insert(LoRA.for_module(still.pipe.unet, lambda path: True, rank=2), name="depth")
    with pytest.raises(ak.AnimkitError, match="finite"):
        still.insert(make_controlnet(pipe.unet), name="other", alpha=float("inf"))
    assert list(still.alpha) == ["depth"]


def test_depth_in_bfloat16_is_depth():
    depth = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(pictures_of(depth), pictures_of(depth.float()))
