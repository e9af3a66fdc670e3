"""The notebooks of reproduce/: their form, the plan of their jobs, and one of them run through the whole workflow."""
import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import numpy as np
import psutil
import pytest

from animkit import cli, metrics, notebooks, reproduce, samples
from animkit.errors import AnimkitError
from animkit.pages import WIDGET, network_loads
from animkit.reproduce import CLAIMS, workflow
from animkit.reproduce.experiment import PRESETS, read_results
from run_cells import run_cells

THERE = workflow.available()
needs_weights = pytest.mark.skipif(not {"miniature", "motion_module", "looks", "judge"} <= set(samples.names()),
                                   reason="the miniature's weights are not in data_samples/ yet")


def source(name):
    return nbformat.read(workflow.FOLDER / f"{name}.ipynb", as_version=4)


def code(name):
    return "\n".join(cell.source for cell in source(name).cells if cell.cell_type == "code")


# ---- form

def test_every_claim_has_its_notebook_and_no_notebook_is_without_claims():
    found = {path.stem for path in workflow.FOLDER.glob("*.ipynb")} - {"report"}
    assert found == set(CLAIMS)


@pytest.mark.parametrize("name", THERE)
def test_form(name):
    nb = source(name)
    first, parameters = nb.cells[0], nb.cells[1]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert parameters.metadata.tags == ["parameters"]
    declared = notebooks.parameters(workflow.FOLDER / f"{name}.ipynb")
    assert list(declared)[:4] == ["preset", "seed", "out", "work"] and declared["preset"]["default"] == '"smoke"'
    assert all(parameter["help"] for parameter in declared.values())
    assert declared["out"]["default"] == f'"../out/reproduce/smoke/{name}"'
    assert [cell.id for cell in nb.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)] == []
    assert nb.cells[-1].source.startswith("run.finish("), "the last cell writes results.json and shows the verdicts"
    assert f'reproduce.Experiment("{name}"' in code(name)


@pytest.mark.parametrize("name", THERE)
def test_presets_agree_with_what_the_first_cell_says(name):
    presets = workflow.presets_of(name)
    assert tuple(presets) == PRESETS
    assert len({tuple(settings) for settings in presets.values()}) == 1, "every preset has the same settings"
    first = source(name).cells[0].source
    for preset, settings in presets.items():
        assert re.search(rf"^\| {preset} \| {settings['minutes']:g} \|", first, re.M), f"{preset}: minutes"
    assert presets["smoke"]["minutes"] <= 1.5


@pytest.mark.parametrize("name", THERE)
def test_minutes_are_those_that_the_committed_run_took(name):
    """Within 15 % or 2 minutes of its seconds, those of what it found among them."""
    took = read_results(workflow.FOLDER / "laptop" / name)["seconds"]
    minutes = (took["all"] + took["found"]) / 60
    assert workflow.presets_of(name)["laptop"]["minutes"] == pytest.approx(minutes, rel=0.15, abs=2)


@pytest.mark.parametrize("name", THERE)
def test_the_first_cell_names_claim_and_section_and_the_end_shows_figure_clip_and_table(name):
    first = source(name).cells[0].source
    sections = {part for claim in CLAIMS[name].values() for part in claim.section.split(", ") if part != "ours"}
    assert all(part in first for part in sections), "each section of the paper whose claims are judged here"
    assert re.search(r"claim.{0,40}\(|question of our own|What is claimed", first, re.S)
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(code(name))) if isinstance(node, ast.Call)]
    assert {"run.figure", "run.clip", "run.finish"} <= set(calls)


@pytest.mark.parametrize("name", THERE)
def test_every_claim_is_judged_or_said_to_be_not_run(name):
    """By its name, or by a loop over names: each stands in the code as a word of its own."""
    words = {node.value for node in ast.walk(ast.parse(code(name))) if isinstance(node, ast.Constant)}
    assert set(CLAIMS[name]) <= words


@pytest.mark.parametrize("name", THERE)
def test_a_figure_is_shown_with_its_words(name):
    """Not as the bare value of a cell, which JupyterLab may show by its type only: by run.figure, or drawn(figure, alt)."""
    for cell in source(name).cells:
        last = ast.parse(cell.source).body[-1] if cell.cell_type == "code" else None
        called = ast.unparse(last.value.func) if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) else ""
        assert called not in ("reproduce.curves", "reproduce.bars", "plt.show"), cell.id


