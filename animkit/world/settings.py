"""The six settings: each a function of world x, y (float32 arrays, y up, the first frame sees -1 to 1) and a seed that
returns its layers from back to front as (signed distance, colour, depth). Scenery is laid out in endless cells by a
hash of the cell's number, so that a camera move always finds more of it. Depth runs from 1 (near) to 20 (the sky)."""

import numpy as np

from .sdf import box, circle, ellipse, polygon, segment, union

SKY = 20.0


def mix(a, b, t):
    """Colour between a (t = 0) and b (t = 1); t an array."""
    t = np.clip(t, 0, 1)[..., None]
    return np.asarray(a, np.float32) * (1 - t) + np.asarray(b, np.float32) * t


def chance(i, j, seed, salt=0):
    """A repeatable number in [0, 1) for each cell (i, j)."""
    h = (
        i.astype(np.int64) * 374761393
        + j.astype(np.int64) * 668265263
        + np.int64(seed) * 974634777
        + np.int64(salt) * 2246822519
    )
    h = (h ^ (h >> 13)) * 1274126177 & 0x7FFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF).astype(np.float32) / 65536


def cells(x, y, sx, sy, seed, salt=0):
    """Coordinates inside cells of size sx, sy, measured from a point jittered about each cell's middle, and a chance per cell."""
    i, j = np.floor(x / sx), np.floor(y / sy)
    jx, jy = chance(i, j, seed, salt), chance(i, j, seed, salt + 1)
    return x - (i + 0.3 + 0.4 * jx) * sx, y - (j + 0.3 + 0.4 * jy) * sy, chance(i, j, seed, salt + 2)


def clouds(x, y, seed, low):
    px, py, c = cells(x, y, 0.9, 0.5, seed, 11)
    d = union(
        ellipse(px, py, 0, 0, 0.26, 0.085),
        ellipse(px, py, -0.06, 0.07, 0.13, 0.1),
        ellipse(px, py, 0.1, 0.05, 0.1, 0.08),
    )
    return np.maximum(np.where(c < 0.7, d, 0.3), low - y)


def sea(x, y, seed):
    level = np.float32(-0.22)
    px, py, c = cells(x, y, 0.5, 0.24, seed, 3)
    crest = np.where(c < 0.75, segment(px, py, -0.1, 0, 0.1, 0, 0.017), 0.1)
    ix, _, ic = cells(x, x * 0, 1.7, 1.0, seed, 6)
    island = np.where(ic < 0.6, np.maximum(ellipse(ix, y, 0, level, 0.3, 0.13), level - y), 0.5)
    return [
        (y * 0 - 1, mix((0.86, 0.95, 0.99), (0.42, 0.72, 0.96), (y - level) * 0.9), SKY),
        (circle(x, y, 0.62, 0.68, 0.17), (1.0, 0.9, 0.45), 19),
        (clouds(x, y, seed, level + 0.3), (1, 1, 1), 18),
        (island, (0.36, 0.6, 0.38), 12),
        (
            y - level,
            mix((0.2, 0.62, 0.8), (0.05, 0.3, 0.6), (level - y) * 1.1),
            np.clip(10 / (1 + 6 * np.maximum(level - y, 0)), 1.5, 10),
        ),
        (np.maximum(crest, y - level + 0.03), (0.75, 0.92, 0.97), 3),
    ]


