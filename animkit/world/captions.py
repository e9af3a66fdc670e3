"""Plain English for a scene, in several wordings, and back: every word that the miniature knows is here."""

import re

import numpy as np

from .scene import Scene

OVER = {
    "sea": ("over the sea", "by the sea", "over the ocean"),
    "meadow": ("in the meadow", "over the meadow", "in a green field"),
    "desert": ("in the desert", "over the desert", "over the dunes"),
    "snow": ("in the snow", "over the snow", "in the snowy mountains"),
    "city": ("in the city", "over the city", "in town"),
    "space": ("in space", "among the stars", "in outer space"),
}
DOING = {
    "rising": ("rising", "going up", "flying up"),
    "falling": ("falling", "dropping", "falling down"),
    "walking": ("walking", "strolling", "walking along"),
    "bouncing": ("bouncing", "jumping", "bouncing up and down"),
    "spinning": ("spinning", "turning around", "spinning around"),
    "growing": ("growing", "getting bigger", "growing larger"),
    "shrinking": ("shrinking", "getting smaller", "shrinking away"),
    "swinging": ("swinging", "swinging on a rope", "swinging to and fro"),
    "shaking": ("shaking", "trembling", "shivering"),
    "circling": ("circling", "moving in a circle", "going round in circles"),
}
LOOK = {
    "flat": ("", "flat cartoon", "simple cartoon"),
    "comic": ("comic", "comic drawing", "comic book style"),
    "clay": ("clay", "clay model", "made of clay"),
    "watercolour": ("watercolour", "watercolour painting", "painted in watercolour"),
}
TEMPLATES = (
    "a {thing} {over}, {doing}",
    "a {thing} {doing} {over}",
    "{over} a {thing}, {doing}",
    "a picture of a {thing} {doing} {over}",
    "a {thing} is {doing} {over}",
    "{doing}, a {thing} {over}",
)
HELD_OUT = ("the {thing} {over} is {doing}", "{over}, a picture of the {thing} {doing}")  # never trained on: for tests
STILL = ("a {thing} {over}", "{over} a {thing}", "a picture of a {thing} {over}", "a {thing}, {over}")


def caption(scene: Scene, rng: np.random.Generator | None = None, templates=TEMPLATES, look: bool = True) -> str:
    """One caption: the first wording of everything, or, given rng, one by chance.

    look=False leaves the look out; new looks have no word of their own. Two things are never said to be ("a cat and a dog is").
    """

    def pick(options):
        return options[0] if rng is None else options[rng.integers(len(options))]

    things = " and a ".join(f"{t.colour} {t.object}" for t in scene.things)
    motions = {t.motion for t in scene.things}
    doing = pick(DOING[scene.things[0].motion]) if len(motions) == 1 and scene.things[0].motion else None
    templates = templates if doing else STILL
    fitting = [t for t in templates if len(scene.things) == 1 or " is " not in t] or templates
    words = pick(fitting).format(thing=things, over=pick(OVER[scene.setting]), doing=doing)
    words = re.sub(r"\ba (?=[aeiou])", "an ", words)
    style = pick(LOOK.get(scene.look, ("",))) if look else ""
    return f"{words}, {style}" if style else words
