"""Everything about the package stands in pyproject.toml; this adds data_samples/ and configs/ to the wheel."""
from pathlib import Path
from shutil import copytree, ignore_patterns

from setuptools import setup
from setuptools.command.build_py import build_py


class WithSamples(build_py):
    """Wheels carry the miniature and training's settings: `pip install` from a git address works without the clone."""

    def run(self) -> None:
        super().run()
        for name, inside in {"data_samples": "_samples", "configs": "_configs"}.items():
            source = Path(__file__).parent / name
            if source.is_dir() and not self.editable_mode:      # an editable install reads them where they stand
                copytree(source, Path(self.build_lib, "animkit", inside), dirs_exist_ok=True,
                         ignore=ignore_patterns(".*", "*.tmp", "__pycache__"))


setup(cmdclass={"build_py": WithSamples})
