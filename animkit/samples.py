"""Where data_samples/ is: in the clone that animkit runs from, else the copy that the wheel carries."""
from pathlib import Path

from .errors import AnimkitError

_PACKAGE = Path(__file__).resolve().parent
CLONE = _PACKAGE.parent / "data_samples"        # a clone, or an install with -e
INSTALLED = _PACKAGE / "_samples"               # put there by setup.py


def root() -> Path:
    """The folder of shipped samples. Raises AnimkitError when this copy of animkit has none."""
    if CLONE.is_dir() and (CLONE.parent / "pyproject.toml").is_file():
        return CLONE
    if INSTALLED.is_dir():
        return INSTALLED
    raise AnimkitError(f"this copy of animkit carries no samples: neither {CLONE} nor {INSTALLED} is there; install it anew")


def names() -> list[str]:
    """The top-level names of the samples, such as "miniature"; empty when there are none."""
    try:
        return _names(root())
    except AnimkitError:
        return []


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def path(name: str = ".") -> Path:
    """The file or folder `name` among the samples: path("miniature"). Raises AnimkitError when it is not there."""
    base = root().resolve()
    found = (base / name).resolve()
    if not found.is_relative_to(base):
        raise AnimkitError(f"{name!r} leads out of the samples in {base}; give a name inside it")
    if not found.exists():
        near = next(folder for folder in found.parents if folder.is_dir())
        raise AnimkitError(f"no sample {name!r}; in {near} there are: {', '.join(_names(near)) or 'none'}")
    return found
