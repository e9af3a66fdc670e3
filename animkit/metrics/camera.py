"""The camera's move, read off a clip (4.3, 5.1): zoom, pan, tilt and roll, and which of the eight shot types that is.

    p' = s R(theta) p + d       a similarity carries each point p of the background from frame to frame. RANSAC fits it
                                to tracked points: what moves by itself or was tracked wrongly does not agree with
                                it. The steps, multiplied up (A_k: frame 0 to k), are read as the world does:
    A_k p = z R(angle) (p - c)  zoom z, centre c of what the camera sees, angle anticlockwise   (world.camera_matrix)

The unit of length is half the picture's short side; (0, 0) is its middle, x to the right, y up: the world's own units.
Names and signs are those of `animkit.world.SHOTS`: in "pan left" the camera looks to the left, in "roll clockwise" the
picture turns clockwise.
The points are Shi-Tomasi corners, one per cell of a grid, so that a detailed object counts only by its area. Frames are
brought to one size and blurred. Lucas-Kanade tracks points over STRIDE frames, for neighbouring frames of pixel art
differ by jumps of whole squares; a track is kept if tracking back returns. Reach: about a fifth of the short side per
stride. Two things can be mistaken for the camera: a paper texture, which stands still, and an object that grows over
most of an empty picture. tests/metrics/test_camera.py measures the right names over all looks: 205 of 216 renders.
"""
import math
from typing import NamedTuple

import numpy as np

from ..errors import AnimkitError
from .frames import grey, pixels

SIDE, BLUR, GRID, STRIDE = 192, 3.0, 12, 3  # pixels of the short side; its blur; cells a side; frames of a track
CORNER, ROUND, RETURN = 1e-6, 0.1, 0.01     # a corner's least strength, also relative; error of tracking back
AGREE, BODIES, PAPER = 0.012, 3, 0.4        # error of the fit, for a stride of 1; moves tried; weight of a still one
FULL = {"zoom": 0.7, "pan": 0.8, "tilt": 0.8, "roll": 0.7}  # the world's move of amount 1: SHOTS at u = 1
NAMES = {"zoom": ("zoom in", "zoom out"), "pan": ("pan right", "pan left"), "tilt": ("tilt up", "tilt down"),
         "roll": ("roll clockwise", "roll anticlockwise")}
LEAST = 0.15  # of the world's move: less is "still"


class CameraPath(NamedTuple):
    """A camera's path: zoom, x, y, angle (radians, anticlockwise), f numbers each, from 1, 0, 0, 0 on; support, f-1:
    the share of tracked points that agree with each step (0: nothing to track, the camera is taken to stand still)."""
    zoom: np.ndarray
    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    support: np.ndarray

    @property
    def moves(self) -> dict[str, float]:
        """{"zoom", "pan", "tilt", "roll"} -> how much of each by the clip's end; 1 is the world's move of amount 1.

        Above 0: in, right, up, clockwise. The last frame stands at u = (f - 1) / f, as in render."""
        zoom, u = float(self.zoom[-1]), (len(self.zoom) - 1) / len(self.zoom)
        ends = {"zoom": zoom - 1 if zoom >= 1 else 1 - 1 / zoom,
                "pan": self.x[-1], "tilt": self.y[-1], "roll": -self.angle[-1]}
        return {name: float(end) / (FULL[name] * u) for name, end in ends.items()}

    @property
    def shot(self) -> str:
        """The shot type, one of world.SHOTS, or "still"."""
        return name_shot(self.moves)[0]


def name_shot(moves: dict[str, float], least: float = LEAST) -> list[str]:
    """The shot types in a clip's moves, the largest first; ["still"] if none reaches `least`."""
    found = [name for name in sorted(moves, key=lambda name: -abs(moves[name])) if abs(moves[name]) >= least]
    return [NAMES[name][moves[name] < 0] for name in found] or ["still"]


