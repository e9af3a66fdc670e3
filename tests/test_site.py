"""The site: notebooks run once, pages and an index that open from disk, and faults of a page are seen."""
import os
import subprocess
import sys

import nbformat
import pytest
from nbformat import v4

from animkit import cli, pages, site
from animkit.errors import AnimkitError


def notebook(path, *cells, title="A lesson"):
    nb = v4.new_notebook(cells=[v4.new_markdown_cell(f"# {title}"), *cells], metadata={"kernelspec": {
        "name": "python3", "display_name": "Python 3", "language": "python"}})
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone with two notebooks, one of which fails, and the reports of two presets."""
    parameters = v4.new_code_cell("n: int = 1  # a number", metadata={"tags": ["parameters"]})
    notebook(tmp_path / "notebooks" / "01_works.ipynb", parameters, v4.new_code_cell("print('n is', n)"), title="Works & all")
    notebook(tmp_path / "notebooks" / "02_fails.ipynb", v4.new_code_cell("raise KeyError('gone')"))
    ran = v4.new_code_cell("1", outputs=[v4.new_output("stream", text="found it")], execution_count=1)
    notebook(tmp_path / "out" / "reproduce" / "laptop" / "report.ipynb", ran, title="Report")
    notebook(tmp_path / "out" / "reproduce" / "smoke" / "report.ipynb", title="A lesser report")
    monkeypatch.setattr(site, "REPO", tmp_path)
    return tmp_path


def test_pages_and_index_are_written_and_a_failing_notebook_is_named(clone, tmp_path, capsys):
    out = tmp_path / "site"
    assert cli.main(["site", "--out", str(out), "-p", "n", "7"]) == 1
    assert "02_fails: the cell of 02_fails.ipynb" in capsys.readouterr().out
    assert {p.name for p in out.glob("*.html")} == {"01_works.html", "report.html", "index.html"}
    assert "n is 7" in (out / "01_works.html").read_text()
    index = (out / "index.html").read_text()
    assert '<a href="01_works.html">01: Works &amp; all</a>' in index and '<a href="report.html">Report</a>' in index
    assert pages.network_loads(index) == [] and site.problems(index) == []

    ran = (out / "executed" / "01_works.ipynb").stat().st_mtime_ns
    assert cli.main(["site", "--out", str(out), "--only", "01_works", "-p", "n", "7"]) == 0
    assert (out / "executed" / "01_works.ipynb").stat().st_mtime_ns == ran, "what was run before is not run again"
    assert f"as it ran before; to run it again, delete {out / 'executed' / '01_works.ipynb'}" in capsys.readouterr().err
    assert cli.main(["site", "--out", str(out), "--only", "01_works", "-p", "n", "8"]) == 0
    assert "n is 8" in (out / "01_works.html").read_text()


def test_what_failed_is_not_taken_for_run(clone, tmp_path):
    words = ["site", "--out", str(tmp_path / "site"), "--only", "01_works"]
    assert cli.main(words) == 0
    book = notebook(clone / "notebooks" / "01_works.ipynb", v4.new_code_cell("1 / 0"))
    assert [cli.main(words), cli.main(words)] == [1, 1], "its copy is newer than the notebook"
    notebook(book, v4.new_code_cell("1"))
    assert cli.main(words) == 0


def test_a_parameter_that_none_has_and_an_impossible_folder_are_refused(clone, tmp_path, capsys):
    assert cli.main(["site", "-p", "nn", "7"]) == 2
    assert "no notebook of these has a parameter 'nn'; they have: n" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main(["site", "--out", str(tmp_path / "file"), "--only", "01_works"]) == 2
    assert "file" in (said := capsys.readouterr()).err + said.out and "Traceback" not in said.err


def test_where_nothing_was_reproduced_the_site_has_the_committed_report(clone, tmp_path):
    kept = clone / "reproduce" / "laptop" / "report.html"
    kept.parent.mkdir(parents=True)
    kept.write_text("<title>What holds</title>")
    assert cli.main(["site", "--out", str(tmp_path / "site"), "--only", "01_works"]) == 0
    assert not (tmp_path / "site" / "report.html").exists(), "only what was asked for"
    (clone / "notebooks" / "02_fails.ipynb").unlink()
    assert cli.main(["site", "--out", str(tmp_path / "own")]) == 0
    assert "found it" in (tmp_path / "own" / "report.html").read_text(), "one's own report comes first"
    (clone / "out" / "reproduce").rename(clone / "gone")
    assert cli.main(["site", "--out", str(tmp_path / "site")]) == 0
    assert (tmp_path / "site" / "report.html").read_text() == kept.read_text()
    assert '<a href="report.html">What holds</a>' in (tmp_path / "site" / "index.html").read_text()


def test_an_unknown_notebook_is_refused(clone, capsys):
    assert cli.main(["site", "--only", "03_absent"]) == 2
    assert "no notebook '03_absent'; there are: 01_works, 02_fails, report" in capsys.readouterr().err


def test_without_a_clone_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "REPO", tmp_path)
    with pytest.raises(AnimkitError, match="in a clone of the repo"):
        site.run(cli.build_parser(["site"]).parse_args(["site"]))


GOOD = '<html lang="en"><h1>a</h1><h2>b</h2><img alt="c" src="d"><video controls title="e"></video></html>'


def test_a_good_page_has_no_problems():
    assert site.problems(GOOD) == []


@pytest.mark.parametrize("old, new, told", [
    (' lang="en"', "", "language"), ("<h1>a</h1>", "", "0 headings of level 1"), ("<h2>b</h2>", "<h1>b</h1>", "2 headings"),
    ("<h2>b</h2>", "<h3>b</h3>", "level 3 follows one of level 1"), (' alt="c"', "", "without alt"), (' alt="c"', ' alt=""', "without alt"),
    (' title="e"', "", "without a label"), ("<video controls", "<video controls autoplay", "starts by itself"),
    ("<video controls", "<video", "without controls")])
def test_what_would_keep_someone_from_reading_is_seen(old, new, told):
    assert any(told in problem for problem in site.problems(GOOD.replace(old, new)))


def test_letters_that_the_terminal_lacks_are_no_obstacle(tmp_path):
    program = ("from animkit import cli, notebooks, site; from pathlib import Path; "
               "notebooks.execute = lambda source, out, given, **how: Path(out).write_text('{}'); "
               "notebooks.parameters = lambda path: {'prompt': None}; "
               f"site.executed(Path('n.ipynb'), Path({str(tmp_path)!r}), {{'prompt': 'am Flu\\xdf'}}); "
               "cli.main(['site', '--only', 'Flu\\xdf'])")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                          env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert done.returncode == 0 and "no notebook 'Flu\\xdf'" in done.stderr, done.stderr
