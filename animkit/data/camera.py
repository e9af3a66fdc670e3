"""Camera moves made out of ordinary clips by moving a crop (4.3): the eight shot types of MotionLoRA.

The paper gives the rule for zoom ("gradually reducing or enlarging the cropping area along the temporal axis"); pan,
tilt and roll follow the same idea. A crop is a similarity: a window of size `scale`, its centre at (dx, dy), turned by
`angle`.

What each name means, in words:
    zoom in                 the window shrinks: things grow and leave over the edges
    zoom out                the window grows: things shrink and new scenery comes in from the edges
    pan left, pan right     the CAMERA turns that way: scenery moves the other way (pan right: scenery moves left)
    tilt up, tilt down      the CAMERA turns that way: scenery moves the other way (tilt up: scenery moves down)
    roll clockwise,         the PICTURE turns that way, as a viewer sees it; the camera itself turns against it. So we
    roll anticlockwise      read the names of the released MotionLoRAs, "RollingClockwise" and "RollingAnticlockwise".
Hence a mirrored clip of a pan or a roll is a clip of the opposite shot: never flip these at random.
"""
import math
from typing import NamedTuple, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from animkit.errors import AnimkitError

SHOTS = ("zoom in", "zoom out", "pan left", "pan right", "tilt up", "tilt down", "roll clockwise", "roll anticlockwise")
OPPOSITE = {a: b for one, other in zip(SHOTS[::2], SHOTS[1::2]) for a, b in ((one, other), (other, one))}


class Crop(NamedTuple):
    """One frame's window: point (x, y) of the view shows the picture's point scale * R(angle) (x, y) + (dx, dy).

    Lengths are in half short sides of the whole view, (0, 0) its centre, x to the right, y down. `angle` in radians,
    the window turned clockwise where positive. Crop(1, 0, 0, 0) is the whole view.
    """
    scale: float
    dx: float
    dy: float
    angle: float


def shot_name(shot: str) -> str:
    """The shot type as SHOTS writes it, from "zoom-in", "zoom_in" or "Zoom in"; AnimkitError for any other word."""
    name = " ".join(str(shot).lower().replace("-", " ").replace("_", " ").split())
    if name not in SHOTS:
        raise AnimkitError(f"unknown shot type {shot!r}: use one of {', '.join(SHOTS)}")
    return name


def crop_path(shot: str, frames: int = 16, amount: float = 0.3, aspect: float = 1.0) -> list[Crop]:
    """The windows of a shot type, a frame each (4.3); `aspect` is the view's width / height. With t = 0 .. 1:

    zoom in              scale (1 - amount)^t, as a lens zooms at a constant rate; zoom out is the same backwards
    pan, tilt            scale 1 - amount; the centre runs at a constant rate from one edge of the picture to the other
    roll                 angle at a constant rate over 90 degrees * amount, symmetric about upright; scale is the
                         largest whose most turned window stays inside the picture (inscribed), the same in all
                         frames, so that no zoom mixes in

    No window ever leaves the picture. Raises AnimkitError for an unknown shot, under 2 frames, amount not in (0, 1).
    """
    shot = shot_name(shot)
    if frames < 2:
        raise AnimkitError(f"a camera move needs at least 2 frames, got {frames}")
    if not 0 < amount < 1:
        raise AnimkitError(f"amount of {shot!r} is {amount}: it must lie between 0 (no move) and 1")
    if shot in ("zoom out", "pan left", "tilt up", "roll clockwise"):  # their opposites, played backwards
        return crop_path(OPPOSITE[shot], frames, amount, aspect)[::-1]
    half_w, half_h = _half_extents(aspect)
    t = [i / (frames - 1) for i in range(frames)]
    if shot == "zoom in":
        return [Crop((1 - amount) ** s, 0.0, 0.0, 0.0) for s in t]
    if shot == "pan right":
        return [Crop(1 - amount, half_w * amount * (2 * s - 1), 0.0, 0.0) for s in t]
    if shot == "tilt down":
        return [Crop(1 - amount, 0.0, half_h * amount * (2 * s - 1), 0.0) for s in t]
    turn = amount * math.pi / 2  # roll anticlockwise: the window turns clockwise, so the picture in it turns against
    cos, sin = math.cos(turn / 2), math.sin(turn / 2)
    inscribed = min(half_w / (half_w * cos + half_h * sin), half_h / (half_w * sin + half_h * cos))
    return [Crop(inscribed, 0.0, 0.0, turn * (s - 0.5)) for s in t]


