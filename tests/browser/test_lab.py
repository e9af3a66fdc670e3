"""The browser helpers themselves, on a notebook made here: they must see what works and what is broken."""
import base64

import pytest
from made import film, notebook

SLIDER = """import ipywidgets as widgets
slider = widgets.IntSlider(value=3, max=9)
shown = widgets.interactive_output(lambda n: print("value", n), {"n": slider})
widgets.VBox([slider, shown])"""


def show(address: str) -> str:
    return ("from IPython.display import HTML\n"
            f"HTML('<figure><video controls muted loop playsinline src=\"{address}\"></video></figure>')")


@pytest.mark.timeout(300)
def test_runs_moves_a_slider_and_plays_a_clip_trusted_and_not(lab, screenshots):
    lab.add(notebook("x = 2 + 2\nx", SLIDER, show(film())), "it.ipynb")
    page = lab.open_notebook("it.ipynb")
    page.run_all()
    page.wait_done(120)
    assert page.errors() == []
    assert page.cells()[1]["outputs"][0]["data"]["text/plain"] == "4"
    page.page.get_by_text("value 3").wait_for()
    page.press_slider(times=2)
    page.page.get_by_text("value 5").wait_for()
    assert page.undrawn_widgets() == 0
    assert page.clips() == 1 and page.clip_plays()
    assert page.screenshot(screenshots / "self-test.png").stat().st_size > 10_000
    assert page.outside == []
    page.save()

    reopened = lab.open_as_stranger("it.ipynb")
    assert reopened.clips() == 1 and reopened.clip_plays()


@pytest.mark.timeout(300)
def test_sees_a_failing_cell_a_dead_clip_and_a_broken_picture(lab):
    dead = "data:video/mp4;base64," + base64.b64encode(b"not a film").decode()
    wide = show(dead).replace("controls", "controls width=3000")
    lab.add(notebook(wide, "HTML('<img src=\"nowhere.png\">')", "object()", "raise KeyError('gone')", "1"), "broken.ipynb")
    page = lab.open_notebook("broken.ipynb")
    page.run_all()
    page.wait_done(120)
    assert any(error.startswith("KeyError") for error in page.errors())
    assert page.cells()[5]["execution_count"] is None
    assert page.clips() == 1 and not page.clip_plays(seconds=2)
    assert page.broken_pictures() == 1
    assert [fault for fault in page.faults() if fault[0].isdigit()] == [
        "1 pictures not loaded", "1 objects shown by their type only", "2 pictures or clips without a name",
        "1 pictures or clips wider than the page", "1 clips that do not play"]
