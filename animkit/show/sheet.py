"""A labelled sheet of still pictures in rows and columns: frames against steps, looks beside looks."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image

from animkit.errors import AnimkitError
from animkit.show.clip import enlarge
from animkit.show.filmstrip import BAND, Picture, _band, _below, _beside

MARGIN = 120  # pixels, the width of the rows' labels


def sheet(rows: Mapping[str, Mapping[str, Any]], alt: str, size: int = 128) -> Picture:
    """{row label: {column label: picture}} as one picture; alt says what it shows to those who cannot see it.

    A picture is anything that numpy reads as h w 3 uint8; small ones are enlarged by whole numbers to `size` pixels or
    more. Columns are labelled where their names differ from those of the row above; rows all labelled "" have no margin.
    Raises AnimkitError when there is no picture, one is not h w 3 uint8, or alt is empty.
    """
    if not rows or not all(rows.values()):
        raise AnimkitError("A sheet has at least one row, and each row at least one picture.")
    if not alt.strip():
        raise AnimkitError("A sheet needs alt, a sentence that says what it shows to those who cannot see it.")
    drawn, above = [], ()
    for row_label, row in rows.items():
        columns = tuple(row)
        panels = [_panel(picture, f"{row_label} {label}".strip(), size) for label, picture in row.items()]
        if columns != above:
            labels = [_band(label, panel.shape[1]) for label, panel in zip(columns, panels)]
            panels = [np.concatenate([label, panel]) for label, panel in zip(labels, panels)]
        if any(rows):
            top = 0 if columns == above else BAND  # the label stands beside the pictures, below the columns' labels
            tall = max(top + BAND, *(len(panel) for panel in panels))
            margin = np.full((tall, MARGIN, 3), 255, np.uint8)
            start = (top + tall - BAND) // 2
            margin[start:start + BAND] = _band(row_label, MARGIN)
            panels = [margin, *panels]
        drawn.append(_beside(panels))
        above = columns
    return Picture(PIL.Image.fromarray(_below(drawn)), alt)


def _panel(picture: Any, name: str, size: int) -> np.ndarray:
    pixels = np.asarray(picture)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise AnimkitError(f"The picture '{name}' of a sheet is {pixels.dtype} of shape {pixels.shape}; it must be "
                           f"uint8, height x width x 3.")
    return enlarge(pixels, max(1, -(-size // max(pixels.shape[:2]))))
