"""Notebook 07 in a real JupyterLab: run by the menu, its knob and its playground used, every clip played; then a stranger's."""
import re

import pytest
from made import smallest

from animkit import samples

NAME = "07_animate_anything"
SMALLEST = {"frames": 4, "steps": 2, "seeds": 2}


@pytest.mark.skipif(not {"miniature", "motion_module", "looks", "judge"} <= set(samples.names()),
                    reason="the miniature's weights are not in data_samples/ yet")
@pytest.mark.timeout(900)
def test_it_runs_its_knob_turns_and_clips_play(lab, repo, screenshots, tmp_path):
    notebook = smallest(repo / "notebooks" / f"{NAME}.ipynb", **SMALLEST, out=str(tmp_path))
    page = lab.open_notebook(lab.add(notebook, f"{NAME}.ipynb"))
    page.page.set_default_timeout(120_000)
    page.run_all()
    page.wait_done(600)
    page.page.get_by_role("button", name="Animate", exact=True).wait_for()
    assert page.faults() == []
    assert page.clips() == 5 and len(page.names()) > 8          # seeds, the knob's, negative prompts, mixed looks, playground
    page.screenshot(screenshots / f"{NAME}.png")

    # the knob of the look's alpha, by the keyboard; then the playground draws with another seed
    page.turn_knob("ArrowRight", "1.5")
    page.page.get_by_role("spinbutton", name="seed").fill("7")
    page.page.get_by_role("spinbutton", name="seed").press("Tab")
    page.page.get_by_role("button", name="Animate", exact=True).click()
    page.page.get_by_text(re.compile("seed 7")).first.wait_for()
    assert page.clips() == 5 and page.clip_plays(4)
    assert page.errors() == []
    page.save()

    again = lab.open_as_stranger(f"{NAME}.ipynb")
    assert again.faults() == []
    assert again.clips() == 3 and len(again.names()) == again.saved() >= 8
    again.screenshot(screenshots / f"{NAME}-untrusted.png")
