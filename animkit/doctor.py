"""`animkit doctor`: what the environment has and lacks, checked by use where that is cheap (a film is made and read)."""
from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from . import __version__, samples
from .errors import AnimkitError

OK, NOTE, MISSING = "ok", "note", "MISSING"


@dataclass(frozen=True)
class Finding:
    """One line of the report; MISSING makes the doctor's exit code 1, and `advice` says what to do."""
    state: str
    subject: str
    value: str
    advice: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON, for a bug report")


def run(args: argparse.Namespace) -> int:
    findings = list(examine())
    if args.json:
        print(json.dumps([vars(f) for f in findings], indent=1))
    else:
        width = max(len(f.subject) for f in findings)
        for f in findings:
            print(f"{f.state:8}{f.subject:{width}}  {f.value}")
            if f.advice:
                print(f"{'':8}{'':{width}}  -> {f.advice}")
        lacking = sum(f.state == MISSING for f in findings)
        print(f"\n{lacking} thing(s) missing: see the lines with ->" if lacking else "\nAll that animkit needs is here.")
    return int(any(f.state == MISSING for f in findings))


def examine() -> Iterator[Finding]:
    """All findings, in the order of the report. A check that breaks is itself a finding."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        python, libraries, devices, film, jupyter, browser, shipped_samples)
    for check in checks:
        try:
            yield from check()
        except Exception as error:      # a broken library may raise anything; the doctor goes on and says so
            yield Finding(MISSING, check.__name__.replace("_", " "), f"{type(error).__name__}: {error}",
                          "install animkit anew in a fresh environment")


def python() -> Iterator[Finding]:
    version = platform.python_version()
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Finding(OK if fits else MISSING, "python", f"{version} ({platform.system()} {platform.machine()})",
                  "" if fits else "animkit wants Python 3.11, 3.12 or 3.13")
    yield Finding(OK, "animkit", f"{__version__} from {Path(__file__).parent}")


def libraries() -> Iterator[Finding]:
    """Each library's version against the ranges in animkit's package metadata."""
    from packaging.requirements import Requirement
    try:
        wanted = [Requirement(line) for line in metadata.requires("animkit") or []]
    except metadata.PackageNotFoundError:
        yield Finding(MISSING, "libraries", "animkit runs from a folder that is not installed",
                      "pip install -c constraints.txt -e . in the clone, or `make venv`")
        return
    for requirement in wanted:
        extra = next((e for e in ("", "course", "reproduce", "dev")
                      if requirement.marker is None or requirement.marker.evaluate({"extra": e})), None)
        if extra is not None:
            yield library(requirement.name, requirement.specifier, extra)


def library(name: str, specifier, extra: str = "") -> Finding:
    """One library; those of an extra are a note, not a need. `specifier`: packaging's SpecifierSet."""
    belongs = f" [{extra}]" if extra else ""
    what = f"animkit[{extra}]" if extra else f"{name}{specifier}"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(NOTE if extra else MISSING, name + belongs, f"not installed, wanted {specifier}",
                       f'pip install "{what}"')
    if not specifier.contains(version, prereleases=True):
        return Finding(NOTE if extra else MISSING, name + belongs, f"{version}, wanted {specifier}", f'pip install "{name}{specifier}"')
    return Finding(OK, name + belongs, version)