@pytest.mark.parametrize("name", [*THERE, "report"])
def test_notebooks_hold_no_classes_and_only_short_functions(name):
    for node in ast.walk(ast.parse(code(name))):
        assert not isinstance(node, ast.ClassDef), "that belongs into the package"
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 8, f"{node.name} belongs into the package"


def judged(name, **names):
    """Claim -> verdict by a notebook's own cell, of numbers that are given to it."""
    verdicts = {}
    run = SimpleNamespace(judge=lambda claim, measured, verdict, said="": verdicts.update({claim: verdict}))
    source_of = next(cell.source for cell in source(name).cells if cell.id == "verdicts")
    exec(source_of, {"np": np, "metrics": metrics, "reproduce": reproduce, "run": run, **names})
    return verdicts


@pytest.mark.parametrize("left, verdict", [((0, 0, 0, 0), "undecided"), ((1, 1, 0, 0), "holds"), ((1, 0, 1, 1), "does not hold")])
def test_where_there_is_no_motion_no_level_is_said_to_carry_it(left, verdict):
    """left: the share of 20 clips with the named motion, with all levels and without each."""
    found = dict(zip(("all levels", "without level 0", "without level 1", "without level 2"), left))
    measures = {name: {"named motion": np.full(20, float(share)), "another's motion": np.zeros(20)}
                for name, share in found.items()}
    assert judged("motion_modules_per_resolution", measures=measures, levels=(0, 1, 2)) == {"coarse": verdict}


# ---- the plan

def dry_run(tmp_path, *further):
    """What would be run, told by Snakemake's own plan of jobs."""
    where = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert cli.main(["reproduce", "--dry-run", *where, *further]) == 0
    return (tmp_path / "work" / "snakemake.log").read_text()


@pytest.mark.parametrize("jobs", [1, 2])
def test_as_many_notebooks_run_at_a_time_as_jobs_say_whatever_their_threads(tmp_path, monkeypatch, jobs):
    (tmp_path / "Snakefile").write_text("""
rule all:
    input: "a.done", "b.done"
rule one:
    output: "{name}.done"
    threads: 2
    shell: "echo start >> said; sleep 1; echo end >> said; touch {output}"
""")
    plan = workflow.Plan(out=str(tmp_path / "out"), work=str(tmp_path / "work"), threads=2)
    monkeypatch.setattr(workflow, "FOLDER", tmp_path)
    monkeypatch.setattr(workflow.Plan, "outdated", lambda self: [])
    assert workflow._snakemake(plan, jobs, False, []) == 0
    said = (tmp_path / "work" / "said").read_text().split()
    assert said == (["start", "end"] * 2 if jobs == 1 else ["start"] * 2 + ["end"] * 2)


def test_a_dry_run_plans_every_notebook_and_the_report(tmp_path, capsys):
    log = dry_run(tmp_path, "--preset", "laptop", "--jobs", "2", "--threads", "1")
    planned = re.findall(r"^    wildcards: notebook=(\w+)", log, re.M)
    assert sorted(planned) == sorted(THERE) and re.search(r"^report +1$", log, re.M)
    said = capsys.readouterr().out
    assert all(f"{name}/results.json: Missing output files" in said for name in THERE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments, message", [
    (["comparison", "--set", "comparison.promts=3"], "comparison.ipynb has no parameter 'promts'"),
    (["--set", "comparison.preset=paper"], "given to all notebooks alike, by --preset"),
    (["--set", "comparison.prompts"], "reads NOTEBOOK.PARAMETER=VALUE"),
    (["--set", "gen2.prompts=3"], "no notebook 'gen2'"), (["gen2"], "no notebook 'gen2'"),
    (["control", "--set", "comparison.promts=3"], "given to comparison, which is not among the notebooks to run"),
    (["--snakemake", "'"], "cannot be read as arguments"),
    (["--jobs", "0"], "at least 1"), (["--seed", "-1"], "seed is -1: it is 0 or more"),
    (["--set", "comparison.prompts=0"], "prompts is 0: comparison needs 1 at least"),
    (["--set", "comparison.look=typo"], "look is 'typo', which is no look that ships; there are: "),
    (["--set", "control.other=flat"], "other is 'flat', which is no look that ships; there are: "),  # the base's own
    (["--set", "motion_lora_efficiency.shot=pan-right"], "shot is 'pan-right', which is no shot type; there are: zoom in"),
    (["--set", "train_miniature.budget=-1"], "budget is -1.0: train_miniature needs a number above 0"),
    (["--set", "train_miniature.budget=1e999"], "budget is inf: train_miniature needs a number above 0"),
    (["--set", "qualitative.guided=-2"], "guided is -2.0: qualitative needs 0 or a number above 0"),
    (["--set", "control.controlnet=typo"], "reproduce/typo, which controlnet of control names"),
    (["--set", "comparison.answers=['typo.csv']"], "reproduce/typo.csv, which answers of comparison names")])
