"""What a notebook's run keeps: its preset, its verdicts, results.json; and what it refuses."""
import dataclasses
import hashlib
import json
import time

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import animkit as ak
from animkit import samples
from animkit.errors import AnimkitError
from animkit.metrics import Interval
from animkit.reproduce import CLAIMS, Experiment, drawing, experiment
from animkit.reproduce.experiment import read_results

PRESETS = {name: {"minutes": 1, "prompts": k + 1, "steps": 4} for k, name in enumerate(("smoke", "laptop", "paper"))}
FOUND = Interval(0.5, 0.25, 0.75, 12)


@pytest.fixture
def run(tmp_path):
    return Experiment("motion_modules_per_resolution", "laptop", PRESETS, seed=3, out=tmp_path / "out",
                      work=tmp_path / "work", given={"prompts": None, "steps": 9})


def test_settings_are_the_presets_unless_given(run):
    assert (run.settings.prompts, run.settings.steps, run.minutes) == (2, 9, 1)
    said = run._repr_markdown_()
    claim = CLAIMS["motion_modules_per_resolution"]["coarse"]
    assert claim.says in said and claim.rule in said and "steps = 9" in said and "`laptop`" in said


def test_results_hold_all_that_the_report_needs(run, tmp_path):
    for seconds in (0.02, 0):
        with run.timed("drawing"):
            time.sleep(seconds)
    run.judge("coarse", FOUND, "holds", "level 1 | 2")
    run.clip(ak.Clip(np.zeros((4, 64, 64, 3), np.uint8), prompt="a red ball"))
    figure = Figure()
    figure.subplots().plot([1, 2])
    with pytest.raises(AnimkitError, match="A figure needs alt"):
        run.figure(figure, " ")
    run.figure(figure, "a line that rises")
    table = run.finish({"levels": {"all": {"amount": 1.5}}})
    results = read_results(tmp_path / "out")
    assert results == json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["parameters"] == {"notebook": "motion_modules_per_resolution", "preset": "laptop", "seed": 3,
                                     "prompts": 2, "steps": 9, "precision": "float32", "trained here": []}
    assert results["metrics"]["claims"] == {
        "coarse": {"verdict": "holds", "said": "level 1 | 2", "measured": FOUND._asdict()}}
    assert results["metrics"]["levels"] == {"all": {"amount": 1.5}}
    assert {"drawing", "all", "found"} == set(results["seconds"]) and results["seconds"]["found"] == 0
    assert results["seconds"]["drawing"] >= 0.02
    assert results["device"]["cores"] >= 1 and isinstance(results["device"]["processor"], str)
    assert {"torch", "animkit"} <= set(results["versions"])
    assert results["metrics"]["shown"] == {"figure": "a line that rises", "clip": "a red ball"}
    assert (tmp_path / "out" / "figure.png").stat().st_size > 500 and (tmp_path / "out" / "clip.mp4").exists()
    assert "| 0.5 | 0.25 to 0.75 (n = 12) | **holds**: level 1 / 2 |" in table._repr_markdown_()


@pytest.mark.parametrize("fast, dtype, said", [("bf16", torch.bfloat16, "bf16"), ("no", torch.float32, "float32")])
def test_what_was_drawn_in_is_told(run, tmp_path, monkeypatch, fast, dtype, said):
    monkeypatch.setattr(experiment, "fast_precision", lambda: fast)
    assert run.dtype is dtype
    run.not_run("coarse", "no weights")
    run.finish({})
    assert read_results(tmp_path / "out")["parameters"]["precision"] == said


