"""The motion judge: it reads motion and nothing that a still shows; and the marks it is trained to see through."""
import numpy as np
import pytest
import torch

from animkit import samples
from animkit.errors import AnimkitError
from animkit.miniature.motion_clips import FRAMES, KINDS, draw, flickering, incoherent, moving, small, with_marks
from animkit.miniature.motion_judge import INCOHERENT, STILL, MotionJudge, Watching, new_motion_judge, signal, spoil
from animkit.world import MOTIONS, Scene, Thing, random_scene, render


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def drawn():
    return draw(3, 8)


def scene(**how) -> Scene:
    return Scene((Thing(motion="rising", **how),))


# --- marks ----------------------------------------------------------------------------------------------------------

def test_marks_are_the_motions_own_unless_said_otherwise():
    own = render(scene(), 2).rgb
    assert np.array_equal(own, render(scene(cue="rising"), 2).rgb)
    none, falling = render(scene(cue=None), 2), render(scene(cue="falling"), 2).rgb
    assert not any(np.array_equal(a, b) for a, b in ((own, none.rgb), (own, falling), (none.rgb, falling)))
    assert np.array_equal(render(scene(), 2).mask, none.mask), "marks are no part of the thing"


@pytest.mark.parametrize("mark", [m for m in MOTIONS])
def test_every_motion_has_marks_that_another_can_wear(mark):
    still = Scene((Thing(),))
    assert not np.array_equal(render(with_marks(still, mark), 1).rgb, render(still, 1).rgb)


def test_an_unknown_mark_is_refused():
    with pytest.raises(AnimkitError, match="no cue 'flying'"):
        Scene((Thing(cue="flying"),))


# --- clips ----------------------------------------------------------------------------------------------------------

def test_clips_are_a_function_of_the_seed(drawn):
    pixels, labels = drawn
    again, same = draw(3, 8)
    assert np.array_equal(pixels, again) and np.array_equal(labels, same)
    assert pixels.shape == (8, FRAMES, 32, 32, 3) and pixels.dtype == np.uint8 and labels.max() < len(KINDS)
    assert not np.array_equal(draw(4, 1)[0], pixels[:1])


def test_what_is_still_stays_and_what_moves_does_not(drawn):
    rng = np.random.default_rng(0)
    assert np.ptp(render(moving(rng, "still")).rgb, axis=0).max() == 0
    for motion in MOTIONS:
        assert np.ptp(render(moving(rng, motion)).rgb, axis=0).max() > 0.1
    frames = incoherent(rng)
    assert len(np.unique(frames.reshape(FRAMES, -1), axis=0)) == FRAMES


def test_what_flickers_keeps_its_path_and_nothing_else_stands_still():
    steady = Scene((Thing("ball", "red", "bouncing", cue=None),), "city")
    footage, u = render(steady), np.arange(FRAMES) / FRAMES
    clip = flickering(np.random.default_rng(0), steady, u)
    again = flickering(np.random.default_rng(0), steady, u)
    assert clip.shape == footage.rgb.shape and np.array_equal(clip, again)
    red = (clip[..., 0] > 0.5) & (clip[..., 1] < 0.4) & (clip[..., 2] < 0.4)
    rows = np.arange(64)[:, None]
    for seen, mask in zip(red, footage.mask > 0):
        assert abs((rows * seen).sum() / seen.sum() - (rows * mask).sum() / mask.sum()) < 2
    away = (footage.mask == 0).all(0)  # where the thing never is
    assert np.ptp(clip[:, away], axis=0).mean() > 5 * np.ptp(footage.rgb[:, away], axis=0).mean()


def test_small_is_what_the_judge_makes_of_full_size():
    full = render(random_scene(np.random.default_rng(1)))
    given, own = signal(small(full.rgb)[None]), signal(full.uint8[None])
    assert given.shape == own.shape == (1, 3, FRAMES, 32, 32)
    assert (given - own).abs().max() <= 2 / 127.5, "but for rounding"


@pytest.mark.parametrize("shape", [(1, 15, 64, 64, 3), (1, 16, 48, 48, 3), (1, 16, 64, 32, 3)])
def test_other_lengths_and_sizes_are_refused(shape):
    with pytest.raises(AnimkitError, match="16 frames and a multiple of 32 pixels square"):
        signal(np.zeros(shape, np.uint8))


# --- the network ----------------------------------------------------------------------------------------------------

def test_it_has_the_size_it_says():
    assert 100_000 < sum(p.numel() for p in MotionJudge().parameters()) < 250_000


def test_a_still_cannot_speak():
    """Whatever stands in a frozen clip, speed lines included, the scores are those of an empty one."""
    judge = new_motion_judge().eval()
    empty = judge(torch.zeros(1, 3, FRAMES, 32, 32))
    for motion in ("rising", "circling", None):
        shown = render(Scene((Thing(motion=motion),)), u=[0.4]).uint8
        frozen = signal(np.repeat(shown, FRAMES, 0)[None])
        assert torch.equal(judge(frozen), empty)
    assert not torch.allclose(judge(signal(render(scene()).uint8[None])), empty, atol=1e-2)


def test_the_order_of_frames_matters():
    judge, x = new_motion_judge().eval(), signal(render(scene()).uint8[None])
    assert not torch.allclose(judge(x), judge(x.flip(2)), atol=1e-3)


