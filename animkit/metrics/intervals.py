"""How sure a mean is: the percentile bootstrap (Efron 1979), widened for few clips (Hesterberg 2015)."""
import math
import reprlib
from statistics import NormalDist
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


def bootstrap(values, level: float = 0.95, rounds: int = 2000, seed: int = 0,
              bounds: tuple[float, float] | None = None) -> Interval:
    """The mean of n values and its percentile bootstrap interval: quantiles of the means of `rounds` resamples, n
    drawn from n with replacement (Efron & Tibshirani 1993, chapter 13); for small n they lie further out (`quantiles`).

    One value for each independent unit (a prompt, a clip), never for each frame: frames of a clip are alike and would
    make it too narrow. To compare on the same prompts, give the differences. NaN, a metric's "no answer" (the
    smoothness of a still), is left out and not counted in n.
    bounds: the least and the greatest possible value: (0, 1) for a share, (-1, 1) for a difference of two. If all n are
    equal, no resample differs; then up to 1 - ((1 - level) / 2)^(1/n) of all values may still be others (Clopper &
    Pearson 1934), at most as far away as a bound. Without bounds the interval of equal values has no width.
    Raises AnimkitError for values that are not a row of numbers or lie outside the bounds, or a level outside 0 to 1.
    """
    try:
        values = np.asarray(values, float)
    except (TypeError, ValueError) as e:
        raise AnimkitError(f"An interval wants one finite number a clip, in a row; got {reprlib.repr(values)}.") from e
    if values.ndim != 1 or np.isinf(values).any():
        raise AnimkitError(f"An interval wants one finite number a clip, in a row; got values of shape {values.shape}.")
    if not 0 < level < 1 or rounds < 1:
        raise AnimkitError(f"level lies between 0 and 1 and rounds is 1 or more; got {level} and {rounds}.")
    values = values[~np.isnan(values)]
    if not (n := len(values)):
        return Interval(None, None, None, 0)
    if bounds is not None and not (bounds[0] - 1e-9 <= values.min() and values.max() <= bounds[1] + 1e-9):
        raise AnimkitError(f"These values were to lie between {bounds[0]} and {bounds[1]}, and go from {values.min():g} to "
                           f"{values.max():g}: give the bounds that they have (of percent: 0 and 100).")
    mean = float(values.mean())
    if bounds is not None and (values == values[0]).all():
        others = 1 - ((1 - level) / 2) ** (1 / n)
        return Interval(mean, mean - others * (mean - bounds[0]), mean + others * (bounds[1] - mean), n)
    means = values[np.random.default_rng(seed).integers(n, size=(rounds, n))].mean(1)
    low, high = np.quantile(means, quantiles(n, level))
    return Interval(mean, float(low), float(high), n)


def quantiles(n: int, level: float = 0.95) -> tuple[float, float]:
    """The quantiles of the resampled means of n values that cover `level`: the "expanded percentile" interval.

    The plain ones, (1 +- level) / 2, miss too often for small n, for two reasons: resampled means spread too little, by
    a factor sqrt((n - 1) / n), and a normal curve stands for Student's t (Hesterberg 2015, section 5.3).
    """
    if n < 2:
        return (1 - level) / 2, (1 + level) / 2
    z, v = NormalDist().inv_cdf((1 + level) / 2), n - 1
    t = (z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)       # Student's quantile in powers
         + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3))                 # of 1 / v (Fisher 1925)
    upper = NormalDist().cdf(t * math.sqrt(n / v))
    return 1 - upper, upper


def share(right) -> dict:
    """{"share", "low", "high", "n"} for a report: `bootstrap` of numbers in 0 to 1, one for each prompt, 4 decimals."""
    value, low, high, n = bootstrap(right, bounds=(0, 1))
    named = {"share": value, "low": low, "high": high}
    return {name: None if x is None else round(x, 4) for name, x in named.items()} | {"n": n}
