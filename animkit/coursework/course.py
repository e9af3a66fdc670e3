"""`animkit course release|solutions|grade DIR`: nbgrader in three commands, for a teacher who has never used it.

DIR is a plain nbgrader course, in which nbgrader's own commands work as well:

    source/ASSIGNMENT/*.ipynb                what a teacher writes, solutions and hidden tests in it
    release/ASSIGNMENT/*.ipynb               what students get                                          animkit course release
    solution/ASSIGNMENT/*.ipynb              run, with every answer                                     animkit course solutions
    submitted/STUDENT/ASSIGNMENT/*.ipynb     what students hand in; put there by you, or in submitted/STUDENT/
    autograded/, feedback/, gradebook.db     nbgrader's;  grades.csv, exercises.csv: the points         animkit course grade
"""
from __future__ import annotations

import argparse
import csv
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import AnimkitError
from ..files import write_atomically
from ..notebooks import own_sockets

SEEN = ".seen.json"  # in the course's folder: what was copied and marked
SECONDS = 600  # for one cell; nbgrader's own limit is 30
SANITIZE = [*(f"nbgrader.preprocessors.{step}" for step in ("ClearOutput", "DeduplicateIds", "OverwriteKernelspec")),
            "animkit.coursework.put_back.PutBack", "nbgrader.preprocessors.CheckCellMetadata"]  # nbgrader's, except PutBack


@dataclass(frozen=True)
class Mark:
    """One exercise of one student: `by_hand` while a person has not read it yet."""
    student: str
    assignment: str
    exercise: str
    points: float
    of: float
    by_hand: bool = False


