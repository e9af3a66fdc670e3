"""Signed distance functions in the plane: negative inside, zero on the edge, positive outside; x and y are float32 arrays.

After Inigo Quilez, "2D distance functions". Distances are exact or slightly short of it, which is all that edges,
outlines, glow and shading need. Angles are radians, anticlockwise, y points up.
"""

import numpy as np


def circle(x, y, cx, cy, r):
    return np.sqrt((x - cx) ** 2 + (y - cy) ** 2) - r


def ellipse(x, y, cx, cy, rx, ry):
    """First-order distance to an ellipse: k0 (k0 - 1) / k1, exact on the edge."""
    px, py = (x - cx) / rx, (y - cy) / ry
    k0 = np.sqrt(px * px + py * py) + 1e-6
    k1 = np.sqrt((px / rx) ** 2 + (py / ry) ** 2) + 1e-6
    return k0 * (k0 - 1) / k1


def box(x, y, cx, cy, hx, hy, r=0.0):
    """Box of half-widths hx, hy with corners of radius r."""
    qx, qy = np.abs(x - cx) - (hx - r), np.abs(y - cy) - (hy - r)
    return np.sqrt(np.maximum(qx, 0) ** 2 + np.maximum(qy, 0) ** 2) + np.minimum(np.maximum(qx, qy), 0) - r


def segment(x, y, ax, ay, bx, by, r):
    """A stroke of half-width r from (ax, ay) to (bx, by)."""
    px, py, dx, dy = x - ax, y - ay, bx - ax, by - ay
    h = np.clip((px * dx + py * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
    return np.sqrt((px - h * dx) ** 2 + (py - h * dy) ** 2) - r


def polygon(x, y, corners, r=0.0):
    """A convex polygon, corners anticlockwise: the largest of the distances to its sides."""
    d = None
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
        nx, ny = by - ay, ax - bx
        side = ((x - ax) * nx + (y - ay) * ny) / np.float32(np.hypot(nx, ny))
        d = side if d is None else np.maximum(d, side)
    return d - r


def star(x, y, cx, cy, r, points=5, inner=0.45):
    """A star with the given number of points, the first one upwards."""
    angle, radius = np.arctan2(x - cx, y - cy), np.sqrt((x - cx) ** 2 + (y - cy) ** 2)
    sector = np.pi / points
    angle = np.abs((angle + sector) % (2 * sector) - sector)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    qx, qy = r * inner * np.cos(sector), r * inner * np.sin(sector)  # the inner corner
    nx, ny = qy, r - qx
    return ((px - r) * nx + py * ny) / np.float32(np.hypot(nx, ny))


def arc(x, y, cx, cy, radius, middle, half, r):
    """A stroke of half-width r along a circle, from angle middle - half to middle + half."""
    px, py = x - cx, y - cy
    c, s = np.cos(middle), np.sin(middle)
    px, py = px * c + py * s, np.abs(py * c - px * s)
    ex, ey = radius * np.cos(half), radius * np.sin(half)
    ends = np.sqrt((px - ex) ** 2 + (py - ey) ** 2)
    inside = py * np.cos(half) < px * np.sin(half)
    return np.where(inside, np.abs(np.sqrt(px * px + py * py) - radius), ends) - r


def union(*ds):
    out = ds[0]
    for d in ds[1:]:
        out = np.minimum(out, d)
    return out
