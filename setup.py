"""Everything about the package stands in pyproject.toml; this adds data_samples/ to the wheel as animkit/_samples."""
from pathlib import Path
from shutil import copytree, ignore_patterns

from setuptools import setup
from setuptools.command.build_py import build_py


class WithSamples(build_py):
    """Wheels carry the miniature, so that `pip install` from a git address works without the clone."""

    def run(self) -> None:
        super().run()
        source = Path(__file__).parent / "data_samples"
        if source.is_dir() and not self.editable_mode:      # an editable install reads data_samples/ where it stands
            copytree(source, Path(self.build_lib, "animkit", "_samples"), dirs_exist_ok=True,
                     ignore=ignore_patterns(".*", "*.tmp", "__pycache__"))


setup(cmdclass={"build_py": WithSamples})
