"""release, solutions, grade: a round trip through nbgrader on a tiny course, right and wrong submissions."""
import csv
import re

import nbformat
import pytest
from tiny_course import hand_in, write_course

from animkit import cli
from animkit.coursework.course import Course
from animkit.errors import AnimkitError

pytest.importorskip("nbgrader", reason="nbgrader is missing: pip install 'animkit[course]'")


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A course after release and solutions: ada is right, bob wrong, cyd did nothing, eve lost a test."""
    folder = write_course(tmp_path_factory.mktemp("course"))
    assert cli.main(["course", "release", str(folder)]) == 0
    assert cli.main(["course", "solutions", str(folder)]) == 0
    hand_in(folder, "ada", "return x + x")
    hand_in(folder, "bob", "return x * x", loose=True)             # right for 2, wrong for the hidden case
    hand_in(folder, "cyd", None)
    hand_in(folder, "eve", "return 7", without="double-tests")
    hand_in(folder, "fay", "return 2 * x", name="double (1).ipynb")
    (folder / "submitted" / "gus" / "1_double").mkdir(parents=True)
    (folder / "submitted" / "gus" / "1_double" / "double.ipynb").write_text("{ no notebook")
    return folder


@pytest.fixture(scope="module")
def outcome(graded):
    import contextlib
    import io
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = cli.main(["course", "grade", str(graded)])
    return code, said.getvalue()


def rows(path):
    with path.open(encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def test_the_release_has_stubs_and_nothing_else_changes(graded):
    source, release = (nbformat.read(graded / where / "1_double" / "double.ipynb", as_version=4)
                       for where in ("source", "release"))
    text = "\n".join(c.source for c in release.cells)
    assert "secret_way" not in text and "hidden case" not in text and "SOLUTION" not in text
    assert "raise NotImplementedError()" in text and "def double(x):" in text
    assert [c.cell_type for c in source.cells] == [c.cell_type for c in release.cells]


def test_solutions_are_run_and_whole(graded):
    solution = nbformat.read(graded / "solution" / "1_double" / "double.ipynb", as_version=4)
    assert "secret_way" in solution.cells[1].source and all(c.execution_count for c in solution.cells
                                                            if c.cell_type == "code")


def test_right_and_wrong_get_their_points(graded, outcome):
    points = {(r["student"], r["exercise"]): float(r["points"]) for r in rows(graded / "exercises.csv")}
    assert points["ada", "double-tests"] == 3, "a warning costs nothing"
    assert points["bob", "double-tests"] == 0, "the hidden case found it"
    assert points["cyd", "double-tests"] == 0 and points["eve", "double-tests"] == 0
    grades = {r["student"]: r for r in rows(graded / "grades.csv")}
    assert grades["ada"]["points"] == "3" and {r["of"] for r in grades.values()} == {"5"}
    assert grades["ada"]["still to be read"] == "0" and grades["cyd"]["still to be read"] == "0"


def test_what_cannot_be_graded_is_said_and_does_not_stop_the_rest(graded, outcome):
    code, said = outcome
    assert code == 1
    assert "fay handed in double (1).ipynb; double.ipynb is wanted" in said
    assert "gus: nbgrader could not do 1_double" in said and f"Mend it in {graded / 'submitted' / 'gus'}" in said
    assert "gus" not in {r["student"] for r in rows(graded / "grades.csv") + rows(graded / "exercises.csv")}
    assert "ada 1_double 3 5 0" in said


def test_everyone_graded_has_a_page(graded, outcome):
    pages = {path.parts[-3] for path in (graded / "feedback").glob("*/1_double/double.html")}
    assert pages >= {"ada", "bob", "cyd", "eve"}


def test_grading_again_takes_only_what_is_new(graded, outcome, capsys):
    before = {p: p.stat().st_mtime_ns for p in (graded / "autograded").rglob("*.ipynb")}
    hand_in(graded, "bob", "return 2 * x", loose=True)
    assert cli.main(["course", "grade", str(graded)]) == 1          # fay and gus still wait
    after = {p: p.stat().st_mtime_ns for p in (graded / "autograded").rglob("*.ipynb")}
    assert {p.parts[-3] for p in after if after[p] != before.get(p)} == {"bob"}
    assert {r["student"]: r["points"] for r in rows(graded / "grades.csv")}["bob"] == "3"


def test_a_file_of_an_older_time_is_marked_if_its_content_is_new(graded, outcome):
    """As an archive, rsync or cp -p brings it: the time says when it was written, not when it came."""
    import os
    points = []
    for answer, hours in (("return 3 * x", 5), ("return 2 * x", 9)):
        hand_in(graded, "hal", answer, loose=True)
        file = graded / "submitted" / "hal" / "double.ipynb"
        os.utime(file, (file.stat().st_mtime - 3600 * hours,) * 2)
        cli.main(["course", "grade", str(graded)])
        points.append({r["student"]: r["points"] for r in rows(graded / "grades.csv")}["hal"])
    assert points == ["0", "3"]


def test_grading_one_assignment_keeps_the_marks_of_the_others(graded, outcome):
    before = {(r["student"], r["assignment"]) for r in rows(graded / "grades.csv")}
    again = graded / "source" / "2_again"
    again.mkdir()
    nb = nbformat.read(graded / "source" / "1_double" / "double.ipynb", as_version=4)
    nbformat.write(nb, again / "twice.ipynb")
    try:
        hand_in(graded, "ada", "return x + x", loose=True, name="twice.ipynb")
        assert cli.main(["course", "grade", str(graded), "2_again"]) == 0
        after = {(r["student"], r["assignment"]) for r in rows(graded / "grades.csv")}
        assert after == before | {("ada", "2_again")}
    finally:
        (again / "twice.ipynb").unlink()
        again.rmdir()
        (graded / "submitted" / "ada" / "twice.ipynb").unlink(missing_ok=True)


def test_what_a_teacher_mended_in_its_place_stays(graded, outcome):
    hand_in(graded, "ian", "return 2 * * x", loose=True)
    cli.main(["course", "grade", str(graded)])
    hand_in(graded, "ian", "return 2 * x")  # in submitted/ian/1_double/, where the teacher looked
    for _ in range(2):
        cli.main(["course", "grade", str(graded)])
        assert {r["student"]: r["points"] for r in rows(graded / "grades.csv")}["ian"] == "3"


@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_the_notebook_reads_is_handed_in_beside_it(graded, outcome, there):
    answer, student = "import json; return json.load(open('factor.json')) * x", f"joy-{there}"
    hand_in(graded, student, answer, loose=True)
    if there:
        (graded / "submitted" / student / "factor.json").write_text("2")
    cli.main(["course", "grade", str(graded)])
    assert {r["student"]: r["points"] for r in rows(graded / "grades.csv")}[student] == ("3" if there else "0")
    if there:  # and handed in anew, it is marked anew
        (graded / "submitted" / student / "factor.json").write_text("3")
        cli.main(["course", "grade", str(graded)])
        assert {r["student"]: r["points"] for r in rows(graded / "grades.csv")}[student] == "0"


def test_an_answer_that_ends_python_is_named_and_has_no_mark(tmp_path, capsys):
    folder = write_course(tmp_path)
    cli.main(["course", "release", str(folder)])
    hand_in(folder, "dan", "import os; os._exit(1)")
    assert cli.main(["course", "grade", str(folder)]) == 1
    assert re.search(r"dan: nbgrader could not do 1_double: .*Kernel died", capsys.readouterr().out)
    assert rows(folder / "grades.csv") == []


def test_without_its_gradebook_all_is_marked_anew(tmp_path):
    folder = write_course(tmp_path)
    cli.main(["course", "release", str(folder)])
    hand_in(folder, "ada", "return x + x")
    for _ in range(2):
        assert cli.main(["course", "grade", str(folder)]) == 0
        assert [r["points"] for r in rows(folder / "grades.csv")] == ["3"]
        (folder / "gradebook.db").unlink()


def change(folder, student, changed):
    """ada's answer, its cells changed."""
    file = hand_in(folder, student, "return x + x")
    notebook = nbformat.read(file, as_version=4)
    notebook.cells = changed(notebook.cells)
    nbformat.write(notebook, file)


