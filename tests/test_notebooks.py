"""Running notebooks with checked parameters, and pages that need no network."""
import re

import nbformat
import pytest
from nbformat import v4

from animkit import notebooks, pages
from animkit.errors import AnimkitError

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def write(path, cells, parameters: str | None = None):
    if parameters is not None:
        cells = [v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), *cells]
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)
    return path


@pytest.fixture
def declared(tmp_path):
    return write(tmp_path / "n.ipynb", [v4.new_code_cell("1")],
                 'fast: bool = True  # quick\nsteps: int = 10  # how many\nrate: float = 1e-3  # step\n'
                 'name: str = "true"  # a word\nlook = None  # any\nsizes = [1, 2]  # list\n'
                 'few: int = None  # the preset\'s\nwhich: str = None  # the preset\'s\nshare: float = None  # the preset\'s')


def test_words_become_the_declared_kind(declared):
    given = {"fast": "false", "steps": "20", "rate": "2", "name": "false", "look": "ink", "sizes": "(3, 4)"}
    assert notebooks.checked(declared, given) == {"fast": False, "steps": 20, "rate": 2.0, "name": "false",
                                                  "look": "ink", "sizes": (3, 4)}
    assert type(notebooks.checked(declared, {"rate": 2})["rate"]) is float
    assert notebooks.checked(declared, {"look": "none", "steps": 3}) == {"look": None, "steps": 3}
    assert notebooks.checked(declared, {"few": "12", "which": "12", "share": "2"}) == {"few": 12, "which": "12", "share": 2.0}
    assert notebooks.checked(declared, {"few": None, "which": "none"}) == {"few": None, "which": None}


@pytest.mark.parametrize("given, message", [
    ({"fsat": "1"}, "no parameter 'fsat'; it has: fast, steps"), ({"steps": "many"}, "give a whole number"),
    ({"steps": "1.5"}, "give a whole number"), ({"steps": True}, "give a whole number"), ({"fast": 1}, "give True or False"),
    ({"name": 3}, "give a text"), ({"few": "many"}, "give a whole number, or none for the preset's"), ({"few": 2.5}, "give a whole number, or"),
    ({"few": True}, "give a whole number, or"), ({"which": 3}, "give a text, or")])
def test_wrong_parameters_are_refused(declared, given, message):
    with pytest.raises(AnimkitError, match=message):
        notebooks.checked(declared, given)


def test_what_is_no_notebook_is_refused(tmp_path):
    with pytest.raises(AnimkitError, match="no notebook at"):
        notebooks.parameters(tmp_path / "absent.ipynb")
    (tmp_path / "bad.ipynb").write_text("{")
    with pytest.raises(AnimkitError, match="bad.ipynb"):
        notebooks.parameters(tmp_path / "bad.ipynb")
    with pytest.raises(AnimkitError, match="bad.ipynb"):
        pages.write_page(tmp_path / "bad.ipynb", tmp_path / "bad.html")


def test_a_notebook_runs_in_its_own_folder_and_a_failing_cell_is_named(tmp_path):
    (tmp_path / "beside.txt").write_text("found")
    source = write(tmp_path / "n.ipynb", [v4.new_code_cell('print(open("beside.txt").read(), n)'),
                                          v4.new_code_cell('if n > 1: raise KeyError("gone")')], "n: int = 1  # count")
    done = nbformat.read(notebooks.execute(source, tmp_path / "o" / "run.ipynb", progress=False), as_version=4)
    assert done.cells[-2].outputs[0].text == "found 1\n"
    with pytest.raises(AnimkitError, match="n.ipynb that begins 'if n > 1.*KeyError: 'gone'; .* in .*run"):
        notebooks.execute(source, tmp_path / "o" / "run.ipynb", {"n": "2"}, progress=False)


@pytest.mark.parametrize("body, message", [("import os; os._exit(1)", "could not be run: .*[Kk]ernel"),
                                           ("import time; time.sleep(60)", "ran longer than 3 s")])
def test_a_kernel_that_dies_or_hangs_is_an_error_of_ours(tmp_path, body, message):
    source = write(tmp_path / "n.ipynb", [v4.new_code_cell(body)])
    with pytest.raises(AnimkitError, match=message):
        notebooks.execute(source, tmp_path / "o.ipynb", progress=False, cell_timeout=3)


@pytest.mark.parametrize("error", [RuntimeError("Kernel didn't respond in 120 seconds"),
                                   RuntimeError("Kernel died before replying to kernel_info"),
                                   TimeoutError("Kernel didn't respond to heartbeats in 120 seconds and timed out")])
