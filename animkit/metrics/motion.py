"""How much moves, and how smoothly: from optical flow, exact in the cartoon world, OpenCV's DIS on any other clip.

    amount       mean |v|                                          percent of the picture's short side a frame
    smoothness   100 (1 - mean |a| / mean (|v| + |v'|)),  a = v' - v
                 v the flow at a point, v' the next frame's flow where that point has gone: 100 keeps its speed and
                 direction, 0 goes straight back; steps of random direction give about 35 (tests/metrics)
    warp error   root mean square of what flow does not explain, I'(p + v) - I(p), in percent of white: flicker

DIS: Kroeger et al. 2016, arXiv 1603.03590. It also finds flow where nothing moves but pictures differ (noise, flicker):
read amount beside smoothness and warp error, never alone. A still has no smoothness (NaN). A reversed clip scores as
the clip itself. For a camera's move, DIS is within 5 % of exact flow. It spreads a lone object on flat ground over the
surroundings: 1.5 to 2 times the amount, 3 for a slow one. Compare DIS with DIS only. At edges of objects exact flow is
not smooth either (what is behind moves in another way), so good motion scores 45 to 95.
"""
from typing import NamedTuple

import numpy as np

from ..errors import AnimkitError
from .frames import grey, pixels, stacked

LEAST = 0.02  # percent of the short side a frame: below this amount nothing moves and smoothness has no meaning


class Motion(NamedTuple):
    """Of one clip: amount (percent of the short side a frame), smoothness (0 to 100, or NaN), warp error (percent, or NaN)."""
    amount: float
    smoothness: float
    warp_error: float


def optical_flow(clip, enlarge_to: int = 256) -> np.ndarray:
    """DIS flow of a clip: f-1 h w 2, float32, where each pixel goes in the next frame, in pixels, right and down.

    DIS matches 8 x 8 patches: a clip whose short side is below `enlarge_to` is enlarged by a whole number first, and
    its flow scaled back. Raises AnimkitError under 2 frames.
    """
    import cv2

    frames = grey(pixels(clip, least=2))
    h, w = frames.shape[1:]
    k = max(1, -(-enlarge_to // min(h, w)))
    large = [cv2.resize(frame, (w * k, h * k), interpolation=cv2.INTER_CUBIC) for frame in frames]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = [dis.calc(a, b, None) for a, b in zip(large, large[1:])]
    return np.stack([cv2.resize(flow, (w, h), interpolation=cv2.INTER_AREA) / k for flow in flows])


def exact_flow(footage) -> np.ndarray:
    """The true flow of a rendered Footage, in the same form: f-1 h w 2 (the last frame's leads out of the clip)."""
    return footage.flow[:-1]


def motion_of(clip, flow: np.ndarray | None = None) -> Motion:
    """The three numbers above for a clip (Clip or f h w 3, uint8), by its own DIS flow or a flow f-1 h w 2 given.

    Points that leave the picture are left out of smoothness and warp error (NaN if all do). Smoothness needs 3 frames.
    Raises AnimkitError under 2 frames, or for a flow of another shape.
    """
    frames = pixels(clip, least=2)
    flow = optical_flow(frames) if flow is None else np.asarray(flow, np.float32)
    f, h, w, _ = frames.shape
    if flow.shape != (f - 1, h, w, 2):
        raise AnimkitError(f"The flow of {f} frames of {w} x {h} has the shape {(f - 1, h, w, 2)}; got {flow.shape}.")
    speed = np.linalg.norm(flow, axis=-1)                                               # f-1 h w
    amount = 100 * float(speed.mean()) / min(h, w)
    bent = total = 0.0
    for v, v_next in zip(flow, flow[1:]):
        after, seen = _at_target(v_next, v)
        bent += np.linalg.norm(after - v, axis=-1)[seen].sum()
        total += (np.linalg.norm(after, axis=-1) + np.linalg.norm(v, axis=-1))[seen].sum()
    smoothness = 100 * float(1 - bent / total) if amount >= LEAST and total > 0 else float("nan")
    return Motion(amount, smoothness, _warp_error(frames.astype(np.float32) / 255, flow))


def _at_target(values: np.ndarray, flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """values (h w c) where the flow (h w 2) leads each pixel, bilinear; and whether that lies in the picture (h w)."""
    import cv2

    h, w = flow.shape[:2]
    column, row = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
    x, y = column + flow[..., 0], row + flow[..., 1]
    there = cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return there, (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)


def _warp_error(frames: np.ndarray, flow: np.ndarray) -> float:
    total, count = 0.0, 0
    for here, following, v in zip(frames, frames[1:], flow):
        there, seen = _at_target(following, v)
        total, count = total + float(((there - here)[seen] ** 2).sum()), count + 3 * int(seen.sum())
    return 100 * (total / count) ** 0.5 if count else float("nan")


def motion_found(judge, clips, motions: list[str]) -> np.ndarray:
    """Does each clip (16 frames) show the motion that its prompt names? n booleans, by the miniature's Judge.

    Only for motions of the cartoon world. Raises AnimkitError where the numbers differ or a motion has no name there.
    """
    from ..miniature.motion_clips import KINDS
    if len(clips) != len(motions) or not set(motions) <= set(KINDS):
        raise AnimkitError(f"{len(clips)} clips want as many motions, of: {', '.join(KINDS)}; got {len(motions)}: "
                           f"{', '.join(sorted(set(map(str, motions)))) or 'none'}.")
    found = judge.motion(stacked(clips))
    return np.array([f == m for f, m in zip(found, motions)])
