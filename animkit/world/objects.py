"""The sixteen things of the cartoon world: each a function of local x, y (about -1 to 1, y up, looking to the right)
that returns its parts from back to front as (signed distance, colour). The colour "main" is the object's own,
"dark" and "light" are shades of it, a triple is fixed."""

import numpy as np

from .sdf import arc, box, circle, ellipse, polygon, segment, star, union

WHITE, BLACK, GREY = (0.97, 0.97, 0.95), (0.13, 0.12, 0.15), (0.55, 0.57, 0.62)
BROWN, LEAF, GOLD, GLASS = (0.48, 0.30, 0.18), (0.30, 0.62, 0.27), (0.98, 0.78, 0.22), (0.72, 0.90, 0.98)


def eye(x, y, cx, cy, r=0.15):
    return [(circle(x, y, cx, cy, r), WHITE), (circle(x, y, cx + r * 0.3, cy, r * 0.55), BLACK)]


def balloon(x, y):
    return [
        (segment(x, y, 0, -0.35, 0.06, -1.0, 0.045), BLACK),
        (ellipse(x, y, 0, 0.28, 0.62, 0.72), "main"),
        (polygon(x, y, [(-0.13, -0.52), (0.13, -0.52), (0, -0.36)]), "dark"),
        (ellipse(x, y, -0.25, 0.52, 0.13, 0.2), "light"),
    ]


def ball(x, y):
    d = circle(x, y, 0, 0, 0.85)
    return [(d, "main"), (np.maximum(d, np.abs(y) - 0.2), WHITE), (star(x, y, 0, 0, 0.45), GOLD)]


def star_(x, y):
    return [(star(x, y, 0, 0, 1.0) - 0.06, "main"), *eye(x, y, -0.2, 0.08, 0.13), *eye(x, y, 0.2, 0.08, 0.13)]


def heart(x, y):
    ax = np.abs(x)
    d = union(circle(ax, y, 0.42, 0.35, 0.46), polygon(ax, y, [(0.0, -0.92), (0.86, 0.2), (0.4, 0.75), (0.0, 0.45)]))
    return [(d, "main"), (ellipse(x, y, -0.45, 0.42, 0.16, 0.12), "light")]


def fish(x, y):
    body = ellipse(x, y, 0.18, 0, 0.75, 0.5)
    return [
        (polygon(x, y, [(-0.95, -0.5), (-0.4, 0.0), (-0.95, 0.5)]), "dark"),
        (polygon(x, y, [(-0.2, 0.4), (0.35, 0.4), (0.0, 0.82)]), "dark"),
        (body, "main"),
        (np.maximum(body, np.abs(x + 0.02) - 0.1), WHITE),
        *eye(x, y, 0.55, 0.1, 0.16),
    ]


def bird(x, y):
    return [
        (polygon(x, y, [(-1.0, -0.05), (-0.45, -0.3), (-0.4, 0.1)]), "dark"),
        (polygon(x, y, [(0.7, 0.12), (1.08, 0.22), (0.7, 0.38)]), GOLD),
        (ellipse(x, y, -0.05, -0.15, 0.62, 0.45), "main"),
        (circle(x, y, 0.45, 0.3, 0.36), "main"),
        (polygon(x, y, [(-0.5, 0.75), (-0.45, -0.1), (0.15, -0.1)]), "light"),
        *eye(x, y, 0.55, 0.36, 0.13),
        (union(segment(x, y, -0.1, -0.55, -0.1, -0.85, 0.05), segment(x, y, 0.15, -0.55, 0.15, -0.85, 0.05)), GOLD),
    ]


def cat(x, y):
    ears = union(
        polygon(x, y, [(0.08, 0.55), (0.38, 0.6), (0.1, 0.98)]), polygon(x, y, [(0.48, 0.6), (0.8, 0.55), (0.78, 0.98)])
    )
    legs = union(*[box(x, y, cx, -0.68, 0.11, 0.28, 0.08) for cx in (-0.55, -0.25, 0.15, 0.42)])
    return [
        (
            union(arc(x, y, -0.75, 0.1, 0.32, np.pi * 1.0, 1.7, 0.09), segment(x, y, -0.75, -0.2, -0.5, -0.2, 0.09)),
            "dark",
        ),
        (legs, "dark"),
        (ellipse(x, y, -0.08, -0.25, 0.65, 0.38), "main"),
        (ears, "main"),
        (circle(x, y, 0.43, 0.3, 0.44), "main"),
        *eye(x, y, 0.28, 0.36, 0.12),
        *eye(x, y, 0.62, 0.36, 0.12),
        (ellipse(x, y, 0.46, 0.12, 0.09, 0.06), BLACK),
    ]


def car(x, y):
    wheels = union(circle(x, y, -0.5, -0.45, 0.26), circle(x, y, 0.5, -0.45, 0.26))
    hubs = union(circle(x, y, -0.5, -0.45, 0.11), circle(x, y, 0.5, -0.45, 0.11))
    return [
        (polygon(x, y, [(-0.6, 0.05), (0.5, 0.05), (0.28, 0.58), (-0.42, 0.58)], 0.06), "main"),
        (polygon(x, y, [(-0.42, 0.1), (-0.08, 0.1), (-0.08, 0.46), (-0.32, 0.46)]), GLASS),
        (polygon(x, y, [(0.04, 0.1), (0.4, 0.1), (0.24, 0.46), (0.04, 0.46)]), GLASS),
        (box(x, y, 0, -0.18, 0.98, 0.28, 0.14), "main"),
        (circle(x, y, 0.87, -0.1, 0.09), GOLD),
        (wheels, BLACK),
        (hubs, GREY),
    ]