def test_a_kernel_that_does_not_come_up_is_tried_again(tmp_path, monkeypatch, error):
    """As on busy cores; and at last it is an error of ours."""
    import papermill
    source, tried = write(tmp_path / "n.ipynb", [v4.new_code_cell("1")]), []

    def busy(*args, **how):
        tried.append(1)
        if len(tried) < works_at:
            raise error

    monkeypatch.setattr(papermill, "execute_notebook", busy)
    monkeypatch.setattr(notebooks.time, "sleep", lambda seconds: None)
    works_at = 3
    assert notebooks.execute(source, tmp_path / "o.ipynb") == tmp_path / "o.ipynb" and len(tried) == 3
    works_at, tried[:] = 9, []
    with pytest.raises(AnimkitError, match="n.ipynb could not be run: Kernel d"):
        notebooks.execute(source, tmp_path / "o.ipynb")
    assert len(tried) == 3


def test_a_page_keeps_what_is_shown_and_loads_nothing(tmp_path):
    pixel = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
    text = v4.new_markdown_cell("# A page\n\nInline $W + \\alpha B A$ and\n\n$$\\frac{1}{2}$$\n\n"
                                "[a link](https://example.org/paper) and `https://example.org/code`")
    code = v4.new_code_cell('# --jp-icon-mine: url(x); see https://example.org/x\nurl = "https://example.org/data"', outputs=[
        v4.new_output("display_data", {"text/html": '<video controls src="data:video/mp4;base64,AAAA"></video>'}),
        v4.new_output("display_data", {"image/png": pixel, "text/plain": "a picture"}),
        v4.new_output("display_data", {pages.WIDGET: {"model_id": "1"}, "text/plain": "IntSlider(value=3)"})])
    path = write(tmp_path / "n.ipynb", [text, code])
    html = pages.write_page(path, tmp_path / "p" / "n.html").read_text()
    assert pages.network_loads(html) == []
    assert "<title>A page</title>" in html and html.count("<math") == 2 and "<mfrac>" in html
    assert 'src="data:video/mp4;base64,AAAA"' in html and pixel[:40] in html
    assert re.findall(r"--jp-icon-[\w-]+: *url", html) == ["--jp-icon-mine: url"], "JupyterLab's icons are left out"
    assert "IntSlider" not in html and "https://example.org/paper" in html
    assert [p.name for p in (tmp_path / "p").iterdir()] == ["n.html"]


@pytest.mark.parametrize("html", [
    '<script src="https://cdn.example.org/x.js"></script>', '<img src="//example.org/a.png">',
    '<link rel="stylesheet" href="http://example.org/a.css">', '<video poster="https://example.org/a.png"></video>',
    "<style>@font-face { src: url(https://example.org/f.woff) }</style>", '<style>@import "https://example.org/a.css";</style>',
    '<script type="module">import x from "https://example.org/x.mjs";</script>',
    '<script>const m = await import("https://example.org/x.mjs")</script>',
    '<script>s.src = "https://example.org/x.js"</script>', '<p style="background: url(\'https://example.org/a.png\')">'])
def test_every_way_to_load_from_the_network_is_seen(html):
    assert len(pages.network_loads(f"<html>{html}</html>")) == 1


def test_a_page_that_would_load_from_the_network_is_not_written(tmp_path):
    path = write(tmp_path / "n.ipynb", [v4.new_markdown_cell('<img src="https://example.org/a.png">')])
    with pytest.raises(AnimkitError, match="https://example.org/a.png"):
        pages.write_page(path, tmp_path / "n.html")
    assert not (tmp_path / "n.html").exists()


def test_what_is_folded_in_a_notebook_is_folded_on_its_page(tmp_path):
    text = "# A page\n\n<details>\n<summary>Hint</summary>\n\nLook at **axis** 1.\n\n</details>\n\nAfter it."
    path = write(tmp_path / "n.ipynb", [v4.new_markdown_cell(text)])
    html = pages.write_page(path, tmp_path / "n.html").read_text()
    inside = html.split("<details>")[1].split("</details>")[0]
    assert "<strong>axis</strong>" in inside and "After it" not in inside


def test_a_long_folder_for_temporary_files_is_no_obstacle(tmp_path, monkeypatch):
    """A socket's path has room for some hundred bytes: there kernels talk over TCP."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(notebooks.tempfile, "tempdir", str(long))
    source = write(tmp_path / "n.ipynb", [v4.new_code_cell("print(6 * 7)")])
    done = nbformat.read(notebooks.execute(source, tmp_path / "o.ipynb", progress=False), as_version=4)
    assert done.cells[-1].outputs[0]["text"] == "42\n"


def test_a_copy_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    import papermill
    source = write(tmp_path / "n.ipynb", [v4.new_code_cell("1")])

    def refused(*args, **how):
        raise PermissionError(13, "Permission denied", str(tmp_path / "o.ipynb"))

    monkeypatch.setattr(papermill, "execute_notebook", refused)
    with pytest.raises(AnimkitError, match="could not write .*o.ipynb: Permission denied"):
        notebooks.execute(source, tmp_path / "o.ipynb")