def meadow(x, y, seed):
    p = seed % 7
    far, near = -0.08 + 0.1 * np.sin(2.1 * x + p) - y, -0.3 + 0.06 * np.sin(3.3 * x + 2 * p) - y
    px, py, c = cells(x, y, 0.42, 0.3, seed, 3)
    blossom = np.where(c < 0.7, circle(px, py, 0, 0, 0.045), 0.1)
    colour = np.where((c < 0.35)[..., None], np.float32((1.0, 0.95, 0.9)), np.float32((1.0, 0.75, 0.3)))
    return [
        (y * 0 - 1, mix((0.9, 0.97, 1.0), (0.48, 0.78, 0.98), y + 0.2), SKY),
        (clouds(x, y, seed, 0.25), (1, 1, 1), 18),
        (-far, (0.42, 0.68, 0.36), 9),
        (
            -near,
            mix((0.52, 0.8, 0.35), (0.3, 0.6, 0.22), (-0.3 - y) * 1.1),
            np.clip(7 / (1 + 5 * np.maximum(-0.3 - y, 0)), 1.5, 7),
        ),
        (np.maximum(blossom, -near + 0.07), colour, 2),
    ]


def desert(x, y, seed):
    p = seed % 5
    far, near = -0.1 + 0.13 * np.abs(np.sin(1.3 * x + p)) - y, -0.34 + 0.08 * np.sin(1.9 * x + 2 * p) - y
    cx, _, c = cells(x, x * 0, 0.85, 1.0, seed, 3)
    cy = y + 0.2
    cactus = union(
        box(cx, cy, 0, 0.08, 0.04, 0.2, 0.04),
        box(cx, cy, 0.1, 0.14, 0.028, 0.08, 0.028),
        box(cx, cy, 0.05, 0.08, 0.07, 0.024),
        box(cx, cy, -0.1, 0.16, 0.028, 0.07, 0.028),
        box(cx, cy, -0.05, 0.1, 0.07, 0.024),
    )
    px, py, sc = cells(x, y, 0.4, 0.2, seed, 9)
    ripple = np.where(sc < 0.7, segment(px, py, -0.09, 0, 0.09, 0.02, 0.013), 0.1)
    sx, sy, bc = cells(x, y, 0.9, 0.6, seed, 13)
    streak = np.maximum(np.where(bc < 0.6, box(sx, sy, 0, 0, 0.22, 0.03, 0.03), 0.3), 0.3 - y)
    return [
        (y * 0 - 1, mix((1.0, 0.87, 0.66), (0.98, 0.66, 0.5), y + 0.1), SKY),
        (circle(x, y, -0.5, 0.55, 0.22), (1.0, 0.95, 0.7), 19),
        (streak, (1.0, 0.8, 0.66), 18),
        (-far, (0.85, 0.6, 0.38), 9),
        (np.where(c < 0.65, cactus, 0.5), (0.35, 0.55, 0.32), 7),
        (
            -near,
            mix((0.95, 0.78, 0.5), (0.85, 0.62, 0.34), (-0.34 - y) * 1.2),
            np.clip(6 / (1 + 5 * np.maximum(-0.34 - y, 0)), 1.5, 6),
        ),
        (np.maximum(ripple, -near + 0.06), (0.78, 0.56, 0.32), 2),
    ]


def snow(x, y, seed):
    tri = np.abs(((x + 0.13 * (seed % 7)) / 0.9) % 1 - 0.5) * 2
    ridge = 0.42 - 0.55 * tri
    near = -0.3 + 0.05 * np.sin(2.7 * x + seed % 5) - y
    cx, _, c = cells(x, x * 0, 0.62, 1.0, seed, 3)
    pine = union(
        polygon(cx, y, [(-0.12, -0.28), (0.12, -0.28), (0, -0.05)]),
        polygon(cx, y, [(-0.09, -0.15), (0.09, -0.15), (0, 0.06)]),
    )
    px, py, _ = cells(x, y, 0.5, 0.5, seed, 9)
    return [
        (y * 0 - 1, mix((0.86, 0.9, 0.95), (0.6, 0.72, 0.86), y), SKY),
        ((y - ridge) * 0.63, (0.52, 0.6, 0.72), 12),
        (np.maximum((y - ridge) * 0.63, 0.17 + 0.04 * np.sin(14 * x) - y), (0.93, 0.95, 0.98), 12),
        (np.where(c < 0.7, pine, 0.5), (0.2, 0.4, 0.36), 8),
        (
            -near,
            mix((0.96, 0.98, 1.0), (0.8, 0.87, 0.95), (-0.3 - y) * 1.1),
            np.clip(7 / (1 + 5 * np.maximum(-0.3 - y, 0)), 1.5, 7),
        ),
        (circle(px, py, 0, 0, 0.03), (1, 1, 1), 3),
    ]


