"""The course's notebooks: what each must have, solutions that are right, a run of each; in kernels when slow."""
import ast
import contextlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch

from animkit import notebooks
from animkit.coursework import checks, control_checks
from animkit.coursework.verdict import Verdict
from animkit.show.knob import Knob
from animkit.show.widgets import Playground
from run_cells import SMALLEST, html, run_cells

LESSONS = list(SMALLEST)
HERE = [name for name in LESSONS if name != "08_control"]  # run below; that one in test_control.py, with a ControlNet and without


@pytest.fixture(scope="module", params=LESSONS)
def book(request, repo):
    return nbformat.read(repo / "notebooks" / f"{request.param}.ipynb", as_version=4)


def text_of(book) -> str:
    return "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")


def code_of(book) -> str:
    return "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")


def cell(book, id):
    return next(c for c in book.cells if c.id == id)


def solution(book, n) -> str:
    return re.search(r"```python\n(.*?)```", cell(book, f"solution-{n}").source, re.S).group(1)


def exercises(book) -> list[int]:
    return [int(c.id.removeprefix("exercise-")) for c in book.cells if c.id.startswith("exercise-")]


def test_the_first_cell_says_what_comes_and_what_it_costs(book):
    first = book.cells[0].source
    assert first.startswith("# ") and "When you leave this page you can" in first and "**You need to know**" in first
    head = re.search(r"^\|(.*)\|$", first, re.M).group(1)
    assert [c.strip() for c in head.split("|")] == ["to read", "to run", "exercises", "memory", "to download"]
    assert re.search(r"\| about [a-z0-9]+ minutes? on two CPU cores", first), "about, since processors differ threefold"
    assert "parameters" in book.cells[1].metadata.get("tags", [])


def test_the_first_cell_counts_minutes_and_exercises_rightly(book):
    run, own = re.search(r"^\| \d+ minutes \| ([^|]+) \| ([^|]+) \|", book.cells[0].source, re.M).groups()
    number = re.match(r"about (\w+) minute", run)[1]
    assert int({"a": 1, "two": 2, "three": 3, "four": 4, "five": 5}.get(number, number)) <= 5
    count, minutes = map(int, re.fullmatch(r"(\d+), some (\d+) minutes", own).groups())
    each = [int(re.search(r"(\d+) minutes\*", cell(book, f"exercise-{n}").source)[1]) for n in exercises(book)]
    assert count == len(each) and abs(sum(each) - minutes) <= 5, each


def test_it_has_every_part_of_a_lesson(book):
    text, code = text_of(book), code_of(book)
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert headings[-4:] == ["What the paper found, and what we measure", "Summary", "Exercises", "Where to read on"]
    assert text.count("> **Guess first.**") >= 3, "questions before the cells that answer them"
    assert "beside(" in code and "drawn(" in code and re.search(r"\bknob\(", code)
    assert sum(map(code.count, ("drawn(", "sheet(", "filmstrip(", "side_by_side("))) >= 4, "pictures, with words"
    assert "autoplay" not in code
    assert any(c.id in ("tiny", "shapes") and ".shape" in c.source for c in book.cells), "classes built tiny, with their shapes"
    at = next(n for n, c in enumerate(book.cells) if "## What the paper found, and what we measure" in c.source)
    told = next(c for c in book.cells[at:] if c.cell_type == "code")
    assert "table(" in told.source and "the paper" in told.source, "the paper's findings in a table beside ours"


GREY = re.compile(r"[01](\.\d+)?|black|white|none|cividis")  # what is told apart without seeing colours; cividis is even in grey