def test_what_is_not_there_is_refused_before_a_kernel_starts(tmp_path, capsys, arguments, message):
    where = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert cli.main(["reproduce", *arguments, *where]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_settings_reach_their_notebook_alone():
    plan = workflow.Plan("laptop", seed=2, given={"comparison": {"prompts": "7"}})
    assert plan.parameters("comparison")["prompts"] == 7
    assert plan.parameters("noise_schedule") == {"preset": "laptop", "seed": 2, "out": f"{plan.out}/noise_schedule",
                                                 "work": plan.work}


def test_every_parameter_is_a_setting():
    """One that is none would be read by nobody."""
    for name in THERE:
        own = set(notebooks.parameters(workflow.FOLDER / f"{name}.ipynb")) - set(workflow.COMMON)
        assert own <= set(workflow.presets_of(name)["smoke"]), name
    assert workflow.Plan("smoke", given={"train_miniature": {"stills": "6"}}).parameters("train_miniature")["stills"] == 6


def test_guidance_of_0_is_a_setting_and_none_is_the_presets():
    plan = workflow.Plan("smoke", given={"qualitative": {"guided": "0"}, "train_miniature": {"budget": "none"}})
    assert plan.parameters("qualitative")["guided"] == 0 and plan.parameters("train_miniature")["budget"] is None


def test_a_controlnet_that_is_not_there_is_refused_in_the_notebook_too(tmp_path):
    where = {"out": str(tmp_path / "out"), "work": str(tmp_path / "work")}
    with pytest.raises(AnimkitError, match="There is no ControlNet at typo"):
        run_cells(workflow.FOLDER / "control.ipynb", **where, controlnet="typo")


@needs_weights
def test_steps_of_modules_that_are_not_trained_are_refused(tmp_path):
    where = {"out": str(tmp_path / "out"), "work": str(tmp_path / "work")}
    with pytest.raises(AnimkitError, match="module_steps goes with retrain=True"):
        run_cells(workflow.FOLDER / "domain_adapter.ipynb", **where, module_steps=3)


def test_a_fingerprint_is_of_what_numbers_come_from(monkeypatch, tmp_path):
    plan = workflow.Plan("smoke")
    before = plan.fingerprint("comparison")
    assert before == plan.fingerprint("comparison") != plan.fingerprint("noise_schedule")
    (tmp_path / "Snakefile").touch()
    nb = source("comparison")
    nbformat.write(nb, tmp_path / "comparison.ipynb")
    monkeypatch.setattr(workflow, "FOLDER", tmp_path)
    nb.cells[-2].source += "."
    nbformat.write(nb, tmp_path / "comparison.ipynb")
    assert plan.fingerprint("comparison") != before


def test_a_fingerprint_is_of_configs_and_given_folders_too(monkeypatch, tmp_path):
    own = tmp_path / "controlnet"
    own.mkdir()
    (own / "weights.safetensors").write_bytes(b"1")
    plan = workflow.Plan("smoke", given={"control": {"controlnet": str(own)}})
    before = plan.fingerprint("control"), plan.fingerprint("comparison")
    (own / "weights.safetensors").write_bytes(b"2")
    assert plan.fingerprint("control") != before[0] and plan.fingerprint("comparison") == before[1]
    for part in ("reproduce", "configs"):
        shutil.copytree(workflow.FOLDER.parent / part, tmp_path / part)
    monkeypatch.setattr(workflow, "FOLDER", tmp_path / "reproduce")
    assert plan.fingerprint("comparison") == before[1]
    with open(tmp_path / "configs" / "miniature.yaml", "a") as file:
        file.write("# another\n")
    assert plan.fingerprint("comparison") != before[1]


def test_a_file_in_a_folders_place_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["reproduce", SMALLEST, "--preset", "smoke", "--dry-run"]
    assert cli.main([*words, "--out", str(tmp_path / "file"), "--work", str(tmp_path / "work")]) == 2
    assert "file is no folder: choose another place for the results." in capsys.readouterr().err
    assert cli.main([*words, "--out", str(tmp_path / "out"), "--work", str(tmp_path / "file")]) == 2
    assert "file cannot be made a folder (File exists)" in capsys.readouterr().err


def test_a_run_that_is_refused_leaves_the_plan_of_the_running_one(tmp_path, capsys):
    """Jobs on other nodes read it when they begin."""
    (tmp_path / "plan.json").write_text("the running one's")
    with workflow.locked(tmp_path, "held"):
        assert cli.main(["reproduce", SMALLEST, "--out", str(tmp_path / "out"), "--work", str(tmp_path), "--dry-run"]) == 2
    assert "Another run works in" in capsys.readouterr().err
    assert (tmp_path / "plan.json").read_text() == "the running one's"


def test_a_home_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    words = ["reproduce", SMALLEST, "--preset", "smoke", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert cli.main([*words, "--dry-run"]) == 0


def test_a_folder_that_snakemake_cannot_name_is_refused(tmp_path):
    with pytest.raises(AnimkitError, match="choose a folder without"):
        workflow.Plan("smoke", out=str(tmp_path / "{a}"))


def test_more_answers_in_a_file_of_the_user_study_are_seen(tmp_path):
    answers = tmp_path / "p01.csv"
    answers.write_text("one page")
    plan = workflow.Plan("smoke", given={"comparison": {"answers": f"['{answers}']"}})
    before, others = plan.fingerprint("comparison"), plan.fingerprint("noise_schedule")
    answers.write_text("two pages")
    assert plan.fingerprint("comparison") != before and plan.fingerprint("noise_schedule") == others


def test_the_page_is_written_anew_when_its_code_changes_and_no_notebook_is_run_for_that(monkeypatch):
    plan = workflow.Plan("smoke")
    page, numbers = plan.fingerprint("report"), plan.fingerprint("comparison")
    monkeypatch.setattr(workflow, "UNSEEN", ())
    assert plan.fingerprint("report") == page, "report.py is in it anyway"
    assert plan.fingerprint("comparison") != numbers, "and not in a notebook's"


def test_threads_are_capped_in_what_a_notebook_starts(monkeypatch, tmp_path):
    seen = {}
    for name in ("OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
        monkeypatch.setenv(name, "64")
    bar = nbformat.v4.new_output("display_data", {WIDGET: {"model_id": "1"}, "text/plain": "drawing: 0%|   | 0/12"})
    kept = nbformat.v4.new_output("display_data", {"text/plain": "a table"})

    def executed(notebook, output, *args, **how):
        seen.update(os.environ)
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[bar, kept])]), output)

    monkeypatch.setattr(notebooks, "execute", executed)
    (tmp_path / "results.json").touch()
    workflow.run_notebook("comparison", {"out": str(tmp_path)}, tmp_path / "run.ipynb", threads=3)
    assert seen["OMP_NUM_THREADS"] == seen["OPENCV_FOR_THREADS_NUM"] == "3"
    assert nbformat.read(tmp_path / "run.ipynb", 4).cells[0].outputs == [kept], "no bar at 0 % stays"


