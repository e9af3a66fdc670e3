"""Notebook 08 and reproduce/control.ipynb at their smallest: with a ControlNet, and where none is there."""
import json

import pytest
import torch

from animkit import notebooks, samples
from animkit.coursework import control_checks as checks
from animkit.miniature.control import new_controlnet
from animkit.miniature.unet import new_unet
from run_cells import SMALLEST as PRESETS
from run_cells import exercises, html, run_cells
from tiny import shaken

SMALLEST = PRESETS["08_control"]
needs_weights = pytest.mark.skipif(not {"miniature", "motion_module", "looks", "judge"} <= set(samples.names()),
                                   reason="the miniature's weights are not in data_samples/ yet")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def course(repo):
    return repo / "notebooks" / "08_control.ipynb"


@pytest.fixture(scope="module")
def experiment(repo):
    return repo / "reproduce" / "control.ipynb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A ControlNet of the miniature's form that has an effect, though it learned nothing."""
    path = tmp_path_factory.mktemp("control") / "control"
    shaken(new_controlnet(new_unet()), scale=0.02).half().save_pretrained(path)
    return path


def a_look():
    return next(samples.path("looks").glob("*.safetensors")).stem


# ---- the course

@needs_weights
def test_the_page_runs_with_a_controlnet(course, folder):
    names, shown = run_cells(course, **SMALLEST, look=a_look(), controlnet=str(folder))
    assert names["there"]
    everything = [(cell, html(thing)) for cell, things in shown.items() for thing in things]
    assert not [cell for cell, said in everything if "not there" in said]
    assert {cell for cell, said in everything if "<video" in said} == {"draw"}
    strip, knob = shown["knob"]
    assert "<video" in knob.shown.value and "alpha 0, 0.5 and 1" in html(strip)
    pictures = [(cell, said) for cell, said in everything if "<img" in said and "<video" not in said]
    assert {cell for cell, _ in pictures} >= {"depth", "figure", "when", "knob"}
    assert all('alt="' in said for _, said in pictures)
    first, second, third = names["seen"]
    assert first["zero convolutions"] > 0 and first["copied blocks"] == first["layers that read the picture"] == 0
    assert second["copied blocks"] > 0 and second["layers that read the picture"] == 0
    assert third["layers that read the picture"] > 0
    assert torch.equal(names["alone"], names["beside_it"]), "a fresh ControlNet changes nothing"
    assert set(names["found"]) == {"really rendered", "no control", "control", f"control, {a_look()}"}
    before = knob.shown.value
    knob.slider.value = 1.5
    assert "<video" in knob.shown.value and knob.shown.value != before


@needs_weights
def test_where_no_controlnet_is_the_page_says_so_and_how_to_make_one_and_goes_on(course, tmp_path):
    names, shown = run_cells(course, **SMALLEST, controlnet=str(tmp_path / "none"))
    said = {cell: " ".join(html(thing) for thing in things) for cell, things in shown.items()}
    skipped = {cell for cell, words in said.items() if "animkit miniature control assemble" in words}
    assert skipped == {"load", "draw", "measure", "when", "knob"}
    assert "<img" in said["figure"] and len(names["seen"]) == 3 and not names["there"]


def test_exercises_are_to_do_and_their_solutions_are_right(course):
    found = exercises(course)
    assert len(found) == 4
    for name, answer, solution in found:
        to_do, solved = {"checks": checks, "torch": torch}, {"torch": torch}
        *function, check = answer.strip().splitlines()
        exec("\n".join(function), to_do)
        assert eval(check, to_do).state == "to do", name
        exec(solution, solved)
        verdict = eval(check, solved | {"checks": checks})
        assert verdict.ok, (name, verdict)


def test_the_page_is_committed_without_outputs_and_declares_its_parameters(course, experiment):
    for notebook in (course, experiment):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        assert not [c["id"] for c in cells if c["cell_type"] == "code" and (c["outputs"] or c["execution_count"])]
    assert set(SMALLEST) | {"look", "seed", "controlnet"} == set(notebooks.parameters(course))


# ---- the experiment

@needs_weights
def test_the_experiment_measures_what_it_claims(experiment, folder, tmp_path):
    names, shown = run_cells(experiment, out=str(tmp_path / "out"), work=str(tmp_path / "work"), prompts=2, steps=1,
                             look=a_look(), controlnet=str(folder))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    claims = results["metrics"]["claims"]
    assert {c["verdict"] for c in claims.values()} <= {"holds", "does not hold", "undecided"}
    methods = results["metrics"]["methods"]
    assert list(methods) == ["really rendered", "control, base", "no control", "control at half", "control at 1.5",
                             "control", "control, night"]
    assert claims["mask"]["measured"]["value"] == pytest.approx(methods["control"]["IoU"]["value"], abs=1e-3)
    assert methods["really rendered"]["follows"]["n"] and results["parameters"]["prompts"] == 2
    assert results["parameters"]["controlnet"] == folder.name, "the report names no folder of its maker's"
    assert all(t.things[0].colour != s.things[0].colour and t.things[0].colour in p
               for s, t, p in zip(names["sources"], names["targets"], names["asked"]))
    assert (tmp_path / "out" / "clip.mp4").stat().st_size and (tmp_path / "out" / "figure.png").stat().st_size
    assert "IoU" in html(shown["measure"][-1])


def test_without_a_controlnet_the_experiment_is_not_run_and_says_why(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr("animkit.reproduce.shipped", lambda name: None)
    names, shown = run_cells(experiment, out=str(tmp_path / "out"), work=str(tmp_path / "work"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    claims = results["metrics"]["claims"]
    assert {c["verdict"] for c in claims.values()} == {"not run"}
    assert all("animkit miniature control assemble" in c["said"] for c in claims.values())
    assert "animkit miniature control assemble" in html(shown["weights"][-1])
