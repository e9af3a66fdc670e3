"""Tables of videos and of captioned images as `datasets` Datasets: paths and captions; nothing is decoded."""
import csv
import glob
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TextIO

from datasets import Dataset, Features, Image, Value
from datasets.exceptions import DatasetGenerationError

from animkit.errors import AnimkitError

VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".gif")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def webvid_table(table: str | Path) -> Dataset:
    """A WebVid CSV (columns videoid,name,page_dir, maybe more): a Dataset of `videoid`, `caption`, `page_dir`.

    Memory-mapped. Raises AnimkitError for a missing file, missing columns (named), a line with too few or too many
    fields, a quotation mark that is never closed, no rows.
    """
    table = _existing(table, "table of videos")
    wanted = ("videoid", "name", "page_dir")
    with _text(table) as f:
        rows = _rows(f, table)
        _, columns = next(rows, (1, []))
        _need(wanted, columns, table)
        count = 0
        for count, (line, row) in enumerate(rows, start=1):
            if len(row) != len(columns):
                raise _shifted(table, line, row, columns)
    if not count:
        raise AnimkitError(f"{table} has its header but no row: there is nothing to read")
    text = Features({name: Value("string") for name in wanted})  # videoid too: as a number it would lose leading zeros
    try:
        rows = Dataset.from_csv(glob.escape(str(table)), features=text, usecols=list(wanted), keep_default_na=False)
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise AnimkitError(f"{table} cannot be read as a table: {error.__cause__ or error}") from error
    return rows.rename_column("name", "caption")


def video_path(row: dict, videos: Path | None) -> Path:
    """The file of a table's row: its `video`, or for WebVid {videoid}.mp4 or {page_dir}/{videoid}.mp4 in `videos`.

    It is looked up row by row, since a table may have millions of rows. The file may be missing.
    """
    if "video" in row:
        return Path(row["video"])
    flat = videos / f"{row['videoid']}.mp4"
    deep = videos / row["page_dir"] / flat.name  # as tools that download the whole set arrange it
    return deep if row["page_dir"] and not flat.exists() and deep.exists() else flat


def video_table(folder: str | Path) -> Dataset:
    """All videos under a folder, sorted: `video` (a path) and `caption` ("" for all if none has one).

    Captions as in `image_table`. Raises AnimkitError if there is no video, or if only some have a caption.
    """
    return _captioned_folder(folder, "video", VIDEOS, needed=False)


def image_table(folder: str | Path) -> Dataset:
    """A folder of captioned images, for a look: `image` (decoded when it is used) and `caption`.

    Captions are in metadata.csv or metadata.jsonl (file_name, text), or in a .txt file of the same name beside each
    image. Raises AnimkitError, with the names, for missing columns, images without a caption, and rows of metadata that
    name no image or the same image twice.
    """
    return _captioned_folder(folder, "image", IMAGES, needed=True).cast_column("image", Image())


def _files_in(folder: Path) -> Iterator[Path]:
    """All files of a folder and its subfolders, linked ones too; a folder that links lead to again is entered once."""
    entered = set()
    for at, below, names in os.walk(folder, followlinks=True):
        below[:] = sorted(below) if (real := os.path.realpath(at)) not in entered else []
        yield from (Path(at) / name for name in names if real not in entered)
        entered.add(real)


def _captioned_folder(folder, kind: str, endings: tuple[str, ...], needed: bool) -> Dataset:
    folder = _existing(folder, f"folder of {kind}s")
    files = {str(p.relative_to(folder)): p for p in sorted(_files_in(folder))  # not macOS's ._a.mp4, beside every file that it copies
             if p.suffix.lower() in endings and not p.name.startswith(".")}
    if not files:
        raise AnimkitError(f"no {kind} in {folder}: looked for {', '.join(endings)}")
    captions = _metadata(folder)
    if captions is None:
        captions = {name: _caption(p.with_suffix(".txt"))
                    for name, p in files.items() if p.with_suffix(".txt").exists()}
    absent = [name for name in captions if name not in files]
    if absent:
        raise AnimkitError(f"the captions of {folder} name {kind}s that are not there: {_some(absent)}")
    bare = [name for name in files if name not in captions]
    if bare and (captions or needed):
        raise AnimkitError(f"{len(bare)} of {len(files)} {kind}s in {folder} have no caption: {_some(bare)}; write "
                           "metadata.csv or metadata.jsonl (file_name, text), or a .txt file beside each")
    return Dataset.from_dict({kind: [str(p) for p in files.values()], "caption": [captions.get(n, "") for n in files]})