def test_figures_are_readable_in_grey(book):
    """No colour but greys, and no curve or bar in matplotlib's own colours: lines differ by dash and mark, bars by hatch."""
    for c in book.cells:
        for call in ast.walk(ast.parse(c.source)) if c.cell_type == "code" else ():
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            given = {k.arg: [n.value for n in ast.walk(k.value) if isinstance(n, ast.Constant)] for k in call.keywords}
            for name in given.keys() & {"color", "c", "facecolor", "edgecolor", "mfc", "mec", "cmap"}:
                named = [value for value in given[name] if value != "down"]             # of a condition, not a colour
                assert all(GREY.fullmatch(str(value)) for value in named), f"{c.id}: {ast.unparse(call)}"
            if call.func.attr in ("plot", "semilogy", "loglog", "bar", "barh", "errorbar", "scatter", "hist", "fill_between"):
                formats = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                black = any(f.startswith("k") for f in formats) if formats else re.search(r"[\"']k[-:.os^]", c.source)
                drawn_by_the_package = ast.unparse(call) == "result.history.plot(ax)"  # greys too: tests/training/test_loop.py
                assert "color" in given or black or drawn_by_the_package, f"{c.id}: {ast.unparse(call)}"


def test_guesses_come_before_the_cell_that_answers(book):
    for here, following in zip(book.cells, book.cells[1:]):
        if "**Guess first.**" in here.source:
            assert following.cell_type == "code", here.id


def test_a_widget_has_a_static_picture_before_it(book):
    turned = [c for c in book.cells if c.cell_type == "code" and "knob(draw" in c.source]
    assert turned
    for c in turned:
        assert re.search(r"display\(\s*(sheet|ak\.filmstrip|draw\w*)\(", c.source[:c.source.index("knob(draw")]), c.id


def test_it_stands_in_the_repo_as_a_lesson_not_as_a_run(book):
    assert [c.id for c in book.cells if c.cell_type == "code" and (c.outputs or c.execution_count)] == []
    assert "widgets" not in book.metadata


def test_lines_of_code_fit_the_page(book):
    long = [(c.id, line) for c in book.cells if c.cell_type == "code" for line in c.source.splitlines() if len(line) > 130]
    assert long == []


def test_every_line_that_it_shows_of_the_package_is_there(book, repo, monkeypatch):
    """beside(...) and source(...) find their lines; a change of the package that a notebook has to follow shows here."""
    trees = [ast.parse(c.source) for c in book.cells if c.cell_type == "code" and not c.source.startswith("%")]
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))       # as notebook 09 does
    space, shown = {}, 0
    for node in (n for tree in trees for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))):
        exec(ast.unparse(node), space)
    for node in (n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call)):
        if isinstance(node.func, ast.Name) and node.func.id in ("beside", "source"):
            eval(ast.unparse(node), space)
            shown += 1
    assert shown >= 1


def test_paths_that_it_names_exist(book, repo):
    named = set(re.findall(r"`((?:animkit|notebooks|data_samples|docs|tests|configs|benchmarks)/[\w./-]+)`", text_of(book)))
    assert [path for path in named if not (repo / path).exists()] == []
    beside = set(re.findall(r"`(\d\d_\w+\.ipynb)`", text_of(book)))
    assert [n for n in beside if not (repo / "notebooks" / n).exists()] == []


def test_a_page_that_computes_with_tensors_of_its_own_says_where(book):
    """An animator goes to a GPU where there is one, or to an Apple's: tensors made on the CPU would not meet it there."""
    code = code_of(book)
    if re.search(r"(?<!\.)\b(encode|fit|Steered|record_attention)\(", code):
        calls = re.findall(r"ak\.Animator\([^)]*\)", code)
        assert calls and all('device="cpu"' in call for call in calls)


def test_nothing_of_the_library_is_written_twice(book, repo):
    """The notebook shows the package's code; a function of three lines and more is nowhere a copy of it."""
    library = " ".join("".join(p.read_text().split()) for p in (repo / "animkit").rglob("*.py"))
    for c in book.cells:
        if c.cell_type != "code":
            continue
        for node in ast.walk(ast.parse(c.source)):
            if isinstance(node, ast.FunctionDef) and len(node.body) >= 3:
                body = "".join("".join(ast.unparse(statement).split()) for statement in node.body)
                assert body not in library, f"{c.id}: {node.name}"


