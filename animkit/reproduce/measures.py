"""What the experiments have in common: clips drawn once and kept, all that is measured of them, tables of it."""
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from animkit import metrics, samples
from animkit.data.cache import encode, fingerprint_of
from animkit.errors import AnimkitError
from animkit.files import write_atomically
from animkit.metrics.intervals import Interval, bootstrap
from animkit.prompts import encode_text
from animkit.show.clip import Clip
from animkit.training.losses import motion_module_loss


def shipped(name: str) -> Path | None:
    """The file or folder `name` (or name.safetensors) among the samples, None where it does not ship."""
    for each in (name, f"{name}.safetensors"):
        try:
            return samples.path(each)
        except AnimkitError:
            continue
    return None


# ---- clips

def asked_moving(count: int, seed: int, **how) -> tuple[list[str], list]:
    """`count` prompts of the cartoon world, the ten motions in turn and no look named, and the scenes they tell of."""
    from animkit.miniature.judge import asked
    prompts, scenes = zip(*asked(count, seed, look=False, **how))
    return list(prompts), list(scenes)


def drawn(animator: Any, prompts: Sequence[str], *, seed: int, work: str | Path, name: str, batch: int = 4,
          each: Mapping[str, Sequence] | None = None, **how) -> list[Clip]:
    """A clip for each prompt, clip k from the noise of seed + k; what was drawn before, of all the same, is kept in work.

    name: said by the bar and the files. each: an argument that has a value for each clip, drawn one by one, such as
    control. how: for the animator's (or a baseline's) call. Raises AnimkitError as that does.
    """
    batch, each = 1 if each else batch, each or {}
    inside = getattr(animator, "animator", animator).video_unet
    settings = animator._settings() if hasattr(animator, "method") else {}
    made_by = [fingerprint_of(inside), dict(animator.alpha), getattr(animator, "method", "AnimateDiff"), settings]
    folder, clips = Path(work) / "clips", []
    for k in tqdm(range(0, len(prompts), batch), desc=f"drawing {name}", unit="batch"):
        given = how | {key: values[k] for key, values in each.items()}
        said = [made_by, list(prompts[k:k + batch]), seed + k, {key: _plain(value) for key, value in given.items()}]
        key = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:24]
        path = folder / f"{''.join(c if c.isalnum() else '-' for c in name)[:40]}-{key}.npz"
        if not path.exists():
            new = animator(list(prompts[k:k + batch]), seed=seed + k, progress=False, **given)
            pixels = np.stack([clip.array for clip in new])
            write_atomically(path, lambda beside: _save(beside, pixels=pixels, fps=new[0].fps))
        with np.load(path) as file:
            clips += [Clip(p, float(file["fps"]), prompt, {"method": made_by[2]})
                      for p, prompt in zip(file["pixels"], prompts[k:k + batch])]
    return clips


def _save(path: str, **arrays) -> None:
    with open(path, "wb") as file:  # numpy adds .npz to a path, not to an open file
        np.savez_compressed(file, **arrays)


def _plain(value: Any) -> Any:
    """What tells a call's argument apart from others: numbers as they are, arrays by their bytes, schedulers by config."""
    if hasattr(value, "config"):
        return [type(value).__name__, dict(value.config)]
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if hasattr(value, "__array__"):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return value


# ---- what is measured of them

def measured(clips: Sequence[Clip], encoder: metrics.Encoder, *, judge: Any = None, scenes: Sequence | None = None,
             look: str | None = None, references: Any = None) -> dict[str, np.ndarray]:
    """Measure -> a number for each of n clips: CLIP scores and optical flow; with references, CLIP domain; with a judge
    and the scenes that the prompts tell of (the cartoon world), the motion found; with a look, the frames that show it.
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
        found["named motion"] = np.array([k == truth(s, "motion") for k, s in zip(kinds, scenes)], float)
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
    """Drift of a clip's mean colour: its standard deviation over the frames, root mean square of R, G, B, percent of white."""
    mean = clip.array.reshape(len(clip), -1, 3).mean(1) / 2.55                              # f 3
    return float(np.sqrt(mean.var(0).mean()))