class Course:
    """A course folder. Raises AnimkitError where nbgrader or the folder's `source` is missing, or its config is broken."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder).resolve()
        try:
            traitlets, coursedir = import_module("traitlets.config"), import_module("nbgrader.coursedir")
        except ImportError as error:
            raise AnimkitError(f'coursework needs nbgrader ({error}): pip install "animkit[course]"') from error
        self.config = traitlets.Config()
        self.config.Execute.timeout = SECONDS
        self.config.OverwriteCells.add_missing_cells = True     # a deleted test counts as failed, not as never asked,
        self.config.Autograde.sanitize_preprocessors = SANITIZE  # also where its answer is deleted
        self.config.IgnorePattern.enabled = True                # nbgrader takes a warning in a test's cell for a failure
        self.config.IgnorePattern.pattern = "(?s).*"
        if (self.folder / "nbgrader_config.py").is_file():      # the course's own settings win
            try:
                own = traitlets.PyFileConfigLoader("nbgrader_config.py", str(self.folder)).load_config()
            except Exception as error:                          # it is a program, and may raise anything
                raise AnimkitError(f"{self.folder / 'nbgrader_config.py'} cannot be run: {error}") from error
            self.config.merge(own)
        scripts = str(Path(sys.executable).parent)              # nbgrader calls `alembic` by its bare name, which is not
        if scripts not in os.environ.get("PATH", "").split(os.pathsep):         # found where .venv is not activated
            os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])
        self.coursedir = coursedir.CourseDirectory(config=self.config)
        self.coursedir.root = str(self.folder)
        self.source = self._place("source")
        if not self.assignments():
            raise AnimkitError(f"no assignment in {self.source}: a course folder has source/ASSIGNMENT/NOTEBOOK.ipynb")

    def _place(self, what: str) -> Path:
        return self.folder / getattr(self.coursedir, f"{what}_directory")

    def assignments(self) -> list[str]:
        """The assignments that have a source, in order."""
        return sorted({path.parent.name for path in self.source.glob("*/*.ipynb")})

    def choose(self, wanted: list[str]) -> list[str]:
        """The wanted assignments, or all; AnimkitError for one that is not there."""
        if unknown := [name for name in wanted if name not in self.assignments()]:
            raise AnimkitError(f"{self.source} has no assignment {unknown[0]!r}; it has: {', '.join(self.assignments())}")
        return wanted or self.assignments()

    # ---- the three commands

    def release(self, assignment: str) -> list[Path]:
        """For students: solutions become stubs, hidden tests go; -> the files. AnimkitError says what stands in the way."""
        self._run("generate_assignment", "GenerateAssignment", assignment, create_assignment=True)
        return sorted((self._place("release") / assignment).glob("*.ipynb"))

    def solutions(self, assignment: str) -> list[Path]:
        """The sources, run; AnimkitError if one of them fails its own tests, which nbgrader would not say."""
        if not self._known(assignment):
            self.release(assignment)
        self._run("generate_solution", "GenerateSolution", assignment)
        files = sorted((self._place("solution") / assignment).glob("*.ipynb"))
        for file in files:
            for cell in import_module("nbformat").read(file, as_version=4).cells:
                for output in cell.get("outputs", ()):
                    if output.output_type == "error":
                        raise AnimkitError(f"the source of {assignment} fails its own tests, in the cell "
                                           f"{_name(cell)!r}: {output.ename}: {output.evalue}")
        return files

    def submissions(self, assignment: str) -> list[str]:
        """Who handed it in. Files directly in submitted/STUDENT/ are copied first: a notebook to the assignment that has
        its name, other files, such as results, to every assignment that the student hands in."""
        for student in self._students():
            loose = [file for file in _visible(student) if file.relative_to(student).parts[0] not in self.assignments()]
            own = [f for f in loose if f.suffix == ".ipynb" and f.parent == student
                   and (self.source / assignment / f.name).exists()]
            if own or (student / assignment).is_dir():
                for file in own + [f for f in loose if f.suffix != ".ipynb"]:
                    self._copy(file, student, assignment)
        return [student.name for student in self._students() if (student / assignment).is_dir()]

    def strays(self) -> list[str]:
        """A sentence for each notebook in submitted/ that no assignment takes, and for each student without one."""
        names, submitted, said = {file.name for file in self.source.glob("*/*.ipynb")}, self._place("submitted"), []
        for file in _visible(submitted):
            student, *folders = file.relative_to(submitted).parent.parts or [""]
            if file.suffix != ".ipynb" or folders and folders[0] in self.assignments():
                continue
            if not student:
                said.append(f"{file} belongs to no student: put it into submitted/STUDENT/")
            elif folders:
                said.append(f"{student} handed in {file.name} in the folder {'/'.join(folders)}, which no assignment has as its "
                            f"name; put it into {submitted / student}")
            elif file.name not in names:
                said.append(f"{student} handed in {file.name}, and no assignment has a notebook of that name; rename it in "
                            f"{file.parent} to one of: {', '.join(sorted(names))}")
        for student in self._students():
            files = _visible(student)
            if not any(file.suffix == ".ipynb" for file in files):
                said.append(f"{student.name} handed in {', '.join(file.name for file in files) or 'nothing'}, and no notebook")
        return said

    def _students(self) -> list[Path]:
        return sorted(p for p in self._place("submitted").glob("*") if p.is_dir() and p.name[0] != ".")

    def _copy(self, file: Path, student: Path, assignment: str) -> None:
        """Unless the same file was copied before: then a teacher's later corrections to the copy stay."""
        place = student / assignment / file.relative_to(student)
        key, digest = f"{file.relative_to(self.folder)} to {assignment}", _digest(file)
        if not place.exists() or self._seen().get(key) != digest:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, place)
            self._see(key, digest)

    # Contents, not times of files, tell what is new: files from an archive, rsync or a copy keep their old times.

    def _seen(self) -> dict[str, str]:
        """What was copied and marked, and the digest of its contents then."""
        try:
            return json.loads((self.folder / SEEN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _see(self, key: str, digest: str) -> None:
        content = json.dumps(self._seen() | {key: digest}, indent=1)
        write_atomically(self.folder / SEEN, lambda path: Path(path).write_text(content, encoding="utf-8"))

    def grade(self, assignment: str, student: str, again: bool = False) -> str | None:
        """Run one submission against the tests; None, or a sentence that says why there is no mark."""
        handed, done = (self._place(what) / student / assignment for what in ("submitted", "autograded"))
        if glob.escape(student) != student:
            return f"{student}: nbgrader takes [, * and ? in the name of a folder for a pattern; rename {handed.parent}"
        missing = [file.name for file in (self.source / assignment).glob("*.ipynb") if not (handed / file.name).exists()]
        if missing:
            there = ", ".join(sorted(file.name for file in handed.glob("*.ipynb"))) or "no notebook"
            return f"{student} handed in {there}; {missing[0]} is wanted: give the file that name, in {handed}"
        key, digest = f"{student}/{assignment}", _digest(handed)
        given, seen = self._given(assignment, student), self._seen()
        marked = not again and bool(given) and seen.get(key) == digest and done.is_dir() and any(done.iterdir())
        if marked and seen.get(f"{key} given") == given:
            return None
        try:
            if not marked:
                self._run("autograde", "Autograde", assignment, student)
            self._run("generate_feedback", "GenerateFeedback", assignment, student, template="feedback")
        except AnimkitError as error:
            return f"{student}: {error}; it was not marked. Mend it in {handed}, where it stays as you leave it, and grade again"
        self._see(key, digest)
        self._see(f"{key} given", self._given(assignment, student))
        return None

    def _given(self, assignment: str, student: str) -> str:
        """A digest of all points and comments of the student's page; it changes when a reader adds some. "" for none."""
        with self._gradebook() as book:
            try:
                notebooks = book.find_submission(assignment, student).notebooks
            except import_module("nbgrader.api").MissingEntry:
                return ""
            given = sorted([(each.name, each.score) for notebook in notebooks for each in notebook.grades]
                           + [(each.name, each.comment or "") for notebook in notebooks for each in notebook.comments], key=str)
        return hashlib.sha256(repr(given).encode()).hexdigest()

    def marks(self, assignment: str) -> Iterator[Mark]:
        """Every exercise of every student that was marked, as the gradebook has it now, with points given by hand."""
        with self._gradebook() as book:
            for submission in book.assignment_submissions(assignment):
                unmarked = all(grade.auto_score is None and grade.manual_score is None
                               for notebook in submission.notebooks for grade in notebook.grades)
                if unmarked and not (self._place("autograded") / submission.student.id / assignment).is_dir():
                    continue  # nbgrader stopped at it, but the gradebook has its name
                for notebook in submission.notebooks:
                    for grade in notebook.grades:
                        yield Mark(submission.student.id, assignment, grade.cell.name, float(grade.score or 0),
                                   float(grade.max_score), bool(grade.needs_manual_grade))

    # ---- nbgrader

    def _gradebook(self):
        return import_module("nbgrader.api").Gradebook(self.coursedir.db_url, self.coursedir.course_id)

    def _known(self, assignment: str) -> bool:
        with self._gradebook() as book:
            return any(known.name == assignment for known in book.assignments)

    def _run(self, module: str, converter: str, assignment: str, student: str = "*", template: str = "",
             **settings) -> None:
        """One of nbgrader's converters on one assignment; AnimkitError with the first error that it names."""
        self.coursedir.assignment_id, self.coursedir.student_id = assignment, student
        self.coursedir.notebook_id = "*"
        app = getattr(import_module(f"nbgrader.converters.{module}"), converter)(
            coursedir=self.coursedir, config=self.config)
        if template:
            app.config.HTMLExporter.template_name = template
        app.force = True
        for name, value in settings.items():
            setattr(app, name, value)
        app.log.setLevel(logging.INFO)
        app.log.propagate = False
        with tempfile.TemporaryDirectory(prefix="animkit-") as sockets, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SQLAlchemy's, of nbgrader's code
            app.config.merge(own_sockets(sockets))
            result = import_module("nbgrader.utils").capture_log(app)
        if result["success"]:
            return
        if "KeyboardInterrupt" in result.get("error", "").splitlines()[-1:]:
            raise KeyboardInterrupt
        lines = [line.strip() for line in (result.get("log", "") + "\n" + result.get("error", "")).splitlines()]
        causes = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Invalid\w*)\b", line)]
        raise AnimkitError(f"nbgrader could not do {assignment}: {(causes or lines)[0]}")


def write_marks(course: Course, marks: list[Mark]) -> list[Path]:
    """exercises.csv, a line per exercise, and grades.csv, a line per student and assignment."""
    totals: dict[tuple[str, str], list[Mark]] = {}
    for mark in marks:
        totals.setdefault((mark.student, mark.assignment), []).append(mark)
    tables = {
        "exercises.csv": [("student", "assignment", "exercise", "points", "of", "by hand")]
        + [(m.student, m.assignment, m.exercise, f"{m.points:g}", f"{m.of:g}", "yes" * m.by_hand) for m in marks],
        "grades.csv": [("student", "assignment", "points", "of", "still to be read")]
        + [(*key, f"{sum(m.points for m in own):g}", f"{sum(m.of for m in own):g}", sum(m.by_hand for m in own))
           for key, own in sorted(totals.items())]}
    return [write_atomically(course.folder / name, _csv(rows)) for name, rows in tables.items()]


def _csv(rows: list[tuple]) -> Callable[[str], None]:
    def write(path: str) -> None:
        with open(path, "w", newline="", encoding="utf-8-sig") as file:  # with a mark, without which Excel garbles names
            csv.writer(file).writerows(rows)
    return write


def _visible(folder: Path) -> list[Path]:
    """All files below, except those whose name, or a folder's on the way, begins with a dot."""
    return sorted(file for file in folder.rglob("*")
                  if file.is_file() and not any(part[0] == "." for part in file.relative_to(folder).parts))


def _digest(path: Path) -> str:
    """Of a file's contents; of a folder, of all its files' names and contents."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(p for p in path.rglob("*") if p.is_file() and ".ipynb_checkpoints" not in p.parts)
    return hashlib.sha256("".join(f"{p.relative_to(path)}\0{_digest(p)}\n" for p in files).encode()).hexdigest()


def _name(cell: Any) -> str:
    return cell.metadata.get("nbgrader", {}).get("grade_id") or cell.source.split("\n")[0]


# ---- the command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["release", "solutions", "grade"],
                        help="release: write what students get; solutions: run all answers; grade: mark what was handed in")
    parser.add_argument("folder", type=Path, metavar="DIR", help="the course, such as coursework")
    parser.add_argument("assignments", nargs="*", default=[], metavar="ASSIGNMENT", help="only these (default: all)")
    parser.add_argument("--again", action="store_true", help="grade: mark again what has been marked already")


def run(args: argparse.Namespace) -> int:
    """Do it, say what was written and where; 1 if a submission could not be marked. Raises AnimkitError."""
    course = Course(args.folder)
    chosen = course.choose(args.assignments)
    if args.what != "grade":
        for assignment in chosen:
            for file in getattr(course, args.what)(assignment):
                print(file)
        return 0
    problems = course.strays()
    for assignment in chosen:
        students = course.submissions(assignment)
        if students and not course._known(assignment):
            course.release(assignment)
        for student in students:
            print(f"{assignment}: {student}", file=sys.stderr, flush=True)
            problems += [problem] if (problem := course.grade(assignment, student, args.again)) else []
    # the tables hold all assignments, those marked before too
    marks = [mark for each in course.choose([]) if course._known(each) for mark in course.marks(each)]
    if not marks and not problems:
        raise AnimkitError(f"nothing to grade in {course._place('submitted')}: put each notebook that was handed in into "
                           "submitted/STUDENT/")
    files = write_marks(course, marks)
    print("\n".join(" ".join(row) for row in csv.reader(files[1].open(encoding="utf-8"))))
    for line in [*map(str, files), f"{course._place('feedback')}: a page for each student", *problems]:
        print(line)
    return int(bool(problems))
