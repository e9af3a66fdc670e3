"""The assignments: solutions get full marks, releases hold nothing of them, planted wrong answers are told what is wrong."""
import re
import shutil

import nbformat
import pytest

from animkit import cli, samples

pytest.importorskip("nbgrader", reason="nbgrader is missing: pip install 'animkit[course]'")

POINTS = {"1_motion_module": 20, "2_domain_adapter": 20, "3_motion_lora": 20, "4_experiment": 30}
BY_TEST = ["1_motion_module", "2_domain_adapter", "3_motion_lora"]
REGION = re.compile(r"^([ ]*)### BEGIN SOLUTION\n.*?### END SOLUTION$", re.S | re.M)

# assignment -> answer cell -> (test cell, wrong answers: body of the solution, a piece of what the student is told)
WRONG = {
    "1_motion_module": {
        "fold": ("fold-test", [
            ("return x.reshape(-1, *x.shape[1:2], *x.shape[3:])", "plain reshape"),
            ('return rearrange(x, "b c f h w -> (f b) c h w")', "order is"),
            ('return rearrange(x, "b c f h w -> (b c) f h w")', "shape"), ("pass", "return")]),
        "unfold": ("unfold-test", [
            ("return y.reshape(-1, y.shape[1], f, *y.shape[2:])", "plain reshape"),
            ('return rearrange(y, "(f b) c h w -> b c f h w", f=f)', "not \\(f b\\)"),
            ('return rearrange(y, "(b f) c h w -> b f c h w", f=f)', "shape")]),
        "apply": ("apply-test", [
            ('return layer(rearrange(x, "b c f h w -> (b f) c h w"))', "expected b C f H W"),
            ('y = layer(rearrange(x, "b c f h w -> (f b) c h w"))\n'
             '    return rearrange(y, "(b f) c h w -> b c f h w", f=x.shape[2])', "not what the layer gives"),
            ("return torch.stack([layer(x[:, :, 0])] * x.shape[2], 2)", "frame 1 is not"),
            ('y = layer(rearrange(x, "b c f h w -> (b f) c h w")) if isinstance(layer, nn.Conv2d) else None\n'
             '    return layer(x) if y is None else rearrange(y, "(b f) c h w -> b c f h w", b=x.shape[0])', "own statistics")]),
        "positions": ("positions-test", [
            ("angle = torch.arange(1, frames + 1)[:, None] / 10000 ** (torch.arange(0, c, 2) / c)\n"
             "    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)", "off by one"),
            ("angle = torch.arange(frames)[:, None] / 10000 ** (torch.arange(0, c, 2) / c)\n"
             "    return torch.cat([angle.sin(), angle.cos()], -1)", "take turns"),
            ("angle = torch.arange(frames)[:, None] / 10000 ** (torch.arange(0, c, 2) / c)\n"
             "    return torch.stack([angle.cos(), angle.sin()], -1).flatten(1)", "exchanged")]),
        "attention": ("attention-test", [
            ("x = x + positions\n    q, k, v = to_q(x), to_k(x), to_v(x)\n"
             "    return (q @ k.mT / math.sqrt(x.shape[-1])).softmax(1) @ v", "wrong axis"),
            ("v = to_v(x)\n    x = x + positions\n"
             "    return (to_q(x) @ to_k(x).mT / math.sqrt(x.shape[-1])).softmax(-1) @ v", "V without positions"),
            ("return (to_q(x) @ to_k(x).mT / math.sqrt(x.shape[-1])).softmax(-1) @ to_v(x)", "no positions"),
            ("x = x + positions\n    return (to_q(x) @ to_k(x).mT).softmax(-1) @ to_v(x)", "sqrt")]),
        "zero": ("zero-test", [
            ("for p in module.parameters():\n        nn.init.zeros_(p)", "you also changed"),
            ("nn.init.zeros_(module.temporal_transformer.proj_out.weight)", "bias is not"),
            ("module.forward = lambda x, frames, alpha=1.0: x", "nothing has changed"),
            ("nn.init.zeros_(module.temporal_transformer.proj_out.weight)\n"
             "    nn.init.zeros_(module.temporal_transformer.proj_out.bias)\n    module.requires_grad_(False)", "gradient")])},
    "2_domain_adapter": {
        "update": ("update-test", [
            ("return x @ weight.T + alpha * (alpha * x @ down.T @ up.T)", "twice"),
            ("return alpha * (x @ weight.T + x @ down.T @ up.T)", "scales W x too"),
            ("return x @ weight.T + x @ down.T @ up.T", "no effect"),
            ("return alpha * (x @ down.T @ up.T)", "W x is missing")]),
        "numbers": ("numbers-test", [("return rank * d_in", "A alone"), ("return d_in * d_out", "whole layer"),
                                     ("return rank * d_in * rank * d_out", "beside each other")]),
        "where": ("where-test", [
            ('return "attn1" in path and path.endswith(("to_q", "to_k", "to_v", "to_out.0"))', "left out"),
            ('return path.endswith(("to_q", "to_k", "to_v", "to_out.0"))', "temporal"),
            ('return ".attn1." in path or ".attn2." in path', "is taken")]),
        "frame": ("frame-test", [
            ("return z[:, :, :1]", "always frame 0"), ("return z.mean(2, keepdim=True)", "mixes"),
            ("k = int(torch.randint(0, z.shape[2], (1,), generator=generator))\n    return z[:, :, k:k + 1]", "same frame number"),
            ("k = torch.randint(0, z.shape[2] - 1, (len(z),), generator=generator)\n"
             "    return z[torch.arange(len(z)), :, k].unsqueeze(2)", "never comes up")]),
        "train": ("train-test", [
            ("return torch.zeros(rank, x.shape[1]), torch.zeros(weight.shape[0], rank)", "down is not"),
            ("return torch.randn(rank, x.shape[1]), torch.randn(weight.shape[0], rank)", "up is zero"),
            ("g = generator\n    return 0.1 * torch.randn(rank, x.shape[1], generator=g), torch.zeros(weight.shape[0], rank)",
             "still 100% of what it was"),
            ("down, up = torch.randn(rank, x.shape[1]), torch.zeros(weight.shape[0], rank)\n"
             "    if steps:\n        weight += 1\n    return down, up", "frozen weight was changed")])},
    "3_motion_lora": {
        "zoom": ("zoom-test", [
            ("return [(1 - amount) ** (1 - i / (frames - 1)) for i in range(frames)]", "wrong way"),
            ("return [1 - amount * i / (frames - 1) for i in range(frames)]", "equal factors"),
            ("return [(1 - amount) ** (i / frames) for i in range(frames)]", "off by one")]),
        "cut": ("cut-test", [
            ("return picture", "rows 4 to 11"), ("n = round(size * len(picture))\n    return picture[:n, :n]", "own size"),
            ("i = (size * torch.arange(len(picture))).long()\n    return picture[i][:, i]", "rows 4 to 11"),
            ("s = len(picture)\n    i = ((size * ((2 * torch.arange(s) + 1) / s - 1) + 1) * s / 2 - 0.5).round().long()\n"
             "    return picture[i]", "in the middle|columns")]),
        "shot": ("shot-test", [
            ("return video", "does not see"),
            ("return torch.stack([cut(x, s) for x, s in zip(video, zoom_in(len(video), amount)[::-1])])", "does not see"),
            ("return torch.stack([cut(x, 1 - amount) for x in video])", "does not see")]),
        "compose": ("compose-test", [
            ("return sum(x @ weight.T + a * (x @ d.T @ u.T) for d, u, a in loras)", "once"),
            ("return x @ weight.T + sum(x @ d.T @ u.T for d, u, _ in loras)", "no effect"),
            ("return x @ weight.T + sum(a * a * (x @ d.T @ u.T) for d, u, a in loras)", "twice")]),
        "size": ("size-test", [("return float((up @ down).norm() / weight.norm())", "alpha"),
                               ("return float(weight.norm() / (alpha * up @ down).norm())", "upside down"),
                               ("return float(abs(alpha) * up.norm() * down.norm() / weight.norm())", "multiply B A first")])},
}


