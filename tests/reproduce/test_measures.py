"""What the experiments have in common, each on cases whose answer is known."""
import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_animator import make_pipe

import animkit as ak
from animkit import metrics, world
from animkit.errors import AnimkitError
from animkit.reproduce import (asked_moving, drawing, drawn, held_out_loss, lead, levels_of, measured, move_made,
                               only_levels, power_law, rank_correlation, resampled, shipped, steadiness, summary, table)
from animkit.training.config import NoiseConfig
from tiny import clip_and_text, shaken, tiny_unet

PROMPTS = ["a red balloon rising", "a blue cat rising", "a red balloon"]


@pytest.fixture(scope="module")
def animator():
    torch.set_num_threads(1)
    pipe = make_pipe()
    return ak.Animator(pipe, motion=shaken(ak.MotionModules.for_unet(pipe.unet)))


@pytest.fixture
def calls(animator, monkeypatch):
    """How many prompts each call of the animator was asked for."""
    made, real = [], type(animator).__call__

    def counted(self, prompt, **how):
        made.append(len(prompt))
        return real(self, prompt, **how)
    monkeypatch.setattr(type(animator), "__call__", counted)
    return made


# ---- clips drawn once

HOW = dict(name="base", frames=2, steps=2, batch=2)


def test_clips_are_those_of_the_animator_whatever_the_batch(animator, tmp_path):
    clips = drawn(animator, PROMPTS, seed=5, work=tmp_path, **HOW)
    for k, clip in enumerate(clips):
        alone = animator(PROMPTS[k], seed=5 + k, frames=2, steps=2, progress=False)
        assert np.abs(clip.array.astype(int) - alone.array).max() <= 2
        assert clip.prompt == PROMPTS[k] and clip.fps == alone.fps


def test_what_was_drawn_is_kept_and_a_killed_run_goes_on(animator, tmp_path, calls):
    first = drawn(animator, PROMPTS, seed=5, work=tmp_path, **HOW)
    files = sorted((tmp_path / "clips").iterdir())
    assert calls == [2, 1] and len(files) == 2
    again = drawn(animator, PROMPTS, seed=5, work=tmp_path, **HOW)
    assert calls == [2, 1] and all((a.array == b.array).all() for a, b in zip(first, again))
    taken = [float(np.load(file)["seconds"]) for file in files]
    assert min(taken) > 0 and sorted(drawing._found[-2:]) == sorted(taken), "what they took then is counted, once each"
    files[0].unlink()
    drawn(animator, PROMPTS, seed=5, work=tmp_path, **HOW)
    assert len(calls) == 3, "only what is missing is drawn"
    drawn(animator, PROMPTS[:2], seed=5, work=tmp_path, **HOW | {"name": "as another notebook calls it"})
    assert len(calls) == 3, "notebooks share what they draw alike"


def test_each_clip_has_its_own(animator, tmp_path):
    noises = [NoiseConfig(betas).scheduler() for betas in ("scaled_linear", "linear")]
    clips = drawn(animator, PROMPTS[:2], seed=5, work=tmp_path, **HOW, each={"scheduler": noises})
    for k, noise in enumerate(noises):
        alone = animator(PROMPTS[k], seed=5 + k, frames=2, steps=2, progress=False, scheduler=noise)
        assert np.array_equal(clips[k].array, alone.array)


