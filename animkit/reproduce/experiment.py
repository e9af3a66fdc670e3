"""What a notebook of reproduce/ shares with the others: its preset, its clock, its verdicts, the files it leaves."""
import hashlib
import html
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from animkit.errors import AnimkitError
from animkit.files import make_folder, write_atomically
from animkit.metrics.intervals import Interval
from animkit.record import record
from animkit.reproduce.claims import CLAIMS, VERDICTS
from animkit.reproduce.drawing import found_seconds, shipped
from animkit.training.history import History
from animkit.training.loop import known_before
from animkit.training.plumbing import fast_precision
from animkit.world import LOOKS, SHOTS

PRESETS = ("smoke", "laptop", "paper")  # does it run; the answer on two cores; the paper's amounts


class Experiment:
    """One notebook's run: `.settings` of its preset, `.judge` each claim, `.finish` writes results.json.

    presets: preset -> settings, "minutes" on two cores among them. given: settings that were asked for; None means the
    preset's. out: where results.json, figure.png and clip.mp4 go; work: where trainings and drawn clips are kept, so
    that a killed run can continue. Raises AnimkitError for an unknown notebook, preset or setting, and for a value of
    another kind than the presets': papermill's `-p retrain false` gives the text "false".
    """

    def __init__(self, notebook: str, preset: str, presets: Mapping[str, Mapping[str, Any]], *, seed: int = 0,
                 out: str | Path, work: str | Path, given: Mapping[str, Any] | None = None):
        if notebook not in CLAIMS:
            raise AnimkitError(f"There is no experiment {notebook!r}; there are: {', '.join(CLAIMS)}.")
        if preset not in PRESETS or set(presets) != set(PRESETS):
            raise AnimkitError(f"There is no preset {preset!r} of {notebook}; a notebook has: {', '.join(PRESETS)}.")
        chosen, given = dict(presets[preset]), {k: v for k, v in (given or {}).items() if v is not None}
        if unknown := set(given) - set(chosen):
            raise AnimkitError(f"{notebook} has no setting {sorted(unknown)[0]!r}; it has: {', '.join(chosen)}.")
        if seed < 0:
            raise AnimkitError(f"seed is {seed}: it is 0 or more.")
        for name, value in given.items():
            check(notebook, name, value, [preset[name] for preset in presets.values()])
        self.notebook, self.preset, self.claims, self.seed = notebook, preset, CLAIMS[notebook], int(seed)
        self.minutes = chosen.pop("minutes")
        self.settings = SimpleNamespace(**chosen | given)
        self.out, self.work = Path(out), Path(work)
        make_folder(self.out)
        make_folder(self.work)
        (self.out / "results.json").unlink(missing_ok=True)  # so that it is never an older run's
        self.precision = "float32"
        self.verdicts: dict[str, dict] = {}
        self.seconds: dict[str, float] = {}
        self.began, self.shown = time.perf_counter(), {}
        self.trained: list[str] = []   # what this run, or an earlier one in this folder, trained itself
        self.left_out: set[str] = set()
        self.found = 0.0               # seconds of earlier runs, in trainings that this run found done or begun
        self._clips_found = found_seconds()

    @property
    def dtype(self) -> torch.dtype:
        """The precision for an animator where only speed depends on it; once asked for, results.json names it."""
        self.precision = "bf16" if fast_precision() == "bf16" else "float32"
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def config(self, stage: str, changes: Mapping[str, Any], file: str | Path = "miniature") -> Any:
        """The settings of a training stage (configs/), with changes such as {"training.steps": 500}; this run's seed.

        Raises AnimkitError for an unknown setting.
        """
        from animkit.training.config import load_config
        changes = {"training.seed": self.seed} | dict(changes)
        return load_config(file, stage, [f"{name}={json.dumps(value)}" for name, value in changes.items()])

    def training(self, name: str, config: Any) -> Path:
        """The folder in `work` of a training with these settings, on this base and these frozen parts.

        Other settings or parts give another folder: no stale weights are used, and a run only continues as it began.
        """
        settings = asdict(config)
        settings["training"] = known_before(settings["training"])
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for part in ("base", "domain_adapter", "motion_module", "start"):
            named = getattr(config, part, None)
            path = None if named is None else shipped(named) or Path(named)
            files = sorted(path.rglob("*.safetensors")) if path and path.is_dir() else [path]
            for file in (file for file in files if file and file.is_file()):  # the training names a missing one
                digest.update(file.read_bytes())
        folder = self.work / f"{'-'.join(name.replace('_', ' ').split())}-{digest.hexdigest()[:10]}"
        self.found += max(History.of(folder).seconds, default=0.0)
        self.trained.append(name)
        return folder

    # ---- the clock

    @contextmanager
    def timed(self, what: str):
        """with run.timed("drawing"): ... adds to the seconds of results.json."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - began

    # ---- verdicts

    def judge(self, claim: str, measured: Interval | None, verdict: str, said: str = "") -> None:
        """Record a claim's verdict (one of VERDICTS), the estimate that it rests on, and a sentence if one is needed.

        Raises AnimkitError for an unknown claim or verdict, no estimate (except "not run"), "not run" without a reason.
        """
        if claim not in self.claims or verdict not in VERDICTS:
            raise AnimkitError(f"{self.notebook} has the claims {', '.join(self.claims)}, a verdict is one of "
                               f"{', '.join(VERDICTS)}; got {claim!r}, {verdict!r}.")
        if verdict == "not run":
            said = said if measured is None else f"no clip gave a number; {said}"  # as chance, of one prompt alone
            measured = None
            if not said:
                raise AnimkitError(f"{claim!r} was not run: say why.")
        elif measured is None or not measured.n:
            raise AnimkitError(f"The verdict {verdict!r} on {claim!r} rests on nothing: give what was measured, or say "
                               "that it was not run.")
        numbers = None if measured is None else {k: v if k == "n" or v is None else round(float(v), 4)
                                                 for k, v in measured._asdict().items()}
        self.verdicts[claim] = {"verdict": verdict, "measured": numbers, "said": said}

    def not_run(self, claim: str, why: str) -> None:
        """A claim that this run says nothing about, and why."""
        self.judge(claim, None, "not run", why)

    # ---- what is shown

    def figure(self, figure: Any, alt: str) -> Any:
        """Save the run's figure (matplotlib's, or a Picture) as figure.png; alt: a text for it; -> what to show."""
        from animkit.show.figure import drawn
        from animkit.show.filmstrip import Picture
        if not alt.strip():
            raise AnimkitError("A figure needs alt, a sentence that says what it shows to those who cannot see it.")
        if not isinstance(figure, Picture):
            figure = Picture(drawn(figure, alt, dpi=110).image.quantize(128), alt)
        figure.alt = alt
        figure.save(self.out / "figure.png")
        self.shown["figure"] = alt
        return figure

    def clip(self, clip: Any) -> Any:
        """Save the run's clip as clip.mp4; -> the clip, which the notebook shows."""
        clip.save(self.out / "clip.mp4")
        self.shown["clip"] = clip.prompt
        return clip

    def _repr_markdown_(self) -> str:
        """What is claimed, and by which rule it will be decided; what this run does."""
        lines = ["| section | claim | the paper's | decided by |", "|---|---|---|---|"]
        lines += [f"| {c.section} | {c.says} | {c.paper} | {c.rule} |" for c in self.claims.values()]
        given = ", ".join(f"{name} = {value!r}" for name, value in vars(self.settings).items())
        return "\n".join([*lines, "", f"**This run**: preset `{self.preset}`, about {self.minutes:g} minutes on two "
                          f"cores; seed = {self.seed}, {given}"])

    def __repr__(self) -> str:
        return f"Experiment {self.notebook}, preset {self.preset}, seed {self.seed}"

    # ---- the end

    def unused(self, *settings: str) -> None:
        """Do not report these settings: this run did not use them, such as the steps of a training that was not done."""
        self.left_out |= {*settings}

    def finish(self, metrics: Mapping[str, Any], device: str = "cpu") -> "Verdicts":
        """Write results.json, whole or not at all, and return the table of verdicts.

        Raises AnimkitError if a claim has no verdict: `not_run` is for what was not run.
        """
        if forgotten := [claim for claim in self.claims if claim not in self.verdicts]:
            raise AnimkitError(f"{self.notebook} ends without a verdict on {', '.join(forgotten)}: judge it, or say "
                               "why it was not run.")
        ordered = {claim: self.verdicts[claim] for claim in self.claims}
        used = {name: value for name, value in vars(self.settings).items() if name not in self.left_out}
        parameters = {"notebook": self.notebook, "preset": self.preset, "seed": self.seed, **used,
                      "precision": self.precision, "trained here": self.trained}
        if device.startswith("cuda"):  # the report tells on what GPU
            device = torch.cuda.get_device_name(device)
        found = self.found + found_seconds() - self._clips_found
        record(self.out / "results.json", parameters,
               {"claims": ordered, "shown": self.shown, **metrics},
               {**self.seconds, "all": time.perf_counter() - self.began, "found": found}, device)
        return Verdicts(self.notebook, ordered)


