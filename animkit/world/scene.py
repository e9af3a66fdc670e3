"""A scene is a description, all of it known: what stands where, how it moves, how the camera moves, in which look.

World coordinates: x to the right, y up; the camera at rest sees -1 to 1. Time u runs from 0 (first frame) to 1 (end of the clip).
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from ..errors import AnimkitError
from .looks import EVERY_LOOK
from .objects import COLOURS, OBJECTS
from .settings import SETTINGS


def ease(u):
    """Slow in, slow out."""
    return u * u * (3 - 2 * u)


# Motion -> a function of time u (array) and the thing: offset x, y, angle (anticlockwise), scale x, y.
def _still(u, s):
    return 0 * u, 0 * u, 0 * u, 1 + 0 * u, 1 + 0 * u


def _rising(u, s):
    return 0.05 * np.sin(5 * u), -0.5 + 1.0 * ease(u), 0.06 * np.sin(5 * u), 1 + 0 * u, 1 + 0 * u


def _falling(u, s):
    return 0 * u, 0.5 - 1.0 * u * (0.25 + 0.75 * u), 0.12 * np.sin(7 * u), 1 - 0.06 * u, 1 + 0.12 * u


def _walking(u, s):
    step = np.sin(4 * np.pi * u)
    return s.facing * (-0.5 + 1.0 * u), 0.07 * np.abs(step), 0.14 * step, 1 + 0 * u, 1 + 0.04 * np.abs(step)


def _bouncing(u, s):
    height = np.abs(np.sin(2 * np.pi * u))
    squash = np.clip(1 - 4 * height, 0, 1)
    return 0 * u, -0.42 + 0.72 * height, 0 * u, 1 + 0.25 * squash, 1 - 0.3 * squash


def _spinning(u, s):
    return 0 * u, 0 * u, -2 * np.pi * u, 1 + 0 * u, 1 + 0 * u


def _growing(u, s):
    k = 0.5 + 0.85 * ease(u)
    return 0 * u, 0 * u, 0 * u, k, k


def _shrinking(u, s):
    k = 1.35 - 0.85 * ease(u)
    return 0 * u, 0 * u, 0 * u, k, k


def _swinging(u, s):
    angle = 0.6 * np.sin(3 * np.pi * u)  # a pendulum, hung 1.1 above
    return 1.1 * np.sin(angle), 1.1 * (1 - np.cos(angle)) - 0.1, angle, 1 + 0 * u, 1 + 0 * u


def _shaking(u, s):
    return 0.13 * np.sin(8 * np.pi * u), 0 * u, 0.1 * np.sin(8 * np.pi * u + 1), 1 + 0 * u, 1 + 0 * u


def _circling(u, s):
    return 0.42 * np.sin(2 * np.pi * u), 0.42 * np.cos(2 * np.pi * u), 0 * u, 1 + 0 * u, 1 + 0 * u


MOTIONS = {
    "rising": _rising,
    "falling": _falling,
    "walking": _walking,
    "bouncing": _bouncing,
    "spinning": _spinning,
    "growing": _growing,
    "shrinking": _shrinking,
    "swinging": _swinging,
    "shaking": _shaking,
    "circling": _circling,
}

# Shot type -> zoom, centre x, centre y, angle of the camera at time u, for an amount of 1 (the paper's eight, 4.3).
# Words are the viewer's: in "roll clockwise" the picture turns clockwise; in "pan left" the camera looks to the left.
SHOTS = {
    "zoom in": lambda u, a: (1 + 0.7 * a * u, 0 * u, 0 * u, 0 * u),
    "zoom out": lambda u, a: (1 / (1 + 0.7 * a * u), 0 * u, 0 * u, 0 * u),
    "pan left": lambda u, a: (1 + 0 * u, -0.8 * a * u, 0 * u, 0 * u),
    "pan right": lambda u, a: (1 + 0 * u, 0.8 * a * u, 0 * u, 0 * u),
    "tilt up": lambda u, a: (1 + 0 * u, 0 * u, 0.8 * a * u, 0 * u),
    "tilt down": lambda u, a: (1 + 0 * u, 0 * u, -0.8 * a * u, 0 * u),
    "roll clockwise": lambda u, a: (1 + 0 * u, 0 * u, 0 * u, -0.7 * a * u),
    "roll anticlockwise": lambda u, a: (1 + 0 * u, 0 * u, 0 * u, 0.7 * a * u),
}


@dataclass(frozen=True)
class Thing:
    """One object: what, its colour, its motion (None stands still), where it is about (world units), how big, which way it looks."""

    object: str = "balloon"
    colour: str = "red"
    motion: str | None = None
    x: float = 0.0
    y: float = 0.0
    size: float = 0.46
    facing: int = 1
    cue: str | None = (
        "own"  # whose marks are drawn about it: its own motion's; another's or none, to test that a judge reads motion
    )

    @property
    def marks(self) -> str | None:
        """The motion whose marks are drawn."""
        return self.motion if self.cue == "own" else self.cue


@dataclass(frozen=True)
class Scene:
    """Everything there is to know of a clip; render(scene) is a pure function of it."""

    things: tuple[Thing, ...] = (Thing(),)
    setting: str = "meadow"
    look: str = "flat"
    shot: str | None = None
    amount: float = 1.0  # of the camera move
    seed: int = 0  # of the scenery and of textures

    def __post_init__(self):
        if isinstance(self.things, Thing):
            raise AnimkitError("A scene's things are a tuple, a single one too; mind the comma: Scene((Thing(...),)).")
        for kind, name, known in [
            ("setting", self.setting, SETTINGS),
            ("look", self.look, EVERY_LOOK),
            ("shot", self.shot, (None, *SHOTS)),
            *[("object", t.object, OBJECTS) for t in self.things],
            *[("colour", t.colour, COLOURS) for t in self.things],
            *[("motion", t.motion, (None, *MOTIONS)) for t in self.things],
            *[("cue", t.cue, (None, "own", *MOTIONS)) for t in self.things],
        ]:
            if name not in known:
                raise AnimkitError(
                    f"There is no {kind} {name!r} in the cartoon world; choose one of: {', '.join(str(k) for k in known if k)}."
                )
        if not self.seed >= 0:
            raise AnimkitError(f"A scene's seed is 0 or more; got {self.seed!r}.")
        for thing in self.things:
            if not thing.size > 0 or thing.facing not in (-1, 1):
                raise AnimkitError(
                    f"A thing's size is above 0 and its facing 1 or -1; got {thing.size!r} and {thing.facing!r}."
                )

    with_ = replace


def random_scene(rng: np.random.Generator, things: int = 1, moving: float = 0.85, **fixed) -> Scene:
    """A scene drawn at random. moving: the share of things that move.

    Keyword arguments fix any field of Scene or Thing (of all its things); out of a tuple or list one is chosen. Raises
    AnimkitError for any other, and for a scene without a thing.
    """
    if things < 1:
        raise AnimkitError(f"A random scene has a thing in it at least; got things={things}.")
    known = [field.name for kind in (Thing, Scene) for field in fields(kind) if field.name != "things"]
    if odd := [name for name in fixed if name not in known]:
        raise AnimkitError(f"A scene has no {odd[0]!r} that could be fixed; there are: {', '.join(known)}.")

    def choose(name, among):
        among = fixed.get(name, among)
        return among[rng.integers(len(among))] if isinstance(among, (tuple, list)) else among

    cast = []
    for k in range(things):
        motion = choose("motion", tuple(MOTIONS)) if rng.random() < moving or "motion" in fixed else None
        spread = 0.12 if motion in ("walking", "circling", "swinging", "growing", "shrinking", "bouncing") else 0.3
        across = spread if things == 1 else 0.12
        cast.append(
            Thing(
                choose("object", tuple(OBJECTS)),
                choose("colour", tuple(COLOURS)),
                motion,
                x=float(rng.uniform(-across, across)) + (0 if things == 1 else (k - (things - 1) / 2) * 0.9),
                y=float(rng.uniform(-0.12, 0.12)),
                size=float(rng.uniform(0.44, 0.56)) * (1 if things == 1 else 0.75),
                facing=int(rng.choice((-1, 1))),
            )
        )
        own = {name: choose(name, None) for name in ("x", "y", "size", "facing", "cue") if name in fixed}
        cast[-1] = replace(cast[-1], **own)
    return Scene(
        tuple(cast),
        choose("setting", tuple(SETTINGS)),
        choose("look", ("flat",)),
        choose("shot", (None,)),
        choose("amount", 1.0),
        choose("seed", int(rng.integers(1 << 16))),
    )