def summary(measures: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, dict]]:
    """Method -> measure -> {"value", "low", "high", "n"} for results.json: means with their bootstrap intervals."""
    def plain(interval: Interval) -> dict:
        return {k: v if v is None or k == "n" else round(v, 4) for k, v in interval._asdict().items()}
    return {method: {name: plain(bootstrap(values)) for name, values in of.items()} for method, of in measures.items()}


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
    """How far `ours` is ahead in a measure, clip by clip, of the best of the others by their means (best=min: the worst);
    and which one that is. All drew the same prompts."""
    rival = best(others, key=lambda name: float(np.nanmean(measures[name][measure])))
    return bootstrap(measures[ours][measure] - measures[rival][measure]), rival


def resampled(rows: np.ndarray, statistic: Callable[[np.ndarray], float], level: float = 0.95, rounds: int = 2000,
              seed: int = 0) -> Interval:
    """A statistic of n prompts' rows (n k) with its percentile bootstrap interval, whole rows drawn anew; rounds in which
    it is not finite are left out. Raises AnimkitError for an empty table."""
    rows = np.asarray(rows, float)
    if rows.ndim != 2 or not len(rows):
        raise AnimkitError(f"Rows are n k, one a prompt; got {rows.shape}.")
    rng = np.random.default_rng(seed)
    found = np.array([statistic(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(rounds)])
    value, found = float(statistic(rows)), found[np.isfinite(found)]
    if not len(found) or not np.isfinite(value):
        return Interval(None, None, None, 0)
    low, high = np.percentile(found, [50 * (1 - level), 50 * (1 + level)])
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
    """eq. (4) on clips that were not learned from: n losses, each the mean over `draws` timesteps and noises, which are
    the same for every model that is asked."""
    pipe, losses = animator.pipe, []
    text, _ = encode_text(pipe, [clip.prompt for clip in clips], "", False, clips[0].array.shape[1:3], animator.device)
    for k, clip in enumerate(clips):
        z = encode(pipe.vae, torch.from_numpy(clip.array).permute(3, 0, 1, 2))[None]        # 1 c f h w
        generator = torch.Generator().manual_seed(seed + k)
        each = [motion_module_loss(animator.video_unet, z, text[k:k + 1].float(), generator, scheduler=scheduler, drop=0)
                for _ in range(draws)]
        losses.append(float(torch.stack(each).mean()))
    return np.array(losses)


def power_law(n: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The least-squares fit y = floor + scale n^-slope, scale >= 0, over a grid of slopes from 0.05 to 2; and its error.

    Three numbers from few points: a description, no law. Raises AnimkitError under 4 points, which it could not miss.
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
    """Resolution -> the motion modules there: 0 the finest, 1 half of it, ...; the middle block belongs to the coarsest."""
    depth = 1 + max(int(site.split(".")[1]) for site in modules.sites if site.startswith("down_blocks"))
    levels: dict[int, list[str]] = {level: [] for level in range(depth)}
    for site in modules.sites:
        side, i, *_ = site.split(".")
        level = int(i) if side == "down_blocks" else depth - 1 - int(i) if side == "up_blocks" else depth - 1
        levels[level].append(site)
    return levels


@contextmanager
def only_levels(modules: Any, keep: Sequence[int]) -> Iterator[None]:
    """Inside, only the motion modules at these resolutions act; the others are the identity: their last layer is zero."""
    levels = levels_of(modules)
    if unknown := set(keep) - set(levels):
        raise AnimkitError(f"These motion modules stand at the resolutions {', '.join(map(str, levels))}; got "
                           f"{sorted(unknown)[0]!r}.")
    last = [modules[site].temporal_transformer.proj_out for level in levels if level not in keep for site in levels[level]]
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