def test_exercises_say_how_hard_how_important_how_long(book):
    found = exercises(book)
    assert found == list(range(1, len(found) + 1)) and len(found) >= 3
    for n in found:
        task = cell(book, f"exercise-{n}").source
        assert re.search(r"^### Exercise %d: .+\n\*Difficulty [1-5] of 5 · importance [1-5] of 5 · \d+ minutes\*$" % n, task, re.M)
        assert "<details>\n<summary>Hint</summary>\n\n" in task and "\n\n</details>" in task
        assert cell(book, f"solution-{n}").source.startswith(f"<details>\n<summary>Solution of exercise {n}</summary>\n\n")


def run(book, n, code) -> Verdict:
    """The exercise's cell with its stub replaced by `code`: what its last line says."""
    source = cell(book, f"answer-{n}").source
    *stub, check = ast.parse(source).body
    space = {"checks": control_checks if "control_checks as checks" in code_of(book) else checks}
    exec("import math\nimport numpy as np\nimport torch\nfrom einops import rearrange, repeat\nfrom torch import nn", space)
    exec(code if code is not None else "\n".join(map(ast.unparse, stub)), space)
    return eval(ast.unparse(check), space)


def test_parameters_of_one_name_are_of_one_kind_in_all_notebooks(repo):
    """`animkit site -p NAME VALUE` gives them to every notebook that has them."""
    kinds = {}
    for path in sorted((repo / "notebooks").glob("*.ipynb")):
        for name, declared in notebooks.parameters(path).items():
            kinds.setdefault(name, {}).setdefault(declared["type"], []).append(path.stem)
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}


def test_solutions_are_right_and_stubs_are_to_do(book):
    for n in exercises(book):
        assert run(book, n, None).state == "to do", n
        verdict = run(book, n, solution(book, n))
        assert verdict.ok, f"{n}: {verdict}"


def execute(name, repo, tmp_path):
    source = repo / "notebooks" / f"{name}.ipynb"
    folder = {"out": str(tmp_path / "out")} if "out" in notebooks.parameters(source) else {}
    out = notebooks.execute(source, tmp_path / "run.ipynb", SMALLEST[name] | folder, progress=False)
    book = nbformat.read(out, as_version=4)
    said = [o["data"]["text/plain"] for c in book.cells if c.id.startswith("answer-") for o in c.outputs]
    assert len(said) == len(exercises(book)) and all(s.startswith("To do") for s in said)
    warned = [o.text for c in book.cells if c.cell_type == "code" for o in c.outputs if o.get("name") == "stderr"]
    assert not [w for w in warned if "Traceback" in w]
    outputs = json.dumps([c.outputs for c in book.cells if c.cell_type == "code"])
    images, films = re.findall(r"<img[^>]*>", outputs), re.findall(r"<video[^>]*>", outputs)
    assert len(images) >= 4 and all(re.search(r'alt=\\"[^"]{10,}', image) for image in images)
    assert all("controls" in film and "autoplay" not in film and re.search(r'title=\\"[^"]{10,}', film) for film in films)


def test_a_short_one_runs(repo, tmp_path):
    execute("02_inflation", repo, tmp_path)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [name for name in HERE if name != "02_inflation"])
def test_each_runs_at_its_smallest_in_this_process(name, repo, tmp_path):
    """The others without a kernel and its imports; in kernels they run when slow."""
    source = repo / "notebooks" / f"{name}.ipynb"
    folder = {"out": str(tmp_path / "out")} if "out" in notebooks.parameters(source) else {}
    names, shown = run_cells(source, **SMALLEST[name] | folder)
    assert all(things[-1].state == "to do" for id, things in shown.items() if id.startswith("answer-"))
    for turned in (thing for things in shown.values() for thing in things if isinstance(thing, Knob)):
        assert len(set(turned.slider.options)) == len(turned.slider.options), "each value once, or a step of the slider does nothing"
    page = "".join(html(thing) for things in shown.values() for thing in things)
    images, films = re.findall(r"<img[^>]*>", page), re.findall(r"<video[^>]*>", page)
    assert len(images) >= 4 and all(re.search(r'alt="[^"]{10,}', image) for image in images)
    assert all(re.search(r'title="[^"]{10,}', film) for film in films)
    for play in (thing for things in shown.values() for thing in things if isinstance(thing, Playground)):
        sliders, made = {part: slider.value for part, slider in play.alphas.items()}, play.clip.settings["alpha"]
        assert {part: sliders[part] for part in made} == made, "the sliders stand as they did for the clip beside them"
    if name == "07_animate_anything":  # its playground's cell, run again, has the same controls
        first, cell_of = names["playground_of_mine"], cell(nbformat.read(source, as_version=4), "playground").source
        exec(cell_of, names)
        again = names["playground_of_mine"]
        assert again.guided == first.guided != {} and [*again.alphas] == [*first.alphas]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [name for name in HERE if name != "02_inflation"])
