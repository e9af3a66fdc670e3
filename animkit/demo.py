"""`animkit demo`: the quickstart notebook, run into a folder, with a page and an mp4 for those who only look."""
from __future__ import annotations

import argparse
import time
from pathlib import Path

from . import notebooks, pages
from .errors import AnimkitError
from .files import make_folder

QUICKSTART = Path(__file__).resolve().parent.parent / "notebooks" / "00_quickstart.ipynb"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results (default: %(default)s)")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="a parameter of the notebook, such as: -p seed 3 (may be repeated)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Run the quickstart; say where the page and the clip are. Raises AnimkitError when a part is missing or fails."""
    if not QUICKSTART.is_file():
        raise AnimkitError(f"the demo runs from a clone of the repo: no {QUICKSTART}")
    given = dict(args.parameter)
    if "out" in given:
        raise AnimkitError("the folder is chosen by --out, not by -p out")
    out = make_folder(args.out.resolve())
    before = {film: film.stat().st_mtime_ns for film in out.glob("*.mp4")}  # of an earlier run, or the reader's own
    started = time.monotonic()
    executed = notebooks.execute(QUICKSTART, out / "quickstart.ipynb", {**given, "out": str(out)},
                                 progress=not args.quiet)
    page = pages.write_page(executed, out / "quickstart.html")
    clips = sorted(film for film in out.glob("*.mp4") if film.stat().st_mtime_ns != before.get(film))
    if not clips:
        raise AnimkitError(f"{QUICKSTART.name} ran, but left no mp4 in {out}")
    print(f"\nDone in {time.monotonic() - started:.0f} s. Open in a browser or a player:")
    for path in (page, *clips):
        print(f"  {path}")
    print("Next: `make lab` opens the notebooks; in 00_quickstart type a prompt of your own.")
    return 0
