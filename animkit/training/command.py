"""`animkit train STAGE --config FILE`: one command per stage; the same command again resumes a stopped run."""
import argparse
import shlex
from pathlib import Path

from animkit.errors import above_zero, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to train, by which settings, and where."""
    parser.add_argument("stage", choices=["domain-adapter", "motion-module", "motion-lora", "look"],
                        help="what to train")
    parser.add_argument("--config", required=True, type=Path,
                        help="the settings: a YAML file, or miniature or sd15, which ship with animkit")
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE", dest="overrides",
                        help="another value for a setting, such as training.steps=500; may be given several times")
    parser.add_argument("--folder", type=Path, help="folder of the run (default: runs/CONFIG-STAGE); the weights go to "
                                                    "FOLDER/NAME.safetensors, where NAME is the folder's own name")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: torch's)")
    parser.add_argument("--seconds", type=float, help="stop after this many seconds of training in all; the same command "
                                                      "without it, or with more, resumes")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> int:
    """Train one stage. Raises AnimkitError for settings that do not fit."""
    import torch

    from animkit.training.config import load_config
    from animkit.training.stages import TRAIN

    above_zero(seconds=args.seconds)
    config = load_config(args.config, args.stage, args.overrides)
    folder = args.folder or Path("runs") / f"{args.config.stem}-{args.stage}"
    if args.threads:
        torch.set_num_threads(args.threads)
    words = ["animkit", "train", args.stage, "--config", str(args.config)]
    words += [word for override in args.overrides for word in ("--set", override)]
    words += ["--folder", str(args.folder)] if args.folder else []
    words += ["--threads", str(args.threads)] if args.threads else []
    TRAIN[args.stage.replace("-", "_")](config, folder, quiet=args.quiet, seconds=args.seconds,
                                         command=shlex.join(words))
    return 0