def test_each_runs_at_its_smallest(name, repo, tmp_path):
    execute(name, repo, tmp_path)


def test_memory_of_a_training_is_counted_with_fused_attention(repo, monkeypatch):
    """As lesson 09 says: no scores are drawn up, 0.5 GB here, and gradients that are there already are not counted."""
    monkeypatch.syspath_prepend(str(repo / "benchmarks"))
    from memory_table import peak
    q = torch.empty(1, 8, 4096, 64, device="meta", requires_grad=True)

    def step():
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()

    step()
    assert 0.02 < peak(step) < 0.06


def test_lesson_07_takes_the_motion_loras_that_06_left_and_nothing_else_there(repo, tmp_path, monkeypatch):
    book = nbformat.read(repo / "notebooks" / "07_animate_anything.ipynb", as_version=4)
    tree = ast.parse(next(c.source for c in book.cells if "def shot_files" in c.source))
    tree.body = [node for node in tree.body if getattr(node, "name", "") == "shot_files"]
    left = tmp_path / "out" / "motion_lora"
    for file in ("zoom_in-8/zoom_in-8.safetensors", "zoom_in-8/checkpoint/weights.safetensors", "pan-8/settings.json",
                 "cache/latents-1.safetensors"):
        (left / file).parent.mkdir(parents=True, exist_ok=True)
        (left / file).touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    names = {"Path": Path, "samples": SimpleNamespace(names=list), "motion_lora": ""}
    exec(compile(tree, "07", "exec"), names)
    assert [file.name for file in names["shot_files"]()] == ["zoom_in-8.safetensors"]


def test_lesson_03_looks_into_a_call_that_the_sampler_made(repo):
    """The call that it repeats with a recorder on has the time and the latents of one of the sampling's own."""
    cells = [c.source for c in nbformat.read(repo / "notebooks" / "03_motion_module.ipynb", as_version=4).cells if c.cell_type == "code"]
    names = {"__name__": "__main__"}
    exec(cells[0], names)
    names |= SMALLEST["03_motion_module"]
    exec(cells[1], names)
    given, source = [], next(cell for cell in cells if "t, x_t = " in cell)
    hook = names["animator"].video_unet.register_forward_pre_hook(lambda unet, args: given.append((int(args[1]), args[0][:1])))
    exec(source[:source.index("size = ")], names)
    hook.remove()
    assert any(t == int(names["t"]) and torch.equal(x, names["x_t"]) for t, x in given)


@pytest.mark.parametrize("lesson, learns", [("04_domain_adapter", "trained"), ("05_training_the_motion_module", "modules")])
def test_a_training_cell_that_is_run_again_begins_again(repo, tmp_path, lesson, learns):
    """Also when an interrupt left an alpha turned down: what it trains is fresh, and the same as the first time."""
    path = repo / "notebooks" / f"{lesson}.ipynb"
    names, _ = run_cells(path, **SMALLEST[lesson], out=str(tmp_path))
    first = {key: value.clone() for key, value in names[learns].state_dict().items()}
    before = [np.asarray(clip) for clip in names.get("on_the_way", {0: []})[0]]
    names["animator"].alpha[next(iter(names["animator"].alpha))] = 0.0
    cells = ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    with contextlib.chdir(path.parent):
        exec(next(source for source in cells if "history = fit(" in source), names)
    assert all(torch.equal(first[key], value) for key, value in names[learns].state_dict().items())
    assert all(np.array_equal(a, b) for a, b in zip(before, names.get("on_the_way", {0: []})[0], strict=True))
    assert set(names["animator"].alpha.values()) == {1.0}