# Of assignment 4: what a student's `results` has other than these, and a piece of what its test says.
RESULTS = {"question": "why?", "varied": "alpha", "held": {"steps": 4}, "metric": "change", "seeds": [0, 1, 2],
           "numbers": {"alpha 0": [3.0, 2.5, 2.0], "alpha 1": [1.0, 1.5, 0.5]}}
WRONG_RESULTS = [
    ({"seeds": [0, 0, 0]}, "three different seeds"), ({"numbers": {"alpha 1": [1.0, 1.5, 0.5]}}, "two settings"),
    ({"numbers": {"alpha 0": [3.0], "alpha 1": [1.0, 1.5, 0.5]}}, "'alpha 0' has 1 numbers for 3 seeds"),
    ({"numbers": {"alpha 0": [3.0, 2.5, float("nan")], "alpha 1": [1.0, 1.5, 0.5]}}, "not finite"),
    ({"numbers": {"alpha 0": [1.0, 1.5, 0.5], "alpha 1": [1.0, 1.5, 0.5]}}, "nothing was varied"), ({"held": {}}, "what was held")]


def source(repo, assignment):
    (file,) = (repo / "coursework" / "source" / assignment).glob("*.ipynb")
    return nbformat.read(file, as_version=4)


def nbgrader(cell):
    return cell.metadata.get("nbgrader", {})


