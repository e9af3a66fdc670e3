"""The course's other notebooks in a real JupyterLab: run by the menu at their smallest, nothing at fault, all pictures named."""
import pytest
from made import smallest

LESSONS = {
    "01_image_diffusion": {"steps": 3, "pictures": 2},
    "02_inflation": {"frames": 3, "steps": 2},
    "05_training_the_motion_module": {"steps": 2, "training_steps": 3, "batch": 1, "videos": 4, "frames": 4},
    "06_motion_lora": {"clips": 4, "train_steps": 2, "rank": 2, "frames": 6, "steps": 2},
    "09_full_size": {"frames": 8, "kinds": 1},
}
WRITES = {"05_training_the_motion_module", "06_motion_lora"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_runs_in_jupyterlab(name, lab, repo, screenshots, tmp_path):
    for beside in ("configs", "benchmarks"):                    # what notebooks/ has beside it in a clone
        if not (lab.folder.parent / beside).exists():
            (lab.folder.parent / beside).symlink_to(repo / beside)
    preset = LESSONS[name] | ({"out": str(tmp_path)} if name in WRITES else {})
    page = lab.open_notebook(lab.add(smallest(repo / "notebooks" / f"{name}.ipynb", **preset), f"{name}.ipynb"))
    page.page.set_default_timeout(60_000)
    page.run_all()
    page.wait_done(400)
    page.screenshot(screenshots / f"{name}.png")
    assert page.faults() == []
    assert len(page.names()) >= 2
