"""A matplotlib figure as a Picture: a PNG with a description for those who cannot see it, which a bare figure lacks."""
from __future__ import annotations

import io
from typing import Any

import PIL.Image

from animkit.errors import AnimkitError
from animkit.show.filmstrip import Picture


def drawn(figure: Any, alt: str, dpi: int = 100) -> Picture:
    """The figure (or the one that these axes belong to) as a Picture; it is closed, so that a cell shows it once.

    Raises AnimkitError when alt is empty.
    """
    import matplotlib.pyplot as plt

    if not alt.strip():
        raise AnimkitError("A figure needs alt, a sentence that says what it shows to those who cannot see it.")
    figure = getattr(figure, "figure", figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    plt.close(figure)
    return Picture(PIL.Image.open(buffer).convert("RGB"), alt)