def released(notebook):
    """As students get it, by nbgrader's own steps."""
    from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions
    notebook = nbformat.from_dict(notebook)
    for step in (ClearSolutions(), ClearHiddenTests()):
        notebook, _ = step.preprocess(notebook, {})
    return notebook


def run(cells, until=None):
    """The code cells in one namespace, as a kernel would; cell name -> the exception of those that raised."""
    space, raised = {"__name__": "__main__"}, {}
    for cell in cells:
        if cell.cell_type == "code":
            try:
                exec(compile(cell.source, str(nbgrader(cell).get("grade_id")), "exec"), space)
            except Exception as error:
                raised[nbgrader(cell).get("grade_id")] = error
            if until is not None and nbgrader(cell).get("grade_id") == until:
                break
    return raised


@pytest.mark.parametrize("assignment", POINTS)
def test_structure(repo, assignment):
    cells = source(repo, assignment).cells
    marked = [nbgrader(c) for c in cells if nbgrader(c)]
    assert sum(m.get("points", 0) for m in marked) == POINTS[assignment]
    assert len({m["grade_id"] for m in marked}) == len(marked) and all(m["schema_version"] == 3 for m in marked)
    assert f"{POINTS[assignment]} points" in cells[0].source, "the page says its points"
    for cell in cells:
        mark, code = nbgrader(cell), cell.cell_type == "code"
        assert cell.source.count("BEGIN SOLUTION") == cell.source.count("END SOLUTION")
        assert ("BEGIN SOLUTION" in cell.source) == bool(code and mark.get("solution")), mark
        if code and mark.get("grade"):
            assert "BEGIN HIDDEN TESTS" in cell.source and "END HIDDEN TESTS" in cell.source and mark["locked"]
            assert "widget" not in cell.source
        elif "HIDDEN" in cell.source:
            raise AssertionError("hidden tests outside a graded cell")


@pytest.mark.parametrize("assignment", [*BY_TEST, pytest.param("4_experiment", marks=pytest.mark.skipif(
    "motion_module" not in samples.names(), reason="the miniature's weights are not in data_samples/ yet"))])
def test_solutions_get_full_marks(repo, assignment):
    assert run(source(repo, assignment).cells) == {}


@pytest.mark.parametrize("assignment", POINTS)
def test_the_release_differs_inside_the_marked_lines_only(repo, assignment):
    whole, release = source(repo, assignment).cells, released(source(repo, assignment)).cells
    text = "\n".join(c.source for c in release)
    assert "SOLUTION" not in text and "HIDDEN" not in text and "hidden case" not in text
    for before, after in zip(whole, release, strict=True):
        if nbgrader(before).get("solution") and before.cell_type == "code":
            stub = REGION.sub(lambda m: f"{m[1]}# YOUR CODE HERE\n{m[1]}raise NotImplementedError()", before.source)
            assert stub != before.source and after.source == stub
        elif nbgrader(before).get("solution"):
            assert after.source == "YOUR ANSWER HERE"
        else:
            assert after.source == re.sub(r"\n?### BEGIN HIDDEN.*?### END HIDDEN TESTS\n?", "", before.source, flags=re.S)


