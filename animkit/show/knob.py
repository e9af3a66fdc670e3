"""One knob to turn: a slider over some values with a Play button, and under it what a plain function draws for each."""
from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets

from animkit.errors import AnimkitError


class Knob(widgets.VBox):
    """`.slider`, `.play` and `.shown` (HTML); each value is drawn once, when first chosen, and kept in `.kept`."""

    def __init__(self, draw: Callable[[Any], Any], values: Sequence[Any], value: Any, description: str):
        self.draw, self.kept = draw, {}
        self.slider = widgets.SelectionSlider(options=list(values), value=value, description=description,
                                              continuous_update=False, style={"description_width": "initial"},
                                              layout={"width": "32em"})
        self.shown = widgets.HTML(self._drawn(value))
        self.slider.observe(lambda change: self.turn(change["new"]), names="value")
        self.play = widgets.Play(min=0, max=len(values) - 1, value=self.slider.index, interval=1500, show_repeat=False)
        widgets.link((self.play, "value"), (self.slider, "index"))  # the next value every 1.5 s, or as fast as it is drawn
        super().__init__([widgets.HBox([self.play, self.slider]), self.shown])

    def __repr__(self) -> str:  # what an opened notebook says in the widget's place until the cell is run
        return f"Knob '{self.slider.description}': run this cell to turn it; what stands above shows some of its settings."

    def turn(self, value: Any) -> None:
        """Show the drawing for a value; bad input shows its one sentence in the drawing's place."""
        if value not in self.kept:
            self.shown.value = f"<p>Drawing for {html.escape(str(value))} ...</p>"
        try:
            self.shown.value = self._drawn(value)
        except Exception as error:  # a fault in draw: its traceback goes to JupyterLab's log, which nobody has open
            self.shown.value = f'<p role="alert">{html.escape(f"{type(error).__name__}: {error}")}</p>'
            raise

    def _drawn(self, value: Any) -> str:
        try:
            if value not in self.kept:
                self.kept[value] = self.draw(value)
            return self.kept[value]._repr_html_()
        except AnimkitError as error:
            return f'<p role="alert">{html.escape(str(error))}</p>'


def knob(draw: Callable[[Any], Any], values: Sequence[Any], value: Any, description: str) -> Knob:
    """A slider over `values`, starting at `value`, above what draw(value) gives: a Clip, a Picture, anything with HTML.

    Show a static picture of a few settings beside it: a knob lives only in a running notebook. Raises AnimkitError when
    value is not among the values.
    """
    if value not in list(values):
        raise AnimkitError(f"A knob starts at one of its values ({', '.join(map(str, values))}); {value!r} is none.")
    return Knob(draw, values, value, description)
