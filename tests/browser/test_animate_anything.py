"""Notebook 07 in a real JupyterLab: run by the menu, its knob and its playground used, every clip played."""
import re

import nbformat
import pytest

from animkit import samples

NAME = "07_animate_anything"
SMALLEST = {"frames": 4, "steps": 2, "seeds": 2}
SHOWN = ".jp-NotebookPanel:not(.lm-mod-hidden)"


def smallest(repo, out) -> nbformat.NotebookNode:
    """The notebook with short clips; everything else as it is committed."""
    notebook = nbformat.read(repo / "notebooks" / f"{NAME}.ipynb", as_version=4)
    parameters = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    for name, value in {**SMALLEST, "out": f'"{out}"'}.items():
        parameters.source, changed = re.subn(rf"^({name}: \w+ = )[^#\n]+", lambda m: f"{m[1]}{value}  ", parameters.source,
                                             flags=re.M)
        assert changed == 1
    return notebook


@pytest.mark.skipif(not {"miniature", "motion_module", "looks", "judge"} <= set(samples.names()),
                    reason="the miniature's weights are not in data_samples/ yet")
@pytest.mark.timeout(900)
def test_it_runs_its_knob_turns_and_clips_play(lab, repo, screenshots, tmp_path):
    page = lab.open_notebook(lab.add(smallest(repo, tmp_path), f"{NAME}.ipynb"))
    page.page.set_default_timeout(120_000)
    page.run_all()
    page.wait_done(600)
    page.page.get_by_role("button", name="Animate", exact=True).wait_for()
    assert page.errors() == []
    assert page.undrawn_widgets() == 0 and page.broken_pictures() == 0 and page.outside == []
    clips = page.clips()
    assert clips == 5                                           # seeds, the knob's, negative prompts, mixed looks, playground
    assert [i for i in range(clips) if not page.clip_plays(i)] == []
    assert page.page.evaluate(f"() => document.querySelectorAll('{SHOWN} video[autoplay]').length") == 0
    named = page.page.evaluate(f"() => [...document.querySelectorAll('{SHOWN} .jp-OutputArea img, {SHOWN} .jp-OutputArea video')]"
                               ".map(e => e.alt || e.title || '')")
    assert len(named) > 8 and all(named)
    page.screenshot(screenshots / f"{NAME}.png")

    # the knob of the look's alpha, by the keyboard; then the playground draws with another seed
    shown = f"() => document.querySelectorAll('{SHOWN} video')[1].src"
    before = page.page.evaluate(shown)
    page.press_slider(index=0)
    page.page.locator(".widget-readout").get_by_text("1.5", exact=True).first.wait_for()
    page.page.wait_for_function(f"old => {{ const v = document.querySelectorAll('{SHOWN} video')[1]; return v && v.src !== old; }}",
                                arg=before)
    page.page.get_by_role("spinbutton", name="seed").fill("7")
    page.page.get_by_role("spinbutton", name="seed").press("Tab")
    page.page.get_by_role("button", name="Animate", exact=True).click()
    page.page.get_by_text(re.compile("seed 7")).first.wait_for()
    assert page.clips() == 5 and page.clip_plays(4)
    assert page.errors() == []