@pytest.mark.parametrize("assignment", POINTS)
def test_the_release_fails_with_not_implemented_only(repo, assignment):
    release = released(source(repo, assignment)).cells
    raised = run(release)
    tests = {nbgrader(c)["grade_id"] for c in release if c.cell_type == "code" and nbgrader(c).get("grade")}
    assert tests <= raised.keys()
    assert {name: error for name, error in raised.items() if type(error) is not NotImplementedError} == {}


@pytest.mark.parametrize("assignment, answer, body, told", [
    (assignment, answer, body, told) for assignment, answers in WRONG.items()
    for answer, (_, wrongs) in answers.items() for body, told in wrongs])
def test_planted_wrong_answers_get_no_points_and_are_told_why(repo, assignment, answer, body, told):
    test = WRONG[assignment][answer][0]
    cells = source(repo, assignment).cells
    for cell in cells:
        if nbgrader(cell).get("grade_id") == answer:
            cell.source = REGION.sub(lambda m: f"{m[1]}{body}", cell.source)
    wanted = [c for c in cells if c.cell_type == "code" and (not nbgrader(c).get("grade") or nbgrader(c)["grade_id"] == test)]
    raised = run(wanted, until=test)
    assert type(raised.get(test)) is AssertionError, raised
    assert re.search(told, str(raised[test])), str(raised[test])


def test_the_experiment_is_told_what_its_results_lack(repo):
    test = next(c.source for c in source(repo, "4_experiment").cells if nbgrader(c).get("grade_id") == "results-test")
    exec(test, {"results": RESULTS})
    with pytest.raises(NotImplementedError):
        exec(test, {"results": {}})
    for other, told in WRONG_RESULTS:
        with pytest.raises(AssertionError, match=told):
            exec(test, {"results": RESULTS | other})
    for name in RESULTS:
        with pytest.raises(AssertionError, match=f"results lacks {name}"):
            exec(test, {"results": {key: value for key, value in RESULTS.items() if key != name}})


def test_every_exercise_marked_by_a_test_has_three_planted_wrong_answers(repo):
    for assignment in BY_TEST:
        marked = {nbgrader(c)["grade_id"] for c in source(repo, assignment).cells
                  if c.cell_type == "code" and nbgrader(c).get("grade")}
        assert marked == {test for test, _ in WRONG[assignment].values()}
        assert all(len(wrongs) >= 3 for _, wrongs in WRONG[assignment].values())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif("motion_module" not in samples.names(), reason="the miniature's weights are not in data_samples/ yet")
def test_the_real_course_goes_through_nbgrader(repo, tmp_path):
    """release, solutions; then the solutions handed in get every point that a test gives, the releases none."""
    folder = tmp_path / "coursework"
    shutil.copytree(repo / "coursework" / "source", folder / "source")
    shutil.copy(repo / "coursework" / "nbgrader_config.py", folder)
    assert cli.main(["course", "release", str(folder)]) == 0 and cli.main(["course", "solutions", str(folder)]) == 0
    shutil.copytree(folder / "solution", folder / "submitted" / "right")
    shutil.copytree(folder / "release", folder / "submitted" / "empty")
    assert cli.main(["course", "grade", str(folder)]) == 0
    from animkit.coursework.course import Course
    course = Course(folder)
    marks = [m for assignment in POINTS for m in course.marks(assignment)]
    by_test = [m for m in marks if m.exercise.endswith("-test")]
    assert {m.exercise: m.points for m in by_test if m.student == "right"} == {m.exercise: m.of for m in by_test}
    assert not any(m.points for m in marks if m.student == "empty")
    for assignment, points in POINTS.items():
        assert sum(m.of for m in marks if m.assignment == assignment and m.student == "right") == points
