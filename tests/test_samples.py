"""The samples are found in a clone and in an installed wheel, which carries them."""
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from animkit import samples
from animkit.errors import AnimkitError


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    (tmp_path / "miniature").mkdir()
    (tmp_path / "readme").write_text("x")
    (tmp_path / "miniature" / "vae").touch()
    monkeypatch.setattr(samples, "root", lambda: tmp_path)
    return tmp_path


def test_a_sample_is_found_by_name(shipped):
    assert samples.path("miniature") == shipped / "miniature"
    assert samples.names() == ["miniature", "readme"]


@pytest.mark.parametrize("name, message", [("miniatur", "no sample 'miniatur'; .* there are: miniature, readme"),
                                           ("miniature/unet", "no sample 'miniature/unet'; in .*miniature there are: vae$"),
                                           ("readme/x", "no sample 'readme/x'; .* there are: miniature, readme"),
                                           ("../other", "leads out of the samples"), ("/etc", "leads out of the samples")])
def test_what_is_not_there_is_refused(shipped, name, message):
    with pytest.raises(AnimkitError, match=message):
        samples.path(name)


def test_a_copy_without_samples_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "CLONE", tmp_path / "a")
    monkeypatch.setattr(samples, "INSTALLED", tmp_path / "b")
    with pytest.raises(AnimkitError, match="carries no samples"):
        samples.root()
    assert samples.names() == []
    (tmp_path / "b").mkdir()
    assert samples.root() == tmp_path / "b"
    (tmp_path / "a").mkdir()
    assert samples.root() == tmp_path / "b", "a folder called data_samples beside some site-packages is not a clone's"
    (tmp_path / "pyproject.toml").write_text("")
    assert samples.root() == tmp_path / "a"


def test_the_wheel_carries_the_samples_and_works_without_the_clone(repo, tmp_path):
    pytest.importorskip("setuptools", "77", reason="building the wheel without network needs setuptools in the environment")
    clone = tmp_path / "clone"
    shutil.copytree(repo / "animkit", clone / "animkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(repo / name, clone)
    (clone / "data_samples" / "miniature" / "unet").mkdir(parents=True)
    (clone / "data_samples" / "miniature" / "unet" / "weights.safetensors").write_bytes(b"weights")
    (clone / "data_samples" / "half_written.tmp").write_text("")
    shutil.copytree(repo / "configs", clone / "configs")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist",
                    clone], check=True, timeout=200)
    (clone / "tests").mkdir()
    (clone / "tests" / "test_alone.py").touch()  # setuptools' sdist takes such files, without what they import
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path / "dist"], cwd=clone, check=True, timeout=200)
    with tarfile.open(*(tmp_path / "dist").glob("*.gz")) as opened:
        names = "\n".join(opened.getnames())
    assert "/unet/weights.safetensors" in names and "/configs/sd15.yaml" in names and "/tests" not in names
    wheel, = (tmp_path / "dist").glob("animkit-*.whl")
    with zipfile.ZipFile(wheel) as opened:
        carried = opened.namelist()
    assert "animkit/_samples/miniature/unet/weights.safetensors" in carried and "animkit/cli.py" in carried
    assert not [n for n in carried if "half_written" in n or n.startswith(("tests/", "data_samples/", "configs/"))]
    sources = {p.relative_to(clone).as_posix() for p in (clone / "animkit").rglob("*") if p.is_file()}
    assert sources - set(carried) == set(), "these files of the package are not in the wheel"
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True, timeout=200)
    shutil.rmtree(clone)
    code = ("import animkit; from animkit import samples as s; print(animkit.__file__); print(s.path('miniature/unet').is_dir());"
            "from animkit.training.presets import presets; print(*presets())")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300,
                          env={"PYTHONPATH": str(site), "PATH": ""}, check=True).stdout.split()
    assert told == [str(site / "animkit" / "__init__.py"), "True", "miniature", "sd15"]


def test_no_committed_share_is_told_as_if_it_were_certain(repo):
    """Where all of n are right, others may still be wrong: metrics.intervals.share says how many."""
    found = []

    def walk(of, where):
        if isinstance(of, dict):
            if of.get("n") and "share" in of and of["low"] == of["high"]:
                found.append(where)
            for name, part in of.items():
                walk(part, f"{where}: {name}")

    files = sorted((repo / "data_samples" / "results").glob("*.json"))
    for file in files:
        walk(json.loads(file.read_text()), file.name)
    assert len(files) > 5 and found == []
