"""The assignments: solutions get full marks, releases hold nothing of them, planted wrong answers are told what is wrong."""
import ast
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
            ("x = x + positions\n    return (to_q(x) @ to_k(x).mT).softmax(-1) @ to_v(x)", "sqrt"),
            ("x += positions\n    q, k, v = to_q(x), to_k(x), to_v(x)\n"
             "    return (q @ k.mT / math.sqrt(x.shape[-1])).softmax(-1) @ v", "in place"),
            ("x = x + positions\n    return nn.functional.scaled_dot_product_attention(to_q(x), to_k(x), to_v(x))",
             "scaled_dot_product_attention is torch's own")]),
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
            ("weight += alpha * up @ down\n    return x @ weight.T", "in place"),
            ("return alpha * (x @ down.T @ up.T)", "W x is missing")]),
        "numbers": ("numbers-test", [("return rank * d_in", "A alone"), ("return d_in * d_out", "layer itself"),
                                     ("return rank * d_in * rank * d_out", "add their sizes")]),
        "where": ("where-test", [
            ('return "attn1" in path and path.endswith(("to_q", "to_k", "to_v", "to_out.0"))', "must be adapted"),
            ('return path.endswith(("to_q", "to_k", "to_v", "to_out.0"))', "temporal"),
            ('return ".attn1." in path or ".attn2." in path', "must not be adapted")]),
        "frame": ("frame-test", [
            ("return z[:, :, :1]", "always frame 0"), ("return z.mean(2, keepdim=True)", "mixes"),
            ("k = int(torch.randint(0, z.shape[2], (1,), generator=generator))\n    return z[:, :, k:k + 1]", "same frame number"),
            ("return z[torch.arange(len(z)), :, torch.arange(len(z)) % z.shape[2]].unsqueeze(2)", "always the same frames"),
            ("k = torch.randint(0, z.shape[2] - 1, (len(z),), generator=generator)\n"
             "    return z[torch.arange(len(z)), :, k].unsqueeze(2)", "never comes up")]),
        "train": ("train-test", [
            ("return torch.zeros(rank, x.shape[1]), torch.zeros(weight.shape[0], rank)", "down is not"),
            ("return torch.randn(rank, x.shape[1]), torch.randn(weight.shape[0], rank)", "up is zero"),
            ("g = generator\n    return 0.1 * torch.randn(rank, x.shape[1], generator=g), torch.zeros(weight.shape[0], rank)",
             "still 100% of what it was"),
            ("down = 0.1 * torch.randn(rank, x.shape[1], generator=generator)\n"
             "    return down, torch.zeros(len(weight), rank, requires_grad=True)", "without gradients"),
            ("return torch.randn(rank, x.shape[1]), torch.zeros(weight.shape[0], rank)", "with generator=generator"),
            ("down = (0.1 * torch.randn(rank, x.shape[1], generator=generator)).requires_grad_()\n"
             "    up = torch.zeros(len(weight), rank, requires_grad=True)\n    optimizer = torch.optim.SGD([down, up], lr=0.05)\n"
             "    for _ in range(steps):\n        optimizer.zero_grad()\n"
             "        (((x @ (weight + up @ down).T - target) ** 2).mean()).backward()\n        optimizer.step()\n"
             "    return down.detach(), up.detach()", "not Adam's"),
            ("down, up = torch.randn(rank, x.shape[1], generator=generator), torch.zeros(weight.shape[0], rank)\n"
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
             "    return picture[i]", "columns"),
            ("s = len(picture)\n    i = ((size * ((2 * torch.arange(s) + 1) / s - 1) + 1) * s / 2 - 0.5).long()\n"
             "    return picture[i][:, i]", "4, 4, 5, 5"),
            ("s = len(picture)\n    i = ((size * torch.linspace(-1, 1, s) + 1) * s / 2 - 0.5).round().long().clamp(0, s - 1)\n"
             "    return picture[i][:, i]", "4, 4, 5, 5"),
            ("window = picture.permute(2, 0, 1)[None]\n"
             "    grid = nn.functional.affine_grid(size * torch.eye(2, 3)[None], window.shape, align_corners=False)\n"
             "    window = nn.functional.grid_sample(window, grid, 'bilinear', 'border', align_corners=False)\n"
             "    return picture if size == 1 else window[0].permute(1, 2, 0)", "4, 4, 5, 5")]),
        "shot": ("shot-test", [
            ("return video", "does not see"),
            ("return torch.stack([cut(x, s) for x, s in zip(video, zoom_in(len(video), amount)[::-1])])", "does not see"),
            ("return torch.stack([cut(x, 1 - amount) for x in video])", "does not see"),
            ("return torch.stack([cut(video[0], s) for s in zoom_in(len(video), amount)])", "frame k of the film"),
            ("return torch.stack([cut(x, s) for x, s in zip(video.flip(0), zoom_in(len(video), amount))])", "frame k of the film"),
            ("return torch.stack([cut(x, s) for x, s in zip(video, zoom_in(len(video), 0.5))])", "frame k of the film"),
            ("n = len(video)\n    return torch.stack([cut(x, 1 - amount * k / (n - 1)) for k, x in enumerate(video)])", "frame k of the film"),
            ("for j, s in enumerate(zoom_in(len(video), amount)):\n        video[j] = cut(video[j], s)\n    return video", "is changed")]),
        "compose": ("compose-test", [
            ("return sum(x @ weight.T + a * (x @ d.T @ u.T) for d, u, a in loras)", "once"),
            ("return x @ weight.T + sum(x @ d.T @ u.T for d, u, _ in loras)", "no effect"),
            ("return x @ weight.T + sum(a * a * (x @ d.T @ u.T) for d, u, a in loras)", "twice")]),
        "size": ("size-test", [("return float((up @ down).norm() / weight.norm())", "alpha"),
                               ("return float(weight.norm() / (alpha * up @ down).norm())", "upside down"),
                               ("return float(abs(alpha) * up.norm() * down.norm() / weight.norm())", "multiply B A first")])},
}


