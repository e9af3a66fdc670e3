"""The course's other notebooks in a real JupyterLab: run by the menu at their smallest, nothing at fault, all pictures named."""
import pytest
from made import smallest
from run_cells import SMALLEST

LESSONS = ("01_image_diffusion", "02_inflation", "05_training_the_motion_module", "06_motion_lora", "08_control", "09_full_size")
WRITES = {"05_training_the_motion_module", "06_motion_lora"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_runs_in_jupyterlab(name, lab, repo, screenshots, tmp_path):
    for beside in ("configs", "benchmarks"):                    # what notebooks/ has beside it in a clone
        if not (lab.folder.parent / beside).exists():
            (lab.folder.parent / beside).symlink_to(repo / beside)
    preset = SMALLEST[name] | ({"out": str(tmp_path)} if name in WRITES else {})
    page = lab.open_notebook(lab.add(smallest(repo / "notebooks" / f"{name}.ipynb", **preset), f"{name}.ipynb"))
    page.page.set_default_timeout(60_000)
    page.run_all()
    page.wait_done(400)
    page.screenshot(screenshots / f"{name}.png")
    assert page.faults() == []
    assert len(page.names()) >= 2
