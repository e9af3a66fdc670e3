"""The cartoon world: scenes whose motion, masks, depth, flow and looks are known exactly, because we draw them."""

from .captions import caption
from .looks import BASE_LOOKS, EVERY_LOOK, LOOKS, NEW_LOOKS, PRACTICE_LOOKS
from .objects import COLOURS, OBJECTS
from .render import Footage, render
from .scene import MOTIONS, SHOTS, Scene, Thing, random_scene
from .settings import SETTINGS
from .web import watermark, web_video

__all__ = [
    "BASE_LOOKS",
    "COLOURS",
    "EVERY_LOOK",
    "LOOKS",
    "MOTIONS",
    "NEW_LOOKS",
    "OBJECTS",
    "PRACTICE_LOOKS",
    "SETTINGS",
    "SHOTS",
    "Footage",
    "Scene",
    "Thing",
    "caption",
    "random_scene",
    "render",
    "watermark",
    "web_video",
]
