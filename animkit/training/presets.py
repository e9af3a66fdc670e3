"""Where configs/ is: in the clone that animkit runs from, else the copy that the wheel carries."""
from pathlib import Path

from animkit.errors import AnimkitError

_PACKAGE = Path(__file__).resolve().parents[1]
CLONE = _PACKAGE.parent / "configs"             # a clone, or an install with -e
INSTALLED = _PACKAGE / "_configs"               # put there by setup.py


def presets() -> dict[str, Path]:
    """The settings that ship with animkit, by name: {"miniature": .../miniature.yaml, "sd15": ...}."""
    folder = CLONE if CLONE.is_dir() and (CLONE.parent / "pyproject.toml").is_file() else INSTALLED
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find_config(name: str | Path) -> Path:
    """A file that exists, or the shipped settings of that name ("miniature"). Raises AnimkitError, which lists them."""
    path, known = Path(name), presets()
    if path.is_file():
        return path
    if str(name) in known:
        return known[str(name)]
    raise AnimkitError(f"The settings '{name}' cannot be read: there is no such file; give a YAML file, or the name of "
                       f"settings that ship with animkit ({', '.join(known) or 'none in this copy'}).")
