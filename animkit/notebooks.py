"""Run a notebook with papermill, its parameters checked first. Used by the demo and by reproduce/."""
from __future__ import annotations

import ast
import os
import tempfile
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import AnimkitError
from .files import make_folder


def needs(module: str):
    """An import of the extra `reproduce`; AnimkitError says what to install when it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise AnimkitError(f'running notebooks needs {module}: pip install "animkit[reproduce]"') from error


def parameters(notebook: str | os.PathLike) -> dict[str, dict[str, str]]:
    """The parameters that a notebook declares: name -> {"default", "type", "help"}. Raises AnimkitError if unreadable."""
    papermill = needs("papermill")
    if not Path(notebook).is_file():
        raise AnimkitError(f"no notebook at {notebook}")
    try:
        found = papermill.inspect_notebook(str(notebook))
    except Exception as error:
        raise AnimkitError(f"{notebook} is not a notebook that can be read: {error}") from error
    return {name: {"default": p["default"], "type": p["inferred_type_name"], "help": p["help"]}
            for name, p in found.items()}


def checked(notebook: str | os.PathLike, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, with words turned into values of the declared type. AnimkitError for a name that the notebook lacks.

    papermill only warns of an unknown name, and passes "false" on as a word: both would go unnoticed.
    """
    declared = parameters(notebook)
    unknown = sorted(set(given) - set(declared))
    if unknown:
        raise AnimkitError(f"{Path(notebook).name} has no parameter {', '.join(map(repr, unknown))}; "
                           f"it has: {', '.join(declared) or 'none'}")
    return {name: _value(name, value, declared[name]) for name, value in given.items()}


def _in_words(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}.get(kind, f"a {kind.__name__}")


def _value(name: str, given: Any, declared: Mapping[str, str]) -> Any:
    value = given
    try:
        default = ast.literal_eval(declared["default"])
    except (ValueError, SyntaxError):                   # a default that is computed: nothing to compare with
        return value
    if isinstance(value, str) and not isinstance(default, str):
        words = {"true": True, "false": False, "none": None}
        try:
            value = words[value.lower()] if value.lower() in words else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            if default is not None:
                raise AnimkitError(f"parameter {name!r} is {value!r}, but its default is {default!r}: "
                                   f"give {_in_words(type(default))}") from None
    kind = {"int": int, "float": float, "bool": bool, "str": str, "list": list}.get(declared["type"])
    if kind is str and isinstance(given, str):          # "12" may be a name
        value = None if given.lower() == "none" and default is None else given
    if (isinstance(default, float) or kind is float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if default is None and kind and value is not None and type(value) is not kind:
        raise AnimkitError(f"parameter {name!r} is {value!r}: give {_in_words(kind)}, or none for the preset's")
    if default is not None and value is not None and type(value) is not type(default) \
            and not {type(value), type(default)} <= {list, tuple}:
        raise AnimkitError(f"parameter {name!r} is {value!r}, but its default is {default!r}: "
                           f"give {_in_words(type(default))}")
    return value


_NOT_UP = ("Kernel died before replying to kernel_info", "Kernel didn't respond")  # jupyter_client, on a busy machine


def execute(notebook: str | os.PathLike, output: str | os.PathLike, given: Mapping[str, Any] | None = None, *,
            progress: bool = True, cell_timeout: int = 1800, attempts: int = 3) -> Path:
    """Run `notebook` from its own folder with the parameters `given`; the executed copy is `output`.

    Raises AnimkitError for an unknown parameter (before a kernel starts), and for a failing cell, naming it; what was
    run until then stays in `output`. A kernel that does not start is tried again.
    """
    papermill = needs("papermill")
    notebook, output = Path(notebook).resolve(), Path(output).resolve()
    values = checked(notebook, given or {})
    make_folder(output.parent)
    for attempt in range(1, attempts + 1):
        try:
            with tempfile.TemporaryDirectory(prefix="animkit-") as sockets:
                papermill.execute_notebook(str(notebook), str(output), values, kernel_name="python3",
                                           cwd=str(notebook.parent), progress_bar=progress, log_output=False,
                                           start_timeout=120, execution_timeout=cell_timeout, config=own_sockets(sockets))
            return output
        except papermill.PapermillExecutionError as error:
            raise AnimkitError(f"the cell of {notebook.name} that begins {error.source.strip().splitlines()[0]!r} failed "
                               f"with {error.ename}: {error.evalue}; what was run is in {output}") from error
        except PermissionError as error:
            raise AnimkitError(f"could not write {error.filename or output}: {error.strerror}") from error
        except (TimeoutError, RuntimeError) as error:
            if str(error).startswith(_NOT_UP) and attempt < attempts:
                time.sleep(attempt)
            elif isinstance(error, TimeoutError) and not str(error).startswith(_NOT_UP):
                raise AnimkitError(f"a cell of {notebook.name} ran longer than {cell_timeout} s; what was run is in {output}") from error
            else:
                raise AnimkitError(f"{notebook.name} could not be run: {error}") from error
    raise AssertionError("unreachable")


def own_sockets(folder: str):
    """Kernel settings: sockets in a folder of its own, since kernels started side by side take each other's ports."""
    Config = needs("traitlets.config").Config
    if os.name != "posix" or len(os.path.join(folder, "k-99")) > 100:  # a socket's path has 103 bytes, on Linux 107
        return Config()
    return Config({"KernelManager": {"transport": "ipc", "ip": os.path.join(folder, "k")}})
