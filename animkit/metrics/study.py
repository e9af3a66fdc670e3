"""The user study (5.2): people rank the methods' clips blind, by text, domain and smoothness; the mean is the result.

    score = methods + 1 - rank      so that of three the best has 3 and the worst 1, higher is better, as in the paper
    average user ranking of a method in an aspect = its mean score over people and prompts

Here is all that needs no notebook: which page shows what, files of answers, the average. The view: study_widget.py.
"""
import csv
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import AnimkitError
from ..files import write_atomically
from .intervals import Interval, quantiles

ASPECTS = {"text": "Which clip shows best what the prompt says?",
           "domain": "Which clip looks most like the reference pictures (without them: most like one artist's work)?",
           "smoothness": "Which clip moves most smoothly?"}
COLUMNS = ("participant", "prompt", "aspect", "method", "rank", "shown_as")
LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Page:
    """One prompt of one participant: its number, its words, and the methods in the order in which A, B, C show them."""
    number: int
    prompt: str
    methods: tuple[str, ...]

    @property
    def letters(self) -> dict[str, str]:
        """Letter -> method; the participant sees letters alone."""
        return dict(zip(LETTERS, self.methods))


def plan(prompts: Sequence[str], methods: Iterable[str], participant: str, seed: int = 0) -> list[Page]:
    """The pages of a participant: prompts in random order, on each the methods in random order, the same at every call.

    Raises AnimkitError for fewer than 2 or more than 4 methods (their 24 orders are as many as one can choose
    from), no prompts, a prompt twice, or an empty participant.
    """
    methods, participant = tuple(methods), str(participant).strip()
    if not 2 <= len(set(methods)) == len(methods) <= 4:
        raise AnimkitError(f"A ranking compares 2 to 4 different methods; got: "
                           f"{', '.join(map(str, methods)) or 'none'}.")
    if not prompts or len(set(prompts)) < len(prompts) or not participant:
        raise AnimkitError("A study wants prompts that differ, and a participant's name, which keys the answers.")
    rng = np.random.default_rng([seed, zlib.crc32(participant.encode())])  # hash() would differ from run to run
    order = rng.permutation(len(prompts))
    return [Page(int(k), prompts[k], tuple(methods[i] for i in rng.permutation(len(methods)))) for k in order]


def ranked(participant: str, page: Page, orders: Mapping[str, str]) -> list[dict]:
    """A page's answers as rows of COLUMNS; orders: aspect -> letters, the best first ("BAC").

    Raises AnimkitError for an aspect that is missing or unknown, or letters that do not name each of the page once.
    """
    if set(orders) != set(ASPECTS):
        raise AnimkitError(f"A page is ranked by {', '.join(ASPECTS)}; got {', '.join(orders) or 'none'}.")
    rows = []
    for aspect, letters in orders.items():
        if sorted(letters or "") != sorted(page.letters):
            raise AnimkitError(f"Rank every clip once by {aspect}: {', '.join(page.letters)}, the best first; got "
                               f"{letters!r}.")
        rows += [{"participant": participant, "prompt": page.prompt, "aspect": aspect, "method": page.letters[letter],
                  "rank": rank, "shown_as": letter} for rank, letter in enumerate(letters, 1)]
    return rows