def test_further_arguments_reach_snakemake(tmp_path):
    """As "--executor slurm" would, whose plugin is not installed here."""
    assert "notebook\nreport" in dry_run(tmp_path, "--snakemake", "--list-rules --nocolor")


def test_what_there_is_is_reported_when_a_notebook_fails(tmp_path, monkeypatch, capsys):
    reported = []
    monkeypatch.setattr(workflow, "_snakemake", lambda *args: 1)
    monkeypatch.setattr(workflow, "write_report", reported.append)
    assert cli.main(["reproduce", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]) == 1
    assert reported == [tmp_path / "out"] and "snakemake.log" in capsys.readouterr().err


def test_the_list_names_claims_and_minutes(capsys):
    assert cli.main(["reproduce", "--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in THERE) and "minutes on two cores: smoke" in said


# ---- run

SMALLEST = "motion_modules_per_resolution"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One notebook at its very smallest, run as `make reproduce` runs all."""
    folder = tmp_path_factory.mktemp("reproduce")
    arguments = ["reproduce", SMALLEST, "--out", str(folder / "out"), "--work", str(folder / "work"),
                 "--set", f"{SMALLEST}.prompts=1", "--set", f"{SMALLEST}.steps=1"]
    assert cli.main(arguments) == 0, (folder / "work" / "snakemake.log").read_text()[-3000:]
    return folder, arguments


@needs_weights
def test_a_notebook_leaves_its_results_and_the_report_shows_them(ran):
    out = ran[0] / "out"
    results = read_results(out / SMALLEST)
    assert results["parameters"]["prompts"] == 1 and results["parameters"]["preset"] == "smoke"
    assert results["metrics"]["claims"]["coarse"]["verdict"] == "undecided", "one clip decides nothing"
    levels = results["metrics"]["levels"]
    assert levels["none"] != levels["all levels"] and len(levels) == 2 + 2 * len(results["metrics"]["modules"])
    assert "papermill" not in nbformat.read(out / "report.ipynb", as_version=4).metadata
    executed = nbformat.read(out / SMALLEST / f"{SMALLEST}.ipynb", as_version=4)
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    page = (out / "report.html").read_text()
    assert network_loads(page) == [] and "data:video/mp4;base64," in page
    assert all(claim.says.replace("'", "&#39;") in page or claim.says in page
               for claims in CLAIMS.values() for claim in claims.values())
    assert "Not run" in page and (out / "report.md").read_text().count("**not run**") > 20


@needs_weights
def test_what_did_not_change_is_kept_and_a_changed_parameter_runs_again(ran):
    folder, arguments = ran
    made = (folder / "out" / SMALLEST / "results.json").stat().st_mtime_ns
    assert cli.main(arguments) == 0
    assert (folder / "out" / SMALLEST / "results.json").stat().st_mtime_ns == made
    log = folder / "work" / "snakemake.log"
    before = len(log.read_text())
    assert cli.main([*arguments, "--seed", "1", "--dry-run"]) == 0
    assert "Forced execution" in log.read_text()[before:], "its results tell another key"


@needs_weights
def test_results_of_other_weights_or_settings_are_not_taken_for_these_though_the_work_is_gone(ran, capsys):
    folder, arguments = ran
    plan = workflow.Plan("smoke", str(folder / "out"), str(folder / "work"), names=[SMALLEST],
                         given={SMALLEST: {"prompts": "1", "steps": "1"}})
    assert read_results(folder / "out" / SMALLEST)["key"] == plan.key(SMALLEST) and plan.outdated() == []
    assert replace(plan, seed=1).outdated() == [SMALLEST] == replace(plan, given={}).outdated()
    told = folder / "out" / SMALLEST / "results.json"
    whole = told.read_text()
    try:
        for odd in (json.dumps({k: v for k, v in json.loads(whole).items() if k != "key"}), "[]", "{"):
            told.write_text(odd)
            assert plan.outdated() == [SMALLEST], "they do not tell what they are of"
    finally:
        told.write_text(whole)
    elsewhere = [*arguments[:-6], "--work", str(folder / "elsewhere"), *arguments[-4:], "--dry-run"]
    results = folder / "out" / SMALLEST / "results.json"
    gone = results.rename(results.with_name("gone"))
    try:
        capsys.readouterr()
        assert cli.main(elsewhere) == 0
        assert f"{SMALLEST}/results.json" in capsys.readouterr().out, "the page alone is not enough"
    finally:
        gone.rename(results)


@needs_weights
@pytest.mark.slow
@pytest.mark.parametrize("name", THERE)
def test_every_notebook_runs_in_smoke(name, tmp_path):
    plan = workflow.Plan("smoke", str(tmp_path / "out"), str(tmp_path / "work"), names=[name])
    workflow.run_notebook(name, plan.parameters(name), tmp_path / "run.ipynb")
    results = read_results(tmp_path / "out" / name)
    if any(claim["verdict"] != "not run" for claim in results["metrics"]["claims"].values()):  # else it does not ship
        shown = {path.name for path in (tmp_path / "out" / name).iterdir()}
        assert {"results.json", "figure.png", "clip.mp4"} <= shown
    outputs = [out.data for cell in nbformat.read(tmp_path / "run.ipynb", as_version=4).cells for out in cell.get("outputs", [])
               if "data" in out]
    assert [data for data in outputs if list(data) == ["text/plain"] and data["text/plain"].startswith("<")] == []
    units = max(results["parameters"].get(of, 0) for of in ("prompts", "stills", "held_out"))
    measured = [claim["measured"] for claim in results["metrics"]["claims"].values() if claim["measured"]]
    assert all(of["n"] <= units for of in measured), "an interval counts prompts, not clips: those of a prompt are alike"
    assert results["seconds"]["all"] < 90 * max(1, os.getloadavg()[0] / (os.cpu_count() or 1)), "as the first cell says"


@needs_weights
@pytest.mark.slow
def test_two_side_by_side_that_are_killed_go_on_where_they_were(tmp_path):
    """Both draw the clip of the shipped module, into one folder, and it is kept once."""
    names = [SMALLEST, "train_miniature"]
    command = [sys.executable, "-m", "animkit", "reproduce", *names, "--out", str(tmp_path / "out"),
               "--work", str(tmp_path / "work"), "--jobs", "2", "--threads", "1",
               *(word for name in names for word in ("--set", f"{name}.prompts=1", "--set", f"{name}.steps=1"))]
    clips = tmp_path / "work" / "clips"
    first = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(clips.glob("*.npz")):
        assert first.poll() is None, (tmp_path / "work" / "snakemake.log").read_text()[-3000:]
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not any((tmp_path / "out" / name / "results.json").exists() for name in names)
    before = {path: path.stat().st_mtime_ns for path in clips.glob("*.npz")}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in clips.glob("*.npz")}.items()
    found = [read_results(tmp_path / "out" / name) for name in names]
    assert all(results["device"]["threads"] == 1 for results in found)
    drawn = len(found[0]["metrics"]["levels"]) + len(found[1]["metrics"]["clips"])
    assert len(list(clips.glob("*.npz"))) == drawn - 1
    assert (tmp_path / "out" / "report.html").exists()


def begun(tmp_path):
    """A run whose first notebook has its kernel: -> its process, and all that it started."""
    command = [sys.executable, "-m", "animkit", "reproduce", SMALLEST, "--out", str(tmp_path / "out"), "--work",
               str(tmp_path / "work"), "--threads", "1"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def started():
        return [p for p in psutil.Process(first.pid).children(recursive=True) if "ipykernel_launcher" in p.cmdline()]

    while not started():
        assert first.poll() is None, (tmp_path / "work" / "snakemake.log").read_text()[-3000:]
        time.sleep(0.1)
    return first, psutil.Process(first.pid).children(recursive=True)


@needs_weights
def test_a_terminated_run_takes_its_notebooks_along(tmp_path):
    """`kill` and clusters send SIGTERM to the one process that they know; the lock is free again, and no kernel stays."""
    first, family = begun(tmp_path)
    first.terminate()
    assert first.wait(timeout=60) == 128 + signal.SIGTERM
    gone, alive = psutil.wait_procs(family, timeout=30)
    assert len(family) >= 3 and not alive
    with workflow.locked(tmp_path / "work", "held"):
        pass


@needs_weights
@pytest.mark.slow
def test_what_a_killed_run_left_running_keeps_others_out(tmp_path):
    """SIGKILL takes one process alone: its Snakemake goes on, and a second one beside it would write the same files."""
    first, family = begun(tmp_path)
    first.kill()
    first.wait()
    with pytest.raises(AnimkitError, match="held"):
        workflow.locked(tmp_path / "work", "held")
    for part in family:
        part.terminate()
    assert not psutil.wait_procs(family, timeout=30)[1]
    with workflow.locked(tmp_path / "work", "held"):
        pass


def test_a_notebook_that_leaves_nothing_is_an_error(tmp_path, monkeypatch):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")],
                                  metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    nbformat.write(nb, tmp_path / "comparison.ipynb")
    monkeypatch.setattr(workflow, "FOLDER", tmp_path)
    monkeypatch.setattr(notebooks, "execute", lambda notebook, output, *args, **how: nbformat.write(nb, output))
    with pytest.raises(AnimkitError, match="left no results.json"):
        workflow.run_notebook("comparison", {"out": str(tmp_path)}, tmp_path / "run.ipynb")
