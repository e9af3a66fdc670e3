"""The quickstart, run as `make demo` runs it, at its smallest: what it recorded, what it left, what it shows."""
import json
import re
from html.parser import HTMLParser

import nbformat
import numpy as np
import pytest

import animkit as ak
from animkit import cli, samples
from animkit.sampling import sample
from animkit.demo import QUICKSTART
from animkit.pages import network_loads
from animkit.show.source import beside

SMALLEST = {"frames": 6, "steps": 4, "seed": 3, "prompt": "a blue car in the city, walking"}
needs_weights = pytest.mark.skipif(not {"miniature", "motion_module", "looks"} <= set(samples.names()),
                                   reason="the miniature's weights are not in data_samples/ yet")


class Tags(HTMLParser):
    """Every tag of some HTML with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def named(self, *names):
        return [attrs for tag, attrs in self.found if tag in names]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder that `animkit demo` leaves at the smallest preset."""
    out = tmp_path_factory.mktemp("demo")
    given = [word for name, value in SMALLEST.items() for word in ("-p", name, str(value))]
    assert cli.main(["demo", "--quiet", "--out", str(out), *given]) == 0
    return out


@pytest.fixture(scope="module")
def executed(demo):
    return nbformat.read(demo / "quickstart.ipynb", as_version=4)


def cell(notebook, id):
    return next(c for c in notebook.cells if c.id == id)


def html_of(notebook):
    return "".join(o["data"]["text/html"] for c in notebook.cells if c.cell_type == "code"
                   for o in c.outputs if "text/html" in o.get("data", {}))


def test_the_notebook_is_committed_without_outputs():
    source = nbformat.read(QUICKSTART, as_version=4)
    assert [c.id for c in source.cells if c.cell_type == "code" and (c.outputs or c.execution_count)] == []
    assert "widgets" not in source.metadata


@needs_weights
def test_results_say_what_was_run_and_found(demo):
    results = json.loads((demo / "results.json").read_text())
    assert results["parameters"] == {**SMALLEST, "looks": ["ink", "neon"]}
    change = results["metrics"]["change_per_frame"]
    assert list(change) == ["base", "ink", "neon", "motion module off"] and all(0 < c < 255 for c in change.values())
    assert change["motion module off"] > 1.5 * change["base"], "the motion module holds a clip together"
    assert 0 < results["seconds"]["three_clips"] < results["seconds"]["all"]
    assert results["device"]["memory_gib"] < 2


@needs_weights
def test_the_film_shows_the_base_and_the_looks_as_the_animator_draws_them(demo):
    film = ak.Clip.load(demo / "three_looks.mp4")
    assert len(film) == SMALLEST["frames"] and film.settings["labels"] == ["base", "ink", "neon"]
    panels = [np.asarray(film)[:, -256:, x:x + 256].astype(float) for x in (0, 260, 520)]
    animator = ak.Animator("miniature")
    call = dict(frames=SMALLEST["frames"], seed=SMALLEST["seed"], steps=SMALLEST["steps"], progress=False)
    drawn = [animator(SMALLEST["prompt"], **call)]
    for look in ("ink", "neon"):
        animator.insert(look, name=look)
        drawn.append(animator(SMALLEST["prompt"], **call))
        animator.remove(look)
    drawn = [np.asarray(clip).repeat(4, 1).repeat(4, 2).astype(float) for clip in drawn]
    far = np.array([[np.abs(panel - clip).mean() for clip in drawn] for panel in panels])
    assert far.diagonal().max() < 8, "H.264 changes pixels a little"
    assert (far + np.diag([np.inf] * 3)).min() > far.diagonal().max(), "each panel is its own look"


@needs_weights
def test_the_page_holds_clips_and_pictures_that_everyone_can_use(demo):
    page = (demo / "quickstart.html").read_text()
    assert network_loads(page) == []
    tags = Tags(page)
    videos, images = tags.named("video"), tags.named("img")
    assert len(videos) == 2 and all(v["src"].startswith("data:video/mp4;base64,") and v["title"] for v in videos)
    assert all("controls" in v and "autoplay" not in v for v in videos)
    assert len(images) >= 6 and all(i.get("alt") for i in images)
    assert len(tags.named("h1")) == 1
    assert all(len(Tags(f).named("th")) >= 2 for f in page.split("<table")[1:])


@needs_weights
def test_widgets_have_a_static_picture_beside_them(executed):
    static, widget = cell(executed, "playground").outputs
    assert "Filmstrip" in static["data"]["text/html"] and SMALLEST["prompt"] in static["data"]["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in widget["data"]
    assert widget["data"]["text/plain"].startswith("Playground:")


@needs_weights
def test_prompts_that_the_page_suggests_do_what_it_says(executed):
    animator = ak.Animator("miniature", motion=False)
    known, unknown = re.findall(r"\*(a [a-z ]+)\*", cell(executed, "play").source)
    animator(known, frames=1, steps=1, progress=False)
    with pytest.raises(ak.AnimkitError, match="never learned 'golden'"):
        animator(unknown, frames=1, steps=1, progress=False)


def test_it_has_the_parts_of_a_lesson_that_a_first_page_has():
    """Goals and costs first, guesses before their answers, the package's own lines, the paper beside what is measured."""
    source = nbformat.read(QUICKSTART, as_version=4)
    first, text = source.cells[0].source, "\n".join(c.source for c in source.cells if c.cell_type == "markdown")
    assert "When you leave this page" in first and "**You need to know**" in first
    assert re.search(r"\| about [a-z0-9]+ minutes? on two CPU cores", first)
    assert re.findall(r"^## (.+)$", text, re.M)[-3:] == ["What the paper found, and what we measure", "Summary",
                                                         "Where to go next"]
    guesses = [n for n, c in enumerate(source.cells) if "**Guess first.**" in c.source]
    assert len(guesses) >= 3 and all(source.cells[n + 1].cell_type == "code" for n in guesses)
    space = {"MotionModule": ak.MotionModule, "sample": sample, "beside": beside}
    shown = [eval(c.source, space).text for c in source.cells if c.source.startswith("beside(")]
    assert len(shown) == 2 and "alpha" in shown[0]