def test_which_does_not_depend_on_the_batch(drawn):
    judge = new_motion_judge()
    assert torch.equal(judge.which(drawn[0], size=5), judge.which(drawn[0]))


def test_answers_can_be_limited(drawn):
    judge = new_motion_judge()
    only = judge.which(drawn[0], among=("rising", "falling"))
    assert set(only.tolist()) <= {KINDS.index("rising"), KINDS.index("falling")}
    scores = judge(signal(drawn[0]))[:, [KINDS.index("rising"), KINDS.index("falling")]]
    assert torch.equal(only == KINDS.index("falling"), scores.argmax(-1) == 1)


def test_weights_come_back_from_half_precision(tmp_path, drawn):
    judge = new_motion_judge().eval()
    judge.save(tmp_path / "motion.safetensors")
    back = MotionJudge.load(tmp_path / "motion.safetensors")
    x = signal(drawn[0][:4])
    assert torch.allclose(back(x), judge(x), atol=2e-2) and next(back.parameters()).dtype == torch.float32
    assert (tmp_path / "motion.safetensors").stat().st_size < 600_000


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:100]),
                                    lambda p: p.write_bytes(b"")])
def test_a_missing_or_damaged_file_is_one_sentence(tmp_path, damage):
    path = tmp_path / "motion.safetensors"
    new_motion_judge().save(path)
    damage(path)
    with pytest.raises(AnimkitError, match="holds no motion judge"):
        MotionJudge.load(path)


# --- training -------------------------------------------------------------------------------------------------------

def test_spoiling_is_the_generators_alone_and_never_motion(drawn):
    x = signal(drawn[0][:6])
    spoilt = [spoil(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(spoilt[0], spoilt[1]) and not torch.equal(spoilt[0], spoilt[2])
    assert spoilt[0].shape == x.shape and spoilt[0].abs().max() <= 1.2
    assert (spoilt[0].mean((1, 2)) * x.mean((1, 2))).mean() > 0, "the picture is still there"


def test_batches_hold_frozen_and_shuffled_clips(drawn):
    seen = {}
    rising = np.full(8, KINDS.index("rising"))
    task = Watching(drawn[0], rising, size=24)
    for k in range(12):
        x, y = task.batch(k, torch.Generator().manual_seed(k))
        again, same = task.batch(k, torch.Generator().manual_seed(k))
        assert torch.equal(x, again) and torch.equal(y, same) and x.shape == (24, 3, FRAMES, 32, 32)
        for label in y.tolist():
            seen[label] = seen.get(label, 0) + 1
    assert set(seen) == {STILL, KINDS.index("rising"), INCOHERENT}
    assert 0.02 < seen[STILL] / 288 < 0.11 and 0.03 < seen[INCOHERENT] / 288 < 0.14


def test_it_learns():
    rng = np.random.default_rng(0)
    kinds = ["rising", "falling", "spinning", "still"]
    pixels = np.stack([small(render(moving(rng, kind, ("flat",))).rgb) for kind in kinds])
    task, judge, losses = Watching(pixels, np.array([KINDS.index(kind) for kind in kinds])), new_motion_judge(), []
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
    for _ in range(30):
        loss, numbers = task.loss(judge, (signal(pixels), task.labels), None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0] and task.accuracy(judge)["right"] == 1 and numbers["right"] == 1


# --- as shipped -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def shipped() -> MotionJudge:
    path = samples.root() / "judge" / "motion.safetensors"
    if not path.exists():
        pytest.skip("data_samples/judge/motion.safetensors is not shipped yet")
    return MotionJudge.load(path)


@pytest.mark.parametrize("cue", ["own", None])
def test_the_shipped_one_knows_motions_with_and_without_marks(shipped, cue):
    rng = np.random.default_rng(12345)
    kinds = list(KINDS[:-1]) * 5
    scenes = [random_scene(rng, motion=None if kind == "still" else kind) for kind in kinds]
    clips = np.stack([render(with_marks(scene, cue)).uint8 for scene in scenes])
    right = [KINDS[j] == k for j, k in zip(shipped.which(clips), kinds)]
    assert np.mean(right) > 0.9


def test_the_shipped_one_sees_motion_through_flicker(shipped):
    rng = np.random.default_rng(777)
    kinds = list(KINDS[:-1]) * 5
    scenes = [moving(rng, kind) for kind in kinds]
    clips = np.stack([(flickering(rng, s, np.arange(FRAMES) / FRAMES) * 255).astype(np.uint8) for s in scenes])
    assert np.mean([KINDS[j] == k for j, k in zip(shipped.which(clips), kinds)]) > 0.9


def test_the_shipped_one_takes_no_still_and_no_mess_for_motion(shipped):
    rng = np.random.default_rng(54321)
    frozen = [np.repeat(render(moving(rng, m), u=[0.5]).uint8, FRAMES, 0) for m in MOTIONS]
    mess = [(incoherent(rng) * 255).astype(np.uint8) for _ in range(10)]
    assert set(shipped.which(np.stack(frozen)).tolist()) == {STILL}
    assert (shipped.which(np.stack(mess)) == INCOHERENT).float().mean() > 0.8
