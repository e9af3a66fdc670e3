"""The command `animkit`: a table of subcommands, each a module that is imported only when it is called."""
from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from . import __version__
from .errors import AnimkitError

# name -> (module with add_arguments(parser) and run(args) -> exit code, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("animkit.doctor", "report what the environment has and lacks"),
    "miniature": ("animkit.miniature.recipe", "train the miniature from nothing, stage by stage"),
    "judge": ("animkit.miniature.evaluate", "measure how well the miniature draws and moves what is asked"),
    "train": ("animkit.training.command", "train a domain adapter, a motion module, a MotionLoRA or a look"),
    "reproduce": ("animkit.reproduce.workflow", "rerun the paper's experiments in the miniature, with one report"),
    "inspect": ("animkit.checkpoints.inspect", "say what a weights file is: motion module, LoRA, base model, ..."),
    "course": ("animkit.coursework.course", "hand out, solve and grade the assignments (nbgrader)"),
    "site": ("animkit.site", "run every notebook and write pages that open from disk"),
    "demo": ("animkit.demo", "run the quickstart notebook and write a page and an mp4"),
}


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for this call: every subcommand is listed, only the called one's module is imported."""
    parser = argparse.ArgumentParser(prog="animkit", description="Understand, retrain and measure AnimateDiff.")
    parser.add_argument("--version", action="version", version=f"animkit {__version__}")
    subcommands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    called = next((word for word in argv if not word.startswith("-")), None)
    for name, (module_name, line) in COMMANDS.items():
        subparser = subcommands.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".")
        if name == called:
            module = import_module(module_name)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code; the kit's own errors, and a disk's, become one line and code 2."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):  # a letter that the terminal cannot show becomes its number
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not argv:
        build_parser(argv).print_help()
        return 0
    try:
        args = build_parser(argv).parse_args(argv)
        code = args.run(args)
        sys.stdout.flush()
        return code
    except AnimkitError as error:
        print(f"animkit: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("animkit: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as of `animkit inspect --tensors FILE | head`
        print("animkit: stopped, as nobody reads on", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own last flush would complain
        return 141
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):  # the machine's, not ours
            raise
        print(f"animkit: {error.filename or 'what was being written'}: {error.strerror}; choose another folder, or make room",
              file=sys.stderr)
        return 2