def camera_path(clip, steady: bool = False) -> CameraPath:
    """The path of a clip's camera (Clip or f h w 3, uint8). Raises AnimkitError under 2 frames.

    steady: for a camera of constant speed, as in the eight moving crops of 4.3. One step is then fitted to all tracks of
    the clip, so what moves by itself for a while, or can be tracked in few frames only, counts less."""
    import cv2

    frames = grey(pixels(clip, least=2))
    h, w = frames.shape[1:]
    scale = SIDE / min(h, w)
    size, how = (round(w * scale), round(h * scale)), cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    frames = [cv2.GaussianBlur(cv2.resize(frame, size, interpolation=how), (0, 0), BLUR) for frame in frames]
    stride = max(1, min(STRIDE, STRIDE * len(frames) // 16))  # with fewer frames the camera goes further in each
    tracks = [_track(a, b) for a, b in zip(frames, frames[stride:])]
    return _path(tracks, stride, len(frames), steady)


def camera_path_of_flow(flow: np.ndarray) -> CameraPath:
    """The same from a flow f-1 h w 2 in pixels (motion.optical_flow, or exact_flow: without tracking errors)."""
    flow = np.asarray(flow, float)
    if flow.ndim != 4 or flow.shape[-1] != 2 or 0 in flow.shape:
        raise AnimkitError(f"A flow is f-1 h w 2; got {flow.shape}.")
    h, w = flow.shape[1:3]
    every = max(1, min(h, w) // (2 * GRID))
    row, column = (each.ravel() for each in np.mgrid[every // 2:h:every, every // 2:w:every])
    here = np.stack([column, row], -1).astype(float)
    return _path([(_units(here, h, w), _units(here + v[row, column], h, w)) for v in flow], 1, len(flow) + 1)


def fit_similarity(points: np.ndarray, moved: np.ndarray, agree: float = AGREE) -> tuple[np.ndarray, float]:
    """The similarity (3 3) that carries the background from points n 2 to moved n 2, and the share that agree.

    OpenCV's RANSAC (estimateAffinePartial2D) finds the move that most points agree with, within `agree`, then that of
    most of the rest, BODIES moves in all. The background is the move with the most votes; points near the picture's
    edges count most: a vote is max(|x|, |y|)^2. A move that stands still gets only PAPER of its votes: it may be a
    paper texture, or edges along which no motion can be seen. With under 6 points, or if no similarity is found: the
    identity, 0."""
    import cv2

    votes, rest = np.abs(points).max(-1, initial=0) ** 2, np.ones(len(points), bool)
    best = (0.0, np.eye(3), 0.0)
    for _ in range(BODIES):
        if rest.sum() < 6:
            break
        a, b = (np.ascontiguousarray(each[rest] * 100, np.float32) for each in (points, moved))  # about pixels
        found, _ = cv2.estimateAffinePartial2D(a, b, method=cv2.RANSAC, ransacReprojThreshold=100 * agree,
                                               maxIters=2000, confidence=0.995)
        if found is None or not np.isfinite(found).all():
            break
        fit = np.vstack([found * [1, 1, 0.01], [0, 0, 1]])
        on = np.linalg.norm(points @ fit[:2, :2].T + fit[:2, 2] - moved, axis=-1) < agree
        say = float(votes[on].sum()) * (PAPER if np.abs(fit - np.eye(3)).max() < agree else 1)
        if 0.3 < math.hypot(fit[0, 0], fit[1, 0]) < 3 and say > best[0]:
            best = (say, fit, float(on.mean()))
        rest &= ~on
    return best[1:]


def _track(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of frame a that are found again in frame b (h w, uint8): n 2 and n 2, in half short sides."""
    import cv2

    h, w = a.shape
    values, cell = np.sort(cv2.cornerEigenValsAndVecs(a, 9, 3)[..., :2], -1), min(h, w) // GRID
    weak, strong = values[..., 0], values[..., 1]  # along an edge one cannot see motion: a corner is strong both ways
    best = []
    for top in range(0, h - cell + 1, cell):
        for left in range(0, w - cell + 1, cell):
            y, x = divmod(int(weak[top:top + cell, left:left + cell].argmax()), cell)
            if weak[top + y, left + x] > max(CORNER, ROUND * strong[top + y, left + x]):
                best.append((left + x, top + y))
    if not best:
        return np.empty((0, 2)), np.empty((0, 2))
    here, how = np.float32(best)[:, None], {"winSize": (21, 21), "maxLevel": 2, "minEigThreshold": 0}
    there, found, _ = cv2.calcOpticalFlowPyrLK(a, b, here, None, **how)
    back, returned, _ = cv2.calcOpticalFlowPyrLK(b, a, there, None, **how)
    off = np.linalg.norm(back - here, axis=-1)[:, 0] * 2 / min(h, w)
    good = (found[:, 0] == 1) & (returned[:, 0] == 1) & (off < RETURN)
    return _units(here[good, 0], h, w), _units(there[good, 0], h, w)


def _units(points: np.ndarray, h: int, w: int) -> np.ndarray:
    """Pixels (column, row; (0, 0) the middle of the upper left one) -> half short sides from the middle, y up."""
    return (np.asarray(points, float) - [(w - 1) / 2, (h - 1) / 2]) * [2 / min(h, w), -2 / min(h, w)]


def _path(tracks: list[tuple[np.ndarray, np.ndarray]], stride: int, frames: int, steady: bool = False) -> CameraPath:
    """Fits each step from a frame to the next and multiplies them up; tracks[t] leads from frame t to t + stride.

    A step is fitted to all tracks that pass over it, together: a camera's speed hardly changes in so few frames, but an
    object's does. They agree on the move of `stride` steps; its root is that of one step. steady: fits all tracks."""
    def fitted(over: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, float]:
        return fit_similarity(*(np.concatenate(each) for each in zip(*over)), agree=AGREE * stride ** 0.5)

    over = (tracks[max(0, t - stride + 1):min(t, len(tracks) - 1) + 1] for t in range(frames - 1))
    whole, path, support = 1 + 0j, [(1 + 0j, 0j)], []
    shift = 0j
    for fit, agreed in [fitted(tracks)] * (frames - 1) if steady else map(fitted, over):
        turn, step = complex(fit[0, 0], fit[1, 0]), complex(fit[0, 2], fit[1, 2])  # p -> turn p + step, p = x + iy
        root = turn ** (1 / stride)
        step = step / sum(root ** k for k in range(stride))
        whole, shift = root * whole, root * shift + step
        path.append((whole, shift))
        support.append(agreed)
    wholes, shifts = (np.array(each) for each in zip(*path))
    centre = -shifts / wholes
    return CameraPath(np.abs(wholes), centre.real, centre.imag, np.unwrap(np.angle(wholes)), np.array(support))
