"""A Frechet distance between two sets of clips, on the features of the miniature's own motion judge.

    d(A, B) = |mu_A - mu_B|^2 + tr(S_A + S_B - 2 (S_A S_B)^1/2)         (Dowson & Landau 1982; FID, arXiv 1706.08500)

This is not FVD (arXiv 1812.01717), whose features are those of an I3D network trained on Kinetics, and no number here
can be compared with an FVD from elsewhere. The features come from a network that learned to tell ten cartoon motions
apart: they describe motion, and of a look only what moves. For few clips d is too large, by about c / n, with another c
for each set: compare only equal n, or use `frechet_extrapolated`, which takes n to infinity along a fitted line (Chong
& Forsyth 2020, arXiv 1911.07023).
"""
import numpy as np
import torch

from ..errors import AnimkitError
from .frames import stacked
from .intervals import Interval, quantiles


@torch.no_grad()
def motion_judge_features(eye, clips, batch: int = 50) -> np.ndarray:
    """Clips (n of 16 frames, square, a multiple of 32 pixels) -> n d: features of MotionJudge `eye`, mean over time."""
    from ..miniature.motion_judge import signal
    eye.eval()
    clips = stacked(clips)
    seen = [eye.features(signal(clips[k:k + batch])).mean(2) for k in range(0, len(clips), batch)]  # b d t -> b d
    return torch.cat(seen).double().numpy()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """d above of features n d and m d, in float64.

    Raises AnimkitError under 2 clips a set, for other shapes, or for features that are not finite."""
    a, b = _features(a, b)
    root_a, root_b = (_root(np.cov(x, rowvar=False).reshape(x.shape[1], -1)) for x in (a, b))
    # tr (S_A S_B)^1/2 is the sum of the singular values of S_A^1/2 S_B^1/2: no root of an unsymmetric matrix
    cross = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    apart = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(max(0.0, apart + (root_a ** 2).sum() + (root_b ** 2).sum() - 2 * cross))


def _features(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Both sets as float64 n d and m d, checked."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise AnimkitError(f"A Frechet distance takes features n d and m d of 2 clips or more; got {a.shape}, "
                           f"{b.shape}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise AnimkitError(f"A Frechet distance takes finite features; {(~np.isfinite(a)).any(1).sum()} clips of the first "
                           f"set and {(~np.isfinite(b)).any(1).sum()} of the second hold NaN or infinity.")
    return a, b


def _root(s: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance d d."""
    values, vectors = np.linalg.eigh(s)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def frechet_interval(a: np.ndarray, b: np.ndarray, level: float = 0.95, rounds: int = 400, seed: int = 0) -> Interval:
    """d of features n d and m d with a bootstrap interval for the average d of sets of these sizes; n the smaller.

    Both sets are resampled with replacement. A resample repeats clips, so it is biased once more, as if it held
    fewer: its d* lies above d. Only the spread of d* is used: d + (d* - mean of d*), by `quantiles`. The bias of d
    itself remains, see above. Raises AnimkitError as frechet_distance, or for a level outside 0 to 1.
    """
    d, rng = frechet_distance(a, b), np.random.default_rng(seed)
    if not 0 < level < 1 or rounds < 2:
        raise AnimkitError(f"level lies between 0 and 1 and rounds is 2 or more; got {level} and {rounds}.")
    again = np.array([frechet_distance(*(x[rng.integers(len(x), size=len(x))] for x in map(np.asarray, (a, b))))
                      for _ in range(rounds)])
    n = min(len(a), len(b))
    low, high = np.quantile(again - again.mean(), quantiles(n, level))
    return Interval(d, max(0.0, d + float(low)), d + float(high), n)


def frechet_extrapolated(a: np.ndarray, b: np.ndarray, points: int = 8, seed: int = 0) -> dict:
    """{"distance": at the given n, "extrapolated": n to infinity, "n"}, of features n d and m d.

    d is computed on random subsets of both sets, of `points` sizes from n / 3 to n, n the smaller set's size. A line is
    fitted over 1 / n: its value at 0 is the answer (it may be slightly below 0 where the sets are alike).
    Raises AnimkitError as frechet_distance, or under 30 clips a set or 2 points.
    """
    a, b = _features(a, b)
    n, rng = min(len(a), len(b)), np.random.default_rng(seed)
    if n < 30 or points < 2:
        raise AnimkitError(f"An extrapolation wants 30 clips a set at least, and 2 points of its line; got {len(a)}, {len(b)} "
                           f"and {points}.")
    sizes = np.linspace(n / 3, n, points).astype(int)
    d = [frechet_distance(a[rng.permutation(len(a))[:k]], b[rng.permutation(len(b))[:k]]) for k in sizes]
    return {"distance": d[-1], "extrapolated": float(np.polyfit(1 / sizes, d, 1)[1]), "n": n}
