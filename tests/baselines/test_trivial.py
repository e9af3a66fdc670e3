"""The two methods that bound the comparison, and what all methods have in common."""
import gc

import numpy as np
import pytest
import torch
from test_animator import make_motion, make_pipe

import animkit as ak
from animkit import baselines
from animkit.baselines import IndependentFrames, RepeatedStill, Text2VideoZero
from animkit.metrics import motion_of
from tiny import traces

FAST = dict(frames=3, steps=3, progress=False)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def moving():
    own = make_pipe()
    return ak.Animator(own, make_motion(own.unet))


def close(a, b):
    return np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1


def test_frames_are_what_the_animator_draws_without_motion(moving):
    still = ak.Animator(make_pipe())
    frames = IndependentFrames(moving)
    clip = frames("a bird", seed=2, **FAST)
    assert close(clip, still("a bird", seed=2, **FAST)) and not close(clip, moving("a bird", seed=2, **FAST))
    assert clip.settings["scheduler"] == "PNDMScheduler", "and with the base's own sampler"
    noise = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    for i in range(3):
        alone = still("a bird", frames=1, steps=3, latents=noise[None, :, i:i + 1], progress=False)
        assert close(clip.array[i:i + 1], alone)


def test_a_still_is_frame_0_of_those_repeated_and_does_not_move(moving):
    clip = RepeatedStill(moving)("a bird", seed=2, **FAST)
    assert len(clip) == 3 and all(np.array_equal(frame, clip.array[0]) for frame in clip.array)
    assert close(clip.array[0], IndependentFrames(moving)("a bird", seed=2, **FAST).array[0])
    assert motion_of(clip).amount == 0 and motion_of(IndependentFrames(moving)("a bird", **FAST)).amount > 0


def test_all_methods_take_one_call_and_give_clips_that_say_who_made_them(moving):
    source = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    found = baselines.methods(moving, tune_on=(source, "a red bird"), steps=2, progress=False)
    assert list(found) == ["Text2Video-Zero", "Tune-a-Video", "frames sampled independently", "one still repeated"]
    assert list(baselines.methods(moving)) == [name for name in found if name != "Tune-a-Video"]
    drawn = {}
    for name, method in found.items():
        clip = drawn[name] = method("a blue bird", seed=3, **FAST)
        assert isinstance(clip, ak.Clip) and clip.array.shape == (3, 32, 32, 3) and clip.settings["method"] == name
        assert clip.settings["alpha"] == {} and clip.settings["seed"] == 3 and clip.fps == 8
        pair = method(["a blue bird", "the sea"], seed=3, **FAST)
        assert close(pair[0], clip) and pair[1].prompt == "the sea"
        assert method.method in repr(method)
    assert len({clip.array.tobytes() for clip in drawn.values()}) == 4


def test_looks_act_in_every_method_and_the_motion_module_in_none(moving):
    look = ak.LoRA.for_module(moving.pipe.unet, ["to_q", "to_v"], rank=4)
    for p in look.parameters():
        p.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    frames, zero = IndependentFrames(moving), Text2VideoZero(moving)
    plain = frames("a bird", **FAST)
    moving.insert(look, alpha=0.8, name="ink")
    try:
        clip = frames("a bird", **FAST)
        assert not close(clip, plain) and clip.settings["alpha"] == {"ink": 0.8} == zero.looks
        assert "ink (alpha 0.8)" in repr(zero) and "motion" not in repr(zero)
        zero.alpha["ink"] = 0.0  # the same alpha as the animator's
        assert moving.alpha["ink"] == 0 and close(frames("a bird", **FAST), plain)
    finally:
        frames.remove("ink")
    assert frames.looks == {} and "ink" not in moving.alpha


def test_a_method_that_nobody_holds_leaves_no_trace(moving):
    before = traces(moving.pipe.unet)
    source = np.zeros((2, 32, 32, 3), np.uint8)
    found = baselines.methods(moving, tune_on=(source, "a bird"), steps=1, progress=False)
    assert traces(moving.pipe.unet) != before
    del found
    gc.collect()
    assert traces(moving.pipe.unet) == before


def test_a_method_on_a_method_stands_on_its_animator(moving):
    assert RepeatedStill(Text2VideoZero(moving)).animator is moving
    alone = RepeatedStill(make_pipe())
    assert len(alone("a bird", **FAST)) == 3 and alone.looks == {}


def test_an_offloaded_base_is_refused():
    own = make_pipe()
    own._offload_device = torch.device("cpu")
    with pytest.raises(ak.AnimkitError, match="does not run on a base after offload"):
        RepeatedStill(own)("a bird", **FAST)
