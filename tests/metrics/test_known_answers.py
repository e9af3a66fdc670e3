"""The metrics that look through a trained judge, on real renders whose answer is known; and what they do not see."""
import numpy as np
import pytest
import torch

from animkit import metrics, samples
from animkit.miniature.judge import Judge
from animkit.world import MOTIONS, random_scene, render
from animkit.world.captions import caption

pytestmark = pytest.mark.skipif("judge" not in samples.names(), reason="the judge does not ship yet")
LOOKS = ("flat", "comic", "clay", "ink", "neon", "watercolour")


@pytest.fixture(scope="module")
def judge():
    torch.set_num_threads(1)
    return Judge.from_pretrained(samples.path("judge"))


@pytest.fixture(scope="module")
def encoder(judge):
    return metrics.Encoder.of_judge(judge)


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(5)
    return [random_scene(rng, motion=motion, look=look) for look, motion in zip(LOOKS * 2, list(MOTIONS) * 2)]


@pytest.fixture(scope="module")
def clips(scenes):
    return [render(scene, 8).uint8 for scene in scenes]


def test_clip_text_prefers_the_clips_own_caption(scenes, clips, encoder):
    said = [caption(scene, np.random.default_rng(k)) for k, scene in enumerate(scenes)]
    frames, text = [encoder.images(clip) for clip in clips], encoder.texts(said)
    scores = np.array([[metrics.text_score(f, t) for t in text] for f in frames])  # clip by caption
    assert (scores.argmax(1) == np.arange(len(clips))).mean() >= 0.8
    assert np.allclose(np.diag(scores), metrics.score_clips(encoder, clips, said)["text"], atol=1e-4)
    gap = metrics.bootstrap(np.diag(scores) - (scores.sum(1) - np.diag(scores)) / (len(clips) - 1))
    assert gap.low > 20, gap
    rng = np.random.default_rng(0)
    noise = metrics.score_clips(encoder, [rng.integers(0, 256, c.shape, dtype=np.uint8) for c in clips], said)["text"]
    assert noise.mean() < np.diag(scores).mean() - 20


def test_clip_domain_prefers_the_clips_own_look(scenes, clips, encoder):
    """With 30 references of any content; with few, what stands in them counts as much as how it is drawn."""
    rng = np.random.default_rng(6)
    known = [encoder.images(np.concatenate([render(random_scene(rng, look=look), u=[0.4]).uint8 for _ in range(30)]))
             for look in LOOKS]
    scores = np.array([[metrics.domain_score(encoder.images(clip[::4]), r) for r in known] for clip in clips])
    own = np.array([LOOKS.index(scene.look) for scene in scenes])
    right = scores[np.arange(len(clips)), own]
    assert (scores.argmax(1) == own).mean() >= 0.6, "by chance: 1 of 6"
    assert metrics.bootstrap(right - (scores.sum(1) - right) / (len(LOOKS) - 1)).low > 4


def test_clip_smooth_sees_jumps_and_nothing_finer(clips, encoder):
    """A still has 100 and frames of other scenes next to nothing. Noise, and a clip in another order, pass for smooth."""
    def smooth(of):
        return metrics.score_clips(encoder, of)["smooth"]
    rng, n = np.random.default_rng(0), len(clips)
    own, still = smooth(clips), smooth([np.repeat(clip[:1], 8, 0) for clip in clips])
    mixed = smooth([np.stack([clips[(k + i) % n][i] for i in range(8)]) for k in range(n)])
    assert np.allclose(still, 100, atol=1e-3) and np.allclose(smooth([c[::-1] for c in clips]), own, atol=1e-3)
    assert own.mean() < 100 and metrics.bootstrap(own - mixed).low > 30
    noise = smooth([rng.integers(0, 256, clip.shape, dtype=np.uint8) for clip in clips])
    assert noise.mean() > mixed.mean() + 30, "frames of noise are alike to it: read it beside CLIP text and the warp error"
    moved = [metrics.motion_of(clip) for clip in (clips[0], rng.integers(0, 256, clips[0].shape, dtype=np.uint8))]
    assert moved[1].warp_error > 5 * moved[0].warp_error, "which does tell them apart"


def test_the_frechet_distance_is_least_for_real_clips(judge):
    """Real clips against others as real, reversed, shuffled, mixed, frozen, and noise."""
    def renders(seed, n=20):
        rng, motions = np.random.default_rng(seed), list(MOTIONS)
        return np.stack([render(random_scene(rng, motion=motions[k % len(motions)]), 16, 32).uint8 for k in range(n)])
    rng, known, real = np.random.default_rng(3), renders(0), renders(1)
    n = len(real)
    of = {"real": real, "reversed": real[:, ::-1], "shuffled": np.stack([clip[rng.permutation(16)] for clip in real]),
          "mixed": np.stack([real[(np.arange(16) + k) % n, np.arange(16)] for k in range(n)]),
          "still": np.repeat(real[:, :1], 16, 1), "noise": rng.integers(0, 256, real.shape, dtype=np.uint8)}
    features = metrics.motion_judge_features(judge.eye, list(known))
    found = {name: metrics.frechet_distance(features, metrics.motion_judge_features(judge.eye, list(clips)))
             for name, clips in of.items()}
    assert found["real"] < found["reversed"] < min(found[name] for name in ("shuffled", "mixed", "still", "noise"))
    assert found["real"] < 0.5 * min(found[name] for name in ("shuffled", "mixed", "still", "noise"))


def test_the_named_motion_is_found_in_renders_and_not_in_what_they_become(judge):
    rng = np.random.default_rng(4)
    named = [m for m in MOTIONS if m not in ("shaking", "spinning")]  # these suit any order of their frames
    clips = [render(random_scene(rng, motion=motion), 16, 32).uint8 for motion in named]
    assert metrics.motion_found(judge, clips, named).mean() >= 0.85
    for spoilt in (lambda c: np.repeat(c[:1], 16, 0), lambda c: c[np.random.default_rng(0).permutation(16)],
                   lambda c: np.random.default_rng(1).integers(0, 256, c.shape, dtype=np.uint8)):
        assert metrics.motion_found(judge, [spoilt(clip) for clip in clips], named).mean() <= 0.15
    opposite = {"rising": "falling", "falling": "rising", "growing": "shrinking", "shrinking": "growing"}
    turned = [clips[named.index(motion)][::-1] for motion in opposite]
    assert metrics.motion_found(judge, turned, list(opposite)).mean() <= 0.25
    assert metrics.motion_found(judge, turned, list(opposite.values())).mean() >= 0.5
