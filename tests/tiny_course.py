"""A course of one assignment with two exercises, made here: small enough that a round trip through nbgrader is quick."""
from pathlib import Path

import nbformat
from nbformat import v4

SOLUTION = ("def double(x):\n    ### BEGIN SOLUTION\n    secret_way = 2 * x\n    return secret_way\n"
            "    ### END SOLUTION")
TESTS = ("import warnings\nwarnings.warn('only a warning')\nassert double(2) == 4, f'double(2) is 4, not {double(2)}'\n"
         "### BEGIN HIDDEN TESTS\nassert double(-3) == -6, 'a hidden case'\n### END HIDDEN TESTS")


def cell(source: str, name: str, kind: str = "code", points: float = 0, solution: bool = False) -> nbformat.NotebookNode:
    made = v4.new_code_cell(source) if kind == "code" else v4.new_markdown_cell(source)
    made.metadata["nbgrader"] = {"grade_id": name, "grade": bool(points), "solution": solution, "task": False,
                                 "locked": not solution, "schema_version": 3, **({"points": points} if points else {})}
    return made


def write_course(folder: Path) -> Path:
    """source/1_double/double.ipynb: 3 points by tests, 2 for a sentence that a person reads."""
    cells = [v4.new_markdown_cell("# Double"), cell(SOLUTION, "double", solution=True), cell(TESTS, "double-tests", points=3),
             cell("Because two is even.", "why", "markdown", points=2, solution=True)]
    notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "language": "python",
                                                                     "display_name": "Python 3"}})
    place = folder / "source" / "1_double"
    place.mkdir(parents=True)
    nbformat.write(notebook, place / "double.ipynb")
    return folder


def hand_in(course: Path, student: str, answer: str | None, loose: bool = False, without: str | None = None,
            name: str = "double.ipynb") -> Path:
    """The release with `answer` as the function's body (None: as it came), handed in; `without`: a cell deleted."""
    notebook = nbformat.read(course / "release" / "1_double" / "double.ipynb", as_version=4)
    notebook.cells = [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") != without]
    for c in notebook.cells:
        if c.metadata.get("nbgrader", {}).get("grade_id") == "double" and answer is not None:
            c.source = f"def double(x):\n    {answer}"
    place = course / "submitted" / student / ("" if loose else "1_double")
    place.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, place / name)
    return place / name