def test_nothing_stale_is_taken(animator, tmp_path, calls, monkeypatch):
    """Other noise, words, steps, weights, alphas: each is another clip."""
    drawn(animator, PROMPTS[:1], seed=5, work=tmp_path, **HOW)
    drawn(animator, PROMPTS[:1], seed=6, work=tmp_path, **HOW)
    drawn(animator, PROMPTS[1:2], seed=5, work=tmp_path, **HOW)
    drawn(animator, PROMPTS[:1], seed=5, work=tmp_path, **HOW | {"steps": 3})
    drawn(animator, PROMPTS[:1], seed=5, work=tmp_path, **HOW, scheduler=NoiseConfig("scaled_linear").scheduler())
    drawn(animator, PROMPTS[:1], seed=5, work=tmp_path, **HOW, scheduler=NoiseConfig("linear").scheduler())
    animator.alpha["motion"] = 0.5
    drawn(animator, PROMPTS[:1], seed=5, work=tmp_path, **HOW)
    animator.alpha["motion"] = 1.0
    with only_levels(animator.video_unet.motion, [0]):
        drawn(animator, PROMPTS[:1], seed=5, work=tmp_path, **HOW)
    with monkeypatch.context() as other:
        other.setitem(animator.defaults, "guidance", 1.0)
        drawn(animator, PROMPTS[:1], seed=5, work=tmp_path, **HOW)
    with monkeypatch.context() as other:
        other.setattr(drawing, "_drawing_code", lambda: "another version of the sampler")
        drawn(animator, PROMPTS[:1], seed=5, work=tmp_path, **HOW)
    with monkeypatch.context() as other:
        control = SimpleNamespace(model=torch.nn.Linear(1, 1), alpha=1.0)
        other.setitem(animator.alpha.controls, "depth", control)
        other.setattr(type(animator), "__call__", lambda self, prompts, **how: calls.append(1) or [film([flat(0)] * 2)])
        drawn(animator, PROMPTS[:1], seed=5, work=tmp_path, **HOW)
        for part in (control.model, animator.pipe.vae, animator.pipe.text_encoder):
            first = next(part.parameters())
            kept, first.data = first.data, first.data + 1
            drawn(animator, PROMPTS[:1], seed=5, work=tmp_path, **HOW)
            first.data = kept
    assert len(calls) == 14
    drawn(animator, PROMPTS[:1], seed=5, work=tmp_path, **HOW)
    assert len(calls) == 14


def test_code_is_what_a_file_does_not_how_it_reads():
    one = 'def f(x):\n    """Doc."""\n    return x + 1  # more\n'
    assert drawing.code(one) == drawing.code("# file\n\ndef f(x):\n    return (x + 1)\n") != drawing.code(one.replace("1", "2"))
    assert drawing.code('"""Only words."""') == drawing.code("pass")


# ---- measures

def film(frames):
    return ak.Clip(np.stack(frames), prompt="a red ball")


def flat(grey):
    return np.full((32, 32, 3), grey, np.uint8)


def test_colour_drift_is_the_standard_deviation_of_the_mean_colour():
    assert steadiness(film([flat(100)] * 4)) == 0
    assert steadiness(film([flat(0), flat(255)])) == pytest.approx(50)
    bars = flat(0)
    bars[:, ::2] = 255
    assert steadiness(film([bars, np.roll(bars, 1, 1)])) == 0, "what moves does not drift"


class StubJudge:
    """Finds what it is told to find: `free` of all kinds, `ten` where it must name a motion, `looks` frame by frame."""

    def __init__(self, free=(), ten=(), looks=()):
        self.free, self.ten, self.looks = list(free), list(ten), list(looks)

    def motion(self, clips, among=None):
        assert clips.shape == (3, 2, 32, 32, 3) and among in (None, tuple(world.MOTIONS))
        return self.free if among is None else self.ten

    def pictures(self, pixels, attributes):
        assert pixels[:, 0, 0, 0].tolist() == [0, 1, 10, 11, 20, 21], "all frames of a clip, then the next clip's"
        return {name: self.looks for name in attributes}


def test_what_the_judge_finds_is_counted_clip_by_clip(monkeypatch):
    clips = [film([flat(10 * k), flat(10 * k + 1)]) for k in range(3)]
    monkeypatch.setattr(metrics, "score_clips", lambda encoder, clips, prompts, references: {"text": np.arange(3.0)})
    scenes = [world.Scene((world.Thing("ball", "red", motion=motion),)) for motion in ("rising", "rising", None)]
    judge = StubJudge(["rising", "still", "incoherent"], ["rising", "rising", "falling"],
                      ["ink", "ink", "ink", "neon", "neon", "neon"])
    found = measured(clips, None, judge=judge, scenes=scenes, look="ink")
    of_judge = {"named motion": [1, 0, 0], "another's motion": [0.5, 0.5, 0], "named of ten": [1, 1, 0],
                "still": [0, 1, 0], "incoherent": [0, 0, 1], "in the look": [1, 0.5, 0]}
    assert {name: found[name].tolist() for name in of_judge} == of_judge
    without = {"CLIP text", "amount of motion", "smoothness of motion", "warp error", "colour drift"}
    assert set(found) == without | set(of_judge) and found["CLIP text"].tolist() == [0, 1, 2]
    assert set(measured(clips, None, judge=judge)) == without == set(measured(clips, None, scenes=scenes, look="ink"))


