"""A prompt that changes over its clip: {frame: text}. checkpoints/test_motion_files.py compares a long one with diffusers."""
import numpy as np
import pytest
import torch
from test_animator import STEPS, WORDS, make_motion, make_pipe
from test_control import make_controlnet, make_depth
from tiny import shaken
from torch.utils._python_dispatch import TorchDispatchMode

import animkit as ak
from animkit.look import new_look
from animkit.prompts import between, encode_prompts, encode_text

BIRD, BALLOON = "a red bird over the sea", "a red balloon, rising"
HOW = dict(frames=4, seed=3, steps=STEPS, progress=False)


@pytest.fixture(scope="module")
def moving():
    pipe = make_pipe()
    return ak.Animator(pipe, shaken(make_motion(pipe.unet)))


def test_between_named_frames_rows_are_mixed_and_outside_they_stay():
    rows = torch.tensor([[0.0, 8.0], [4.0, 0.0], [4.0, 2.0]])
    found = between(rows, [1, 3, 4], 6)
    assert found.tolist() == [[0, 8], [0, 8], [2, 4], [4, 0], [4, 2], [4, 2]]
    assert between(rows[None, :1].transpose(0, 1), [2], 3).shape == (3, 1, 2)
    half = between(rows.half(), [0, 23, 46], 47)
    assert half.dtype == torch.float16 and torch.allclose(half.float(), between(rows, [0, 23, 46], 47), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_equal_rows_stay_exactly_as_they_are_in_half_precision(dtype):
    sizes = torch.tensor(2 * [[1024, 1000, 0, 0, 768, 1000]], dtype=dtype)
    assert torch.equal(between(sizes, [0, 15], 16), sizes[:1].expand(16, 6))


def test_nothing_is_float64_where_the_rows_are():
    """Apple's MPS has no float64; the device "meta" stands for it."""
    class Refusing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            assert not torch.is_tensor(found) or found.device.type == "cpu" or found.dtype != torch.float64
            return found

    with Refusing():
        found = between(torch.zeros(2, 3, device="meta"), [0, 3], 4)
    assert found.device.type == "meta" and found.shape == (4, 3)


@pytest.mark.parametrize("guided", [True, False])
def test_each_frame_has_a_text_of_its_own_in_the_order_that_the_unet_reads(moving, guided):
    prompts = [{2: BALLOON, 0: BIRD}, BIRD]  # in any order, beside one that stays
    text, added = encode_prompts(moving.pipe, prompts, "the sea", guided, (32, 32), "cpu", 4)
    alone = {one: encode_text(moving.pipe, [one], "", False, (32, 32), "cpu")[0] for one in (BIRD, BALLOON, "the sea")}
    frames = torch.cat([alone[BIRD], (alone[BIRD] + alone[BALLOON]) / 2, alone[BALLOON], alone[BALLOON], *4 * [alone[BIRD]]])
    expected = torch.cat([alone["the sea"].expand_as(frames), frames]) if guided else frames
    assert not added and torch.allclose(text, expected, atol=1e-5)
    plain = encode_prompts(moving.pipe, [BIRD], "", guided, (32, 32), "cpu", 4)[0]
    assert torch.equal(plain, encode_text(moving.pipe, [BIRD], "", guided, (32, 32), "cpu")[0]), "once per clip, as ever"


def test_sdxls_further_conditions_change_with_the_text():
    class Pipe:
        tokenizer = make_pipe().tokenizer

        def encode_prompt(self, prompt, device, negative_prompt, **how):
            rows = torch.tensor([float(len(p)) for p in prompt])
            return rows.view(-1, 1, 1), -rows.view(-1, 1, 1), 10 * rows.view(-1, 1), -10 * rows.view(-1, 1)

    text, added = encode_prompts(Pipe(), [{0: "a", 2: "aaa"}], "", True, (32, 64), "cpu", 3)
    assert text.flatten().tolist() == [-1, -2, -3, 1, 2, 3]
    assert added["text_embeds"].flatten().tolist() == [-10, -20, -30, 10, 20, 30]
    assert added["time_ids"].tolist() == 6 * [[32, 64, 0, 0, 32, 64]]


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("more", ["nothing", "guided", "control"])
def test_one_text_at_all_frames_is_the_plain_prompt(guidance, more):
    pipe = make_pipe()
    animator = ak.Animator(pipe, shaken(make_motion(pipe.unet)))
    how = HOW | {"guidance": guidance}
    if more == "guided":
        animator.insert(shaken(ak.new_motion_lora(animator.video_unet.motion, 2)), name="pan")
        how |= {"guided": {"pan": 3.0}}
    if more == "control":
        animator.insert(make_controlnet(pipe.unet), name="depth")
        how |= {"control": make_depth(4)}
    plain, named = animator(BIRD, **how), animator({0: BIRD, 3: BIRD}, **how)
    assert np.abs(plain.array.astype(int) - named.array).max() <= 1
    changing = animator({0: BIRD, 3: BALLOON}, **how)
    assert np.abs(plain.array.astype(int) - changing.array).max() > 1


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("more", ["nothing", "guided", "control"])
def test_without_motion_modules_each_frame_is_its_text_s(guidance, more):
    pipe = make_pipe()
    still, how = ak.Animator(pipe), HOW | {"guidance": guidance}
    if more == "guided":
        still.insert(shaken(new_look(pipe.unet, 2)), name="look")
        how |= {"guided": {"look": 3.0}}
    if more == "control":
        still.insert(make_controlnet(pipe.unet), name="depth")
        how |= {"control": make_depth(4)}
    clips = still([{0: BIRD, 1: BALLOON}, {2: BALLOON, 3: BIRD}], **how)
    alone = {text: still([text, text], **how) for text in (BIRD, BALLOON)}
    for i, texts in enumerate([[BIRD, BALLOON, BALLOON, BALLOON], [BALLOON, BALLOON, BALLOON, BIRD]]):
        for frame, text in enumerate(texts):
            apart = {said: np.abs(clips[i].array[frame].astype(int) - alone[said][i].array[frame]).max() for said in alone}
            assert apart.pop(text) <= 1 < 3 <= min(apart.values()), (i, frame)


def test_a_clip_says_its_prompt_and_keeps_it(moving, tmp_path):
    clip = moving({np.int64(3): BALLOON, 0: BIRD}, **HOW)
    assert clip.prompt == f"0: {BIRD}; 3: {BALLOON}"
    kept = ak.Clip.load(clip.save(tmp_path / "clip.gif")).settings
    assert dict(kept["prompts"]) == {0: BIRD, 3: BALLOON}
    assert np.array_equal(moving(dict(kept["prompts"]), **HOW).array, clip.array)
    assert "prompts" not in moving(BIRD, **HOW).settings


def test_a_list_may_hold_both_kinds_and_one_alone_gives_one_clip(moving):
    both = moving([BIRD, {0: BIRD, 3: BALLOON}], **HOW)
    assert [clip.prompt for clip in both] == [BIRD, f"0: {BIRD}; 3: {BALLOON}"]
    alone = moving({0: BIRD, np.int64(3): BALLOON}, **HOW | {"seed": 4})
    assert isinstance(alone, ak.Clip) and np.abs(alone.array.astype(int) - both[1].array).max() <= 1
    assert len(moving({0: BIRD}, clips_per_prompt=2, **HOW)) == 2


@pytest.mark.parametrize("prompt, said", [
    ({}, "got .{}"),
    ([BIRD, {}], "a list of at least one"),
    ({0: 3}, "{frame: text}"),
    ({4: BIRD}, "frames from 0 to 3 .* got 4"),
    ({-1: BIRD}, "frames from 0 to 3 .* got -1"),
    ({"0": BIRD}, "frames from 0 to 3 .* got '0'"),
    ({0.5: BIRD}, "got 0.5"),
    ({True: BIRD}, "got True"),
])
def test_prompts_that_cannot_be_are_refused(moving, prompt, said):
    with pytest.raises(ak.AnimkitError, match=said):
        moving(prompt, **HOW)


def test_words_of_every_text_are_checked():
    animator = ak.Animator(make_pipe())
    animator.defaults["vocabulary"] = WORDS
    with pytest.raises(ak.AnimkitError, match="zeppelin"):
        animator({0: BIRD, 3: "a red zeppelin"}, **HOW)


@pytest.mark.parametrize("method", ["Text2VideoZero", "IndependentFrames"])
def test_methods_of_the_comparison_take_one_text(method):
    import animkit.baselines as baselines
    with pytest.raises(ak.AnimkitError, match="takes one text for the whole clip"):
        getattr(baselines, method)(ak.Animator(make_pipe()))({0: BIRD, 3: BALLOON}, **HOW)
