"""How sure a mean is: the percentile bootstrap (Efron 1979)."""
from typing import NamedTuple

import numpy as np

from ..errors import AnimkitError


class Interval(NamedTuple):
    """An estimate, its interval, and how many values it rests on. The first three are None where n is 0."""
    value: float | None
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g}, n = {self.n})" if self.n else "- (n = 0)"


def bootstrap(values, level: float = 0.95, rounds: int = 2000, seed: int = 0) -> Interval:
    """The mean of n values and its percentile bootstrap interval: the (1 +- level) / 2 quantiles of the means of
    `rounds` resamples with replacement, n drawn from n (Efron & Tibshirani 1993, chapter 13).

    One value for each independent unit (a prompt, a clip), never for each frame: frames of a clip are alike and would
    make it too narrow. For a comparison on the same prompts give the differences. NaN, a metric's "no answer" (the
    smoothness of a still), is left out and not counted in n. Few or equal values give too narrow an interval; equal
    ones, one of no width. Raises AnimkitError for values that are not a row of numbers, or a level outside 0 to 1.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or np.isinf(values).any():
        raise AnimkitError(f"An interval wants one finite number a clip, in a row; got values of shape {values.shape}.")
    if not 0 < level < 1 or rounds < 1:
        raise AnimkitError(f"level lies between 0 and 1 and rounds is 1 or more; got {level} and {rounds}.")
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(None, None, None, 0)
    means = values[np.random.default_rng(seed).integers(len(values), size=(rounds, len(values)))].mean(1)
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def share(right) -> dict:
    """{"share", "low", "high", "n"} for a report: `bootstrap` of numbers in 0 to 1, one for each prompt, 4 decimals."""
    value, low, high, n = bootstrap(right)
    named = {"share": value, "low": low, "high": high}
    return {name: None if x is None else round(x, 4) for name, x in named.items()} | {"n": n}
