"""The layout and the manners that every file keeps: what a reader relies on before reading any code."""
import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import animkit

TOP = {"animkit", "notebooks", "data_samples", "reproduce", "tests", "benchmarks", "README.md", "environment.yml",
       "pyproject.toml", "Makefile", "constraints.txt", "LICENSE", "CITATION.cff", ".ci"}
HOSTS = re.compile(r"pypi\.(org|python)|pythonhosted|registry\.npmjs|deb\.debian|download\.pytorch|conda\.anaconda|repo\.anaconda", re.I)
AUTHOR_PATHS = re.compile(r"(?<![\w.~])/(work|root|home/\w+|Users/\w+)/")
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".cfg", ".cff", ".json", ".ipynb", ".csv", ".html", ".in", ""}


@pytest.fixture(scope="module")
def tracked(repo):
    """Every file that git knows and that is there."""
    if not (repo / ".git").exists():
        pytest.skip("not a git clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=repo, capture_output=True, text=True, check=True).stdout
    return [repo / name for name in listed.split("\0") if name and (repo / name).is_file()]


@pytest.fixture(scope="module")
def tracked_text(tracked):
    return {path: path.read_text(encoding="utf-8") for path in tracked if path.suffix in TEXT and path.stat().st_size < 2e7}


@pytest.fixture(scope="module")
def tracked_notebooks(tracked):
    return {path: json.loads(path.read_text(encoding="utf-8")) for path in tracked if path.suffix == ".ipynb"}


def test_the_top_level_is_the_promised_one(repo):
    assert [name for name in sorted(TOP) if not (repo / name).exists()] == []


def test_the_repo_stays_small(tracked, repo):
    assert sum(path.stat().st_size for path in tracked) < 55e6
    big = [(str(p.relative_to(repo)), p.stat().st_size) for p in tracked if p.stat().st_size > 26e6]
    assert big == [], "no single file needs this much"


def test_no_file_names_a_registry_or_the_path_of_an_authors_machine(tracked_text, repo):
    here = repo / "tests" / "test_house.py"
    found = [f"{path.relative_to(repo)}: {match.group()}" for path, text in tracked_text.items() if path != here
             for pattern in (HOSTS, AUTHOR_PATHS) if (match := pattern.search(text))]
    assert found == []


def test_the_rules_about_names_see_what_they_should():
    assert HOSTS.search("--index-url https://py" + "pi.org/simple") and AUTHOR_PATHS.search('open("/ro' + 'ot/x/y")')
    assert AUTHOR_PATHS.search("/home/ann/clips") and not AUTHOR_PATHS.search("https://example.org/wo" + "rk/x")


def test_notebooks_can_be_opened_by_anyone(tracked_notebooks, repo):
    problems = []
    for path, nb in tracked_notebooks.items():
        name, metadata = path.relative_to(repo), nb["metadata"]
        limit = 8e6 if name.parts[0] == "reproduce" else 3e6
        checks = {
            "its kernel is not python3": metadata.get("kernelspec", {}).get("name") == "python3",
            "it is not nbformat 4.5 or later": (nb["nbformat"], nb["nbformat_minor"]) >= (4, 5),
            "it holds the state of widgets": "widgets" not in metadata,
            "a cell has no id, or two have the same": len({c.get("id") for c in nb["cells"]} - {None}) == len(nb["cells"]),
            "it is too large": path.stat().st_size < limit,
            "a committed output is an error": not any(o.get("output_type") == "error" for c in nb["cells"]
                                                      for o in c.get("outputs", [])),
        }
        problems += [f"{name}: {problem}" for problem, fine in checks.items() if not fine]
    assert problems == []


def test_notebooks_have_one_title_and_ordered_headings(tracked_notebooks, repo):
    problems = []
    for path, nb in tracked_notebooks.items():
        text = "\n".join("".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "markdown")
        text = re.sub(r"```.*?```", "", text, flags=re.S)
        levels = [len(hashes) for hashes in re.findall(r"^(#{1,6}) ", text, re.M)]
        if levels.count(1) != 1 or levels[0] != 1 or any(b > a + 1 for a, b in zip(levels, levels[1:])):
            problems.append(f"{path.relative_to(repo)}: heading levels {levels}")
    assert problems == []


def test_notebook_code_is_python_and_its_parameters_can_be_read(tracked_notebooks, repo):
    from animkit.notebooks import parameters
    for path, nb in tracked_notebooks.items():
        for cell in nb["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and not source.lstrip().startswith("%%"):
                ast.parse(re.sub(r"^([ \t]*)[%!].*$", r"\1pass", source, flags=re.M))
            if "parameters" in cell["metadata"].get("tags", []):
                assigned = [t.id for node in ast.parse(source).body for t in ast.walk(node)
                            if isinstance(t, ast.Name) and isinstance(t.ctx, ast.Store)]
                assert sorted(parameters(path)) == sorted(assigned), f"{path.relative_to(repo)}: a parameter is hidden"


@pytest.fixture(scope="module")
def project(repo):
    return tomllib.loads((repo / "pyproject.toml").read_text())["project"]


def pins(repo) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in (repo / "constraints.txt").read_text().splitlines())
    return {re.sub(r"[-_.]+", "-", name).lower(): version for line in lines if line for name, version in [line.split("==")]}


def test_every_requirement_is_pinned_within_its_range(repo, project):
    pinned = pins(repo)
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    for requirement in map(Requirement, wanted):
        version = pinned.get(re.sub(r"[-_.]+", "-", requirement.name).lower())
        assert version, f"{requirement.name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement}: pinned at {version}"


def test_pins_are_plain_versions(repo):
    assert not [v for v in pins(repo).values() if "+" in v], "a local build such as +cpu exists on one machine only"
    assert pins(repo)["torch"] == "2.13.0"


def test_pins_install_on_the_first_release_of_every_python(repo):
    """Debian 12 has 3.11.2, for one, and a pin that wants 3.11.5 ends `make` there."""
    told = {re.sub(r"[-_.]+", "-", d.name).lower(): d for d in metadata.distributions()}
    here = {name: told[name] for name, version in pins(repo).items() if name in told and told[name].version == version}
    if len(here) < 100:
        pytest.skip("this environment was not made by constraints.txt: it tells nothing of the pins")
    wanted = {name: SpecifierSet(d.metadata["Requires-Python"] or "") for name, d in here.items()}
    assert {name for name, of in wanted.items() if not all(of.contains(f"3.{k}.0") for k in (11, 12, 13))} == set()


def test_every_import_of_the_package_is_declared(repo, project):
    """A third-party import anywhere in animkit/ belongs to a dependency or, imported late, to an extra."""
    modules = {"decord2": "decord", "opencv-python-headless": "cv2", "pillow": "PIL", "pyyaml": "yaml"}
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    known = {modules.get(n, n) for n in (Requirement(r).name for r in wanted)} | {
        "animkit", "tokenizers", "huggingface_hub",             # come with transformers and diffusers
        "IPython", "jupyter_client", "traitlets"}               # with ipywidgets, jupyterlab and papermill
    unknown = set()
    for path in (repo / "animkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            unknown |= {(str(path.relative_to(repo)), n) for n in names
                        if n.split(".")[0] not in known | sys.stdlib_module_names}
    assert sorted(unknown) == []


def test_conda_environment_ends_in_this_package(repo):
    environment = yaml.safe_load((repo / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert any(re.fullmatch(r"python=3\.1[123]", line) for line in conda)
    assert pip["pip"][-1].startswith("-e .") and "-c constraints.txt" in pip["pip"]


def test_versions_agree(repo):
    assert yaml.safe_load((repo / "CITATION.cff").read_text())["version"] == animkit.__version__


def test_make_help_lists_every_target(repo):
    declared = re.search(r"^\.PHONY:(.*)$", (repo / "Makefile").read_text(), re.M).group(1).split()
    told = subprocess.run(["make", "help"], cwd=repo, capture_output=True, text=True, check=True, timeout=300).stdout
    assert re.findall(r"^  make (\S+)", told, re.M) == declared
    plain = subprocess.run(["make"], cwd=repo, capture_output=True, text=True, check=True, timeout=300).stdout
    assert plain == told
    dry = subprocess.run(["make", "-n", *declared], cwd=repo, capture_output=True, text=True, timeout=300)
    assert dry.returncode == 0, dry.stderr


def test_a_venv_that_was_left_without_pip_is_made_again_by_a_python_that_suits(repo, tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((repo / name).read_text())
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    scripts = {".venv/bin/python": "exit 1", "made": '[ $1 = -c ] && exit $OLD; echo "$@" >told; exit 1'}
    for path, script in ((tmp_path / name, script) for name, script in scripts.items()):
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    done = [subprocess.run(["make", "venv", "PYTHON=./made"], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                           env={**os.environ, "OLD": old}) for old in ("1", "0")]
    assert done[0].returncode and "animkit needs Python 3.11, 3.12 or 3.13" in done[0].stdout
    assert done[1].returncode and (tmp_path / "told").read_text() == "-m venv .venv\n"


def test_importing_animkit_is_quick_and_its_public_names_are_there():
    code = "import sys, animkit; assert not {'torch', 'numpy', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    for name in animkit.__all__:
        assert getattr(animkit, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        animkit.nothing_of_that_name


def test_readme_names_what_exists_and_every_folder(repo, tracked):
    text = (repo / "README.md").read_text()
    targets = set(re.findall(r"(?:^ +|`)make ([a-z-]+)", text, re.M))
    assert targets >= {"demo", "test", "lab"}
    makefile = (repo / "Makefile").read_text()
    assert [t for t in sorted(targets) if not re.search(rf"^{t}:", makefile, re.M)] == []
    missing = [link for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text) if not (repo / link).exists()]
    assert missing == []
    block = re.search(r"## Find your way.*?```\n(.*?)```", text, re.S).group(1)
    folders: list[str] = []
    for line in block.splitlines():
        if found := re.match(r"( *)([\w.-]+/?)(?:\s{2,}|$)", line):
            depth = len(found.group(1)) // 2
            folders[depth:] = [found.group(2)]
            assert (repo / "".join(folders)).exists(), f"README's Find your way names {''.join(folders)}"
    top = {path.relative_to(repo).parts[0] for path in tracked if len(path.relative_to(repo).parts) > 1}
    assert [n for n in sorted(top) if not n.startswith(".") and not re.search(rf"^{n}/", block, re.M)] == []