# assignment -> answer cell -> right answers in other styles than the source's
RIGHT = {
    "1_motion_module": {
        "fold": ["return torch.stack([x[b, :, f] for b in range(len(x)) for f in range(x.shape[2])])",
                 "return x.transpose(1, 2).flatten(0, 1).double()", "return rearrange(x.numpy(), 'b c f h w -> (b f) c h w')"],
        "unfold": ["return torch.stack(y.split(f)).transpose(1, 2)",
                   "return y.unflatten(0, (-1, f)).permute(0, 2, 1, 3, 4).double()"],
        "apply": ["return torch.stack([layer(frame) for frame in x.unbind(2)], 2)",
                  "clips = [torch.cat([layer(frame[None]) for frame in clip.transpose(0, 1)]) for clip in x]\n"
                  "    return torch.stack(clips).permute(0, 2, 1, 3, 4)"],
        "positions": ["pe = torch.zeros(frames, c)\n    for p in range(frames):\n        for i in range(c // 2):\n"
                      "            pe[p, 2 * i] = math.sin(p / 10000 ** (2 * i / c))\n"
                      "            pe[p, 2 * i + 1] = math.cos(p / 10000 ** (2 * i / c))\n    return pe",
                      "turn = torch.exp(torch.arange(0, c, 2) * (-math.log(10000.0) / c))\n"
                      "    angle, pe = torch.outer(torch.arange(frames).float(), turn), torch.zeros(frames, c)\n"
                      "    pe[:, 0::2], pe[:, 1::2] = angle.sin(), angle.cos()\n    return pe.double()"],
        "attention": ["y = x + positions[None]\n    s = torch.einsum('nfc,ngc->nfg', to_q(y), to_k(y)) * x.shape[-1] ** -0.5\n"
                      "    e = torch.exp(s - s.amax(-1, keepdim=True))\n"
                      "    return torch.einsum('nfg,ngc->nfc', e / e.sum(-1, keepdim=True), to_v(y))",
                      "out = []\n    for row in x:\n        row = row + positions\n"
                      "        q, k, v = to_q(row), to_k(row), to_v(row)\n"
                      "        out.append(torch.softmax(q @ k.t() / math.sqrt(len(k[0])), 1) @ v)\n    return torch.stack(out)",
                      "y = x + positions\n    q, k, v = (layer(y).numpy() for layer in (to_q, to_k, to_v))\n"
                      "    w = 2.718281828459045 ** (q @ k.swapaxes(1, 2) / q.shape[-1] ** 0.5)\n"
                      "    return (w / w.sum(-1, keepdims=True)) @ v"],
        "zero": ["with torch.no_grad():\n        for p in module.temporal_transformer.proj_out.parameters():\n"
                 "            p.zero_()",
                 "out = module.temporal_transformer.proj_out\n    out.weight = nn.Parameter(torch.zeros_like(out.weight))\n"
                 "    out.bias.data.fill_(0)"]},
    "2_domain_adapter": {
        "update": ["return x @ (weight + alpha * up @ down).T", "return (x.double() @ (weight + alpha * up @ down).T.double())",
                   "return x.numpy() @ (weight + alpha * up @ down).numpy().T",
                   "return nn.functional.linear(x, weight) + alpha * nn.functional.linear(nn.functional.linear(x, down), up)"],
        "numbers": ["return sum(nn.Linear(a, b, bias=False).weight.numel() for a, b in ((d_in, rank), (rank, d_out)))"],
        "where": ["import re\n    return re.search(r'\\.attn[12]\\.(to_[qkv]|to_out\\.0)$', path)"],
        "frame": ["b, c, f, h, w = z.shape\n    k = torch.stack([torch.randperm(f, generator=generator)[0] for _ in range(b)])\n"
                  "    return z.gather(2, k.view(b, 1, 1, 1, 1).expand(b, c, 1, h, w))",
                  "chosen = [int(torch.rand((), generator=generator) * z.shape[2]) for _ in z]\n"
                  "    return torch.stack([clip[:, j:j + 1] for clip, j in zip(z, chosen)])"],
        "train": ["a, b = nn.Linear(x.shape[1], rank, bias=False), nn.Linear(rank, len(weight), bias=False)\n"
                  "    nn.init.normal_(a.weight, std=0.01, generator=generator)\n    nn.init.zeros_(b.weight)\n"
                  "    optimizer = torch.optim.Adam([*a.parameters(), *b.parameters()], lr=0.05)\n    for _ in range(steps):\n"
                  "        optimizer.zero_grad()\n        nn.functional.mse_loss(x @ weight.T + b(a(x)), target).backward()\n"
                  "        optimizer.step()\n    return a.weight.data, b.weight.data",
                  "a = ((torch.rand(rank, x.shape[1], generator=generator) - 0.5) * 0.2).requires_grad_()\n"
                  "    b = torch.zeros(len(weight), rank, requires_grad=True)\n"
                  "    optimizer = torch.optim.Adam([a, b], lr=0.05)\n"
                  "    while steps > 0:\n        optimizer.zero_grad()\n"
                  "        loss = ((x @ (weight + b @ a).T - target) ** 2).sum(-1).mean()\n"
                  "        loss.backward()\n        optimizer.step()\n        steps -= 1\n    return a.detach(), b.detach()"]},
    "3_motion_lora": {
        "zoom": ["return torch.logspace(0, math.log10(1 - amount), frames)",
                 "sizes = [1.0]\n    for _ in range(frames - 1):\n"
                 "        sizes.append(sizes[-1] * (1 - amount) ** (1 / (frames - 1)))\n    return sizes",
                 "import numpy as np\n    return np.geomspace(1, 1 - amount, frames)"],
        "cut": ["s = len(picture)\n    i = [min(s - 1, int(size * (j + 0.5) + (1 - size) * s / 2)) for j in range(s)]\n"
                "    return picture.view(-1, 3)[[s * row + column for row in i for column in i]].view(s, s, 3)",
                "picture = picture.permute(2, 0, 1)[None]\n"
                "    grid = nn.functional.affine_grid(size * torch.eye(2, 3)[None], picture.shape, align_corners=False)\n"
                "    window = nn.functional.grid_sample(picture, grid, 'nearest', 'border', align_corners=False)\n"
                "    return window[0].permute(1, 2, 0)",
                "s = len(picture)\n    n = max(1, round(size * s / 2)) * 2 if size < 1 else s\n    a = (s - n) // 2\n"
                "    window = picture[a:a + n, a:a + n].permute(2, 0, 1)[None]\n"
                "    return nn.functional.interpolate(window, (s, s), mode='nearest')[0].permute(1, 2, 0)"],
        "shot": ["return torch.stack(list(map(cut, video, zoom_in(len(video), amount))))",
                 "out = video.clone()\n    for j, size in enumerate(zoom_in(video.shape[0], amount)):\n"
                 "        out[j] = cut(video[j], size)\n    return out"],
        "compose": ["for down, up, alpha in loras:\n        weight = weight + alpha * up @ down\n    return x @ weight.T",
                    "y = x.double() @ weight.double().T\n    for a, b, alpha in loras:\n"
                    "        y += alpha * (x @ a.T @ b.T)\n    return y"],
        "size": ["return abs(alpha) * torch.linalg.matrix_norm(up @ down) / torch.linalg.matrix_norm(weight)",
                 "return float((((alpha * up @ down) ** 2).sum() / (weight ** 2).sum()) ** 0.5)"]},
}


