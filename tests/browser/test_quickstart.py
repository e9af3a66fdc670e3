"""The quickstart in a real JupyterLab: run by the menu, played with, then opened again as a stranger's notebook."""
import re

import nbformat
import pytest

from animkit import samples
from animkit.demo import QUICKSTART

SMALLEST = {"frames": 6, "steps": 4}
SHOWN = ".jp-NotebookPanel:not(.lm-mod-hidden)"
NAMED = f"""() => [...document.querySelectorAll('{SHOWN} .jp-OutputArea img, {SHOWN} .jp-OutputArea video')]
    .map(e => e.alt || e.title || '')"""


def smallest() -> nbformat.NotebookNode:
    """The quickstart with short clips; everything else as it is committed."""
    notebook = nbformat.read(QUICKSTART, as_version=4)
    parameters = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    for name, value in SMALLEST.items():
        parameters.source, changed = re.subn(rf"^({name}: int = )\d+", rf"\g<1>{value}", parameters.source, flags=re.M)
        assert changed == 1
    return notebook


@pytest.mark.skipif(not {"miniature", "motion_module", "looks"} <= set(samples.names()),
                    reason="the miniature's weights are not in data_samples/ yet")
@pytest.mark.timeout(600)
def test_quickstart_runs_plays_and_can_be_read_by_a_stranger(lab, screenshots):
    page = lab.open_notebook(lab.add(smallest(), QUICKSTART.name))
    page.page.set_default_timeout(60_000)
    page.run_all()
    page.wait_done(400)
    animate = page.page.get_by_role("button", name="Animate")
    animate.wait_for()
    assert page.errors() == []
    assert page.undrawn_widgets() == 0 and page.broken_pictures() == 0 and page.outside == []
    assert page.clips() == 3                                    # three looks, motion off, the playground's
    assert [i for i in range(3) if not page.clip_plays(i)] == []
    assert page.page.evaluate(f"() => document.querySelectorAll('{SHOWN} video[autoplay]').length") == 0
    assert all(page.page.evaluate(NAMED))
    page.screenshot(screenshots / "00_quickstart.png")

    # the playground: a slider moves by the keyboard, every control has its label, and a clip is drawn with all of it
    page.press_slider(index=1, times=3)
    page.page.locator(".widget-readout").get_by_text("1.15").wait_for()
    for control in ("alpha look", "alpha motion"):  # ipywidgets ties no slider to its label, so it is sought as text
        assert page.page.locator(".widget-label").get_by_text(control, exact=True).count() == 1
    page.page.get_by_label("look", exact=True).select_option("ink")
    page.page.get_by_label("seed").fill("7")
    page.page.get_by_label("seed").press("Tab")
    page.page.get_by_label("prompt").fill("a green house in the snow, shaking")
    animate.click()
    page.page.get_by_text("“a green house in the snow, shaking”, seed 7").wait_for()
    assert page.clips() == 3 and page.clip_plays(2)
    page.page.get_by_label("prompt").fill("a golden dragon")
    animate.click()
    page.page.get_by_role("alert").get_by_text("never learned 'golden'").wait_for()
    assert page.errors() == []
    page.save()

    stranger = nbformat.read(lab.folder / QUICKSTART.name, as_version=4)
    stranger.metadata.pop("widgets", None)
    for cell in stranger.cells:
        cell.metadata.pop("trusted", None)
        for out in cell.get("outputs", []):                     # so that its signature no longer fits
            if "text/html" in out.get("data", {}):
                out.data["text/html"] += "\n"
    pictures = sum("<img" in out["data"].get("text/html", "") for c in stranger.cells for out in c.get("outputs", [])
                   if "data" in out)
    lab.add(stranger, "stranger.ipynb")
    again = lab.open_notebook("stranger.ipynb")
    trusted = f"() => [...{again.MODEL}.content.model.cells].map(c => c.type === 'code' && c.trusted)"
    assert not any(again.page.evaluate(trusted))
    assert again.clips() == 2 and [i for i in range(2) if not again.clip_plays(i)] == []
    named = again.page.evaluate(NAMED)
    assert len(named) == 2 + pictures >= 8 and all(named) and again.broken_pictures() == 0
    assert again.page.get_by_text("Playground: run this cell to use its controls").count() == 1
    again.screenshot(screenshots / "00_quickstart-untrusted.png")
