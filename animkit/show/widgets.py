"""A playground: prompt, seed, look and every alpha as controls, the clip beside them; `draw` is a plain function."""
from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from animkit.errors import AnimkitError
from animkit.show.clip import Clip
from animkit.show.filmstrip import filmstrip

LOOK = "look"  # the name under which the chosen look is inserted while a clip is drawn


def draw(animator: Any, prompt: str, seed: int = 0, look: Any = None, alphas: Mapping[str, float] | None = None,
         **options) -> Clip:
    """One clip of an animator, with a look (what `insert` takes) and alphas that hold for this clip alone.

    alphas: name -> alpha of what is inserted; the name "look" is the look's. Afterwards the animator is as before.
    options go to the animator's call. Raises AnimkitError as the animator does.
    """
    before, inserted = dict(animator.alpha), None
    try:
        if look is not None:
            inserted = animator.insert(look, name=LOOK)
        for name, alpha in (alphas or {}).items():
            if name != LOOK or look is not None:
                animator.alpha[name] = alpha
        return animator(prompt, seed=seed, **options)
    finally:
        if inserted is not None:
            animator.remove(inserted)
        for name, alpha in before.items():
            animator.alpha[name] = alpha


class Playground(widgets.VBox):
    """The controls over `draw`: `.prompt .seed .look .alphas[name] .weight .run .shown`, and the last clip as `.clip`."""

    def __init__(self, animator: Any, prompt: str, seed: int, looks: Mapping[str, Any], clip: Clip,
                 guided: Mapping[str, float], options: dict):
        self.animator, self.looks, self.guided, self.options, self.clip = animator, dict(looks), guided, options, clip
        wide = {"style": {"description_width": "8em"}, "layout": {"width": "28em"}}
        self.prompt = widgets.Text(prompt, description="prompt", **wide)
        self.seed = widgets.BoundedIntText(seed, min=0, max=2**31 - 1, description="seed", **wide)
        self.look = widgets.Dropdown(options=[("the base's own", ""), *((name, name) for name in self.looks)],
                                     description="look", **wide)
        alphas = {**animator.alpha, **({LOOK: 1.0} if self.looks else {})}
        self.alphas = {name: widgets.FloatSlider(alpha, min=min(0, alpha), max=max(1.5, alpha), step=0.05,
                                                 description=f"alpha {name}", continuous_update=False, **wide)
                       for name, alpha in alphas.items()}
        first = max(guided.values(), default=0.0)
        self.weight = widgets.FloatSlider(first, min=0, max=max(10, first), step=0.5, description="guided",
                                          tooltip=f"towards {', '.join(guided)}", continuous_update=False, **wide)
        self.run = widgets.Button(description="Animate", button_style="primary", tooltip="Draw a clip with these settings")
        self.bar = widgets.IntProgress(0, 0, 1, description="steps", **wide)
        self.shown = widgets.HTML(_figure(clip), layout={"flex": "1 1 18em"})
        self.run.on_click(lambda _: self.animate())
        looks = [self.look] if self.looks else []
        guidance = [self.weight] if guided else []
        controls = widgets.VBox([self.prompt, self.seed, *looks, *self.alphas.values(), *guidance, self.run, self.bar],
                                layout={"flex": "0 0 29em"})  # the clip, however wide, leaves the controls their place
        super().__init__([widgets.HBox([controls, self.shown], layout={"flex_flow": "row wrap"})])

    def __repr__(self) -> str:  # what an opened notebook says in the widget's place until the cell is run
        return "Playground: run this cell to use its controls; the stills above are of a first clip."

    def animate(self) -> None:
        """Draw with the present settings and show it; bad input shows its one sentence in the clip's place."""
        self.run.disabled = True
        self.bar.value, self.bar.max = 0, self.options.get("steps") or self.animator.defaults["steps"]
        try:
            look = self.looks[self.look.value] if self.look.value else None
            guided = dict.fromkeys(self.guided, self.weight.value) if self.weight.value else {}  # 0: the paper's way
            self.clip = draw(self.animator, self.prompt.value, self.seed.value, look,
                             {name: slider.value for name, slider in self.alphas.items()},
                             **({"guided": guided} if guided else {}), **{"progress": False, "callback": self._step, **self.options})
            self.shown.value = _figure(self.clip)
        except AnimkitError as error:
            self.shown.value = f'<p role="alert">{html.escape(str(error))}</p>'
        except Exception as error:  # out of memory, for one: the traceback goes to JupyterLab's log, which nobody has open
            self.shown.value = f'<p role="alert">{html.escape(f"{type(error).__name__}: {error}")}</p>'
            raise
        finally:
            self.run.disabled = False

    def _step(self, step: int, t: Any, x: Any) -> None:
        self.bar.max = max(self.bar.max, step + 1)  # some schedulers take more steps than asked
        self.bar.value = step + 1


def _figure(clip: Clip) -> str:
    return f"<figure>{clip._film()}</figure>"  # without the stills, for which there is no room


def playground(animator: Any, prompt: str = "a red balloon over the sea, rising", seed: int = 0,
               looks: Mapping[str, Any] | None = None, clip: Clip | None = None,
               guided: Mapping[str, float] | None = None, **options) -> Playground:
    """Controls to play with an animator; above them the stills of a first clip, which stay where widgets do not run.

    looks: name -> what `animator.insert` takes; None: the looks shipped with animkit, if the base is the miniature.
    clip: a clip to begin with, else one is drawn. guided {name: weight}: as in the animator's call, with one slider
    for the weight of all. options (frames, steps, ...) go to every call.
    """
    if looks is None:
        from animkit.base import sample_looks
        looks: Mapping[str, Path] = sample_looks() if animator.base == "miniature" else {}
    if not isinstance(prompt, str):
        raise AnimkitError(f"A playground has a line for one text, which a reader can change; got {prompt!r}.")
    guided = dict(guided or {})
    clip = draw(animator, prompt, seed, **({"guided": guided} if guided else {}), **options) if clip is None else clip
    display(filmstrip(clip))
    return Playground(animator, prompt, seed, looks, clip, guided, options)
