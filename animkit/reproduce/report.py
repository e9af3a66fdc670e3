"""The report: every claim beside what was measured, made from the results.json files of a folder and nothing else.

    <folder>/<notebook>/results.json, figure.png, clip.mp4      a missing one is "not run", and the report says so
"""
from collections import Counter
from pathlib import Path
from typing import Any

from animkit.errors import AnimkitError
from animkit.reproduce.claims import CLAIMS, TRIED, VERDICTS
from animkit.reproduce.experiment import Verdicts, read_results

WARNING = ("Numbers of the paper are of Stable Diffusion 1.5 at 512 pixels, judged by OpenAI's CLIP; ours are of a "
           "miniature of 64 pixels, judged by a small model of the kit's own. The scales differ: compare who is ahead "
           "of whom within a column, never a number of the paper with one of ours. Intervals are over prompts; "
           "what was trained was trained once, with one seed, and another training would differ too.")


def collect(folder: str | Path) -> dict[str, dict | None]:
    """Notebook -> its results.json, None where it was not run, in the order of the claims.

    Raises AnimkitError if there is no such folder, or a file is not what a notebook here leaves.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AnimkitError(f"There is no folder of results at {folder}: run `make reproduce PRESET=smoke` first.")
    found = {notebook: read_results(folder / notebook) for notebook in CLAIMS}
    for notebook, results in found.items():
        if results and results["parameters"]["notebook"] != notebook:
            raise AnimkitError(f"{folder / notebook} holds results of {results['parameters']['notebook']}.")
    return found


def overview(folder: str | Path) -> str:
    """The report's beginning, in Markdown: how many claims have which verdict, on what machine, in how many minutes."""
    found = collect(folder)
    verdicts = Counter(given["verdict"] for claims in map(_claims, found, found.values()) for given in claims.values())
    ran = {notebook: results for notebook, results in found.items() if results}
    lines = [WARNING, ""]
    presets = sorted({results["parameters"]["preset"] for results in ran.values()})
    if "smoke" in presets:
        lines += ["**A smoke run**: a few clips, and networks trained for a few steps. It shows that everything runs, "
                  "and says nothing about any claim.", ""]
    if len(presets) > 1:
        lines += [f"**Mixed presets**: {', '.join(presets)}; each notebook's is told in its section.", ""]
    lines += ["| verdict | claims | what it means |", "|---|---|---|"]
    lines += [f"| {verdict} | {verdicts[verdict]} | {meaning} |" for verdict, meaning in VERDICTS.items()]
    lines += ["", "| notebook | preset | verdicts | minutes | on | versions |", "|---|---|---|---|---|---|"]
    for notebook, results in found.items():
        counts = Counter(given["verdict"] for given in _claims(notebook, results).values())
        said = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
        lines.append(f"| {notebook} | - | {said} | - | - | - |" if results is None else
                     f"| {notebook} | {results['parameters']['preset']} | {said} | "
                     f"{(results['seconds']['all'] + results['seconds']['found']) / 60:.1f} | {_machine(results)} | "
                     f"{_versions(results)} |")
    if missing := [notebook for notebook, results in found.items() if results is None]:
        lines += ["", f"**Not run**: {', '.join(missing)}."]
    return "\n".join(lines)


def section(folder: str | Path, notebook: str) -> str:
    """One notebook's part of the report, in Markdown: verdicts, what it was run with. Figure and clip: `shown`."""
    results = collect(folder)[notebook]
    lines = [f"## {notebook.replace('_', ' ').capitalize()}", "",
             Verdicts(notebook, _claims(notebook, results))._repr_markdown_()]
    if results is None:
        return "\n".join([*lines, "", "Not run: no number stands here."])
    given = ", ".join(f"{name} = {value!r}" for name, value in results["parameters"].items()
                      if name not in ("notebook", "trained here"))
    seconds = dict(results["seconds"])
    found = seconds.pop("found")
    spent = ", ".join(f"{name} {each:.0f} s" for name, each in seconds.items())
    before = f"; and {found:.0f} s in earlier runs, whose clips and trainings this one found" if found >= 1 else ""
    here = ", ".join(results["parameters"]["trained here"])
    weights = f"Trained for it: {here}; all other weights as they shipped then" if here else "All weights as they shipped then"
    lines += ["", f"{weights}. Run with {given}. Time: {spent}{before}; on {_machine(results)}; {results['time']}."]
    if TRIED.get(notebook) and any(given["verdict"] != "holds" for given in _claims(notebook, results).values()):
        lines += ["", f"What was tried: {TRIED[notebook]}"]
    return "\n".join(lines)


def shown(folder: str | Path, notebook: str) -> list[Any]:
    """What a notebook left to look at: its figure (a Picture) and its clip (a Clip), where there are any."""
    from PIL import Image

    from animkit.show.clip import Clip
    from animkit.show.filmstrip import Picture
    folder, results, found = Path(folder) / notebook, collect(folder)[notebook], []
    if results and (folder / "figure.png").exists() and results["metrics"]["shown"].get("figure"):
        figure = Picture(Image.open(folder / "figure.png").convert("P"), results["metrics"]["shown"]["figure"])
        figure.lossy = (folder / "figure.png").stat().st_size > 1e5  # of frames; lines and bars stay lossless
        figure.quality = 55
        found.append(figure)
    if results and (folder / "clip.mp4").exists() and "clip" in results["metrics"]["shown"]:
        clip = Clip.load(folder / "clip.mp4")
        clip.crf = 38  # ten clips on one page; the file clip.mp4 is several times larger
        found.append(clip)
    return found


def markdown(folder: str | Path) -> str:
    """The whole report as one Markdown page, without pictures: for reading in a terminal or beside the code."""
    parts = ["# The paper's claims, rerun", overview(folder), *(section(folder, name) for name in CLAIMS)]
    return "\n\n".join(parts) + "\n"


def _claims(notebook: str, results: dict | None) -> dict[str, dict]:
    if results is not None:
        return results["metrics"]["claims"]
    absent = {"verdict": "not run", "measured": None, "said": "the notebook was not run"}
    return {claim: absent for claim in CLAIMS[notebook]}


def _machine(results: dict) -> str:
    device = results["device"]
    name = f"{device['name']}, {device['threads']} thread{'s' * (device['threads'] != 1)}, {device['machine']}"
    return f"{name}, {device['processor']}, {device['cores']} cores"


def _versions(results: dict) -> str:
    return ", ".join(f"{name} {results['versions'][name]}" for name in ("animkit", "torch"))
