"""What the experiments measure of clips and of motion modules: numbers for each clip, their means, leads, tables."""
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from animkit import metrics, world
from animkit.data.cache import encode
from animkit.errors import AnimkitError
from animkit.metrics.intervals import Interval, bootstrap, quantiles
from animkit.prompts import encode_text
from animkit.show.clip import Clip
from animkit.training.losses import motion_module_loss


AMOUNTS = ("amount of motion", "smoothness of motion", "warp error", "colour drift")  # not shares, even if all are 0


def measured(clips: Sequence[Clip], encoder: metrics.Encoder, *, judge: Any = None, scenes: Sequence | None = None,
             look: str | None = None, references: Any = None) -> dict[str, np.ndarray]:
    """Measure -> a number for each of n clips: CLIP scores and optical flow; with references, CLIP domain; with a judge
    and the scenes that the prompts tell of (the cartoon world), the motion found; with a look, its share of frames.
    """
    scores = metrics.score_clips(encoder, clips, [clip.prompt for clip in clips], references)
    found = {f"CLIP {name}": values for name, values in scores.items()}
    moved = [metrics.motion_of(clip) for clip in clips]
    found |= {"amount of motion": np.array([m.amount for m in moved]),
              "smoothness of motion": np.array([m.smoothness for m in moved]),
              "warp error": np.array([m.warp_error for m in moved]),
              "colour drift": np.array([steadiness(clip) for clip in clips])}
    frames = np.stack([clip.array for clip in clips])
    if judge is not None and scenes is not None:
        from animkit.miniature.judge import truth
        kinds = judge.motion(frames)
        asked = [truth(scene, "motion") for scene in scenes]
        found["named motion"] = np.array([k == a for k, a in zip(kinds, asked)], float)
        # What chance would give: how many of the other prompts name the motion that this clip shows.
        found["another's motion"] = np.array([np.mean([k == a for j, a in enumerate(asked) if j != i] or np.nan)
                                              for i, k in enumerate(kinds)], float)
        of_ten = judge.motion(frames, among=tuple(world.MOTIONS))  # if most clips are incoherent, first progress shows here
        found["named of ten"] = np.array([k == a for k, a in zip(of_ten, asked)], float)
        found["still"] = np.array([k == "still" for k in kinds], float)
        found["incoherent"] = np.array([k == "incoherent" for k in kinds], float)
    if judge is not None and look is not None:
        shown = judge.pictures(frames.reshape(-1, *frames.shape[2:]), ("look",))["look"]
        found["in the look"] = np.array([s == look for s in shown], float).reshape(len(clips), -1).mean(1)
    return found


def move_made(path: metrics.CameraPath, shot: str) -> float:
    """How much of a shot type's move a camera's path makes; 1: the world's own move, below 0: the opposite."""
    from animkit.metrics.camera import NAMES
    kind = next(kind for kind, shots in NAMES.items() if shot in shots)
    return path.moves[kind] * (1 if shot == NAMES[kind][0] else -1)


def steadiness(clip: Clip) -> float:
    """Drift of a clip's mean colour: its standard deviation over frames, root mean square of R, G, B; in % of white."""
    mean = clip.array.reshape(len(clip), -1, 3).mean(1) / 2.55                              # f 3
    return float(np.sqrt(mean.var(0).mean()))


def summary(measures: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, dict]]:
    """Method -> measure -> {"value", "low", "high", "n"} for results.json: means with their bootstrap intervals."""
    def plain(interval: Interval) -> dict:
        return {k: v if v is None or k == "n" else round(v, 4) for k, v in interval._asdict().items()}
    def bounds(name: str, values: np.ndarray) -> tuple | None:  # equal shares still get an interval
        return (0, 1) if name not in AMOUNTS and np.isin(values, (0, 1)).all() else None
    return {method: {name: plain(bootstrap(values, bounds=bounds(name, values))) for name, values in of.items()}
            for method, of in measures.items()}


