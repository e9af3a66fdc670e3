"""Claims and verdicts: when an interval decides, and that every claim says whose it is and how it is decided."""
import pytest

from animkit.metrics import Interval, bootstrap
from animkit.reproduce import CLAIMS, VERDICTS, above, below


@pytest.mark.parametrize("low, high, threshold, on_above, on_below", [
    (0.1, 0.5, 0, "holds", "does not hold"), (-0.5, -0.1, 0, "does not hold", "holds"),
    (-0.1, 0.1, 0, "undecided", "undecided"), (0.1, 0.5, 0.3, "undecided", "undecided"),
    (0.1, 0.5, 0.6, "does not hold", "holds"), (0, 0, 0, "does not hold", "does not hold")])
def test_an_interval_decides_only_as_a_whole(low, high, threshold, on_above, on_below):
    measured = Interval((low + high) / 2, low, high, 40)
    assert above(measured, threshold) == on_above and below(measured, threshold) == on_below


def test_few_clips_decide_nothing_and_none_are_not_run():
    assert above(bootstrap([1.0, 1.1])) == below(bootstrap([1.0, 1.1])) == "undecided"
    assert above(bootstrap([1.0, 1.1] * 5)) == "holds"
    assert above(bootstrap([])) == below(bootstrap([])) == "not run"


def test_equal_values_of_few_clips_do_not_refute_or_prove():
    """Twelve differences of 0 (neither learned anything), ten of ten right: as many could be chance."""
    assert above(bootstrap([0.0] * 12, bounds=(-1, 1))) == below(bootstrap([0.0] * 12, bounds=(-1, 1))) == "undecided"
    assert above(bootstrap([1.0] * 10, bounds=(0, 1)), 0.8) == "undecided"
    assert above(bootstrap([1.0] * 20, bounds=(0, 1)), 0.8) == "holds"


def test_every_claim_is_whole_and_fits_a_table():
    for notebook, claims in CLAIMS.items():
        assert claims, notebook
        for name, claim in claims.items():
            assert all(claim) and "|" not in "".join(claim), f"{notebook}: {name}"
    assert {"holds", "does not hold", "undecided", "not comparable", "not run"} == set(VERDICTS)