def test_with_no_other_prompt_there_is_no_chance_to_tell(monkeypatch):
    """One clip: nobody else's motion could be met, which is no 0."""
    monkeypatch.setattr(metrics, "score_clips", lambda *args: {})
    monkeypatch.setattr(StubJudge, "motion", lambda self, clips, among=None: ["rising"])
    scene = world.Scene((world.Thing("ball", "red", motion="rising"),))
    found = measured([film([flat(0), flat(1)])], None, judge=StubJudge(), scenes=[scene])
    assert np.isnan(found["another's motion"]).tolist() == [True] and found["named motion"].tolist() == [1]


def test_summary_and_table_hold_means_and_intervals():
    summed = summary({"ours": {"amount": np.array([1.0, 3.0])},
                      "theirs": {"amount": np.array([np.nan]), "smooth": np.array([2.0])}})
    assert summed["ours"]["amount"]["value"] == 2 and summed["ours"]["amount"]["n"] == 2
    said = table(summed)
    assert said.splitlines()[0] == "| method | amount | smooth |" and "| theirs | - | 2 (2 to 2) |" in said


def test_an_amount_that_is_always_0_is_no_share():
    still = {"still": {"amount of motion": np.zeros(12), "warp error": np.zeros(12), "named motion": np.zeros(12)}}
    found = summary(still)["still"]
    assert found["amount of motion"]["high"] == found["warp error"]["high"] == 0 and found["named motion"]["high"] > 0.2


def test_a_lead_is_taken_clip_by_clip_over_the_best_rival():
    found = {"ours": {"m": np.array([3.0, 4.0])}, "a": {"m": np.array([1.0, 2.0])}, "b": {"m": np.array([0.0, 5.0])}}
    ahead, rival = lead(found, "m", "ours", ["a", "b"])
    assert (ahead.value, rival, ahead.n) == (1.0, "b", 2)
    assert lead(found, "m", "ours", ["a", "b"], min)[1] == "a"
    found["b"]["m"] = np.array([np.nan, 5.0])
    ahead, rival = lead(found, "m", "ours", ["a", "b"])
    assert (ahead.value, rival, ahead.n) == (-1.0, "b", 1)


def test_to_lead_is_to_lead_all_rivals():
    """A rival with a slightly lower mean, but a wide scatter, is not beaten."""
    rng = np.random.default_rng(0)
    found = {"ours": {"m": np.full(12, 2.0)}, "a": {"m": 1 + 0.2 * rng.normal(size=12)}, "b": {"m": 0.9 + 8 * rng.normal(size=12)}}
    found["b"]["m"] += 0.9 - found["b"]["m"].mean()
    (alone, _), (both, rival) = lead(found, "m", "ours", ["a"]), lead(found, "m", "ours", ["a", "b"])
    assert alone.low > 0.8 and both.low < 0 and rival == "a" and both.value == pytest.approx(alone.value)
    assert lead({name: {"m": -of["m"]} for name, of in found.items()}, "m", "ours", ["a", "b"], min)[0].high > 0


def test_held_out_loss_is_counted_in_float32_on_a_base_in_bf16(animator):
    """As stage 2 leaves it on a GPU that computes in bf16: the base in bf16, the motion modules in float32."""
    clips = [ak.Clip(np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8), prompt=PROMPTS[0])]
    exact = held_out_loss(animator, clips, NoiseConfig().scheduler(), draws=2)
    pipe = copy.deepcopy(make_pipe())
    half = ak.Animator(pipe.to(torch.bfloat16))
    modules = copy.deepcopy(animator.video_unet.motion)
    half.video_unet.insert(modules, dtype=torch.float32)
    assert half.pipe.unet.dtype == torch.bfloat16 and next(modules.parameters()).dtype == torch.float32
    assert held_out_loss(half, clips, NoiseConfig().scheduler(), draws=2) == pytest.approx(exact, rel=0.05)


def test_a_resampled_ratio_has_an_interval_around_it():
    rows = np.random.default_rng(0).uniform(1, 2, (40, 2)) * [1, 4]
    found = resampled(rows, lambda drawn: drawn[:, 0].mean() / drawn[:, 1].mean())
    assert found.low < 0.25 < found.high and found.low < found.value < found.high and found.n == 40
    assert resampled(rows, lambda drawn: float("nan")).n == 0
    odd = resampled(rows, lambda drawn: float("nan") if drawn[0, 0] == rows[3, 0] else drawn[:, 0].mean())
    assert 1 < odd.low < odd.value < odd.high < 2 and odd.n == 40
    with pytest.raises(AnimkitError, match="Rows are n k"):
        resampled(np.ones(3), np.mean)


