"""A notebook's code cells run in the test's own process: no kernel, and its names and what it shows can be looked at."""
import ast
import contextlib
import json
from pathlib import Path

import IPython.display

# The course's notebooks -> their smallest presets.
SMALLEST = {
    "01_image_diffusion": {"steps": 3, "pictures": 2},
    "02_inflation": {"frames": 3, "steps": 2},
    "03_motion_module": {"frames": 4, "steps": 2},
    "04_domain_adapter": {"steps": 2, "training_steps": 3, "batch": 2, "videos": 4, "scenes": 2},
    "05_training_the_motion_module": {"steps": 2, "training_steps": 3, "batch": 1, "videos": 4, "frames": 4},
    "06_motion_lora": {"clips": 4, "train_steps": 2, "rank": 2, "frames": 6, "steps": 2},
    "07_animate_anything": {"seeds": 2, "frames": 6, "steps": 2,
                            "looks": ["ink", "../data_samples/looks/neon.safetensors"]},
    "08_control": {"frames": 3, "steps": 2, "thing": "balloon", "motion": "rising",
                   "prompt": "a red balloon over the sea, rising"},
    "09_full_size": {"frames": 8, "kinds": 1},
}


def run_cells(notebook: Path, **parameters) -> tuple[dict, dict[str, list]]:
    """-> (names, cell id -> what it shows: display()s, then the value of its last line); in the notebook's folder."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    names, shown = {"__name__": "__main__"}, {}
    own = IPython.display.display
    with contextlib.chdir(notebook.parent):
        try:
            for cell in cells:
                if cell["cell_type"] != "code":
                    continue
                seen = shown[cell["id"]] = []
                IPython.display.display = lambda *things, seen=seen, **_: seen.extend(things)
                tree = ast.parse("".join(cell["source"]))
                last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
                if "display" in names:
                    names["display"] = IPython.display.display
                exec(compile(tree, f"{notebook.name}, {cell['id']}", "exec"), names)
                if last is not None:
                    value = eval(compile(ast.Expression(last.value), f"{notebook.name}, {cell['id']}", "eval"), names)
                    seen += [value] if value is not None else []
                if "parameters" in cell["metadata"].get("tags", []):
                    assert set(parameters) <= set(names), f"unknown: {sorted(set(parameters) - set(names))}"
                    names |= parameters
        finally:
            IPython.display.display = own
    return names, shown


def html(thing) -> str:
    """What a notebook would show of a value."""
    for way in ("_repr_html_", "_repr_markdown_"):
        if said := getattr(thing, way, lambda: None)():
            return said
    bundle = thing._repr_mimebundle_() if hasattr(thing, "_repr_mimebundle_") else {}
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle or {}
    return bundle.get("text/html") or bundle.get("text/markdown") or repr(thing)


def exercises(notebook: Path) -> list[tuple[str, str, str]]:
    """(id of the answer's cell, its source, the code of the solution that follows it) of a course notebook."""
    import re
    cells = {c["id"]: "".join(c["source"]) for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"]}
    return [(name, cells[name], re.search(r"```python\n(.*?)```", cells[name.replace("answer", "solution")], re.S)[1])
            for name in cells if name.startswith("answer-")]