def _metadata(folder: Path) -> dict[str, str] | None:
    """file_name -> text from the folder's metadata file; None if there is no such file."""
    found = [p for p in (folder / "metadata.csv", folder / "metadata.jsonl") if p.exists()]
    if not found:
        return None
    if len(found) == 2:
        raise AnimkitError(f"{folder} has both metadata.csv and metadata.jsonl: keep one")
    path = found[0]
    with _text(path) as f:
        if path.suffix == ".csv":
            lines = _rows(f, path)
            _, columns = next(lines, (1, []))
            _need(("file_name", "text"), columns, path)
            rows = []
            for line, row in lines:
                if len(row) > len(columns):
                    raise _shifted(path, line, row, columns)
                rows.append(dict(zip_longest(columns, row)))
        else:
            try:
                rows = [json.loads(line) for line in f if line.strip()]
            except json.JSONDecodeError as error:
                raise AnimkitError(f"{path} is not one JSON object a line: {error}") from None
            for row in rows:
                _need(("file_name", "text"), row if isinstance(row, dict) else (), path)
    odd = [repr(row["file_name"]) for row in rows if not isinstance(row["file_name"], str)]
    if odd:
        raise AnimkitError(f"{path} has rows whose file_name is no text: {_some(odd)}")
    holes = [row["file_name"] for row in rows if not isinstance(row["text"], str)]
    if holes:
        raise AnimkitError(f"{path} has rows without a text: {_some(holes)}")
    names = [str(Path(row["file_name"])) for row in rows]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise AnimkitError(f"{path} has more than one row for {_some(twice)}: keep one of each")
    return {name: row["text"] for name, row in zip(names, rows)}


def _rows(file: TextIO, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, row) for each non-empty row of a CSV, the header first."""
    at_end = False

    def lines() -> Iterator[str]:
        nonlocal at_end
        yield from file
        at_end = True
        yield "end"  # read as a row of its own, unless a quotation mark is still open

    reader, line = csv.reader(lines()), 1
    try:
        for row in reader:
            if at_end and row != ["end"]:
                raise AnimkitError(f'{path}, line {line}: a quotation mark (") opens here that is never closed')
            if row and not at_end:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:  # such as a field that is too long: most likely a mark was never closed
        raise AnimkitError(f'{path}, line {line}: {error}; is a quotation mark (") opened here and never closed?') from None


def _shifted(path: Path, line: int, row: list[str], columns: list[str]) -> AnimkitError:
    """The error for a row of the wrong length: an unquoted comma cuts a caption or shifts it into the next column."""
    return AnimkitError(f"{path}, line {line}: {len(row)} fields where the header has {len(columns)}; "
                        'put captions that hold a comma into "double quotes"')


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """An open file of UTF-8 text, with or without the byte order mark that spreadsheets put first."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError as error:
        raise AnimkitError(f"{path} is not text in UTF-8 ({error.reason}): save it in that encoding") from None
    except OSError as error:  # such as a folder of that name
        raise AnimkitError(f"{path} cannot be read as a file ({error.strerror or error})") from None


def _caption(path: Path) -> str:
    with _text(path) as file:
        return file.read().strip()


def _need(wanted, got, path: Path) -> None:
    lacking = [name for name in wanted if name not in got]
    if lacking:
        raise AnimkitError(f"{path} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}: "
                           f"{'its first line' if path.suffix == '.csv' else 'each row'} must have {', '.join(wanted)}, and has "
                           f"{', '.join(map(str, got)) or 'none'}")


def _existing(path: str | Path, what: str) -> Path:
    if not Path(path).exists():
        raise AnimkitError(f"no such {what}: {path}")
    return Path(path)


def _some(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
