"""The quickstart in a real JupyterLab: run by the menu, played with, then opened again as a stranger's notebook."""
import pytest
from made import smallest

from animkit import samples
from animkit.demo import QUICKSTART

SMALLEST = {"frames": 6, "steps": 4}


@pytest.mark.skipif(not {"miniature", "motion_module", "looks"} <= set(samples.names()),
                    reason="the miniature's weights are not in data_samples/ yet")
@pytest.mark.timeout(600)
def test_quickstart_runs_plays_and_can_be_read_by_a_stranger(lab, screenshots):
    page = lab.open_notebook(lab.add(smallest(QUICKSTART, **SMALLEST), QUICKSTART.name))
    page.page.set_default_timeout(60_000)
    page.run_all()
    page.wait_done(400)
    animate = page.page.get_by_role("button", name="Animate")
    animate.wait_for()
    assert page.faults() == []
    assert page.clips() == 3                                    # three looks, motion off, the playground's
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

    again = lab.open_as_stranger(QUICKSTART.name)
    assert again.faults() == []
    assert again.clips() == 2 and len(again.names()) == again.saved() >= 8
    assert again.page.get_by_text("Playground: run this cell to use its controls").count() == 1
    again.screenshot(screenshots / "00_quickstart-untrusted.png")
