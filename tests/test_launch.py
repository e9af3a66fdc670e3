"""Binder, Codespaces and Colab: what can be tested of their files without them."""
import json
import os
import re
import subprocess
import sys
import tomllib

import nbformat
import numpy as np
import pytest
import yaml

from animkit import Clip, samples
from animkit.notebooks import parameters

BINDER_GIB = 2.0
SERVER_GIB = 0.25          # JupyterLab's own process, left free for it


@pytest.fixture(scope="module")
def extras(repo):
    return set(tomllib.loads((repo / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def test_binder_takes_a_torch_without_cuda_and_installs_the_kit_with_its_extras(repo, extras):
    environment = yaml.safe_load((repo / ".binder" / "environment.yml").read_text())
    assert any(re.fullmatch(r"python=3\.1[123]", line) for line in environment["dependencies"])
    assert any(str(line).startswith("pytorch-cpu") for line in environment["dependencies"])
    script = (repo / ".binder" / "postBuild").read_text()
    wanted = re.search(r'install .*-e "\.\[([\w,]+)\]"', script).group(1).split(",")
    assert {"course", "reproduce"} <= set(wanted) <= extras
    assert "torch==" in script and "constraints.txt" in script, "the pin of torch goes, conda's stays"
    pins = (repo / "constraints.txt").read_text().splitlines()
    kept = [line for line in pins if not re.match(r"torch==", line, re.I)]
    assert len(kept) == len(pins) - 1


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_binders_scripts_can_be_run(repo, name):
    file = repo / ".binder" / name
    assert os.access(file, os.X_OK) and file.read_text().startswith("#!/bin/bash\n")
    subprocess.run(["bash", "-n", str(file)], check=True, timeout=60)
    if (repo / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-s", str(file)], cwd=repo, capture_output=True, text=True, check=True)
        assert not listed.stdout or listed.stdout.startswith("100755"), "git must keep it executable"


def test_binders_start_hands_on_what_it_is_given(repo):
    done = subprocess.run([str(repo / ".binder" / "start"), sys.executable, "-c",
                           "import os, sys; print(os.environ['OMP_NUM_THREADS'], *sys.argv[1:])", "a b"],
                          capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "2 a b\n"


def test_codespaces_makes_the_environment_and_opens_what_exists(repo):
    container = json.loads((repo / ".devcontainer" / "devcontainer.json").read_text())
    target = re.fullmatch(r"make ([a-z-]+)", container["postCreateCommand"]).group(1)
    assert re.search(rf"^{target}:", (repo / "Makefile").read_text(), re.M)
    assert re.search(r"python:3\.1[123]$", container["image"])
    assert all((repo / name).is_file() for name in container["customizations"]["codespaces"]["openFiles"])
    interpreter = container["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert interpreter == "${containerWorkspaceFolder}/.venv/bin/python"
    assert container["hostRequirements"]["cpus"] >= 2


def test_colabs_first_cell_installs_the_kit_and_does_nothing_elsewhere(repo, extras, monkeypatch):
    book = nbformat.read(repo / "docs" / "colab.ipynb", as_version=4)
    first = next(c.source for c in book.cells if c.cell_type == "code")
    called, moved = [], []
    monkeypatch.setattr(subprocess, "run", lambda command, check: called.append(command))
    monkeypatch.setattr(os, "chdir", moved.append)
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(compile(first, "first cell", "exec"), {})
    assert called == moved == []
    monkeypatch.setitem(sys.modules, "google.colab", object())
    exec(compile(first, "first cell", "exec"), {})
    clone, install = called
    assert clone[:2] == ["git", "clone"] and install[1:4] == ["-m", "pip", "install"]
    assert clone[-1] == install[-1].partition("[")[0] == os.path.dirname(moved[0]) == sys.path[0]
    assert set(re.search(r"\[([\w,]+)\]$", install[-1]).group(1).split(",")) <= extras


def test_badges_lead_to_files_that_exist(repo):
    text = (repo / "docs" / "launch.md").read_text()
    named = re.findall(r"urlpath=lab/tree/([\w./-]+)", text) + re.findall(r"blob/main/([\w./-]+)", text)
    assert len(named) == 2 and [name for name in named if not (repo / name).is_file()] == []
    assert len(re.findall(r"\[!\[(\w+)\]\(https://[^)]+\.svg\)\]\(https://[^)]+OWNER/animkit", text)) == 3
    assert "docs/launch.md" in (repo / "README.md").read_text()


def test_the_readmes_first_screen_shows_a_film_that_the_kit_made_and_two_commands(repo):
    screen = "\n".join((repo / "README.md").read_text().splitlines()[:20])
    said, picture = re.search(r"!\[([^\]]+)\]\(([^)]+)\)", screen).groups()
    film = Clip.load(repo / picture)
    made = film.settings["side_by_side"]
    assert len(film) >= 8 and (np.asarray(film)[0] != np.asarray(film)[-1]).any(), "it moves"
    assert made[0]["prompt"] in said and {one["base"] for one in made} == {"miniature"}
    assert [set(one["alpha"]) - {"motion"} for one in made] == [set(), {"ink"}, {"neon"}]
    assert re.findall(r"^    (make \w+)", screen, re.M) == ["make demo", "make test"]


HUNGRY = """
import sys, tempfile
import matplotlib
matplotlib.use("Agg")
import animkit as ak
from animkit.heap import peak_memory
from animkit.training import load_config, train_motion_lora
config = load_config(sys.argv[1], "motion-lora", ["camera=crop", "amount=0.4", "domain_adapter=null", "data.count=4",
                                                  "data.world.web=false", "training.steps=2", "sample_steps=2", "data.workers=1",
                                                  f"data.batch={sys.argv[2]}"])
with tempfile.TemporaryDirectory() as folder:
    trained = train_motion_lora(config, folder + "/run", quiet=True)
    animator = ak.Animator("miniature")
    animator.insert(str(trained.file))
    animator("a red balloon over the sea, rising", steps=2, progress=False)
print("peak GiB", peak_memory() / 2**30)
"""


@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts memory otherwise")
@pytest.mark.skipif(not {"miniature", "motion_module"} <= set(samples.names()), reason="the miniature's weights are not in data_samples/ yet")
def test_the_hungriest_notebook_fits_binders_memory(repo):
    """MotionLoRA's training at its real batch, then a clip by a second animator: what a kernel holds in notebook 06."""
    batch = parameters(repo / "notebooks" / "06_motion_lora.ipynb")["batch"]["default"]
    done = subprocess.run([sys.executable, "-c", HUNGRY, str(repo / "configs" / "miniature.yaml"), batch],
                          capture_output=True, text=True, timeout=1700, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr[-2000:]
    peak = float(re.search(r"peak GiB ([\d.]+)", done.stdout).group(1))
    assert peak < BINDER_GIB - SERVER_GIB, f"{peak:.2f} GiB"
