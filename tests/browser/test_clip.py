"""A clip, clips side by side, a filmstrip and the playground as JupyterLab shows them; then untrusted, unrun."""
import pytest
from nbformat import v4

TOY = """import numpy as np, animkit as ak
class Toy:                                   # draws at once; the real animator has the same face
    base, defaults, alpha = "toy", {"steps": 2}, {"motion": 1.0}
    def __call__(self, prompt, seed=0, callback=None, progress=True, **options):
        frames = np.full((16, 64, 64, 3), 255, np.uint8)
        for i in range(16):
            frames[i, 20:40, 3 * i:3 * i + 12] = (200, 30, 30 + seed)
        return ak.Clip(frames, 8, prompt, {"seed": seed})
clip = Toy()("a red square, sliding")
clip"""
FOUR = "ak.side_by_side([clip] * 4, labels=['base', 'ink', 'neon', 'clay'])"  # wider than the page
STRIP = "ak.filmstrip([clip, clip], labels=['base', 'ink'])"
PLAY = """from animkit.show.widgets import playground
playground(Toy(), "a red square, sliding", seed=3, looks={"ink": "a file"})"""


@pytest.mark.timeout(300)
def test_clips_play_trusted_and_not_and_the_playground_draws(lab, screenshots):
    cells = [v4.new_code_cell(source) for source in (TOY, FOUR, STRIP, PLAY)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    lab.add(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), "clips.ipynb")
    page = lab.open_notebook("clips.ipynb")
    page.page.set_default_timeout(20_000)
    page.run_all()
    page.wait_done(120)
    page.page.get_by_role("button", name="Animate").wait_for()
    assert page.faults() == [] and page.clips() == 3  # the last one is the playground's
    assert page.page.get_by_label("look").locator("option:checked").inner_text().split() == ["the", "base's", "own"]

    page.page.get_by_label("seed").fill("9")
    page.page.get_by_label("seed").press("Tab")
    page.page.get_by_role("button", name="Animate").click()
    page.page.get_by_text("“a red square, sliding”, seed 9").wait_for()
    assert page.clips() == 3 and page.clip_plays(2)
    page.page.get_by_label("prompt").fill("a red square, still")
    page.page.get_by_role("button", name="Animate").click()
    page.page.get_by_text("“a red square, still”, seed 9").wait_for()
    page.screenshot(screenshots / "clips.png")
    assert page.outside == [] and page.errors() == []
    page.save()

    again = lab.open_as_stranger("clips.ipynb")
    assert again.faults() == [] and again.clips() == 2
    front = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea"
    shown = f"() => [...document.querySelectorAll('{front} %s')].map(x => x.%s)"
    alts = again.page.evaluate(shown % ("img", "alt"))
    assert len(alts) == 4 and all(alt.startswith("Filmstrip") for alt in alts) and again.broken_pictures() == 0
    labels = again.page.evaluate(shown % ("video", "title"))
    assert len(labels) == 2 and all(label.startswith("Clip of 16 frames") for label in labels)
    again.screenshot(screenshots / "clips-untrusted.png")
