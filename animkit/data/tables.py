"""Tables of videos and of captioned images as `datasets` Datasets: paths and captions; nothing is decoded."""
import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from datasets import Dataset, Features, Image, Value

from animkit.errors import AnimkitError

VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".gif")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def webvid_table(table: str | Path) -> Dataset:
    """A WebVid CSV (columns videoid,name,page_dir, maybe more): a Dataset of `videoid`, `caption`, `page_dir`.

    Memory-mapped. Raises AnimkitError for a missing file, missing columns (named), a line with too few or many fields.
    """
    table = _existing(table, "table of videos")
    wanted = ("videoid", "name", "page_dir")
    with _text(table) as f:
        rows = csv.reader(f)
        columns = next(rows, [])
        _need(wanted, columns, table)
        count = 0
        for count, row in enumerate(rows, start=1):  # an unquoted comma would shift a caption into the next column
            if row and len(row) != len(columns):
                raise AnimkitError(f"{table}, line {rows.line_num}: {len(row)} fields where the header has "
                                   f'{len(columns)}; put captions that hold a comma into "double quotes"')
    if not count:
        raise AnimkitError(f"{table} has its header but no row: there is nothing to read")
    text = Features({name: Value("string") for name in wanted})  # videoid too: as a number it would lose leading zeros
    rows = Dataset.from_csv(str(table), features=text, usecols=list(wanted), keep_default_na=False)
    return rows.rename_column("name", "caption")


def video_path(row: dict, videos: Path | None) -> Path:
    """Where the video of a table's row is: its `video`; or, of WebVid, {videoid}.mp4 or {page_dir}/{videoid}.mp4.

    Looked up when it is read, for a table has millions of rows; whether the file is there is seen then, too.
    """
    if "video" in row:
        return Path(row["video"])
    flat = videos / f"{row['videoid']}.mp4"
    deep = videos / row["page_dir"] / flat.name  # as downloaders of the whole set leave it
    return deep if row["page_dir"] and not flat.exists() and deep.exists() else flat


def video_table(folder: str | Path) -> Dataset:
    """All videos under a folder, sorted: `video` (a path) and `caption` ("" where the folder has none at all).

    Captions as in `image_table`. Raises AnimkitError where there is no video, or where only some have a caption.
    """
    return _captioned_folder(folder, "video", VIDEOS, needed=False)


def image_table(folder: str | Path) -> Dataset:
    """A folder of captioned images, for a look: `image` (decoded when it is looked at) and `caption`.

    Captions stand in metadata.csv or metadata.jsonl (file_name, text), or in a .txt file of the same name beside each
    image. Raises AnimkitError for missing columns, images without a caption and rows of metadata without an image, naming
    them.
    """
    return _captioned_folder(folder, "image", IMAGES, needed=True).cast_column("image", Image())


def _captioned_folder(folder, kind: str, endings: tuple[str, ...], needed: bool) -> Dataset:
    folder = _existing(folder, f"folder of {kind}s")
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.suffix.lower() in endings}
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
    """file_name -> text out of the folder's metadata file; None where it has none."""
    found = [p for p in (folder / "metadata.csv", folder / "metadata.jsonl") if p.exists()]
    if not found:
        return None
    if len(found) == 2:
        raise AnimkitError(f"{folder} has both metadata.csv and metadata.jsonl: keep one")
    path = found[0]
    with _text(path) as f:
        if path.suffix == ".csv":
            reader = csv.DictReader(f)
            _need(("file_name", "text"), reader.fieldnames or [], path)
            rows = list(reader)
        else:
            try:
                rows = [json.loads(line) for line in f if line.strip()]
            except json.JSONDecodeError as error:
                raise AnimkitError(f"{path} is not one JSON object a line: {error}") from None
            for row in rows:
                _need(("file_name", "text"), row if isinstance(row, dict) else (), path)
    holes = [str(row["file_name"]) for row in rows if not isinstance(row["text"], str)]
    if holes:
        raise AnimkitError(f"{path} has rows without a text: {_some(holes)}")
    return {str(Path(row["file_name"])): row["text"] for row in rows}


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """An open text file, with or without the mark that spreadsheets put first."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError as error:
        raise AnimkitError(f"{path} is not text in UTF-8 ({error.reason}): save it in that encoding") from None


def _caption(path: Path) -> str:
    with _text(path) as file:
        return file.read().strip()


def _need(wanted, got, path: Path) -> None:
    lacking = [name for name in wanted if name not in got]
    if lacking:
        raise AnimkitError(f"{path} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}: it must have "
                           f"{', '.join(wanted)}, and has {', '.join(map(str, got)) or 'none'}")


def _existing(path: str | Path, what: str) -> Path:
    if not Path(path).exists():
        raise AnimkitError(f"no such {what}: {path}")
    return Path(path)


def _some(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
