"""The user study's view (5.2): one page per prompt, clips A, B, C side by side, an order to choose for each aspect.

    RankingStudy({"a red balloon rising": {"AnimateDiff": clip, "Tune-a-Video": clip}, ...}, "answers/p01.csv", "p01")

Its logic is in study.py. Every page is saved when it is left; a study that is opened again continues where it stopped.
"""
import html
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np

from ..errors import AnimkitError
from ..show.clip import Clip
from ..show.filmstrip import filmstrip
from .frames import pixels
from .study import ASPECTS, LETTERS, answered, load_answers, plan, ranked, save_answers


class RankingStudy(widgets.VBox):
    """A blind ranking of clips: prompt -> method -> clip, for one participant, answers in the CSV file `path`.

    references: prompt -> pictures (m h w 3, uint8) of the look that its clips should have, shown above them.
    `.page` is the current Page (None when done), `.orders[aspect]` its choosers, `.next` the button.
    Raises AnimkitError if prompts differ in their methods, or the file holds something else.
    """

    def __init__(self, clips: Mapping[str, Mapping[str, Any]], path: str | Path, participant: str, seed: int = 0,
                 references: Mapping[str, np.ndarray] | None = None):
        methods = {tuple(sorted(of)) for of in clips.values()}
        if len(methods) != 1:
            raise AnimkitError(f"Every prompt wants clips of the same methods; got {sorted(methods) or 'no prompts'}.")
        self.clips, self.path, self.participant = clips, Path(path), str(participant).strip()
        self.references = references or {}
        self.pages = plan(list(clips), methods.pop(), self.participant, seed)
        self.rows = load_answers(self.path)
        own = [row for row in self.rows if row["participant"] == self.participant and row["prompt"] in clips]
        if own and (of := {row["method"] for row in own}) != set(self.pages[0].methods):
            raise AnimkitError(f"{self.path} ranks {', '.join(sorted(of))} for {self.participant}, these clips are of "
                               f"{', '.join(sorted(self.pages[0].methods))}: give a new file.")
        self.said = widgets.HTML()
        self.shown = widgets.HTML()
        self.orders = {}
        wide = {"style": {"description_width": "initial"}, "layout": {"width": "44em", "max_width": "100%"}}
        letters = LETTERS[:len(self.pages[0].methods)]
        orders = [(" then ".join(o), "".join(o)) for o in permutations(letters)]
        for aspect, question in ASPECTS.items():
            self.orders[aspect] = widgets.Dropdown(options=[("choose: the best first", None), *orders],
                                                   description=question, **wide)
        self.next = widgets.Button(description="Save and go on", button_style="primary",
                                   tooltip="Save this page's answers")
        self.next.on_click(lambda _: self.answer())
        self.form = widgets.VBox([*self.orders.values(), self.next])
        super().__init__([self.shown, self.form, self.said])
        self._turn()

    @property
    def page(self):
        """The first page without answers, or None."""
        done = answered(self.rows, self.participant)
        return next((page for page in self.pages if page.prompt not in done), None)

    def answer(self) -> None:
        """Save the page and show the next; what is missing, or cannot be written, is said below and nothing is lost."""
        try:
            page, new = self.page, {a: w.value for a, w in self.orders.items()}
            own = (self.participant, page.prompt)  # another may have answered since, into the same file
            rows = [row for row in load_answers(self.path) if (row["participant"], row["prompt"]) != own]
            rows += ranked(self.participant, page, new)
            save_answers(self.path, rows)
        except AnimkitError as error:
            self.said.value = f'<p role="alert">{html.escape(str(error))}</p>'
            return
        self.rows = rows
        self._turn()

    def _turn(self) -> None:
        page, total = self.page, len(self.pages)
        left = sum(p.prompt not in answered(self.rows, self.participant) for p in self.pages)
        for chooser in self.orders.values():
            chooser.value = None
        self.said.value = ""
        if page is None:
            self.shown.value = (f'<p role="status">All {total} pages are answered, thank you. The answers are in '
                                f'{html.escape(str(self.path))}.</p>')
            self.form.layout.display = "none"
            return
        films = "".join(_blind(self.clips[page.prompt][method], letter) for letter, method in page.letters.items())
        known = self.references.get(page.prompt)
        strip = "" if known is None else ("<p>Reference pictures</p>"
                                          + filmstrip(Clip(pixels(known), prompt="references"))._img())
        self.shown.value = (f"<p>Page {total - left + 1} of {total}</p><p><b>{html.escape(page.prompt)}</b></p>{strip}"
                            f'<div style="display:flex;flex-wrap:wrap;gap:1em">{films}</div>')

    def __repr__(self) -> str:
        return f"RankingStudy of {len(self.pages)} prompts: run this cell to rank them."


def _blind(clip, letter: str) -> str:
    """A film named by its letter alone: prompt and settings, which would tell the method, stay out, in the file too."""
    plain = Clip(pixels(clip), getattr(clip, "fps", 8), prompt=f"clip {letter}")
    return f'<figure style="margin:0"><b>{letter}</b><br>{plain._film()}</figure>'
