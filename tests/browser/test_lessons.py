"""Notebooks 03 and 04 in a real JupyterLab: run by the menu, the knob turned, every clip played; then a stranger's."""
import pytest
from made import smallest

from animkit import samples

# Notebook -> its smallest preset, the samples that it cannot do without, its clips when run and when only opened, its
# knob's last value.
LESSONS = {
    "03_motion_module": ({"frames": 4, "steps": 2}, {"miniature", "motion_module"}, 1, 0, "1.25"),
    "04_domain_adapter": ({"steps": 2, "training_steps": 3, "batch": 2, "videos": 4, "scenes": 2},
                          {"miniature", "looks", "judge"}, 1, 1, "1.0"),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_runs_its_knob_turns_and_a_stranger_can_read_it(name, lab, repo, screenshots, tmp_path):
    preset, needed, clips, clips_saved, last = LESSONS[name]
    if missing := needed - set(samples.names()):
        pytest.skip(f"not in data_samples/ yet: {', '.join(sorted(missing))}")
    if name == "04_domain_adapter":
        preset = preset | {"out": str(tmp_path)}                # it trains an adapter there, whether one ships or not
    page = lab.open_notebook(lab.add(smallest(repo / "notebooks" / f"{name}.ipynb", **preset), f"{name}.ipynb"))
    page.page.set_default_timeout(60_000)
    page.run_all()
    page.wait_done(400)
    page.page.locator(".widget-slider").wait_for()
    assert page.faults() == []
    assert page.clips() == clips and len(page.names()) >= 6
    page.screenshot(screenshots / f"{name}.png")

    first = page.turn_knob("ArrowLeft", "0.75")
    page.turn_knob("ArrowLeft", "0.5")
    assert page.turn_knob("ArrowRight", "0.75") == first        # kept: a value is drawn once
    page.play_knob(last)                                        # goes on from 0.75, value by value, to the last
    assert page.faults() == [] and page.clips() == clips
    page.save()

    stranger = lab.open_as_stranger(f"{name}.ipynb")
    assert stranger.faults() == []
    assert stranger.clips() == clips_saved and len(stranger.names()) == stranger.saved() >= 6
    assert stranger.page.get_by_text("run this cell to turn it").count() == 1
    stranger.screenshot(screenshots / f"{name}-untrusted.png")