def boat(x, y):
    return [
        (box(x, y, 0.0, 0.3, 0.05, 0.72), BROWN),
        (polygon(x, y, [(0.1, -0.2), (0.78, -0.2), (0.1, 0.98)]), WHITE),
        (polygon(x, y, [(-0.62, -0.2), (-0.1, -0.2), (-0.1, 0.75)]), "light"),
        (polygon(x, y, [(-0.68, -0.85), (0.62, -0.85), (0.98, -0.32), (-0.95, -0.32)]), "main"),
        (box(x, y, 0.0, -0.38, 0.93, 0.07), "dark"),
    ]


def house(x, y):
    windows = union(box(x, y, -0.36, -0.1, 0.16, 0.16), box(x, y, 0.36, -0.1, 0.16, 0.16))
    return [
        (box(x, y, 0.45, 0.6, 0.12, 0.32), BROWN),
        (box(x, y, 0, -0.35, 0.72, 0.56), WHITE),
        (windows, GLASS),
        (box(x, y, 0, -0.62, 0.15, 0.29), BROWN),
        (polygon(x, y, [(-0.98, 0.15), (0.98, 0.15), (0, 0.95)]), "main"),
    ]


def tree(x, y):
    return [
        (box(x, y, 0, -0.72, 0.14, 0.3), BROWN),
        (polygon(x, y, [(-0.82, -0.5), (0.82, -0.5), (0, 0.25)]), "main"),
        (polygon(x, y, [(-0.66, -0.08), (0.66, -0.08), (0, 0.62)]), "light"),
        (polygon(x, y, [(-0.48, 0.34), (0.48, 0.34), (0, 1.0)]), "main"),
    ]


def flower(x, y):
    petals = union(*[circle(x, y, 0.42 * np.sin(a), 0.3 + 0.42 * np.cos(a), 0.27) for a in np.arange(6) * np.pi / 3])
    return [
        (segment(x, y, 0, 0.1, 0, -0.98, 0.07), LEAF),
        (ellipse(x, y, 0.28, -0.62, 0.28, 0.12), LEAF),
        (ellipse(x, y, -0.28, -0.76, 0.28, 0.12), LEAF),
        (petals, "main"),
        (circle(x, y, 0, 0.3, 0.25), GOLD),
    ]


def rocket(x, y):
    body = ellipse(x, y, 0, 0.1, 0.38, 0.88)
    return [
        (polygon(x, y, [(-0.2, -0.62), (0.0, -1.05), (0.2, -0.62)]), GOLD),
        (polygon(x, y, [(-0.75, -0.78), (-0.2, -0.62), (-0.25, 0.0)]), "dark"),
        (polygon(x, y, [(0.2, -0.62), (0.75, -0.78), (0.25, 0.0)]), "dark"),
        (body, "main"),
        (np.maximum(body, 0.52 - y), WHITE),
        (circle(x, y, 0, 0.15, 0.2), WHITE),
        (circle(x, y, 0, 0.15, 0.13), GLASS),
    ]


def mushroom(x, y):
    cap = np.maximum(ellipse(x, y, 0, 0.0, 0.92, 0.85), -y)
    spots = np.maximum(
        union(circle(x, y, -0.42, 0.32, 0.15), circle(x, y, 0.12, 0.55, 0.17), circle(x, y, 0.52, 0.2, 0.13)), cap
    )
    return [(box(x, y, 0, -0.4, 0.3, 0.48, 0.16), WHITE), (cap, "main"), (spots, WHITE)]


def robot(x, y):
    limbs = union(
        box(x, y, -0.26, -0.82, 0.13, 0.2),
        box(x, y, 0.26, -0.82, 0.13, 0.2),
        box(x, y, -0.7, -0.25, 0.1, 0.3, 0.05),
        box(x, y, 0.7, -0.25, 0.1, 0.3, 0.05),
    )
    return [
        (segment(x, y, 0, 0.6, 0, 0.95, 0.05), GREY),
        (circle(x, y, 0, 0.95, 0.1), GOLD),
        (limbs, GREY),
        (box(x, y, 0, -0.25, 0.54, 0.42, 0.06), "main"),
        (box(x, y, 0, 0.42, 0.44, 0.28, 0.08), "main"),
        (box(x, y, 0, -0.25, 0.26, 0.2), "dark"),
        *eye(x, y, -0.19, 0.46, 0.14),
        *eye(x, y, 0.19, 0.46, 0.14),
    ]


def umbrella(x, y):
    dome = np.maximum(ellipse(x, y, 0, 0.05, 0.95, 0.85), 0.1 - y)
    ribs = np.maximum(dome, np.abs(x) - 0.3)
    return [
        (
            union(segment(x, y, 0, 0.9, 0, -0.75, 0.05), arc(x, y, 0.17, -0.75, 0.17, -np.pi / 2, np.pi / 2, 0.05)),
            BROWN,
        ),
        (dome, "main"),
        (ribs, "light"),
    ]


OBJECTS = {
    "balloon": balloon,
    "ball": ball,
    "star": star_,
    "heart": heart,
    "fish": fish,
    "bird": bird,
    "cat": cat,
    "car": car,
    "boat": boat,
    "house": house,
    "tree": tree,
    "flower": flower,
    "rocket": rocket,
    "mushroom": mushroom,
    "robot": robot,
    "umbrella": umbrella,
}

COLOURS = {
    "red": (0.88, 0.14, 0.14),
    "orange": (0.98, 0.52, 0.08),
    "yellow": (0.99, 0.87, 0.15),
    "green": (0.16, 0.66, 0.26),
    "blue": (0.13, 0.36, 0.88),
    "purple": (0.55, 0.22, 0.75),
    "pink": (0.98, 0.52, 0.74),
    "white": (0.96, 0.96, 0.96),
}
