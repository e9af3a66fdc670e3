"""Intervals whose answer is known; and that they cover the truth as often as they say."""
import numpy as np
import pytest

from animkit.errors import AnimkitError
from animkit.metrics import bootstrap, share


def test_the_interval_of_a_mean_is_that_of_normal_theory_when_n_is_large():
    values = np.random.default_rng(3).normal(5, 2, 400)
    found, half = bootstrap(values), 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.03) and found.high == pytest.approx(values.mean() + half, abs=0.03)
    assert bootstrap(values, level=0.5).high < found.high and found.n == 400


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = [low <= 0.7 <= high for _, low, high, _ in (bootstrap(rng.random(60) < 0.7, rounds=400) for _ in range(200))]
    assert 0.88 <= np.mean(covered) <= 0.99


def test_equal_values_have_no_width_and_no_answers_are_left_out():
    assert bootstrap([2.0, 2.0, float("nan")]) == (2.0, 2.0, 2.0, 2)
    assert bootstrap([float("nan")]) == (None, None, None, 0) and str(bootstrap([])) == "- (n = 0)"
    assert bootstrap([0, 1, 1]) == bootstrap([0, 1, 1]), "the same at every call"


def test_share_is_bootstrap_for_a_report():
    value, low, high, n = bootstrap([True, False, True])
    assert share([True, False, True]) == {"share": 0.6667, "low": round(low, 4), "high": round(high, 4), "n": 3}
    assert share([]) == {"share": None, "low": None, "high": None, "n": 0}


@pytest.mark.parametrize("bad", [dict(values=[[1, 2]]), dict(values=[1, float("inf")]), dict(values=[1], level=95), dict(values=[1], rounds=0)])
def test_bad_input_is_one_clear_sentence(bad):
    with pytest.raises(AnimkitError, match="one finite number a clip|between 0 and 1"):
        bootstrap(**bad)