def city(x, y, seed):
    def blocks(width, top, salt, colour, lit, depth):
        i = np.floor(x / width)
        h = top * (0.45 + 0.55 * chance(i, i * 0, seed, salt)) - 0.3
        px = x - (i + 0.5) * width
        d = np.maximum(np.abs(px) - width * 0.47, y - h)
        qx, qy = np.abs(((px + 0.09) % 0.18) - 0.09), np.abs((y % 0.22) - 0.11)
        j, k = np.floor((px + 0.09) / 0.18), np.floor(y / 0.22)
        windows = np.maximum(
            np.maximum(np.maximum(qx - 0.04, qy - 0.055), d + 0.03),
            np.where(chance(i * 31 + j, k, seed, salt + 5) < 0.5, -1, 1),
        )
        return [(d, colour, depth), (windows, lit, depth)]

    px = np.abs((x % 0.5) - 0.25)
    sx, sy, c = cells(x, y, 0.55, 0.45, seed, 21)
    return [
        (y * 0 - 1, mix((0.98, 0.8, 0.72), (0.55, 0.52, 0.8), y * 0.8 + 0.2), SKY),
        (np.maximum(np.where(c < 0.5, box(sx, sy, 0, 0, 0.14, 0.025, 0.025), 0.2), 0.2 - y), (0.9, 0.78, 0.85), 18),
        *blocks(0.42, 1.25, 3, (0.5, 0.48, 0.68), (0.72, 0.68, 0.82), 12),
        *blocks(0.55, 0.8, 4, (0.33, 0.32, 0.48), (1.0, 0.85, 0.5), 8),
        (y + 0.34, (0.62, 0.61, 0.66), 6),
        (y + 0.44, (0.34, 0.34, 0.4), np.clip(5 / (1 + 5 * np.maximum(-0.44 - y, 0)), 1.5, 5)),
        (
            np.maximum(px - 0.14, np.abs(((y + 0.66) % 0.6 + 0.3) % 0.6 - 0.3) - 0.022) * np.where(y < -0.5, 1, 0)
            + np.where(y < -0.5, 0, 1),
            (0.95, 0.93, 0.8),
            2,
        ),
    ]


def space(x, y, seed):
    px, py, c = cells(x, y, 0.34, 0.34, seed, 3)
    qx, qy, qc = cells(x, y, 0.75, 0.75, seed, 7)
    hue = np.float32([(0.85, 0.55, 0.4), (0.45, 0.65, 0.75), (0.7, 0.6, 0.5)])[(qc * 29).astype(int) % 3]
    planet, ring = circle(qx, qy, 0, 0, 0.12), np.abs(ellipse(qx, qy + 0.25 * qx, 0, 0, 0.22, 0.05)) - 0.014
    some, ringed = qc < 0.45, qc < 0.2
    band = np.abs(y - 0.45 * x - 0.1 * np.sin(3 * x) - 0.1) - 0.25
    return [
        (y * 0 - 1, mix((0.05, 0.05, 0.16), (0.1, 0.06, 0.24), y * 0.5 + 0.5), SKY),
        (band, (0.15, 0.1, 0.32), SKY),
        (np.where(c < 0.8, circle(px, py, 0, 0, 0.018 + 0.016 * c), 0.1), (0.95, 0.95, 0.85), 19),
        (np.where(some, planet, 0.3), hue, 15),
        (np.where(ringed, ring, 0.3), (0.95, 0.88, 0.7), 15),
    ]


SETTINGS = {"sea": sea, "meadow": meadow, "desert": desert, "snow": snow, "city": city, "space": space}