def named(cells, *names):
    return [c for c in cells if c.metadata.get("nbgrader", {}).get("grade_id") in names]


def without_metadata(cells):
    for c in cells:
        c.metadata.clear()
    return cells


def marked_otherwise(cells):
    for c in named(cells, "double-tests"):
        c.metadata.nbgrader.update(grade=False, solution=True, locked=False, points=100)
        c.source = "pass"
    return cells


@pytest.mark.parametrize("student, changed, points", [
    ("Zoë Ö'Neill", lambda cells: cells, "3"),
    ("deleted", lambda cells: [c for c in cells if c not in named(cells, "double", "double-tests")], "0"),
    ("copied", lambda cells: [*cells, *(nbformat.from_dict({**c, "id": "copied"}) for c in named(cells, "double-tests"))], "3"),
    ("dropped", without_metadata, "3"), ("forged", marked_otherwise, "3")])
def test_cells_that_were_deleted_copied_or_lost_their_marks_are_marked_all_the_same(graded, outcome, student, changed, points):
    change(graded, student, changed)
    cli.main(["course", "grade", str(graded)])
    row = {r["student"]: r for r in rows(graded / "grades.csv")}[student]
    assert (row["points"], row["of"]) == (points, "5")


def test_a_notebook_that_no_assignment_knows_is_named(tmp_path, capsys):
    folder = write_course(tmp_path)
    (folder / "submitted" / "kim").mkdir(parents=True)
    (folder / "submitted" / "kim" / "double-final.ipynb").write_text("{}")
    assert cli.main(["course", "grade", str(folder)]) == 1
    said = capsys.readouterr()
    assert "kim handed in double-final.ipynb, and no assignment" in said.out + said.err