@pytest.mark.parametrize("y, rho", [([1, 2, 3], 1), ([3, 2, 1], -1), ([1, 3, 2], 0.5), ([1, 1, 2], np.sqrt(3) / 2)])
def test_rank_correlation_is_spearmans(y, rho):
    assert rank_correlation([10, 20, 40], y) == pytest.approx(rho)
    assert np.isnan(rank_correlation([1, 2, 3], [5, 5, 5]))


def test_a_power_law_is_found_again():
    n = np.array([10, 40, 160, 640])
    fit = power_law(n, 0.3 + 2 * n ** -0.5)
    assert fit["slope"] == 0.5 and fit["floor"] == pytest.approx(0.3) and fit["error"] < 1e-9
    assert power_law(n, [1, 2, 3, 4])["scale"] == 0, "a loss that rises has no such law"
    with pytest.raises(AnimkitError, match="4 points"):
        power_law(n[:3], n[:3])


@pytest.mark.parametrize("shot", list(world.SHOTS))
def test_the_move_of_a_shot_type_is_positive_and_its_opposites_negative(shot):
    from animkit.data.camera import OPPOSITE
    scene = world.Scene((world.Thing("house", "red"),), setting="city", shot=shot)
    path = metrics.camera_path_of_flow(metrics.exact_flow(world.render(scene, frames=8)))
    assert move_made(path, shot) > 0.5 and move_made(path, OPPOSITE[shot]) < -0.5


def test_prompts_take_the_motions_in_turn():
    prompts, scenes = asked_moving(20, seed=1)
    motions = [scene.things[0].motion for scene in scenes]
    assert motions == list(world.MOTIONS) * 2 and len(set(prompts)) > 15
    assert asked_moving(20, seed=1)[0] == prompts != asked_moving(20, seed=2)[0]
    assert not any(word in prompt for prompt in prompts for word in ("comic", "clay", "watercolour", "cartoon"))


def test_held_out_loss_is_the_same_for_the_same_model_and_another_for_another(animator):
    clips = [ak.Clip(np.random.default_rng(k).integers(0, 255, (2, 32, 32, 3), np.uint8), prompt=PROMPTS[k])
             for k in range(2)]
    noise = NoiseConfig().scheduler()
    first = held_out_loss(animator, clips, noise, seed=1, draws=2)
    assert first.shape == (2,) and (first == held_out_loss(animator, clips, noise, seed=1, draws=2)).all()
    assert (first != held_out_loss(animator, clips, noise, seed=1, draws=1)).all()
    same = held_out_loss(animator, clips[:1] * 2, noise, seed=1, draws=2)
    assert same[0] == first[0] != same[1], "each clip has noise of its own"
    animator.alpha["motion"] = 0.0
    other = held_out_loss(animator, clips, noise, seed=1, draws=2)
    animator.alpha["motion"] = 1.0
    assert (first != other).all()


def test_what_does_not_ship_is_none():
    assert shipped("nothing of that name") is None and shipped("recipe.json").name == "recipe.json"


# ---- levels

def test_levels_are_resolutions():
    modules = ak.MotionModules.for_unet(tiny_unet(), "v2")
    levels = levels_of(modules)
    assert sorted(site for sites in levels.values() for site in sites) == sorted(modules.sites)
    assert all(site.startswith(("down_blocks.0", f"up_blocks.{len(levels) - 1}")) for site in levels[0])
    assert "mid_block.motion_modules.0" in levels[len(levels) - 1]


def test_without_any_level_the_video_unet_is_the_image_unet_and_all_comes_back():
    video_unet = ak.inflate(tiny_unet())
    x, text = clip_and_text()
    with torch.no_grad():
        still = video_unet(x, 10, text)
        modules = shaken(ak.MotionModules.for_unet(video_unet))
        video_unet.insert(modules)
        moving = video_unet(x, 10, text)
        with only_levels(modules, []):
            assert torch.allclose(video_unet(x, 10, text), still, atol=1e-5)
        with only_levels(modules, [0]):
            one = video_unet(x, 10, text)
        assert torch.equal(video_unet(x, 10, text), moving)
        with only_levels(modules, list(levels_of(modules))):
            assert torch.equal(video_unet(x, 10, text), moving)
    assert not torch.allclose(one, still, atol=1e-3) and not torch.allclose(one, moving, atol=1e-3)
    with pytest.raises(AnimkitError, match="got 9"), only_levels(modules, [9]):
        pass