class Verdicts:
    """The last table of a notebook: claim, the paper's, measured, interval, verdict."""

    def __init__(self, notebook: str, verdicts: Mapping[str, Mapping]):
        self.notebook, self.verdicts = notebook, verdicts

    def _repr_markdown_(self) -> str:
        lines = ["| section | claim | the paper's | measured here | 95 % interval | verdict |", "|---" * 6 + "|"]
        for name, claim in CLAIMS[self.notebook].items():
            given = self.verdicts[name]
            m, said = given["measured"], html.escape(given["said"], quote=False).replace("|", "/")
            value = "-" if m is None else f"{m['value']:.3g}"
            interval = "-" if m is None or m["low"] is None else f"{m['low']:.3g} to {m['high']:.3g} (n = {m['n']})"
            verdict = f"**{given['verdict']}**" + (f": {said}" if said else "")
            said = f"{claim.says} ({claim.rule})"
            lines.append(f"| {claim.section} | {said} | {claim.paper} | {value} | {interval} | {verdict} |")
        return "\n".join(lines)

    __repr__ = _repr_markdown_


def check(notebook: str, name: str, value: Any, presets: Sequence[Any]) -> None:
    """AnimkitError for a value of another kind than the presets' values, one that is too small, no shot type, or no look
    that ships."""
    kinds = {type(known) for known in presets if known is not None}
    kind = float if float in kinds else next(iter(kinds), type(value))
    wanted = {bool: "True or False", int: "a whole number", float: "a number", str: "text", list: "a list"}
    fits = isinstance(value, {float: (int, float), list: (list, tuple)}.get(kind, kind))
    if not fits or isinstance(value, bool) and kind is not bool:
        raise AnimkitError(f"{name} is {value!r}: {notebook} needs {wanted.get(kind, kind.__name__)}.")
    if isinstance(value, int) and kind is int and value < 1:
        raise AnimkitError(f"{name} is {value}: {notebook} needs 1 at least.")
    if isinstance(value, (int, float)) and kind is float and not (0 < value < float("inf") or name == "guided" and value == 0):
        raise AnimkitError(f"{name} is {value}: {notebook} needs {'0 or ' * (name == 'guided')}a number above 0.")
    if name in ("look", "other") and value not in (ship := [look for look in LOOKS if shipped(f"looks/{look}")]):
        raise AnimkitError(f"{name} is {value!r}, which is no look that ships; there are: {', '.join(ship)}.")
    if name == "shot" and value not in SHOTS:
        raise AnimkitError(f"{name} is {value!r}, which is no shot type; there are: {', '.join(SHOTS)}.")