# Of assignment 4: what a student's `results` has other than these, and a piece of what its test says.
RESULTS = {"question": "why?", "varied": "alpha", "held": {"steps": 4}, "metric": "change", "seeds": [0, 1, 2],
           "numbers": {"alpha 0": [3.0, 2.5, 2.0], "alpha 1": [1.0, 1.5, 0.5]}}
WRONG_RESULTS = [
    ({"seeds": [0, 0, 0]}, "three different seeds"), ({"numbers": {"alpha 1": [1.0, 1.5, 0.5]}}, "two settings"),
    ({"numbers": {"alpha 0": [3.0], "alpha 1": [1.0, 1.5, 0.5]}}, "'alpha 0' has 1 numbers for 3 seeds"),
    ({"numbers": {"alpha 0": [3.0, 2.5, float("nan")], "alpha 1": [1.0, 1.5, 0.5]}}, "not finite"),
    ({"numbers": {"alpha 0": [1.0, 1.5, 0.5], "alpha 1": [1.0, 1.5, 0.5]}}, "nothing was varied"),
    ({"held": {}}, "nothing about held"),
    ({"question": "", "metric": ""}, "nothing about question, metric"),
    ({"numbers": {"alpha 0": 2.5, "alpha 1": 1.0}}, "'alpha 0' has 1 numbers for 3 seeds: list one per seed")]


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
            made = {name for line in ast.parse(cell.source).body for name in ([line.name] if isinstance(line, ast.FunctionDef) else [
                node.id for node in ast.walk(line) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)])}
            assert made <= {"_test"}, "a test's own names would replace those of a student's helpers"
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
            assert after.source == re.sub(r"\n *### BEGIN HIDDEN.*?### END HIDDEN TESTS", "", before.source, flags=re.S)


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


@pytest.mark.parametrize("assignment, answer, body", [(assignment, answer, body) for assignment, answers in RIGHT.items()
                                                      for answer, bodies in answers.items() for body in bodies])
def test_right_answers_get_their_points_whatever_their_style(repo, assignment, answer, body):
    cells = source(repo, assignment).cells
    for cell in cells:
        if nbgrader(cell).get("grade_id") == answer:
            cell.source = REGION.sub(lambda m: f"{m[1]}{body}", cell.source)
    assert run(cells, until=WRONG[assignment][answer][0]) == {}


def test_the_experiment_is_told_what_its_results_lack(repo):
    test = next(c.source for c in source(repo, "4_experiment").cells if nbgrader(c).get("grade_id") == "results-test")
    exec(test, {"results": RESULTS})
    exec(test, {"results": RESULTS | {"numbers": {"rank 1": [1, 1, 1], "rank 4": [1, 1, 1]}}})  # found in every clip: no effect is one
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
