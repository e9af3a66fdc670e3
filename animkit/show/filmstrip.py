"""Still pictures of clips (a strip of frames, a sheet of strips), and clips side by side."""
from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from animkit.errors import AnimkitError
from animkit.files import write_atomically
from animkit.show.clip import Clip, enlarge

GAP, BAND, INK, PAPER = 4, 28, (32, 32, 32), (255, 255, 255)


class Picture:
    """A PIL image (`.image`) with a description for those who cannot see it (`.alt`); shows itself in a notebook."""

    lossy = False  # True: lossy WebP on a page, a third as large for frames
    quality = 75   # of the WebP, 0 to 100

    def __init__(self, image: PIL.Image.Image, alt: str):
        self.image, self.alt = image, alt

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.image, dtype=dtype)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size

    def save(self, path: str | Path) -> Path:
        """Write the picture in the format that the suffix names; AnimkitError if Pillow does not know it."""
        path, buffer = Path(path), io.BytesIO()
        format = PIL.Image.registered_extensions().get(path.suffix.lower())
        if format is None:
            raise AnimkitError(f"Cannot save a picture as '{path.name}': give a suffix such as .png or .jpg.")
        self.image.save(buffer, format)
        return write_atomically(path, lambda beside: Path(beside).write_bytes(buffer.getvalue()))

    def __repr__(self) -> str:
        return f"Picture of {self.size[0]} x {self.size[1]} pixels: {self.alt}"

    def _img(self) -> str:
        kind, how = ("webp", {"quality": self.quality}) if self.lossy else ("png", {"optimize": True})
        buffer = io.BytesIO()
        (self.image.convert("RGB") if self.lossy else self.image).save(buffer, kind, **how)
        data = base64.b64encode(buffer.getvalue()).decode()
        alt = html.escape(self.alt, quote=True)
        return f'<img style="max-width: 100%; height: auto" alt="{alt}" src="data:image/{kind};base64,{data}">'

    def _repr_html_(self) -> str:
        return f"<figure>{self._img()}</figure>"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/plain": repr(self), "text/html": self._repr_html_()}


def filmstrip(clips: Clip | Sequence[Clip], n: int = 8, labels: Sequence[str] | None = None) -> Picture:
    """n frames of a clip, evenly spaced from the first to the last, in a row; several clips give a row each.

    Raises AnimkitError when n is below 1, or labels and clips differ in number.
    """
    clips = [clips] if isinstance(clips, Clip) else list(clips)
    labels = _check(clips, labels)
    if n < 1:
        raise AnimkitError(f"A filmstrip has at least one frame; got n={n}.")
    rows = []
    for i, clip in enumerate(clips):
        shown = np.linspace(0, len(clip) - 1, min(n, len(clip))).round().astype(int)
        row = _beside([_at_half_film_size(frame, clip.enlargement) for frame in clip.array[shown]])
        rows.append(row if labels is None else np.concatenate([_band(labels[i], row.shape[1]), row]))
    said = "; ".join(clip.prompt or "no prompt" for clip in clips) if labels is None else ", ".join(labels)
    alt = f"Filmstrip, {min(n, max(map(len, clips)))} frames from first to last: {said}"
    return Picture(PIL.Image.fromarray(_below(rows)), alt)


def side_by_side(clips: Sequence[Clip], labels: Sequence[str] | None = None, columns: int = 4) -> Clip:
    """One clip that plays several together, each under its label; small ones grow to 256 px, rows hold `columns`.

    Raises AnimkitError when there is no clip, clips differ in length or speed, or labels and clips differ in number.
    """
    clips = list(clips)
    labels = _check(clips, labels)
    if len({(len(c), c.fps) for c in clips}) > 1:
        said = ", ".join(f"{len(c)} at {c.fps:g} fps" for c in clips)
        raise AnimkitError(f"Clips side by side have the same number of frames and fps; these have {said}: "
                           f"cut them first.")
    if columns < 1:
        raise AnimkitError(f"side_by_side has at least one column; got {columns}.")
    panels = [enlarge(c.array, c.enlargement) for c in clips]
    if labels is not None:
        bands = [_band(label, p.shape[2]) for label, p in zip(labels, panels)]
        panels = [np.concatenate([np.repeat(b[None], len(p), 0), p], axis=1) for b, p in zip(bands, panels)]
    frames = []
    for pictures in zip(*panels):
        rows = [_beside(list(pictures[i:i + columns])) for i in range(0, len(pictures), columns)]
        frames.append(_below(rows))
    names = labels if labels is not None else [c.prompt for c in clips]
    prompts = {c.prompt for c in clips}
    prompt = clips[0].prompt if len(prompts) == 1 else ""
    said = "side by side: " + ", ".join(names)
    return Clip(np.stack(frames), clips[0].fps, f"{prompt} ({said})" if prompt and labels is not None else said,
                {"side_by_side": [{"prompt": c.prompt, **c.settings} for c in clips], "labels": list(names)})


def _check(clips: list[Clip], labels: Sequence | None) -> list[str] | None:
    """The labels as text: numbers, such as alphas, are welcome."""
    if not clips or not all(isinstance(c, Clip) for c in clips):
        raise AnimkitError("Give at least one Clip, or a list of them.")
    if labels is not None and (isinstance(labels, str) or len(labels) != len(clips)):
        raise AnimkitError(f"There are {len(clips)} clips and the labels are {labels!r}: give one for each.")
    return None if labels is None else [str(label) for label in labels]


def _band(label: str, width: int) -> np.ndarray:
    """A label, centred on a strip of paper, shrunk until it fits; if that is not enough, cut, with three dots."""
    band = PIL.Image.new("RGB", (width, BAND), PAPER)
    draw = PIL.ImageDraw.Draw(band)
    for size in range(17, 7, -1):
        font = PIL.ImageFont.load_default(size)
        if draw.textlength(label, font) <= width - 4:
            break
    kept = len(label)
    while kept and draw.textlength(label, font) > width - 4:
        kept -= 1
        label = label[:kept].rstrip(" .") + "..."
    draw.text((width / 2, BAND / 2), label, INK, font, anchor="mm")
    return np.asarray(band)


def _at_half_film_size(frame: np.ndarray, enlargement: int) -> np.ndarray:
    if enlargement > 1:
        return enlarge(frame, enlargement // 2)
    h, w, _ = frame.shape
    return np.asarray(PIL.Image.fromarray(frame).resize((max(1, w // 2), max(1, h // 2)), PIL.Image.Resampling.BOX))


def _beside(pictures: list[np.ndarray]) -> np.ndarray:
    height = max(p.shape[0] for p in pictures)
    gaps = [GAP] * (len(pictures) - 1) + [0]
    padded = [np.pad(p, ((height - p.shape[0], 0), (0, gap), (0, 0)), constant_values=255)
              for p, gap in zip(pictures, gaps)]
    return np.concatenate(padded, axis=1)


def _below(rows: list[np.ndarray]) -> np.ndarray:
    width = max(r.shape[1] for r in rows)
    gaps = [GAP] * (len(rows) - 1) + [0]
    padded = [np.pad(r, ((0, gap), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r, gap in zip(rows, gaps)]
    return np.concatenate(padded)
