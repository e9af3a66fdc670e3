"""The Frechet distance of sets whose distance is known, its bias, and the features it stands on."""
import numpy as np
import pytest
import torch

from animkit.errors import AnimkitError
from animkit.metrics import frechet_distance, frechet_extrapolated, frechet_interval, motion_judge_features
from animkit.miniature.motion_judge import new_motion_judge
from animkit.miniature.motion_judge import signal


def test_gaussians_have_the_distance_of_the_formula():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(40_000, 3))
    a, b = z * [1, 2, 3], rng.normal(size=(40_000, 3)) * [2, 2, 1] + [0, 3, 0]
    assert frechet_distance(a, b) == pytest.approx(3 ** 2 + (2 - 1) ** 2 + (3 - 1) ** 2, rel=0.02)
    assert frechet_distance(a, a + [1, 0, 0]) == pytest.approx(1, abs=1e-6), "a shift alone, squared"
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_turned_covariances_that_do_not_commute():
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)) for _ in range(2))
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values = np.linalg.eigvals(s @ t).real.clip(0)  # of the product itself: another way to the same trace
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t) - 2 * np.sqrt(values).sum()
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_few_clips_are_biased_upwards_and_extrapolation_takes_most_of_it_away():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 120, 20))
    found = frechet_extrapolated(a, b)
    assert found["distance"] == pytest.approx(frechet_distance(a, b)) and found["n"] == 120
    assert found["distance"] > 1, "the truth is 0"
    assert abs(found["extrapolated"]) < found["distance"] / 2


def test_lists_are_as_good_as_arrays():
    a, b = np.random.default_rng(5).normal(size=(2, 40, 3))
    for distance in (frechet_distance, frechet_extrapolated):
        assert distance(a.tolist(), b.tolist()) == distance(a, b)


@pytest.mark.parametrize("n, d", [(30, 3), (80, 8)])
def test_the_interval_covers_what_sets_of_this_size_have_on_average(n, d):
    rng = np.random.default_rng(3)

    def two_sets():
        return rng.normal(size=(n, d)), rng.normal(size=(n, d)) * 1.5 + 0.6

    wanted = np.mean([frechet_distance(*two_sets()) for _ in range(300)])
    found = [frechet_interval(*two_sets(), rounds=80) for _ in range(60)]
    assert np.mean([i.low <= wanted <= i.high for i in found]) >= 0.88
    narrow = [frechet_interval(*two_sets(), rounds=80, level=0.5) for _ in range(60)]
    assert 0.3 <= np.mean([i.low <= wanted <= i.high for i in narrow]) <= 0.8, "not so wide that anything is in it"


def test_an_interval_is_of_its_seed_and_names_the_smaller_set():
    a, b = np.random.default_rng(4).normal(size=(2, 40, 4))
    found = frechet_interval(a, b[:25], rounds=30)
    assert found == frechet_interval(a, b[:25], rounds=30) != frechet_interval(a, b[:25], rounds=30, seed=1)
    assert found.value == frechet_distance(a, b[:25]) and found.n == 25 and 0 <= found.low < found.value < found.high
    with pytest.raises(AnimkitError, match="level"):
        frechet_interval(a, b, level=1)


def test_features_are_what_the_judge_sees_and_a_still_is_none(tmp_path):
    eye = new_motion_judge().eval()
    rng = np.random.default_rng(0)
    moving = rng.integers(0, 256, (3, 16, 32, 32, 3), dtype=np.uint8)
    features = motion_judge_features(eye, list(moving), batch=2)
    assert features.shape == (3, 192)
    stills = np.repeat(moving[:, :1], 16, 1)
    seen = motion_judge_features(eye, list(stills))
    assert np.allclose(seen, seen[0]), "whatever stands in it"
    with torch.no_grad():  # forward is features and head
        x = signal(moving)
        assert torch.equal(eye(x), eye.head(eye.features(x).flatten(1)))


def test_bad_input():
    with pytest.raises(AnimkitError, match="2 clips or more"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(AnimkitError, match="features n d and m d"):
        frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(AnimkitError, match="30 clips"):
        frechet_extrapolated(np.zeros((29, 3)), np.zeros((50, 3)))
    with pytest.raises(AnimkitError, match="2 points of its line; got 40, 40 and 1"):
        frechet_extrapolated(np.zeros((40, 3)), np.zeros((40, 3)), points=1)
    for bad in (np.nan, np.inf):
        spoilt = np.zeros((40, 3))
        spoilt[:2, 1] = bad
        for distance in (frechet_distance, frechet_interval, frechet_extrapolated):
            with pytest.raises(AnimkitError, match="finite features; 0 clips of the first set and 2 of the second"):
                distance(np.zeros((40, 3)), spoilt)
