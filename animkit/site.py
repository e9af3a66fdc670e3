"""`animkit site`: every notebook and report as pages that need no network, with an index; open index.html from disk."""
from __future__ import annotations

import argparse
import html
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

from . import notebooks, pages
from .errors import AnimkitError
from .files import write_atomically

REPO = Path(__file__).resolve().parent.parent
COMMITTED = Path("reproduce/laptop/report.html")  # for a clone in which nothing was reproduced yet
STYLE = ("body{font:16px/1.5 system-ui,sans-serif;max-width:46em;margin:2em auto;padding:0 1em;color:#111;background:#fff}"
         "a{color:#0b4f8a}li{margin:.6em 0}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out/site"), help="folder for the pages (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="only these, such as 06_motion_lora")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="a parameter for every notebook that has it, such as: -p steps 4 (may be repeated)")


def run(args: argparse.Namespace) -> int:
    """Run what is not run yet, write the pages and the index; 1 if a notebook failed or a page has a fault."""
    if not (REPO / "notebooks").is_dir():
        raise AnimkitError(f"the site is made in a clone of the repo: no {REPO / 'notebooks'}")
    course, reports = sorted((REPO / "notebooks").glob("*.ipynb")), reports_of(REPO)
    names = {path.stem for path in (*course, *reports)}
    if unknown := sorted(set(args.only) - names):
        raise AnimkitError(f"there is no notebook {unknown[0]!r}; there are: {', '.join(sorted(names))}")
    wanted = [path for path in course if not args.only or path.stem in args.only]
    known = set().union(*(notebooks.parameters(path) for path in wanted))
    if idle := [name for name, _ in args.parameter if name not in known]:
        raise AnimkitError(f"no notebook of these has a parameter {idle[0]!r}; they have: {', '.join(sorted(known)) or 'none'}")
    out, faults, written = args.out.resolve(), [], []
    for path in course + reports:
        if args.only and path.stem not in args.only:
            continue
        print(path.stem, file=sys.stderr, flush=True)
        try:
            done = path if path in reports else executed(path, out / "executed", dict(args.parameter))
            page = pages.write_page(done, out / f"{path.stem}.html")
        except AnimkitError as error:
            faults.append(f"{path.stem}: {error}")
            continue
        faults += [f"{page.name}: {problem}" for problem in problems(page.read_text(encoding="utf-8"))]
        written.append(page)
    if not reports and not args.only and (kept := REPO / COMMITTED).is_file():
        write_atomically(out / "report.html", lambda path: shutil.copyfile(kept, path))
    index(out, [page for page in sorted(out.glob("*.html")) if page.name != "index.html"])
    print(out / "index.html")
    for fault in faults:
        print(fault)
    return int(bool(faults) or not written)


def reports_of(repo: Path) -> list[Path]:
    """What `animkit reproduce` left, of the largest preset that was run: the report, and each experiment as it ran."""
    for preset in ("paper", "laptop", "smoke"):
        folder = repo / "out" / "reproduce" / preset
        if found := [*folder.glob("report.ipynb"), *sorted(folder.glob("*/*.ipynb"))]:
            return found
    return []


def executed(notebook: Path, folder: Path, given: dict[str, str]) -> Path:
    """Run the notebook with those parameters that it has, or take an equal run that is newer than the notebook."""
    known = notebooks.parameters(notebook)
    values = {name: value for name, value in given.items() if name in known}
    if "out" in known:
        values["out"] = str(folder / notebook.stem)
    done, key = folder / notebook.name, folder / f"{notebook.stem}.given"
    same = key.is_file() and key.read_text(encoding="utf-8") == repr(sorted(values.items()))
    if not (same and done.is_file() and done.stat().st_mtime >= notebook.stat().st_mtime):
        if key.is_file():  # a run that fails leaves a copy, too
            key.unlink()
        notebooks.execute(notebook, done, values, progress=False)
        write_atomically(key, lambda path: Path(path).write_text(repr(sorted(values.items())), encoding="utf-8"))
    else:  # other changes since then, such as in the library's code, are not checked
        print(f"  as it ran before; to run it again, delete {done}", file=sys.stderr, flush=True)
    return done


def index(out: Path, found: list[Path]) -> Path:
    """index.html: a link for each page, by its title."""
    lines = []
    for page in found:
        text = page.read_text(encoding="utf-8")
        title = text.partition("<title>")[2].partition("</title>")[0] or html.escape(page.stem)
        lines.append(f'<li><a href="{html.escape(page.name)}">{html.escape(page.stem[:2])}: {title}</a></li>'
                     if page.stem[:2].isdigit() else f'<li><a href="{html.escape(page.name)}">{title}</a></li>')
    body = (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>animkit</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
            f"<body><main><h1>animkit</h1><p>AnimateDiff, understood, retrained and measured: the notebooks as they ran. Clips play "
            f"when you start them; sliders need a running notebook.</p><ul>\n" + "\n".join(lines) + "\n</ul></main></body></html>\n")
    return write_atomically(out / "index.html", lambda path: Path(path).write_text(body, encoding="utf-8"))


def problems(page: str) -> list[str]:
    """What would keep someone from reading a page: no language, headings out of order, pictures or clips without a text."""
    reader = _Reader()
    reader.feed(page)
    found = list(reader.problems)
    if not reader.language:
        found.append("the page does not say its language")
    if reader.levels.count(1) != 1:
        found.append(f"{reader.levels.count(1)} headings of level 1; one is wanted")
    found += [f"a heading of level {b} follows one of level {a}" for a, b in zip(reader.levels, reader.levels[1:]) if b > a + 1]
    return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.problems: list[str] = []
        self.language = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "html":
            self.language = bool(given.get("lang"))
        elif len(tag) == 2 and tag[0] == "h" and tag[1] in "123456":
            self.levels.append(int(tag[1]))
        elif tag == "img" and not given.get("alt"):
            self.problems.append("a picture without alt")
        elif tag == "video":
            if not (given.get("aria-label") or given.get("title")):
                self.problems.append("a clip without a label")
            if "autoplay" in given:
                self.problems.append("a clip that starts by itself")
            if "controls" not in given:
                self.problems.append("a clip without controls")
