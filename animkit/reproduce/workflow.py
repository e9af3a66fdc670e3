"""`animkit reproduce`: every notebook of reproduce/ and the report over them, by Snakemake (reproduce/Snakefile).

What changed since the last run (a notebook, its parameters, the shipped weights, the package) is run again, the rest is
kept. A killed run continues: trainings from their checkpoints, clips after those that were drawn.
"""
import argparse
import ast
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from animkit import notebooks, pages, samples
from animkit.errors import AnimkitError
from animkit.files import locked, make_folder
from animkit.reproduce.claims import CLAIMS
from animkit.reproduce.drawing import code
from animkit.reproduce.experiment import PRESETS, check, write_text

FOLDER = Path(__file__).resolve().parents[2] / "reproduce"
COMMON = ("preset", "seed", "out", "work")  # parameters that every notebook has; the workflow gives them
FILES = ("answers", "controlnet")  # parameters that name files or folders, from reproduce/
# Parts of the package that change no number.
UNSEEN = ("coursework", "show", "cli.py", "doctor.py", "demo.py", "pages.py", "report.py", "workflow.py")
DAYS = 3 * 24 * 3600  # seconds that a cell may take: a whole training at full size is one cell


@dataclass
class Plan:
    """What is to be run, how, and where it goes. Raises AnimkitError for an unknown notebook, preset or parameter, and for
    a value that its notebook would refuse."""
    preset: str = "smoke"
    out: str = ""                                      # results; default out/reproduce/PRESET
    work: str = ""                                     # trainings and clips; default runs/reproduce/PRESET
    seed: int = 0
    threads: int = 1                                   # of each notebook
    names: list[str] = field(default_factory=list)     # default: all
    given: dict[str, dict[str, Any]] = field(default_factory=dict)  # notebook -> parameter -> value

    def __post_init__(self):
        there = available()
        if self.preset not in PRESETS:
            raise AnimkitError(f"There is no preset {self.preset!r}; there are {', '.join(PRESETS)}.")
        for name in [*self.names, *self.given]:
            if name not in there:
                raise AnimkitError(f"There is no notebook {name!r} in reproduce/; there are: {', '.join(there)}.")
        self.names = [name for name in there if name in (self.names or there)]
        self.seed, self.threads = int(self.seed), int(self.threads)
        if self.seed < 0:
            raise AnimkitError(f"seed is {self.seed}: it is 0 or more.")
        root = FOLDER.parent
        self.out = str(Path(self.out or root / "out" / "reproduce" / self.preset).resolve())
        self.work = str(Path(self.work or root / "runs" / "reproduce" / self.preset).resolve())
        if Path(self.out).exists() and not Path(self.out).is_dir():
            raise AnimkitError(f"{self.out} is no folder: choose another place for the results.")
        if odd := next((folder for folder in (self.out, self.work) if set(folder) & set("{}")), None):
            raise AnimkitError(f"Snakemake cannot work in {odd}: choose a folder without {{ and }} in its name.")
        if idle := [name for name in self.given if name not in self.names]:
            raise AnimkitError(f"A parameter is given to {idle[0]}, which is not among the notebooks to run: "
                               f"{', '.join(self.names)}.")
        for name in self.names:
            if taken := sorted(set(self.given.get(name, ())) & set(COMMON)):
                raise AnimkitError(f"{taken[0]!r} is given to all notebooks alike, by --{taken[0]}, not to {name} "
                                   "alone.")
            self._check(name)

    def _check(self, name: str) -> None:
        """AnimkitError for parameters that the notebook would refuse, or that name files which are not there."""
        presets, parameters = presets_of(name), self.parameters(name)
        for key in self.given.get(name, ()):
            if (value := parameters[key]) is None:
                continue
            check(name, key, value, [preset[key] for preset in presets.values()])
            named = [FOLDER / each for each in (value if isinstance(value, list) else [value])] if key in FILES and value else []
            if absent := [path for path in named if not path.exists()]:
                raise AnimkitError(f"There is no {absent[0]}, which {key} of {name} names.")

    def parameters(self, name: str) -> dict[str, Any]:
        """All parameters of a notebook's run, checked: an unknown one is refused before any kernel starts."""
        common = {"preset": self.preset, "seed": self.seed, "out": f"{self.out}/{name}", "work": self.work}
        return notebooks.checked(FOLDER / f"{name}.ipynb", common | self.given.get(name, {}))

    def fingerprint(self, name: str) -> str:
        """A hash of all that a notebook's numbers come from: its cells, the package's code (not its comments), configs/,
        the shipped weights, files and folders that it is given (answers of the user study, a ControlNet). For
        "report": of all that the page is made from, besides the results."""
        unseen = () if name == "report" else UNSEEN
        nb = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
        digest = hashlib.sha256(json.dumps([cell["source"] for cell in nb["cells"]]).encode())
        package = Path(__file__).resolve().parents[1]
        for path in sorted(package.rglob("*.py")):
            if not set(path.relative_to(package).parts) & set(unseen):
                digest.update(code(path.read_text(encoding="utf-8")).encode())
        configs = sorted((FOLDER.parent / "configs").glob("*.yaml"))
        weights = [p for p in sorted(samples.root().rglob("*")) if p.suffix in (".safetensors", ".json")
                   and "results" not in p.parts]
        given = self.parameters(name) if name in self.given else {}
        given = {key: value for key, value in given.items() if key not in COMMON}
        words = [each for value in given.values() for each in (value if isinstance(value, list) else [value])]
        named = [FOLDER / each for each in words if isinstance(each, str) and each]
        files = [file for path in named for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
        for path in [*configs, *weights, *(file for file in files if file.is_file())]:
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def key(self, name: str) -> str:
        """A hash of the fingerprint and the parameters without folders: results with another key are of another run."""
        given = {k: v for k, v in self.parameters(name).items() if k not in ("out", "work")}
        return hashlib.sha256(json.dumps([self.fingerprint(name), given], sort_keys=True).encode()).hexdigest()[:16]

    def outdated(self) -> list[str]:
        """Notebooks whose results have another key. Snakemake's own record of that is in `work`, which may be gone."""
        told = {name: _key_of(Path(self.out) / name / "results.json") for name in self.names}
        return [name for name, key in told.items() if key not in (None, self.key(name))]


def _key_of(results: Path) -> str | None:
    """The key in results.json; "" if it has none or cannot be read; None if there is no such file."""
    if not results.exists():
        return None
    with suppress(OSError, ValueError, AttributeError):
        return json.loads(results.read_text(encoding="utf-8")).get("key") or ""
    return ""


def available() -> list[str]:
    """The notebooks that are there, in the order of their claims. AnimkitError where there is no clone of the repo."""
    if not (FOLDER / "Snakefile").is_file():
        raise AnimkitError(f"The experiments run from a clone of the repo: there is no {FOLDER / 'Snakefile'}.")
    return [name for name in CLAIMS if (FOLDER / f"{name}.ipynb").is_file()]


def presets_of(name: str) -> dict[str, dict[str, Any]]:
    """The PRESETS in a notebook's own cell, read without running it. AnimkitError if there are none."""
    nb = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            for node in ast.walk(ast.parse("".join(cell["source"]))):
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PRESETS":
                    return ast.literal_eval(node.value)
    raise AnimkitError(f"{name}.ipynb holds no PRESETS.")


# ---- one job: what the Snakefile calls

def run_notebook(name: str, parameters: dict[str, Any], executed: str | Path, threads: int = 1, key: str = "") -> None:
    """Run one notebook; it leaves results.json in its `out`, to which `key` is added. AnimkitError if it fails, or leaves
    none."""
    for name_of_limit in ("OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):  # torch's and optical flow's
        os.environ[name_of_limit] = str(threads)       # the kernel inherits it: notebooks side by side share the cores
    notebooks.execute(FOLDER / f"{name}.ipynb", executed, parameters, progress=False, cell_timeout=DAYS)
    nbformat = notebooks.needs("nbformat")
    nb = nbformat.read(executed, as_version=4)
    pages.without_widgets(nb)                          # progress bars of a run that has ended
    write_text(executed, nbformat.writes(nb))
    results = Path(parameters["out"]) / "results.json"
    if not results.is_file():
        raise AnimkitError(f"{name} ran, but left no results.json in {parameters['out']}")
    if key:
        told = json.loads(results.read_text(encoding="utf-8")) | {"key": key}
        write_text(results, json.dumps(told, indent=1) + "\n")


def write_report(out: str | Path) -> Path:
    """report.ipynb, report.html and report.md over the results in `out`, missing ones named; -> the page."""
    from animkit.reproduce.report import markdown
    out = Path(out)
    write_text(out / "report.md", markdown(out))       # first: it refuses damaged results before a kernel starts
    there = os.path.relpath(out.resolve(), FOLDER)     # a page to be passed on names no folder of this machine
    executed = notebooks.execute(FOLDER / "report.ipynb", out / "report.ipynb", {"results": there}, progress=False)
    nbformat = notebooks.needs("nbformat")
    nb = nbformat.read(executed, as_version=4)
    for part in (nb, *nb.cells):                       # papermill's notes on it go too
        part.metadata.pop("papermill", None)
        part.metadata.pop("execution", None)
    write_text(executed, nbformat.writes(nb))
    return pages.write_page(executed, out / "report.html")


# ---- the command

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which notebooks, in which preset, where to."""
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help="notebooks to run, such as comparison (default: all)")
    parser.add_argument("--preset", default="smoke", choices=PRESETS,
                        help="smoke: does everything run? laptop: the answers, in hours on two cores; "
                             "paper: amounts nearer the paper's")
    parser.add_argument("--out", default="", help="folder of the results (default: out/reproduce/PRESET)")
    parser.add_argument("--work", default="", help="folder of trainings and clips (default: runs/reproduce/PRESET)")
    parser.add_argument("--seed", type=int, default=0, help="every notebook's seed (default: 0)")
    parser.add_argument("--set", action="append", default=[], metavar="NOTEBOOK.PARAMETER=VALUE", dest="settings",
                        help="a parameter of a notebook, such as comparison.prompts=20 (may be repeated)")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="notebooks that run at the same time (default: 1)")
    parser.add_argument("--threads", type=int, help="CPU threads per notebook (default: the cores divided by the jobs)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and run nothing")
    parser.add_argument("--list", action="store_true", help="list the notebooks, their claims and minutes")
    parser.add_argument("--report", action="store_true",
                        help="only write the report again, from the results that exist")
    parser.add_argument("--snakemake", default="", metavar="ARGUMENTS",
                        help='further arguments of Snakemake, such as "--executor slurm"')


def run(args: argparse.Namespace) -> int:
    """Run what is to be run, then write the report over all that is there; 1 if a notebook failed."""
    if args.list:
        for name in available():
            minutes = ", ".join(f"{preset} {of['minutes']:g}" for preset, of in presets_of(name).items())
            print(f"{name}\n  minutes on two cores: {minutes}")
            print("\n".join(f"  {claim.section}: {claim.says}" for claim in CLAIMS[name].values()))
        return 0
    given: dict[str, dict[str, str]] = {}
    for setting in args.settings:
        found = re.fullmatch(r"(\w+)\.(\w+)=(.*)", setting, re.S)
        if not found:
            raise AnimkitError("A setting reads NOTEBOOK.PARAMETER=VALUE, such as comparison.prompts=20; "
                               f"{setting!r} does not.")
        given.setdefault(found[1], {})[found[2]] = found[3]
    try:
        further = shlex.split(args.snakemake)
    except ValueError as error:
        raise AnimkitError(f"--snakemake {args.snakemake} cannot be read as arguments: {error}.") from error
    if args.jobs < 1 or (args.threads or 1) < 1:
        raise AnimkitError(f"--jobs and --threads are at least 1; got {args.jobs} and {args.threads}.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = args.threads or max(1, cores // args.jobs)
    plan = Plan(args.preset, args.out, args.work, args.seed, threads, args.names, given)
    out = Path(plan.out)
    if args.report:
        print(f"Report: {write_report(out)}")
        return 0
    failed = _snakemake(plan, args.jobs, args.dry_run, further)
    if args.dry_run:
        return failed
    if failed:  # then Snakemake writes no report: report what there is
        make_folder(out)
        write_report(out)
        print(f"Something failed; all that was said is in {Path(plan.work) / 'snakemake.log'}", file=sys.stderr)
    print(f"Report: {out / 'report.html'}")
    return failed


def _snakemake(plan: Plan, jobs: int, dry: bool, further: list[str]) -> int:
    """Run the plan by Snakemake, its output in work/snakemake.log, a bar and errors on the screen; -> 0, or 1 if it failed."""
    from tqdm.auto import tqdm
    notebooks.needs("snakemake")
    work = make_folder(plan.work)
    cores = str(jobs * plan.threads)
    again = [f"{plan.out}/{name}/results.json" for name in plan.outdated()]
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(FOLDER / "Snakefile"), "--directory", str(work),
               "--configfile", str(work / "plan.json"), "--cores", cores, "--jobs", str(jobs), "--keep-going",
               "--rerun-incomplete", "--nolock", "--nocolor", *(["--forcerun", *again] if again else []),
               *(["--dry-run"] if dry else []), *further]
    busy = f"Another run works in {work}: wait for it, or give --work."
    # Snakemake's own lock would outlive a run that is killed
    with locked(work, busy) as lock, _terminable(), open(work / "snakemake.log", "a", 1, encoding="utf-8") as log:
        write_text(work / "plan.json", json.dumps(asdict(plan)))  # a running one's jobs read theirs on their nodes
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   errors="replace", env=os.environ | _cache(work),
                                   pass_fds=(lock.fileno(),) if os.name == "posix" else ())  # held as long as either lives
        try:
            said = "all"
            with tqdm(total=len(plan.names) + 1, desc="experiments", unit="notebook", disable=dry) as bar:
                for line in process.stdout:
                    log.write(line)
                    if dry and (told := re.match(r"\s*(output|reason): (.*)", line)):
                        said = f"{said}: {told[2]}" if told[1] == "reason" else told[2]
                        if told[1] == "reason":
                            print(said.removeprefix(f"{plan.out}/"))
                    if line.startswith("animkit: ") or "Exception" in line or "Error:" in line:
                        tqdm.write(line.rstrip(), file=sys.stderr)
                    if done := re.match(r"\s*(\d+) of (\d+) steps", line):
                        bar.total = int(done[2])
                        bar.update(int(done[1]) - bar.n)
        except KeyboardInterrupt:
            process.wait()                             # Snakemake got the same signal, and stops its notebooks
            raise
        except SystemExit:                             # only this process got the signal; Snakemake would let jobs end first
            _end(process)
            raise
    return int(process.wait() != 0)


def _cache(work: Path) -> dict[str, str]:
    """Environment for Snakemake's cache: in `work`, if the home cannot be written to, as in some containers."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        (usual / "snakemake").mkdir(parents=True, exist_ok=True)
        return {}
    except OSError:
        return {"XDG_CACHE_HOME": str(work / ".cache")}


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, as a cluster or `kill` sends it, ends the run by SystemExit, so that what it started can be ended."""
    if threading.current_thread() is not threading.main_thread():  # no handler can be set here
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(process: subprocess.Popen) -> None:
    """End a process and all that it started: notebooks, and their kernels."""
    import psutil
    for part in [*psutil.Process(process.pid).children(recursive=True), process]:
        with suppress(psutil.NoSuchProcess):
            part.terminate()
    process.wait()


def main(argv: list[str]) -> int:
    """One job of the Snakefile: notebook NAME PARAMETERS EXECUTED THREADS KEY, or report OUT."""
    try:
        if argv[0] == "notebook":
            run_notebook(argv[1], json.loads(argv[2]), argv[3], int(argv[4]), argv[5])
        else:
            write_report(argv[1])
    except AnimkitError as error:
        print(f"animkit: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
