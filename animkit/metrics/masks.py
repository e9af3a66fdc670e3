"""Where the thing is in a picture, by its colours, and how well that agrees with where it should be (5.4).

    reader = MaskReader.fit(renders, masks)         # pictures of the thing in this look, whose masks are exact
    overlap(reader(clip), footage.mask > 0.5)       # f numbers, 0 to 1

The cartoon world has exact masks in any look, so the reader learns from renders of other scenes which colours the thing
has there, and which colours the rest has. It knows nothing of shapes and places, so it cannot use the mask that a clip
should follow. What it misses on real renders is its own error: report it beside every result.
"""
from dataclasses import dataclass

import numpy as np

from ..errors import AnimkitError
from .frames import pixels

LEVELS = 16  # of each of R, G, B


@dataclass
class MaskReader:
    """P(thing | colour of a pixel), a table of LEVELS^3; called on a clip it gives masks f h w."""
    chance: np.ndarray

    @classmethod
    def fit(cls, pictures, masks) -> "MaskReader":
        """From pictures (n h w 3, uint8) and their masks (n h w, true where the thing is), by Bayes' rule, with thing and
        rest equally likely beforehand.

        Colours are counted in a histogram that is smoothed over neighbouring colours, since a model does not hit them
        exactly. Raises AnimkitError where shapes differ, or if the masks are all of one kind.
        """
        pictures, masks = pixels(pictures), np.asarray(masks, bool)
        if masks.shape != pictures.shape[:3]:
            raise AnimkitError(f"Each picture wants its mask: {pictures.shape[:3]}, not {masks.shape}.")
        if masks.all() or not masks.any():
            raise AnimkitError("A reader learns from pictures that show the thing and what is not the thing; these "
                               "masks have only one of the two.")
        places = _colour(pictures)
        thing, rest = (_smooth(np.bincount(places[m], minlength=LEVELS ** 3)) for m in (masks, ~masks))
        rare = 0.01                                             # a colour never seen counts as not the thing
        return cls(thing / (thing + rest + rare))

    def __call__(self, clip) -> np.ndarray:
        """Masks f h w of a clip: the pixels whose chance, averaged with their 8 neighbours', is above one half; without
        spots, that is pieces under a quarter of the largest."""
        chance = self.chance[_colour(pixels(clip))]
        around = np.pad(chance, ((0, 0), (1, 1), (1, 1)), mode="edge")
        h, w = chance.shape[1:]
        likely = sum(around[:, i:i + h, j:j + w] for i in range(3) for j in range(3)) / 9 > 0.5
        return np.stack([_without_spots(mask) for mask in likely])


def overlap(found: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Intersection over union of masks f h w and f h w: f numbers, 0 to 1; 1 where both are empty."""
    found, given = _masks(found, given)
    both, either = ((op(found, given)).sum((1, 2)) for op in (np.logical_and, np.logical_or))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def centres(mask: np.ndarray) -> np.ndarray:
    """Centres of masks f h w: f 2, x to the right and y down from the picture's middle, -0.5 to 0.5 in parts of its
    width and height; NaN where a mask is empty."""
    mask, _ = _masks(mask, mask)
    f, h, w = mask.shape
    x, y = (np.arange(w) + 0.5) / w - 0.5, (np.arange(h) + 0.5) / h - 0.5
    count = mask.sum((1, 2))
    total = np.stack([(mask * x).sum((1, 2)), (mask * y[:, None]).sum((1, 2))], 1)
    return np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], np.nan)


def follows(found: np.ndarray, given: np.ndarray) -> float:
    """Correlation of where a thing is with where it should be: of the centres of masks f h w, both axes together; NaN
    if it is never seen, or does not move in one of the two."""
    a, b = centres(found), centres(given)
    seen = ~np.isnan(a + b).any(1)
    a, b = (z[seen] - z[seen].mean(0) if seen.any() else z[seen] for z in (a, b))
    scale = float(np.sqrt((a ** 2).sum() * (b ** 2).sum()))
    return float((a * b).sum()) / scale if scale > 1e-9 else float("nan")


def _masks(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if a.ndim != 3 or a.shape != b.shape or 0 in a.shape:
        raise AnimkitError(f"Masks are f h w, as many of the one as of the other; got {a.shape} and {b.shape}.")
    return a, b


def _without_spots(mask: np.ndarray) -> np.ndarray:
    import cv2

    count, piece, sizes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    area = np.where(np.arange(count) > 0, sizes[:, cv2.CC_STAT_AREA], 0)  # piece 0 is what is not the thing
    return (area >= max(1, area.max() / 4))[piece]


def _colour(pictures: np.ndarray) -> np.ndarray:
    """The place of every pixel's colour in the table: ... h w 3 -> ... h w."""
    r, g, b = np.moveaxis(pictures.astype(int) * LEVELS // 256, -1, 0)
    return (r * LEVELS + g) * LEVELS + b


def _smooth(counts: np.ndarray) -> np.ndarray:
    """Counts of colours, each shared with its neighbours: 1 2 1 along red, green and blue; as shares of all."""
    table = counts.reshape((LEVELS,) * 3) / max(1, counts.sum()) * counts.size
    for axis in range(3):
        padded = np.pad(table, [(1, 1) if i == axis else (0, 0) for i in range(3)], mode="edge")
        low, mid, high = (padded.take(range(i, i + LEVELS), axis) for i in range(3))
        table = (low + 2 * mid + high) / 4
    return table.ravel()


def reader_of(scene, count: int = 12, seed: int = 0, vae=None) -> MaskReader:
    """A reader for the one thing of a cartoon scene, in its colour, setting and look, from `count` renders of others.

    With a vae, they first go `through` it, as the frames of a clip do. AnimkitError unless there is one thing.
    """
    from ..world import random_scene, render
    if len(scene.things) != 1:
        raise AnimkitError(f"A reader is made for a scene of one thing; this one has {len(scene.things)}.")
    thing, rng = scene.things[0], np.random.default_rng(seed)
    fixed = {"object": thing.object, "colour": thing.colour, "setting": scene.setting, "look": scene.look}
    known = [render(random_scene(rng, **fixed), u=[rng.random()]) for _ in range(count)]
    pictures, masks = (np.concatenate(parts) for parts in zip(*((f.uint8, f.mask > 0.5) for f in known)))
    return MaskReader.fit(pictures if vae is None else through(vae, pictures), masks)


def through(vae, pictures) -> np.ndarray:
    """Pictures n h w 3 (uint8), encoded and decoded by a VAE."""
    import torch

    from ..base import decode
    from ..data.cache import encode
    with torch.no_grad():
        z = encode(vae, torch.from_numpy(pixels(pictures)).permute(3, 0, 1, 2))             # c n h w
        return decode(vae, z[None])[0].numpy()
