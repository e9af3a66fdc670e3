"""Looks over the same picture: each a function of what the renderer knows of every pixel (Layers) to RGB in 0 to 1.

The base model is trained on BASE_LOOKS; NEW_LOOKS are kept for personalised models, and it never sees them. PRACTICE_LOOKS are
for a motion module to practise on (animkit/miniature/practice.py): neither the base nor the judge knows them.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class Layers:
    """What is known of every pixel, arrays f h w unless said: albedo (f h w 3), line (strength of drawn edges, 0 to 1), cover (by an object),
    d (signed distance to the nearest object, world units), sx, sy (screen coordinates, -1 to 1, y up), pixel (its width in them), seed."""

    albedo: np.ndarray
    line: np.ndarray
    cover: np.ndarray
    d: np.ndarray
    sx: np.ndarray
    sy: np.ndarray
    pixel: float
    seed: int


def grey(rgb):
    return rgb @ np.float32([0.3, 0.59, 0.11])


def tint(g, dark, light):
    """Grey values (f h w) to the line between two colours."""
    return g[..., None] * (np.float32(light) - np.float32(dark)) + np.float32(dark)


def over(base, colour, strength):
    return base + (np.float32(colour) - base) * strength[..., None]


def noise(layers, fine):
    """Smooth noise fixed to the paper, -1 to 1, about `fine` waves across: sums of sines along chance directions."""
    rng = np.random.default_rng(layers.seed)
    total = 0
    for _ in range(5):
        a, k, p = rng.uniform(0, 6.28), rng.uniform(0.6, 1.4) * fine * 3.14, rng.uniform(0, 6.28)
        total = total + np.sin(k * (np.cos(a) * layers.sx + np.sin(a) * layers.sy) + p)
    return total / 5


def relief(layers, depth=0.16):
    """Light from the upper left on a surface that swells inside the objects: about -1 to 1, 0 on flat ground."""
    h = np.sqrt(np.clip(-layers.d, 0, depth) / depth + 0.02) * depth
    dy, dx = np.gradient(h, layers.pixel, axis=(-2, -1))  # rows run downwards
    return np.clip((-dx - dy) * -0.7, -1, 1)


def flat(layers):
    return over(layers.albedo, (0.1, 0.1, 0.15), 0.35 * layers.line * (layers.d < 0.04))


def comic(layers):
    return over(np.clip((layers.albedo - 0.5) * 1.15 + 0.53, 0, 1), (0.05, 0.04, 0.07), layers.line)


def clay(layers):
    s = relief(layers)[..., None]
    shadow = np.clip(1 - np.abs(layers.d - 0.05) / 0.12, 0, 1) * (layers.d > 0) * 0.28
    soft = layers.albedo * 0.82 + 0.1
    return over(np.clip(soft * (1 + 0.38 * np.minimum(s, 0)) + 0.3 * np.maximum(s, 0), 0, 1), (0.15, 0.1, 0.12), shadow)


def watercolour(layers):
    wash = 0.62 + 0.14 * noise(layers, 5) + 0.06 * noise(layers, 11)
    paper = np.float32((0.985, 0.965, 0.92))
    rgb = paper + (layers.albedo - paper) * wash[..., None]
    return rgb * (1 - 0.38 * layers.line[..., None] * layers.albedo.clip(0.3, 1) ** 0.5 * (1.1 - layers.albedo))


def ink(layers):
    g = grey(layers.albedo)
    hatch = (np.sin((layers.sx + layers.sy) * 44) > 0.15) * np.clip((0.42 - g) * 3, 0, 0.75)
    return tint(np.clip(1 - np.maximum(layers.line, hatch), 0, 1), (0.06, 0.06, 0.1), (0.98, 0.97, 0.93))


def neon(layers):
    glow = np.exp(-np.abs(layers.d) / 0.09) * 0.75
    strong = layers.albedo / (layers.albedo.max(-1, keepdims=True) + 1e-3)
    strong = np.clip(strong**2, 0, 1)
    return np.clip(
        np.float32((0.04, 0.02, 0.1))
        + 0.1 * layers.albedo
        + strong * (glow * layers.cover + 0.9 * layers.line * (0.35 + 0.65 * (layers.d < 0.05)))[..., None]
        + 0.22 * (glow * (1 - layers.cover))[..., None] * np.float32((0.9, 0.4, 1.0)),
        0,
        1,
    )


def pixel(layers):
    """Coarse squares, four levels a channel (the renderer has already snapped the coordinates)."""
    return np.round(np.clip((layers.albedo - 0.5) * 1.2 + 0.5, 0, 1) * 4) / 4


def blueprint(layers):
    grid = np.maximum(np.abs((layers.sx * 5) % 1 - 0.5) > 0.45, np.abs((layers.sy * 5) % 1 - 0.5) > 0.45) * 0.16
    return tint(
        np.clip(np.maximum(layers.line * 0.95, grid) + 0.13 * layers.cover, 0, 1), (0.07, 0.22, 0.55), (0.92, 0.96, 1.0)
    )


def night(layers):
    light = np.exp(-((layers.sx - 0.55) ** 2 + (layers.sy - 0.65) ** 2) / 0.5)
    return np.clip(
        layers.albedo * np.float32((0.3, 0.36, 0.62)) * (0.75 + 0.9 * light[..., None])
        + np.float32((0.0, 0.01, 0.07))
        + 0.2 * (relief(layers).clip(0, 1) * layers.cover)[..., None],
        0,
        1,
    )


def paper(layers):
    """Cut-outs: pale card, a white cut edge, a hard shadow to the lower right."""
    px = max(1, round(0.08 / layers.pixel))
    shadow = np.zeros_like(layers.cover)
    shadow[..., px:, px:] = layers.cover[..., :-px, :-px]
    shadow *= 1 - layers.cover
    card = layers.albedo * 0.6 + 0.36 + 0.025 * noise(layers, 30)[..., None]
    return np.clip(over(over(card, (0.25, 0.2, 0.3), 0.55 * shadow), (1, 1, 1), 0.85 * layers.line), 0, 1)


def chalk(layers):
    grain = np.clip(0.8 + 0.45 * noise(layers, 38), 0, 1)
    board = np.float32((0.12, 0.24, 0.19)) + 0.02 * noise(layers, 4)[..., None]
    strength = np.maximum(layers.line * (0.4 + 0.6 * (layers.d < 0.05)), 0.6 * layers.cover) * grain
    return np.clip(board + (layers.albedo * 0.75 + 0.25 - board) * strength[..., None], 0, 1)


def sepia(layers):
    edge = np.clip(1.15 - 0.45 * (layers.sx**2 + layers.sy**2), 0, 1)
    return tint(np.clip((grey(layers.albedo) - 0.5) * 0.9 + 0.5, 0, 1) * edge, (0.17, 0.1, 0.05), (0.97, 0.87, 0.68))


def negative(layers):
    return 1 - comic(layers)


def thermal(layers):
    """Brightness as a heat camera shows it: black, purple, orange, yellow."""
    heat = np.clip((grey(layers.albedo) - 0.5) * 1.1 + 0.5, 0, 1) * 3
    stops = np.float32([(0.02, 0.02, 0.15), (0.45, 0.05, 0.5), (0.95, 0.35, 0.15), (1, 0.9, 0.4)])
    below = np.clip(heat.astype(int), 0, 2)
    return stops[below] + (stops[below + 1] - stops[below]) * (heat - below)[..., None]


def woodcut(layers):
    cut = np.sin(layers.sy * 58 + 2 * noise(layers, 2)) > 1.2 - 2.2 * grey(layers.albedo)
    return tint(0.9 * cut * (1 - layers.line), (0.25, 0.05, 0.04), (0.97, 0.9, 0.72))


def halftone(layers):
    screen = np.cos((layers.sx + layers.sy) * 36) * np.cos((layers.sx - layers.sy) * 36) * 0.5 + 0.5
    dots = np.clip((screen - np.clip(grey(layers.albedo), 0, 1)) * 5 + 0.5, 0, 1)
    return over(tint(1 - dots, (0.75, 0.1, 0.35), (1, 0.93, 0.35)), (0.2, 0.02, 0.2), layers.line)


def glass(layers):
    """Stained glass: deep colours in facets, thick dark leading."""
    facet = np.sign(np.sin(9 * (layers.sx + 0.6 * layers.sy)) * np.sin(8 * (layers.sy - 0.7 * layers.sx)))
    deep = np.clip((layers.albedo - 0.35) * 1.7 + 0.3, 0, 1) * (1 + 0.12 * facet[..., None])
    return np.clip(over(deep, (0.02, 0.02, 0.05), np.clip(layers.line * 1.6, 0, 1)), 0, 1)


def frost(layers):
    pale = layers.albedo * 0.35 + np.float32((0.55, 0.62, 0.66)) + 0.05 * noise(layers, 14)[..., None]
    return np.clip(over(pale, (0.95, 1, 1), 0.8 * layers.line), 0, 1)


def stitched(layers):
    thread = np.sin((layers.sx * (1 - 2 * (layers.cover > 0.5)) + layers.sy) * 52) * 0.16
    cloth = np.clip(layers.albedo * 0.85 + 0.08 + thread[..., None] * (0.4 + layers.albedo), 0, 1)
    return cloth * (1 - 0.5 * layers.line[..., None])


def shadow(layers):
    """Dark things before an evening sky, scenery as a haze in it."""
    sky = tint(np.clip(0.5 + 0.5 * layers.sy, 0, 1), (1, 0.75, 0.35), (0.45, 0.25, 0.6))
    haze = over(sky, (0.3, 0.15, 0.3), 0.55 * (1 - grey(layers.albedo)) * (1 - layers.cover))
    return over(haze, (0.05, 0.03, 0.1), 0.93 * layers.cover) + 0.25 * (layers.line * layers.cover)[..., None]


def fog(layers):
    far = np.clip(np.clip(layers.d, 0, 1) * 1.2 + 0.25, 0, 0.8)
    return over(layers.albedo * 0.9, (0.78, 0.8, 0.83), far) * (1 - 0.3 * (layers.line * layers.cover)[..., None])


LOOKS = {
    look.__name__: look
    for look in (flat, comic, clay, watercolour, ink, neon, pixel, blueprint, night, paper, chalk, sepia)
}
BASE_LOOKS = ("flat", "comic", "clay", "watercolour")
NEW_LOOKS = tuple(name for name in LOOKS if name not in BASE_LOOKS)
PRACTICE_LOOKS = {
    look.__name__: look for look in (negative, thermal, woodcut, halftone, glass, frost, stitched, shadow, fog)
}
EVERY_LOOK = LOOKS | PRACTICE_LOOKS
