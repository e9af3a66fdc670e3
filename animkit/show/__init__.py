"""How a clip is seen: in a notebook (untrusted too), as a film, as a strip of frames, side by side, in a playground."""
from animkit.show.clip import Clip
from animkit.show.filmstrip import Picture, filmstrip, side_by_side

__all__ = ["Clip", "Picture", "filmstrip", "side_by_side"]