def test_what_lies_in_the_wrong_place_is_named(tmp_path, capsys):
    folder = write_course(tmp_path)
    for name in ("double.ipynb", "lea/1_duble/double.ipynb", "max/double.zip", "ned [late]/double.ipynb",
                 "ned [late]/.ipynb_checkpoints/a.ipynb"):
        (folder / "submitted" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "submitted" / name).write_text("{}")
    assert cli.main(["course", "grade", str(folder)]) == 1
    said = capsys.readouterr().out
    assert f"{folder / 'submitted' / 'double.ipynb'} belongs to no student" in said
    assert "lea handed in double.ipynb in the folder 1_duble" in said and f"put it into {folder / 'submitted' / 'lea'}" in said
    assert "max handed in double.zip, and no notebook" in said
    assert f"rename {folder / 'submitted' / 'ned [late]'}" in said and "a.ipynb" not in said


def test_a_folder_that_the_notebook_reads_is_handed_in_beside_it(graded, outcome):
    hand_in(graded, "ray", "return int(open('results/run/factor.txt').read()) * x", loose=True)
    (graded / "submitted" / "ray" / "results" / "run").mkdir(parents=True)
    for factor, points in (("2", "3"), ("3", "0")):  # and handed in anew, it is marked anew
        (graded / "submitted" / "ray" / "results" / "run" / "factor.txt").write_text(factor)
        cli.main(["course", "grade", str(graded)])
        assert {r["student"]: r["points"] for r in rows(graded / "grades.csv")}["ray"] == points


def test_points_and_comments_given_by_hand_are_in_the_table_and_on_the_page(graded, outcome):
    course, page = Course(graded), graded / "feedback" / "ada" / "1_double" / "double.html"
    with course._gradebook() as book:
        grade = book.find_grade("why", "double", "1_double", "ada")
        grade.manual_score, grade.needs_manual_grade = 2, False
        book.find_comment("why", "double", "1_double", "ada").manual_comment = "Well put."
        book.db.commit()
    assert {m.exercise: m.points for m in course.marks("1_double") if m.student == "ada"} == {"double-tests": 3, "why": 2}
    assert "Well put." not in page.read_text(encoding="utf-8")
    ran = (graded / "autograded" / "ada" / "1_double" / "double.ipynb").stat().st_mtime_ns
    for changed in (True, False):
        before = page.stat().st_mtime_ns
        cli.main(["course", "grade", str(graded)])
        assert "Well put." in page.read_text(encoding="utf-8") and (page.stat().st_mtime_ns != before) == changed
    assert (graded / "autograded" / "ada" / "1_double" / "double.ipynb").stat().st_mtime_ns == ran, "not run again"
    assert {m.exercise: m.by_hand for m in course.marks("1_double") if m.student == "ada"}["why"] is False


def test_nbgraders_own_command_works_in_the_folder(graded):
    import subprocess
    import sys
    (graded / "nbgrader_config.py").write_text("c = get_config()\nc.Execute.timeout = 99\n")
    done = subprocess.run([sys.executable, "-m", "nbgrader", "generate_assignment", "1_double", "--force"], cwd=graded,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert Course(graded).config.Execute.timeout == 99


def test_a_source_that_fails_its_own_tests_is_named(tmp_path):
    folder = write_course(tmp_path)
    file = folder / "source" / "1_double" / "double.ipynb"
    file.write_text(file.read_text().replace("2 * x", "3 * x"))
    with pytest.raises(AnimkitError, match="fails its own tests, in the cell 'double-tests': AssertionError"):
        Course(folder).solutions("1_double")


@pytest.mark.parametrize("change, message", [
    (lambda f: None, "no assignment in .*source/ASSIGNMENT"),
    (lambda f: write_course(f), "nothing to grade in .*submitted/STUDENT"),
    (lambda f: (write_course(f) / "nbgrader_config.py").write_text("1/0"), "nbgrader_config.py cannot be run: division")])
def test_bad_folders_are_refused_in_one_sentence(tmp_path, change, message, capsys):
    change(tmp_path)
    assert cli.main(["course", "grade", str(tmp_path)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_an_unknown_assignment_is_refused(tmp_path, capsys):
    write_course(tmp_path)
    assert cli.main(["course", "release", str(tmp_path), "2_triple"]) == 2
    assert "no assignment '2_triple'; it has: 1_double" in capsys.readouterr().err
