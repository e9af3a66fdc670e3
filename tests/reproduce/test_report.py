"""The report, made from results whose content is known: every claim once, what was not run told as such."""
import json

import numpy as np
import pytest

import animkit as ak
from animkit.errors import AnimkitError
from animkit.metrics import Interval
from animkit.pages import network_loads
from animkit.reproduce import CLAIMS, Experiment, collect, markdown, overview, report, section, shown
from animkit.show.filmstrip import Picture

PRESETS = {name: {"minutes": 1, "prompts": 20} for name in ("smoke", "laptop", "paper")}


@pytest.fixture
def results(tmp_path):
    """A folder in which one notebook of all has run."""
    run = Experiment("comparison", "laptop", PRESETS, seed=4, out=tmp_path / "comparison", work=tmp_path)
    run.judge("smooth", Interval(1.25, 0.75, 1.75, 20), "holds", "against Tune-a-Video")
    run.judge("domain", Interval(-2.0, -3.0, -1.0, 20), "does not hold")
    run.judge("text", Interval(0.0, -1.0, 1.0, 20), "undecided")
    run.judge("still", Interval(3.0, 3.0, 3.0, 20), "not comparable")
    for aspect in ("smoothness", "text", "domain"):
        run.not_run(f"users {aspect}", "nobody was asked <yet>")
    run.clip(ak.Clip(np.zeros((4, 64, 64, 3), np.uint8), prompt="a red ball"))
    run.figure(Picture(ak.Clip(np.zeros((1, 8, 8, 3), np.uint8))[0], "black"), "a black square")
    run.finish({})
    return tmp_path


def test_the_overview_counts_verdicts_and_names_what_is_missing(results):
    said = overview(results)
    others = sum(len(claims) for notebook, claims in CLAIMS.items() if notebook != "comparison")
    assert f"| not run | {others + 3} |" in said
    for verdict in ("holds", "does not hold", "undecided", "not comparable"):
        assert f"| {verdict} | 1 |" in said
    assert "**Not run**: " + ", ".join(name for name in CLAIMS if name != "comparison") + "." in said
    assert "The scales differ" in said and "smoke run" not in said


def test_a_section_has_the_papers_number_ours_and_how_it_was_run(results):
    said = section(results, "comparison")
    line = next(line for line in said.splitlines() if "smoothest" in line)
    assert "98.00" in line and "| 1.25 | 0.75 to 1.75 (n = 20) | **holds**: against Tune-a-Video |" in line
    assert "**not run**: nobody was asked &lt;yet&gt;" in said and "seed = 4" in said and "prompts = 20" in said
    assert "All weights as they shipped then." in said and " cores; 20" in said and "earlier runs" not in said
    figure, clip = shown(results, "comparison")
    assert figure.alt == "a black square" and len(clip) == 4


def test_time_and_weights_of_earlier_runs_are_told(results, monkeypatch):
    path = results / "comparison" / "results.json"
    told = json.loads(path.read_text())
    told["seconds"] |= {"all": 60.0, "found": 540.0}
    told["parameters"]["trained here"] = ["pan right rank 2"]
    path.write_text(json.dumps(told))
    monkeypatch.setitem(report.TRIED, "comparison", "longer tuning: the same.")
    said = section(results, "comparison")
    assert "all 60 s; and 540 s in earlier runs" in said and "| 10.0 |" in overview(results)
    assert "Trained for it: pan right rank 2; all other weights as they shipped then" in said
    assert "What was tried: longer tuning: the same." in said


def test_what_was_not_run_has_no_number(results):
    said = section(results, "domain_adapter")
    assert "no number stands here" in said and shown(results, "domain_adapter") == []
    rows = [line for line in said.splitlines() if line.startswith("| 4") or line.startswith("| 5")]
    assert len(rows) == len(CLAIMS["domain_adapter"]) and all("| - | - | **not run**" in row for row in rows)


def test_the_whole_page_has_every_claim(results):
    said = markdown(results)
    assert all(claim.says in said for claims in CLAIMS.values() for claim in claims.values())
    assert [line for line in said.splitlines() if line.startswith("# ")] == ["# The paper's claims, rerun"]


def test_a_smoke_run_says_that_it_decides_nothing(results):
    run = Experiment("how_much_data", "smoke", PRESETS, out=results / "how_much_data", work=results)
    run.not_run("loss", "too short")
    run.not_run("motion", "too short")
    run.finish({})
    assert "**A smoke run**" in overview(results) and "**Mixed presets**: laptop, smoke" in overview(results)


def test_what_cannot_be_reported_is_refused(results, tmp_path):
    with pytest.raises(AnimkitError, match="no folder of results"):
        collect(tmp_path / "absent")
    (results / "comparison").rename(results / "control")
    with pytest.raises(AnimkitError, match="holds results of comparison"):
        collect(results)
    (results / "control" / "results.json").write_text("{")
    with pytest.raises(AnimkitError, match="results.json is not what"):
        collect(results)


def test_the_committed_results_of_the_laptop_preset_are_whole(repo):
    """Of every notebook, on the shipped weights, with the page that shows them; their verdicts stand in it as they are."""
    folder = repo / "reproduce" / "laptop"
    found, page, text = collect(folder), (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert [name for name, results in found.items() if results is None] == []
    assert {results["parameters"]["preset"] for results in found.values()} == {"laptop"}
    assert network_loads(page) == [] and page.count("<video") == len(found) == page.count('src="data:video/mp4')
    for name, results in found.items():
        assert section(folder, name) in text, f"{name}: report.md is of other results"
        assert results["device"]["processor"] and results["seconds"]["all"] > 0