def test_a_gpu_is_told_by_its_name(run, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", {"cuda:0": "NVIDIA H100"}.get)
    run.not_run("coarse", "no weights")
    run.finish({}, device="cuda:0")
    assert read_results(tmp_path / "out")["device"]["name"] == "NVIDIA H100"


def test_a_forgotten_claim_is_refused_and_leaves_no_file(run, tmp_path):
    with pytest.raises(AnimkitError, match="without a verdict on coarse"):
        run.finish({})
    assert not (tmp_path / "out" / "results.json").exists()
    run.not_run("coarse", "no weights")
    assert "**not run**: no weights" in run.finish({})._repr_markdown_()
    run.judge("coarse", Interval(None, None, None, 0), "not run", "share of clips")
    assert "**not run**: no clip gave a number; share of clips" in run.finish({})._repr_markdown_()


def test_what_was_not_used_is_not_reported(run, tmp_path):
    run.unused("steps")
    run.not_run("coarse", "no weights")
    run.finish({})
    assert "steps" not in read_results(tmp_path / "out")["parameters"]


def test_time_of_earlier_runs_is_told_apart(run, tmp_path, repo):
    """A training that an earlier run began, and a clip that it drew, took their time too."""
    config = run.config("motion_module", {}, repo / "configs" / "miniature.yaml")
    folder = run.training("one", config)
    assert run.found == 0
    folder.mkdir()
    (folder / "log.jsonl").write_text('{"step": 1, "seconds": 30.0}\n{"step": 2, "seconds": 61.5}\n')
    run.training("one", config)
    drawing._found.append(8.25)  # what `drawn` notes of a clip that it finds: test_measures.py
    run.not_run("coarse", "no weights")
    run.finish({})
    results = read_results(tmp_path / "out")
    assert results["seconds"]["found"] == 69.75 and results["parameters"]["trained here"] == ["one", "one"]


def test_an_older_result_does_not_outlive_a_run_that_fails(run, tmp_path):
    run.not_run("coarse", "no weights")
    run.finish({})
    Experiment("motion_modules_per_resolution", "smoke", PRESETS, out=tmp_path / "out", work=tmp_path / "work")
    assert read_results(tmp_path / "out") is None


@pytest.mark.parametrize("claim, measured, verdict, said, message", [
    ("fine", FOUND, "holds", "", "has the claims coarse"), ("coarse", FOUND, "true", "", "a verdict is one of"),
    ("coarse", None, "holds", "", "rests on nothing"),
    ("coarse", Interval(None, None, None, 0), "undecided", "", "rests on nothing"),
    ("coarse", None, "not run", "", "say why")])
def test_verdicts_without_ground_are_refused(run, claim, measured, verdict, said, message):
    with pytest.raises(AnimkitError, match=message):
        run.judge(claim, measured, verdict, said)


@pytest.mark.parametrize("change, message", [
    ({"notebook": "other"}, "no experiment 'other'"), ({"preset": "quick"}, "no preset 'quick'"),
    ({"presets": {"smoke": PRESETS["smoke"]}}, "has: smoke, laptop, paper"),
    ({"given": {"clips": 3}}, "no setting 'clips'"), ({"given": {"prompts": 0}}, "prompts is 0: comparison needs 1"),
    ({"given": {"steps": -3}}, "steps is -3"), ({"seed": -1}, "seed is -1: it is 0 or more")])
def test_what_is_not_there_is_refused(tmp_path, change, message):
    how = {"notebook": "comparison", "preset": "smoke", "presets": PRESETS, "out": tmp_path, "work": tmp_path} | change
    with pytest.raises(AnimkitError, match=message):
        Experiment(**how)


@pytest.mark.parametrize("name, value, message", [
    ("retrain", "false", "retrain is 'false': domain_adapter needs True or False"), ("retrain", 1, "True or False"),
    ("prompts", "20", "prompts is '20': domain_adapter needs a whole number"), ("prompts", 2.5, "a whole number"),
    ("prompts", 10.0, "a whole number"), ("prompts", True, "a whole number"), ("prompts", 0, "needs 1 at least"),
    ("look", 3, "look is 3: domain_adapter needs text"), ("look", "nolook", "no look that ships; there are: .*ink"),
    ("budget", "half", "a number"), ("budget", True, "a number"), ("alphas", 1.0, "a list"),
    ("budget", -1.0, "budget is -1.0: domain_adapter needs a number above 0"), ("budget", 0.0, "above 0"),
    ("budget", 0, "above 0"), ("budget", float("nan"), "above 0"), ("budget", float("inf"), "above 0"),
    ("guided", -1.0, "guided is -1.0: domain_adapter needs 0 or a number above 0"), ("guided", float("nan"), "above 0")])
def test_values_of_another_kind_are_refused(tmp_path, name, value, message):
    preset = {"minutes": 1, "retrain": False, "prompts": 2, "look": "ink", "budget": None, "guided": 6.0, "alphas": [1.0]}
    presets = {"smoke": preset | {"budget": 0.1}, "laptop": preset, "paper": preset}
    how = {"out": tmp_path / "out", "work": tmp_path / "work"}
    with pytest.raises(AnimkitError, match=message):
        Experiment("domain_adapter", "laptop", presets, **how, given={name: value})
    good = {"retrain": True, "prompts": 3, "look": "neon", "budget": 1, "guided": 0.0, "alphas": [0.5, 0.1]}
    assert vars(Experiment("domain_adapter", "laptop", presets, **how, given=good).settings) == good


def test_a_stages_settings_come_from_its_config_with_changes_and_the_runs_seed(run, repo):
    config = run.config("motion_module", {"training.steps": 7, "domain_adapter": None, "prompts": ["a red ball"]},
                        repo / "configs" / "miniature.yaml")
    assert (config.training.steps, config.training.seed, config.domain_adapter) == (7, 3, None)
    assert config.prompts == ("a red ball",)
    with pytest.raises(AnimkitError, match="no setting 'training.stepz'"):
        run.config("motion_module", {"training.stepz": 7}, repo / "configs" / "miniature.yaml")


def test_a_training_of_other_settings_or_on_other_weights_is_another_folder(run, repo, tmp_path):
    file = repo / "configs" / "miniature.yaml"
    weights = tmp_path / "adapter.safetensors"
    weights.write_bytes(b"1")

    def folder(**changes):
        return run.training("with_stage 1", run.config("motion_module", {"domain_adapter": str(weights)} | changes, file))

    first = folder()
    assert first == folder() and first.parent == run.work and first.name.startswith("with-stage-1-")
    others = (folder(**{"training.steps": 7}), folder(kind="conv"), folder(domain_adapter=None),
              folder(**{"training.optimizer": "muon"}), folder(domain_adapter=None, start=str(weights)))
    assert len({first, *others}) == 6
    weights.write_bytes(b"2")
    assert folder() != first and folder(domain_adapter=None, start=str(weights)) != others[-1]


def test_a_training_of_before_a_setting_came_is_still_found(run, repo):
    config = run.config("motion_lora", {}, repo / "configs" / "miniature.yaml")
    settings = dataclasses.asdict(config)
    del settings["training"]["optimizer"]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in ("miniature", "motion_module"):
        for file in sorted(samples.path(name).rglob("*.safetensors")):
            digest.update(file.read_bytes())
    assert run.training("x", config).name == f"x-{digest.hexdigest()[:10]}"


@pytest.mark.parametrize("damage", [lambda r: r["metrics"]["claims"].pop("coarse"), lambda r: r.pop("device"),
                                    lambda r: r["parameters"].update(preset="big"),
                                    lambda r: r["parameters"].pop("notebook"),
                                    lambda r: r["metrics"]["claims"]["coarse"].update(measured=None),
                                    lambda r: r["seconds"].pop("found"), lambda r: r["device"].pop("processor"),
                                    lambda r: r["versions"].pop("torch"), lambda r: r["metrics"].pop("shown"),
                                    lambda r: r["parameters"].pop("trained here")])
def test_damaged_results_are_refused(run, tmp_path, damage):
    run.judge("coarse", FOUND, "holds")
    run.finish({})
    path = tmp_path / "out" / "results.json"
    results = json.loads(path.read_text())
    damage(results)
    path.write_text(json.dumps(results))
    with pytest.raises(AnimkitError, match="results.json is not what a notebook"):
        read_results(tmp_path / "out")