def save_answers(path: str | Path, rows: Iterable[Mapping]) -> Path:
    """Write all rows as CSV, whole or not at all (files.write_atomically); columns that someone added are kept."""
    rows = list(rows)
    columns = dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)])

    def write(beside):
        with open(beside, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(rows)
    return write_atomically(path, write)


def load_answers(path: str | Path) -> list[dict]:
    """The rows of one CSV file, rank as int; [] if there is no file yet.

    Raises AnimkitError, naming file and line, for other columns, an unknown aspect, a rank that is no number, or a
    ranking that is not 1, 2, 3 ... once each (a page's answers come together or not at all).
    """
    path = Path(path)
    if not path.exists():
        return []
    rows, rankings = [], {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets put a mark at the front
            table = csv.DictReader(file)
            if not set(COLUMNS[:-1]) <= set(table.fieldnames or ()):
                raise AnimkitError(f"{path} is no file of answers: it wants the columns {', '.join(COLUMNS)}, and has "
                                   f"{', '.join(table.fieldnames or ()) or 'none'}.")
            for row in table:
                named = row["participant"] and row["method"] and row["aspect"] in ASPECTS
                if not named or not str(row["rank"]).isdecimal():
                    raise AnimkitError(f"{path}, line {table.line_num}: no answer ({row['aspect']!r} ranked "
                                       f"{row['rank']!r} by {row['participant']!r}); correct it or take it out.")
                row.pop(None, None)  # cells beyond the last column
                rows.append({**row, "rank": int(row["rank"])})
                rankings.setdefault((row["participant"], row["prompt"], row["aspect"]), []).append(rows[-1])
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise AnimkitError(f"{path} could not be read as a CSV file of answers ({e}).") from e
    for (person, prompt, aspect), of in rankings.items():
        if sorted(r["rank"] for r in of) != list(range(1, len(of) + 1)) or len({r["method"] for r in of}) < len(of):
            raise AnimkitError(f"{path}: {person}'s ranking of {prompt!r} by {aspect} is not each of 1 to {len(of)} "
                               f"once: {', '.join(f'''{r['method']} {r['rank']}''' for r in of)}.")
    return rows


def answered(rows: Iterable[Mapping], participant: str) -> set[str]:
    """The prompts that a participant has ranked by every aspect."""
    seen: dict[str, set] = {}
    for row in rows:
        if row["participant"] == participant:
            seen.setdefault(row["prompt"], set()).add(row["aspect"])
    return {prompt for prompt, aspects in seen.items() if aspects >= set(ASPECTS)}


def average_user_ranking(paths: str | Path | Iterable[str | Path], level: float = 0.95, rounds: int = 2000,
                         seed: int = 0) -> dict[str, dict[str, Interval]]:
    """method -> aspect -> mean score and interval, from any number of CSV files; n counts rankings.

    A person counts by the number of rankings given. All rank the same prompts: one person's answers are alike, and so are
    all answers about one prompt. So the interval is the pigeonhole bootstrap (Owen 2007, Annals of Applied Statistics 1,
    386): people with replacement and, apart from that, prompts with replacement, which all who were drawn share. For few
    of either its quantiles lie further out (`intervals.quantiles`). Raises AnimkitError if there is no file or answer, a
    ranking is in two files, or rankings differ in their methods.
    """
    methods, tables = _tables(paths)
    rng = np.random.default_rng(seed)
    result: dict[str, dict[str, Interval]] = {method: {} for method in methods}
    for aspect, scores in tables.items():
        count = int(np.isfinite(scores[..., 0]).sum())
        for method, value, means in zip(methods, _mean(scores), _resampled(scores, rounds, rng).T):
            result[method][aspect] = _interval(value, means, scores, level)._replace(n=count)
    return result


def user_lead(paths: str | Path | Iterable[str | Path], ours: str, others: Sequence[str], aspect: str = "smoothness",
              level: float = 0.95, rounds: int = 2000, seed: int = 0) -> tuple[Interval, str]:
    """How far `ours` is ahead of the best of the others in an aspect, ranking by ranking; and which one that is.

    Interval and errors as in `average_user_ranking`, with three differences. In each resample it is the best of the others
    there: to lead is to lead them all. n is the number of people or of prompts, whichever is less: what a few agree on may be
    their own taste, or luck with a prompt. AnimkitError also if the files rank no such method or aspect.
    """
    methods, tables = _tables(paths)
    if not {ours, *others} <= set(methods) or aspect not in tables:
        raise AnimkitError(f"The files rank {', '.join(methods)} by {', '.join(tables)}; asked was for {ours} against "
                           f"{', '.join(others)} by {aspect}.")
    scores = tables[aspect]
    ahead = scores[..., [methods.index(ours)]] - scores[..., [methods.index(other) for other in others]]
    least = _resampled(ahead, rounds, np.random.default_rng(seed)).min(1)
    value = _mean(ahead)
    return _interval(value.min(), least, ahead, level), others[int(value.argmin())]


def check_answers(paths: str | Path | Iterable[str | Path], prompts: Sequence[str], methods: Sequence[str]) -> None:
    """AnimkitError unless files of answers are about these prompts (or some of them), rank these methods, by every aspect."""
    ranked, tables = _tables(paths)
    asked = {row["prompt"] for path in ([paths] if isinstance(paths, (str, Path)) else paths) for row in load_answers(path)}
    if others := sorted(asked - set(prompts)):
        raise AnimkitError(f"The answers are about {len(others)} prompts that this run does not draw, such as {others[0]!r}: give "
                           "those that were given about its own clips, of the same seed and preset.")
    if set(ranked) != set(methods):
        raise AnimkitError(f"The answers rank {', '.join(ranked)}; this run wants {', '.join(sorted(methods))}.")
    if missing := set(ASPECTS) - set(tables):
        raise AnimkitError(f"The answers rank nothing by {', '.join(sorted(missing))}.")


def _tables(paths: str | Path | Iterable[str | Path]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The methods, and aspect -> the scores of all files, people prompts methods; NaN where someone did not rank a prompt."""
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    scores: dict[str, dict[str, dict[str, dict[str, int]]]] = {}  # aspect -> person -> prompt -> method -> score
    source: dict[tuple, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise AnimkitError(f"There is no file of answers at {path}.")
        rows = load_answers(path)
        count: dict[tuple, int] = {}
        for row in rows:
            key = (row["aspect"], row["participant"], row["prompt"])
            count[key] = count.get(key, 0) + 1
            if source.setdefault(key, path) != path:
                raise AnimkitError(f"{row['participant']}'s ranking of {row['prompt']!r} by {row['aspect']} stands in "
                                   f"both {source[key]} and {path}: leave one out, or name participants apart.")
        for row in rows:
            key = (row["aspect"], row["participant"], row["prompt"])
            of = scores.setdefault(key[0], {}).setdefault(key[1], {}).setdefault(key[2], {})
            of[row["method"]] = count[key] + 1 - row["rank"]
    compared = {tuple(sorted(of)) for people in scores.values() for prompts in people.values()
                for of in prompts.values()}
    if len(compared) != 1:
        raise AnimkitError(f"An average wants rankings of the same methods throughout; {len(source)} rankings in "
                           f"{len(paths)} files compare: "
                           f"{'; '.join(', '.join(m) for m in sorted(compared)) or 'nothing'}.")
    methods = compared.pop()
    tables = {}
    for aspect in (a for a in ASPECTS if a in scores):
        every = dict.fromkeys(prompt for prompts in scores[aspect].values() for prompt in prompts)
        tables[aspect] = np.array([[[prompts[prompt][m] if prompt in prompts else np.nan for m in methods] for prompt in every]
                                   for prompts in scores[aspect].values()], float)
    return methods, tables


def _mean(scores: np.ndarray) -> np.ndarray:
    """The mean over all rankings, of people prompts k: k."""
    return np.nanmean(scores, axis=(0, 1))


def _resampled(scores: np.ndarray, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """That mean in `rounds` draws of people and of prompts, with replacement: rounds k; NaN where nothing was drawn."""
    people, prompts = scores.shape[:2]
    who, what = (rng.multinomial(n, np.full(n, 1 / n), size=rounds) for n in (people, prompts))  # how often each was drawn
    total = np.einsum("ri,ijk,rj->rk", who, np.nan_to_num(scores), what)
    count = np.einsum("ri,ij,rj->r", who, np.isfinite(scores[..., 0]), what)
    with np.errstate(invalid="ignore"):
        return total / count[:, None]


def _interval(value: float, means: np.ndarray, scores: np.ndarray, level: float) -> Interval:
    """n: the number of people, or of prompts if those are fewer; one alone says nothing of its kind."""
    units = scores.shape[:2]
    low, high = np.quantile(means[np.isfinite(means)], quantiles(min([n for n in units if n > 1], default=1), level))
    return Interval(float(value), float(low), float(high), min(units))