# What the report reads of each part of results.json.
NEEDED = {"parameters": {"preset", "trained here"}, "metrics": {"claims", "shown"}, "seconds": {"all", "found"},
          "device": {"name", "threads", "machine", "processor", "cores"}, "versions": {"animkit", "torch"}}


def read_results(folder: str | Path) -> dict | None:
    """A run's results.json, None if there is none; AnimkitError if it is not one of an experiment here."""
    path = Path(folder) / "results.json"
    if not path.exists():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        parameters, claims = results["parameters"], results["metrics"]["claims"]
        wrong = {"claims": set(claims) != set(CLAIMS[parameters["notebook"]]),
                 "verdicts": any(c["verdict"] not in VERDICTS or (c["measured"] is None) != (c["verdict"] == "not run")
                                 for c in claims.values()),
                 "preset": parameters["preset"] not in PRESETS,
                 "parts": "time" not in results,
                 **{part: not needed <= set(results.get(part, ())) for part, needed in NEEDED.items()}}
        if any(wrong.values()):
            raise ValueError(f"its {next(name for name, bad in wrong.items() if bad)} are not those of a notebook here")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AnimkitError(f"{path} is not what a notebook of reproduce/ leaves ({error}): run it again.") from error
    return results


def write_text(path: str | Path, text: str) -> Path:
    """A text file, whole or not at all."""
    return write_atomically(path, lambda beside: Path(beside).write_text(text, encoding="utf-8"))
