"""What an exercise's check says: right, or what is wrong and where, or still to do. It never stops a notebook."""
import html
import linecache
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor

WORDS = {"right": "Right", "wrong": "Not yet", "to do": "To do"}


class Wrong(Exception):
    """The answer is wrong; the message says what, where, and where to look."""


@dataclass(frozen=True)
class Verdict:
    """Shows itself at the end of a cell. `.ok`, `.state`, `.message`; grade() is for tests that must fail."""
    exercise: str
    state: Literal["right", "wrong", "to do"]
    message: str

    @property
    def ok(self) -> bool:
        return self.state == "right"

    def grade(self) -> None:
        """For marked work: raises NotImplementedError while to do, AssertionError with the message when wrong."""
        if self.state == "to do":
            raise NotImplementedError(self.message)
        assert self.ok, self.message

    def __repr__(self) -> str:
        return f"{WORDS[self.state]} ({self.exercise}): {self.message}"

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        edge = {"right": "solid", "wrong": "double", "to do": "dashed"}[self.state]  # can be told apart without colour
        text = html.escape(self.message, quote=False)
        text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
        return {"text/plain": repr(self),
                "text/html": f'<p role="status" style="border-left: 6px {edge} #666; padding: 0.3em 0.8em">'
                             f"<strong>{WORDS[self.state]}</strong> ({html.escape(self.exercise)}): {text}</p>"}


def exercise(name: str, right: str) -> Callable:
    """Makes a function that raises Wrong into a check: answer -> Verdict. `right` is said when nothing is wrong.

    An exception in the answer is told with the line of the answer that it comes from.
    """
    def decorate(check: Callable) -> Callable[[Callable], Verdict]:
        @wraps(check)
        def checked(answer: Callable) -> Verdict:
            if not callable(answer):
                return Verdict(name, "wrong", f"give the function itself, without calling it, not `{answer!r:.60}`.")
            try:
                with torch.random.fork_rng(devices=[]):
                    check(_untouched(answer))
            except Wrong as wrong:
                return Verdict(name, "wrong", str(wrong))
            except Exception as error:  # whatever a student's code may raise
                if isinstance(error, NotImplementedError) and not str(error):  # torch says what it has not implemented
                    return Verdict(name, "to do", "replace `raise NotImplementedError` with your code, then run this cell again.")
                return Verdict(name, "wrong", f"your function stopped with {type(error).__name__}: "
                                              f"{' '.join(str(error).split())[:300]}{_where(answer, error)}")
            return Verdict(name, "right", right)
        checked.exercise = name
        return checked
    return decorate


def _untouched(answer: Callable) -> Callable:
    """answer, which now raises Wrong if it changes a tensor that it was given: the caller would then have other numbers."""
    def called(*given):
        before = [tensor.clone() for tensor in _tensors(given)]
        got = answer(*given)
        if not all(map(torch.equal, _tensors(given), before)):
            raise Wrong("your function changes a tensor that it was given, in place (`x += y`, or a method whose name ends "
                        "in `_`), and the caller then has other numbers: make a new tensor, `x = x + y`.")
        return got
    return called


def _tensors(given: Iterable) -> Iterator[Tensor]:
    """Those among what is given, and in its lists and tuples."""
    for one in given:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, (list, tuple)):
            yield from _tensors(one)


def _where(answer: Callable, error: Exception) -> str:
    file = getattr(getattr(answer, "__code__", None), "co_filename", None)
    lines = [linecache.getline(f.filename, f.lineno).strip() for f in traceback.extract_tb(error.__traceback__)
             if f.filename == file]
    return f" (at your line `{lines[-1]}`)" if lines and lines[-1] else ""


def compare(what: str, got: Any, expected: Tensor, axes: str, mistakes: Mapping[str, Any] | None = None,
            tolerance: float = 1e-4, **sizes: int) -> None:
    """Raise Wrong unless got equals expected: its kind, its shape, then the first wrong value and its frame.

    axes: the names of expected's axes, as in einops ("(b f) c h w", whose f is in sizes). mistakes: {sentence:
    the result of a known mistake}; an answer with that result is told the sentence.
    """
    got = as_tensor(what, got)
    for sentence, wrong in (mistakes or {}).items():
        wrong = torch.as_tensor(wrong, dtype=torch.float64)
        if wrong.shape == got.shape and _close(got, wrong, tolerance) and not (
                wrong.shape == expected.shape and _close(wrong, expected.double(), tolerance)):
            raise Wrong(sentence)
    if got.shape != expected.shape:
        raise Wrong(f"{what} has the shape {tuple(got.shape)}; expected {tuple(expected.shape)}"
                    f"{f', {axes}' if axes else ''}.")
    if not got.isfinite().all():
        raise Wrong(f"{what} holds a {got[~got.isfinite()][0].item()}: is something divided by zero?")
    expected = expected.double()
    off = (got - expected).abs() > tolerance * (1 + expected.abs())
    if off.any():
        index = tuple(off.nonzero()[0].tolist())
        share = f", and {100 * off.double().mean():.0f} % of all values differ" if off.numel() > 1 else ""
        is_, wanted = got[index].item(), expected[index].item()
        digits = 4 if f"{is_:.4g}" != f"{wanted:.4g}" else 8  # half precision differs later
        raise Wrong(f"{what} is {is_:.{digits}g}{_place(index, axes, sizes)}; expected {wanted:.{digits}g}{share}.")


def as_tensor(what: str, got: Any) -> Tensor:
    """A number, list, array or tensor as float64; Wrong for anything else."""
    if got is None:
        raise Wrong(f"{what} is None: did you forget `return`?")
    try:
        return torch.as_tensor(got).detach().double()
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{what} should be numbers (a tensor); it is a {type(got).__name__}.") from None


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


def _place(index: tuple[int, ...], axes: str, sizes: Mapping[str, int]) -> str:
    """(4, 0, 2), "(b f) c h": ' at row 4 (b 1, frame 1), c 0, h 2'."""
    if not index:
        return ""
    said = []
    for i, name in zip(index, re.findall(r"\([^)]*\)|\S+", axes)):
        if not name.startswith("("):
            said.append(f"{'frame' if name == 'f' else name} {i}")
            continue
        inside, rest = [], i
        for letter in reversed(name.strip("()").split()):
            rest, place = divmod(rest, sizes.get(letter, i + 1))
            inside.append(f"{'frame' if letter == 'f' else letter} {place}")
        said.append(f"row {i} ({', '.join(reversed(inside))})")
    return " at " + ", ".join(said)
