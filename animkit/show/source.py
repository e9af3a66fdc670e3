"""Code of the package as it stands, in a notebook: a whole function, or single lines of it beside their equations."""
from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from animkit.errors import AnimkitError

_ROOT = Path(__file__).resolve().parents[2]


class Source:
    """Markdown that shows itself in a notebook; `.markdown` and `.text` are the same to read elsewhere."""

    def __init__(self, markdown: str, text: str):
        self.markdown, self.text = markdown, text

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/plain": self.text, "text/markdown": self.markdown}


def source(thing: Any, first: str | None = None, last: str | None = None) -> Source:
    """A function or class of the package, with its file and lines; or only from the line with `first` to that with `last`.

    Raises AnimkitError if thing has no source, or first or last is not in it.
    """
    lines, start, file = _lines(thing)
    begin = _find(lines, first, thing, file)[0] if first else 0
    end = next((i for i in range(begin, len(lines)) if last in lines[i]), None) if last else len(lines) - 1
    if end is None:
        raise AnimkitError(f"no line with {last!r} follows {first or 'the beginning'!r} in {_name(thing)} ({file})")
    code = textwrap.dedent("".join(lines[begin:end + 1])).rstrip()
    where = f"{file}, lines {start + begin} to {start + end}" if end > begin else f"{file}, line {start + begin}"
    return Source(f"*{where}*\n\n```python\n{code}\n```", f"{where}\n\n{code}")


def beside(thing: Any, equations: Mapping[str, str]) -> Source:
    """A table: each equation (TeX, without $) beside the package's own line, found by a piece of it that no other has.

        beside(TemporalAttention.forward, {"self.to_q(x)": r"Q = W_Q z,\\; K = W_K z,\\; V = W_V z"})

    Raises AnimkitError if a piece is in no line of the function's code, or in several: so notebooks stay true to it.
    """
    lines, start, file = _lines(thing)
    rows, text = [], []
    for piece, tex in equations.items():
        found = _find(lines, piece, thing, file)
        if len(found) > 1:
            raise AnimkitError(f"{piece!r} is in {len(found)} lines of {_name(thing)} ({file}): give a longer piece")
        code = re.sub(" {3,}", "  ", lines[found[0]].strip())  # spaces that line comments up would not fit a table
        rows.append(f"| ${_no_pipe(tex)}$ | {start + found[0]} | ``{code.replace('|', chr(92) + '|')}`` |")
        text.append(f"{tex}\n    {start + found[0]}: {code}")
    head = f"| equation | line | `{_name(thing)}` in *{file}* |\n|---|---|---|"
    return Source("\n".join([head, *rows]), "\n".join([f"{_name(thing)} in {file}", *text]))


def _lines(thing: Any) -> tuple[list[str], int, str]:
    thing = inspect.unwrap(thing) if callable(thing) else thing  # below decorators such as torch.no_grad
    try:
        lines, start = inspect.getsourcelines(thing)
        file = Path(inspect.getsourcefile(inspect.unwrap(thing))).resolve()  # of the function, not of its decorator
    except (TypeError, OSError) as error:
        raise AnimkitError(f"there is no source to show of {_name(thing)}: give a function or class, not a value") from error
    return lines, start or 1, (file.relative_to(_ROOT) if file.is_relative_to(_ROOT) else Path(file.name)).as_posix()


def _find(lines: list[str], piece: str, thing: Any, file: str) -> list[int]:
    """Lines of code with the piece; those of the docstring only if there is no other."""
    found = [i for i, line in enumerate(lines) if piece in line]
    if not found:
        raise AnimkitError(f"no line of {_name(thing)} ({file}) has {piece!r}: the code has changed, or it is misspelt")
    documented = inspect.getdoc(thing) or ""
    return [i for i in found if lines[i].strip() not in documented] or found


def _name(thing: Any) -> str:
    return getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None) or repr(thing)


def _no_pipe(tex: str) -> str:
    return tex.replace("\\|", "\\Vert ").replace("|", "\\vert ")  # a pipe would end the table's cell
