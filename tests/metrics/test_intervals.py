"""Intervals whose answer is known; and that they cover the truth as often as they say."""
from statistics import NormalDist

import numpy as np
import pytest

from animkit.errors import AnimkitError
from animkit.metrics import bootstrap, share
from animkit.metrics.intervals import quantiles


def test_the_interval_of_a_mean_is_that_of_normal_theory_when_n_is_large():
    values = np.random.default_rng(3).normal(5, 2, 400)
    found, half = bootstrap(values), 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.03) and found.high == pytest.approx(values.mean() + half, abs=0.03)
    assert bootstrap(values, level=0.5).high < found.high and found.n == 400


@pytest.mark.parametrize("n", [10, 12, 16, 20, 60])
def test_intervals_cover_the_truth_as_often_as_they_say(n):
    """Of shares and of numbers, and for few clips too, where the plain percentile covers 75 to 92 % (of 0.85 and so on)."""
    rng = np.random.default_rng(n)
    for p in (0.7, 0.85):
        found = [bootstrap(rng.random(n) < p, rounds=400, bounds=(0, 1)) for _ in range(400)]
        assert 0.925 <= np.mean([low <= p <= high for _, low, high, _ in found])
    found = [bootstrap(rng.normal(3, 1, n), rounds=400) for _ in range(400)]
    assert 0.92 <= np.mean([low <= 3 <= high for _, low, high, _ in found]) <= 0.98


def test_the_quantiles_are_those_of_students_t():
    """t(0.975) is 2.2622 for 9 degrees of freedom, 2.0930 for 19 (any table)."""
    for n, t in ((10, 2.2622), (20, 2.0930)):
        low, high = quantiles(n)
        assert high == pytest.approx(NormalDist().cdf(t * np.sqrt(n / (n - 1))), abs=2e-5) and low == pytest.approx(1 - high)
    assert quantiles(1) == pytest.approx((0.025, 0.975)) and quantiles(10**6) == pytest.approx((0.025, 0.975), abs=1e-6)


def test_equal_shares_are_as_sure_as_clopper_and_pearson_say():
    """10 of 10: the lower end is 0.025^(1/10) = 0.6915; and a difference that is 0 every time may go either way."""
    assert bootstrap([1] * 10, bounds=(0, 1)) == pytest.approx((1, 0.6915, 1, 10), abs=1e-4)
    assert bootstrap([0] * 10, bounds=(0, 1)) == pytest.approx((0, 0, 0.3085, 10), abs=1e-4)
    assert bootstrap([0] * 10, bounds=(-1, 1)) == pytest.approx((0, -0.3085, 0.3085, 10), abs=1e-4)


def test_equal_values_have_no_width_and_no_answers_are_left_out():
    assert bootstrap([2.0, 2.0, float("nan")]) == (2.0, 2.0, 2.0, 2)
    assert bootstrap([float("nan")]) == (None, None, None, 0) and str(bootstrap([])) == "- (n = 0)"
    assert bootstrap([0, 1, 1]) == bootstrap([0, 1, 1]), "the same at every call"
    assert len({bootstrap(range(9), **how) for how in ({}, {"seed": 1}, {"rounds": 50})}) == 3


def test_share_is_bootstrap_for_a_report():
    value, low, high, n = bootstrap([True, False, True])
    assert share([True, False, True]) == {"share": 0.6667, "low": round(low, 4), "high": round(high, 4), "n": 3}
    assert share([1] * 10) == {"share": 1, "low": 0.6915, "high": 1, "n": 10}
    assert share([]) == {"share": None, "low": None, "high": None, "n": 0}


@pytest.mark.parametrize("bad", [dict(values=[[1, 2]]), dict(values=["a"]), dict(values=[1, [2, 3]]),
                                 dict(values=(x for x in [1])), dict(values=[1, float("inf")]), dict(values=[1], level=95), dict(values=[1], rounds=0)])
def test_bad_input_is_one_clear_sentence(bad):
    with pytest.raises(AnimkitError, match="one finite number a clip|between 0 and 1"):
        bootstrap(**bad)


def test_values_outside_their_bounds_are_refused():
    """Percent for shares: the interval of 50, 50 went from 14 to 15."""
    for values in ([50, 50, 50], [2, 3], [-0.5, 0.5]):
        with pytest.raises(AnimkitError, match="between 0 and 1, and go from"):
            share(values)
    assert bootstrap([1 + 1e-12] * 10, bounds=(0, 1)).value == pytest.approx(1)