def table(summed: Mapping[str, Mapping[str, Mapping]], first: str = "method") -> str:
    """`summary` as a Markdown table: a row for each method, a column for each measure."""
    columns = list(dict.fromkeys(name for of in summed.values() for name in of))
    lines = [f"| {first} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for method, of in summed.items():
        cells = ["-" if not of.get(c) or not of[c]["n"] else
                 f"{of[c]['value']:.3g} ({of[c]['low']:.3g} to {of[c]['high']:.3g})" for c in columns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def lead(measures: Mapping[str, Mapping[str, np.ndarray]], measure: str, ours: str, others: Sequence[str],
         best: Callable = max) -> tuple[Interval, str]:
    """How far `ours` is ahead of the others in a measure, clip by clip, and of which one it is least: the one with the
    highest mean (best=min: how far below the lowest). All drew the same prompts. In each resample it is the best of the others
    there: a rival with a slightly lower mean that scatters more may be the one that is not beaten."""
    ahead = np.stack([measures[ours][measure] - measures[name][measure] for name in others], 1)  # n k
    ahead = ahead[np.isfinite(ahead).all(1)]
    means = ahead.mean(0) if len(ahead) else np.zeros(len(others))
    least = np.min if best is max else np.max
    found = resampled(ahead, lambda rows: float(least(rows.mean(0)))) if len(ahead) else Interval(None, None, None, 0)
    return found, others[int(means.argmin() if best is max else means.argmax())]


def resampled(rows: np.ndarray, statistic: Callable[[np.ndarray], float], level: float = 0.95, rounds: int = 2000,
              seed: int = 0) -> Interval:
    """A statistic of n prompts' rows (n k) with its percentile bootstrap interval (as in `metrics.bootstrap`); whole rows
    are drawn anew. Rounds in which it is not finite are left out. Raises AnimkitError for an empty table."""
    rows = np.asarray(rows, float)
    if rows.ndim != 2 or not len(rows):
        raise AnimkitError(f"Rows are n k, one a prompt; got {rows.shape}.")
    rng = np.random.default_rng(seed)
    found = np.array([statistic(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(rounds)])
    value, found = float(statistic(rows)), found[np.isfinite(found)]
    if not len(found) or not np.isfinite(value):
        return Interval(None, None, None, 0)
    low, high = np.quantile(found, quantiles(len(rows), level))
    return Interval(value, float(low), float(high), len(rows))


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's, -1 to 1; equal values share their mean rank; NaN where all of one side are equal."""
    def ranks(v):
        v = np.asarray(v, float)
        return np.array([(v < a).sum() + ((v == a).sum() - 1) / 2 for a in v])
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else float("nan")


@torch.no_grad()
def held_out_loss(animator: Any, clips: Sequence[Clip], scheduler: Any, *, seed: int = 0, draws: int = 4) -> np.ndarray:
    """eq. (7) on clips that were not trained on: n losses, each the mean over `draws` timesteps and noises, the same for
    every model."""
    pipe, losses, dtype = animator.pipe, [], animator.pipe.unet.dtype

    def model(x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:  # noise and loss in float32, also where training left the base in bf16
        return animator.video_unet(x.to(dtype), t, text.to(dtype)).float()

    text, _ = encode_text(pipe, [clip.prompt for clip in clips], "", False, clips[0].array.shape[1:3], animator.device)
    for k, clip in enumerate(clips):
        z = encode(pipe.vae, torch.from_numpy(clip.array).permute(3, 0, 1, 2))[None].to(animator.device)  # 1 c f h w
        generator = torch.Generator().manual_seed(seed + k)
        said = text[k:k + 1].float()                                                        # 1 n d
        each = [motion_module_loss(model, z.float(), said, generator, scheduler=scheduler, drop=0)
                for _ in range(draws)]
        losses.append(float(torch.stack(each).mean()))
    return np.array(losses)


def power_law(n: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The least-squares fit y = floor + scale n^-slope, scale >= 0, over slopes from 0.05 to 2; and its error.

    Three numbers from few points: a description, not a law. Raises AnimkitError under 4 points, which always fit.
    """
    n, y = np.asarray(n, float), np.asarray(y, float)
    if len(n) != len(y) or len(n) < 4 or (n <= 0).any():
        raise AnimkitError(f"A power law wants 4 points or more, of n above 0; got {len(n)} and {len(y)}.")
    best = {}
    for slope in np.arange(0.05, 2.0001, 0.05):
        a = np.stack([np.ones_like(n), n ** -slope], 1)
        floor, scale = np.linalg.lstsq(a, y, rcond=None)[0]
        if scale < 0:
            floor, scale = y.mean(), 0.0
        error = float(np.sqrt(np.mean((floor + scale * n ** -slope - y) ** 2)))
        if not best or error < best["error"] - 1e-12:
            best = {"floor": float(floor), "scale": float(scale), "slope": round(float(slope), 2), "error": error}
    return best


# ---- parts of a set of motion modules

def levels_of(modules: Any) -> dict[int, list[str]]:
    """Resolution -> the motion modules there: 0 the finest, 1 half of it, ...; the middle block is at the coarsest."""
    depth = 1 + max(int(site.split(".")[1]) for site in modules.sites if site.startswith("down_blocks"))
    levels: dict[int, list[str]] = {level: [] for level in range(depth)}
    for site in modules.sites:
        side, i, *_ = site.split(".")
        level = int(i) if side == "down_blocks" else depth - 1 - int(i) if side == "up_blocks" else depth - 1
        levels[level].append(site)
    return levels


@contextmanager
def only_levels(modules: Any, keep: Sequence[int]) -> Iterator[None]:
    """Inside `with`, only the motion modules at these resolutions act; the others' last layer is zero: the identity."""
    levels = levels_of(modules)
    if unknown := set(keep) - set(levels):
        raise AnimkitError(f"These motion modules stand at the resolutions {', '.join(map(str, levels))}; got "
                           f"{sorted(unknown)[0]!r}.")
    off = [site for level, sites in levels.items() if level not in keep for site in sites]
    last = [modules[site].temporal_transformer.proj_out for site in off]
    before = [(layer, layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in last]
    try:
        with torch.no_grad():
            for layer in last:
                layer.weight.zero_()
                layer.bias.zero_()
        yield
    finally:
        with torch.no_grad():
            for layer, weight, bias in before:
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