def any_crop(rng: np.random.Generator, amount: float = 0.3) -> Crop:
    """A window of any framing inside a square view, as one moment of any of the eight moves, or of two at once.

    Half of them upright, the others turned by up to 45 degrees * amount either way; the largest that fits, made smaller
    by at most `amount`; its centre anywhere where it still lies inside the picture.
    """
    angle = rng.uniform(-1, 1) * amount * math.pi / 4 if rng.random() < 0.5 else 0.0
    spread = math.cos(angle) + abs(math.sin(angle))  # half the height of a turned window of scale 1
    scale = (1 - amount * rng.random()) / spread
    dx, dy = rng.uniform(-1, 1, 2) * (1 - scale * spread)
    return Crop(scale, float(dx), float(dy), angle)


def apply(clip: torch.Tensor, path: Sequence[Crop], size: int | tuple[int, int]) -> torch.Tensor:
    """Cut the windows of `path` out of a clip c f h w: c f `size`, of the clip's dtype (4.3).

    The whole view is the largest centred window with the shape of `size` (a side, or height and width). Bilinear;
    a frame that shrinks is made smaller with antialiasing first. Raises AnimkitError where frames and path differ.
    """
    if clip.ndim != 4 or clip.shape[1] != len(path):
        raise AnimkitError(f"a clip c f h w with {len(path)} frames was wanted for this path, got {tuple(clip.shape)}")
    out_h, out_w = (size, size) if isinstance(size, int) else size
    h, w = clip.shape[-2:]
    half_w, half_h = _half_extents(out_w / out_h)
    unit = min(w / half_w, h / half_h) / 2  # pixels in a half short side of the whole view
    frames = []
    for frame, crop in zip(clip.unbind(1), path):
        shrink = max(1.0, 2 * unit * half_w * crop.scale / out_w)  # pixels of the picture for one of the crop
        small = frame[None].float()  # 1 c h w
        if shrink > 1:
            target = (max(1, round(h / shrink)), max(1, round(w / shrink)))
            small = F.interpolate(small, target, mode="bilinear", antialias=True)
        cos, sin = crop.scale * math.cos(crop.angle), crop.scale * math.sin(crop.angle)
        # the similarity above, in affine_grid's coordinates: -1 .. 1 from edge to edge of crop and of picture
        theta = 2 * unit * torch.tensor([[half_w * cos / w, -half_h * sin / w, crop.dx / w],
                                         [half_w * sin / h, half_h * cos / h, crop.dy / h]])
        grid = F.affine_grid(theta[None], [1, frame.shape[0], out_h, out_w], align_corners=False)
        seen = F.grid_sample(small, grid.to(small), mode="bilinear", padding_mode="border", align_corners=False)
        frames.append(seen[0])
    out = torch.stack(frames, dim=1)  # c f h w
    return out if clip.is_floating_point() else out.round().clamp(0, 255).to(clip.dtype)


def draw_path(path: Sequence[Crop], aspect: float = 1.0, picture=None, ax=None):
    """Draw the windows of a path over the view, first frame dark, last bright; gives back matplotlib's Axes.

    picture: an image h w c with the view's shape to draw under them.
    """
    import matplotlib.pyplot as plt

    half_w, half_h = _half_extents(aspect)
    ax = ax or plt.subplots(figsize=(3 * half_w, 3 * half_h))[1]
    if picture is not None:
        ax.imshow(picture, extent=(-half_w, half_w, half_h, -half_h))
    for i, crop in enumerate(path):
        colour = plt.get_cmap("viridis")(i / max(1, len(path) - 1))
        corners = torch.tensor(crop_corners(crop, aspect)) * 0.995  # so that a window on the edge can be seen
        ax.fill(*corners.T, fill=False, edgecolor=colour, linewidth=2.5 if i in (0, len(path) - 1) else 0.8)
        ax.plot(*((corners[0] + corners[1]) / 2), marker="^", color=colour, markersize=4)  # the window's upper edge
    ax.set(xlim=(-1.02 * half_w, 1.02 * half_w), ylim=(1.02 * half_h, -1.02 * half_h))
    ax.set(aspect="equal", xticks=[], yticks=[])
    return ax


def crop_corners(crop: Crop, aspect: float = 1.0) -> list[tuple[float, float]]:
    """The four corners of a window in the view's coordinates: upper left, upper right, lower right, lower left."""
    half_w, half_h = _half_extents(aspect)
    cos, sin = crop.scale * math.cos(crop.angle), crop.scale * math.sin(crop.angle)
    return [(cos * x - sin * y + crop.dx, sin * x + cos * y + crop.dy)
            for x, y in ((-half_w, -half_h), (half_w, -half_h), (half_w, half_h), (-half_w, half_h))]


def _half_extents(aspect: float) -> tuple[float, float]:
    return (aspect, 1.0) if aspect >= 1 else (1.0, 1 / aspect)
