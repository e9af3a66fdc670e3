"""render(scene) -> Footage: the pictures of a scene and everything that is true of them."""

from dataclasses import dataclass

import numpy as np

from ..errors import AnimkitError
from .looks import EVERY_LOOK, Layers
from .objects import COLOURS, OBJECTS
from .scene import MOTIONS, SHOTS, Scene, Thing, _still
from .sdf import arc, circle, segment, union
from .settings import SETTINGS, SKY

LINE = 0.026  # half-width of a drawn line, screen units


@dataclass
class Footage:
    """What render returns, float32 unless said: rgb (f h w 3, 0 to 1); mask (f h w, which share of the pixel is object); depth (f h w, 1 near to 20 the sky);
    flow (f h w 2, where each pixel goes in the next frame, pixels, right and down); camera (f 3 3, world to pixel coordinates)."""

    rgb: np.ndarray
    mask: np.ndarray
    depth: np.ndarray
    flow: np.ndarray
    camera: np.ndarray

    @property
    def uint8(self) -> np.ndarray:
        return (self.rgb * 255 + 0.5).astype(np.uint8)


def similarity(dx, dy, angle, sx, sy):
    """Matrices (f 3 3): scale, then rotate anticlockwise, then shift."""
    c, s = np.cos(angle), np.sin(angle)
    m = np.zeros((len(c), 3, 3))
    m[:, 0, 0], m[:, 0, 1], m[:, 0, 2] = sx * c, -sy * s, dx
    m[:, 1, 0], m[:, 1, 1], m[:, 1, 2] = sx * s, sy * c, dy
    m[:, 2, 2] = 1
    return m


def camera_matrix(scene: Scene, u, size: int):
    """World to pixel coordinates (f 3 3); pixel (0, 0) is the middle of the upper left one."""
    zoom, cx, cy, angle = SHOTS[scene.shot](u, scene.amount) if scene.shot else (1 + 0 * u, 0 * u, 0 * u, 0 * u)
    view = similarity(0 * u, 0 * u, angle, zoom, zoom) @ similarity(-cx, -cy, 0 * u, 1 + 0 * u, 1 + 0 * u)
    return np.array([[size / 2, 0, size / 2 - 0.5], [0, -size / 2, size / 2 - 0.5], [0, 0, 1]]) @ view


def thing_matrix(thing: Thing, u):
    """Local to world coordinates (f 3 3), and the same without turning or squashing, in which the motion's cues are drawn."""
    dx, dy, angle, sx, sy = (MOTIONS[thing.motion] if thing.motion else _still)(u, thing)
    even = np.sqrt(sx * sy) * thing.size
    return (
        similarity(thing.x + dx, thing.y + dy, angle, sx * thing.size * thing.facing, sy * thing.size),
        similarity(thing.x + dx, thing.y + dy, 0 * angle, even, even),
    )


def cues(motion, x, y, facing):
    """What a cartoonist adds so that a still already tells the motion: local coordinates -> signed distance, or None."""
    r = 0.055
    if motion == "rising":
        return union(
            *[segment(x, y, cx, -1.22, cx, -1.22 - 0.35 * k, r) for cx, k in ((-0.45, 1), (0, 1.5), (0.45, 1))]
        )
    if motion == "falling":
        return union(*[segment(x, y, cx, 1.22, cx, 1.22 + 0.35 * k, r) for cx, k in ((-0.45, 1), (0, 1.5), (0.45, 1))])
    if motion == "walking":
        x = x * facing
        return union(
            circle(x, y, -1.3, -0.75, 0.17),
            circle(x, y, -1.62, -0.62, 0.12),
            segment(x, y, -1.25, 0.1, -1.7, 0.1, r),
            segment(x, y, -1.25, 0.5, -1.55, 0.5, r),
        )
    if motion == "bouncing":
        return union(arc(x, y, 0, -0.3, 1.0, -np.pi / 2, 0.55, r), arc(x, y, 0, -0.3, 1.3, -np.pi / 2, 0.5, r))
    if motion == "spinning":
        return union(
            *[arc(x, y, 0, 0, 1.22, m, 0.5, r) for m in (np.pi * 0.25, -np.pi * 0.75)],
            *[arc(x, y, 0, 0, 1.42, m, 0.3, r) for m in (np.pi * 0.25, -np.pi * 0.75)],
        )
    if motion == "growing":
        return union(*[segment(x, y, 0.86 * a, 0.86 * b, 1.18 * a, 1.18 * b, r) for a in (-1, 1) for b in (-1, 1)])
    if motion == "shrinking":
        return np.abs(circle(x, y, 0, 0, 1.28)) - r * 0.8
    if motion == "swinging":
        return segment(x, y, 0, 0.9, 0, 4, r)
    if motion == "shaking":
        return union(*[arc(x, y, 0, 0, k, m, 0.4, r) for m in (0, np.pi) for k in (1.15, 1.42)])
    return None


def shade(colour, thing):
    """A part's colour: the object's own, a shade of it, or a fixed one."""
    main = np.float32(COLOURS[thing.colour])
    return (
        {"main": main, "dark": main * 0.68, "light": main * 0.55 + 0.45}[colour]
        if isinstance(colour, str)
        else np.float32(colour)
    )