def devices() -> Iterator[Finding]:
    import psutil
    import torch
    memory = psutil.virtual_memory()
    yield Finding(OK, "processor", f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads, "
                                   f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB memory free")
    if memory.available < 2 * 2**30:
        yield Finding(NOTE, "memory", "under 2 GiB free", "close other programs; the miniature wants about 2 GiB")
    found = [f"cuda:{i} {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for i, gpu in
             enumerate(map(torch.cuda.get_device_properties, range(torch.cuda.device_count())))]
    if torch.backends.mps.is_available():
        found.append("mps (Apple)")
    if not found and shutil.which("nvidia-smi"):
        yield Finding(NOTE, "accelerator", f"an NVIDIA driver, but torch {torch.__version__} sees no GPU",
                      "install torch's CUDA build (pytorch.org names the command), or update the driver")
    else:
        yield Finding(OK, "accelerator", ", ".join(found) or "none; the miniature does not need one")


def film() -> Iterator[Finding]:
    """Four frames written as H.264 by PyAV and read back by decord: what a clip in a notebook needs."""
    import av
    import numpy as np
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=8)  # as Clip does
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            encoder = stream.codec_context.codec.name
            for level in (0, 80, 160, 240):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except (av.error.FFmpegError, ValueError) as error:
        yield Finding(MISSING, "H.264 encoder", f"PyAV {av.__version__} cannot write it: {error}",
                      "pip install --force-reinstall --only-binary :all: av")
        return
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    yield Finding(OK, "H.264 encoder", f"{encoder} in PyAV's ffmpeg (libavcodec {version})")
    import decord
    buffer.seek(0)
    frames = len(decord.VideoReader(buffer))
    yield Finding(OK if frames == 4 else MISSING, "video reader", f"decord {decord.__version__} read {frames} of 4 frames",
                  "" if frames == 4 else "pip uninstall decord decord2, then pip install decord2")


def jupyter() -> Iterator[Finding]:
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        yield Finding(NOTE, "jupyter", "not installed", 'pip install "animkit[course,reproduce]"')
        return
    try:
        kernel = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        yield Finding(NOTE, "kernel python3", "none", "pip install ipykernel; the notebooks name this kernel")
        return
    here = shutil.which(kernel) if not os.path.isabs(kernel) else kernel
    same = os.path.basename(kernel) == kernel or (here and _environment(here) == _environment(sys.executable))
    yield Finding(OK if same else NOTE, "kernel python3", f"runs {kernel}",
                  "" if same else f"another Python than this one ({sys.executable}): python -m ipykernel install --sys-prefix")


def _environment(python: str) -> Path:
    """The virtual environment of a Python (its file may link to one that others share); without one, the file."""
    folder = Path(python).parent.parent
    return folder.resolve() if (folder / "pyvenv.cfg").is_file() else Path(python).resolve()


def browser() -> Iterator[Finding]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    yield Finding(OK if found else NOTE, "chromium", found or "none",
                  "" if found else "only the browser tests want it; on Debian: apt-get install chromium")


def shipped_samples() -> Iterator[Finding]:
    """The miniature that came with animkit, file by file as its model_index.json names them."""
    try:
        folder = samples.path("miniature")
        parts = json.loads((folder / "model_index.json").read_text())
    except (AnimkitError, OSError, ValueError) as error:
        yield Finding(MISSING, "miniature", str(error), "clone or install animkit anew")
        return
    for name in sorted(n for n, kind in parts.items() if isinstance(kind, list) and kind[0] is not None):
        weights = sorted((folder / name).glob("*.safetensors"))
        problem = "" if any((folder / name).glob("*.json")) else "its config is missing"
        if name in ("unet", "vae", "text_encoder") and not weights:
            problem = "its weights are missing"
        yield _weights(f"miniature/{name}", weights, problem)
    modules = sorted((folder.parent / "motion_module").glob("*.safetensors"))
    yield _weights("motion_module", modules, "" if modules else "it is missing: frames would not hold together")
    for name in ("looks", "motion_loras", "control"):
        yield _weights(name, found := sorted((folder.parent / name).glob("*.safetensors")), "" if found else "there is none")


def _weights(subject: str, files: list[Path], problem: str = "") -> Finding:
    """The finding on some weights: `problem`, or that a file is damaged, or their size."""
    from safetensors import SafetensorError, safe_open
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                len(list(opened.keys()))
        except (SafetensorError, OSError) as error:
            problem = f"{file.name} is damaged: {error}"
    size = sum(file.stat().st_size for file in files) / 1e6
    return Finding(MISSING if problem else OK, subject, problem or (f"{size:.1f} MB" if files else "present"),
                   "clone or install animkit anew" if problem else "")