def render(scene: Scene, frames: int = 16, size: int = 64, u=None) -> Footage:
    """Draw a scene at frames times spread over the clip, or at the times u given (0 to 1): size x size pixels, edges antialiased from their distance."""
    if size < 8 or (u is None and frames < 1):
        raise AnimkitError(
            f"A picture needs 8 pixels and 1 frame at least; asked for {size} pixels and {frames} frames."
        )
    u = np.atleast_1d(np.arange(frames) / frames if u is None else np.asarray(u, float))
    steps = np.diff(u) if len(u) > 1 else np.array([1 / 16])  # to the next frame; of one alone, as in a clip of 16
    u_next = u + np.append(steps, steps[-1])[:len(u)]
    camera, camera_next = camera_matrix(scene, u, size), camera_matrix(scene, u_next, size)

    column, row = np.meshgrid(np.arange(size), np.arange(size))
    if scene.look == "pixel":  # 20 squares a side
        block = size / 20
        column, row = (np.floor(column / block) + 0.5) * block - 0.5, (np.floor(row / block) + 0.5) * block - 0.5
    at = np.stack([column, row, np.ones_like(column)]).reshape(3, -1).astype(float)  # pixel coordinates, homogeneous

    def local(matrix):
        """Coordinates of every pixel in a frame of reference: two arrays f h w."""
        p = (np.linalg.inv(matrix) @ at).reshape(len(u), 3, size, size).astype(np.float32)
        return p[:, 0], p[:, 1]

    x, y = local(camera)
    zoom = np.sqrt(np.abs(np.linalg.det(camera[:, :2, :2]))).astype(np.float32)[:, None, None]  # pixels per world unit
    albedo = np.zeros((*x.shape, 3), np.float32)
    line, cover, depth = np.zeros_like(x), np.zeros_like(x), np.full_like(x, SKY)
    near = np.full_like(x, 3.0)

    def paint(d, colour, far, scale, stroke=1.0):
        """Lay one part over the picture: d in units of which a pixel holds `scale`; returns how far each pixel is covered."""
        nonlocal albedo, line, depth
        inside = np.clip(0.5 - d * scale, 0, 1)
        albedo += inside[..., None] * (colour - albedo)
        band = np.clip(0.5 + LINE * size / 2 - np.abs(d) * scale, 0, 1) * stroke
        line = np.maximum(line * (1 - inside), band)
        depth = np.where(inside > 0.5, far, depth)
        return inside

    for d, colour, far in SETTINGS[scene.setting](x, y, scene.seed):
        paint(d.astype(np.float32), np.float32(colour), np.float32(far), zoom, 0.6)
    flow = _moved(camera_next @ np.linalg.inv(camera), at, size)

    for thing in scene.things:
        body, plain = thing_matrix(thing, u)
        body_next, plain_next = thing_matrix(thing, u_next)
        if thing.marks == "circling":  # its track stands still in the world
            d = np.abs(circle(x, y, np.float32(thing.x), np.float32(thing.y), 0.42)) - 0.016
            paint(d, np.float32((1, 1, 1)), depth, zoom, 0.5)
        mx, my = local(camera @ plain)
        d = cues(thing.marks, mx, my, thing.facing)
        if d is not None:
            scale = zoom * np.sqrt(np.abs(np.linalg.det(plain[:, :2, :2]))).astype(np.float32)[:, None, None]
            inside = paint(d.astype(np.float32), np.float32((1, 1, 1)), depth, scale, 0.5)
            flow = np.where(
                inside[..., None] > 0.5,
                _moved(camera_next @ plain_next @ np.linalg.inv(camera @ plain), at, size),
                flow,
            )
        lx, ly = local(camera @ body)
        scale = zoom * np.sqrt(np.abs(np.linalg.det(body[:, :2, :2]))).astype(np.float32)[:, None, None]
        parts = OBJECTS[thing.object](lx, ly)
        for d, colour in parts:
            paint(d.astype(np.float32), shade(colour, thing), 1.4, scale)
        whole = union(*[d for d, _ in parts]).astype(np.float32)
        inside = np.clip(0.5 - whole * scale, 0, 1)
        near = np.minimum(near, whole * scale * 2 / size)
        cover = np.maximum(cover, inside)
        depth = np.where(inside > 0.5, 1.4 - 0.4 * np.sqrt(np.clip(-whole, 0, 1)), depth)
        flow = np.where(
            inside[..., None] > 0.5, _moved(camera_next @ body_next @ np.linalg.inv(camera @ body), at, size), flow
        )

    sx, sy = ((column + 0.5) * 2 / size - 1).astype(np.float32), (1 - (row + 0.5) * 2 / size).astype(np.float32)
    layers = Layers(
        albedo, line, cover, near, np.broadcast_to(sx, x.shape), np.broadcast_to(sy, x.shape), 2 / size, scene.seed
    )
    rgb = np.clip(EVERY_LOOK[scene.look](layers), 0, 1).astype(np.float32)
    return Footage(rgb, cover, depth.astype(np.float32), flow.astype(np.float32), camera)


def _moved(matrix, at, size):
    """Where pixel coordinates go under matrices (f 3 3), less where they were: f h w 2."""
    return (matrix @ at - at)[:, :2].reshape(len(matrix), 2, size, size).transpose(0, 2, 3, 1)
