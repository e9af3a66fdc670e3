"""`animkit judge WHAT`: what the miniature is worth, in numbers, with 95 % bootstrap intervals.

    stills   200 prompts, one picture each, no motion module: is the named thing there, in its colour, place and look?
    motion   100 prompts, ten for each motion, 16 frames: does the thing move as named? And, from the same noise,
             without the motion module?
    judge    the judge itself, on real renders that it never saw, where every answer is known
    adapter, looks, shots, cost   the zoo: see evaluate_zoo.py

The seed fixes the list of prompts; steps and guidance are the shipped ones. Beside the miniature's numbers are those of
real renders of the same scenes, by the same judge: they show how often it errs itself.
"""
import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tqdm.auto import tqdm

from .. import samples
from ..errors import AnimkitError, positive
from ..files import make_folder
from ..metrics.intervals import bootstrap, share
from ..metrics.motion import motion_of
from ..record import record
from ..show.filmstrip import Picture
from ..show.sheet import sheet
from ..world import BASE_LOOKS, LOOKS, MOTIONS, random_scene, render
from ..world.captions import HELD_OUT, TEMPLATES, caption
from .clip import COLOURLESS
from .judge import TEXT, Judge, asked, moment, names_its_look, text_found, truth
from .motion_clips import FRAMES, KINDS, flickering, incoherent, with_marks
from .motion_judge import INCOHERENT, STILL, MotionJudge

COUNTS = {"stills": 200, "motion": 100, "judge": 1000}
ZOO = ("adapter", "looks", "shots", "cost")
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
DRAWN = ("stills", "motion", "adapter", "looks", "shots")
GOES_WITH = {"guided": ("shots",), "eased": ("looks",), "steps": ("adapter", "looks", "shots"), "precision": DRAWN,
             "batch": (*DRAWN, "judge"), "seed": (*DRAWN, "judge"), "count": (*DRAWN, "judge")}  # option -> what reads it


def draw(animator, prompts: list[str], frames: int, seed: int, batch: int = 20, said: str = "", **how) -> np.ndarray:
    """Clips n f h w 3, uint8; clip k from the noise of seed + k. They are drawn in batches, with a progress bar.

    how: further arguments of the animator's call."""
    drawn = []
    with tqdm(total=len(prompts), desc=said, unit="clip" if frames > 1 else "picture") as bar:
        for k in range(0, len(prompts), batch):
            clips = animator(prompts[k:k + batch], frames=frames, seed=seed + k, progress=False, **how)
            drawn += [np.asarray(clip) for clip in clips]
            bar.update(len(clips))
    return np.stack(drawn)


def judge_stills(animator, judge: Judge, count: int = 200, seed: int = 0, batch: int = 20) -> tuple[dict, Picture]:
    """Scores of `count` pictures, and a sheet of some, a row for each look. The animator has no motion module."""
    prompts, scenes = map(list, zip(*asked(count, seed)))
    named = np.array([names_its_look(*each) for each in zip(prompts, scenes)])
    pictures = draw(animator, prompts, 1, seed, batch, "drawing")
    real = np.stack([moment(scene, k) for k, scene in enumerate(scenes)])[:, None]
    scores = {}
    for whose, clips in (("miniature", pictures), ("real renders", real)):
        shown = judge.pictures(clips[:, 0])
        looks = np.array([found == s.look for found, s in zip(shown["look"], scenes)])
        scores[whose] = {a: share(right) for a, right in text_found(shown, scenes).items()}
        scores[whose]["look, where named"] = share(looks[named])
    first = {look: [k for k in range(count) if scenes[k].look == look][:10] for look in BASE_LOOKS}
    rows = {look: {str(i + 1): pictures[k, 0] for i, k in enumerate(ks)} for look, ks in first.items()}
    return {"scores": scores}, in_rows(rows, f"The first pictures of each look, from prompts such as: {prompts[0]}")


def judge_motion(animator, judge: Judge, count: int = 100, seed: int = 0, batch: int = 20,
                 look: str | None = None) -> tuple[dict, Picture]:
    """Scores of `count` clips with the motion module and, from the same noise, without; a sheet, a clip each motion.

    look: one that is inserted in the animator; then no prompt names a look. The animator loses its motion module here.
    """
    prompts, scenes = map(list, zip(*asked(count, seed, look=look is None)))
    readable = tuple(a for a in TEXT if a != "colour" or look not in COLOURLESS)
    named = [truth(s, "motion") for s in scenes]
    drawn = {"with the module": draw(animator, prompts, FRAMES, seed, batch, "with the motion module")}
    animator.remove("motion")
    drawn["without it"] = draw(animator, prompts, FRAMES, seed, batch, "without it")
    drawn["real renders"] = np.stack([render(s if look is None else s.with_(look=look)).uint8 for s in scenes])
    scores, motions = {}, {}
    for whose, clips in drawn.items():
        found, shown = judge.motion(clips), judge.pictures(clips.reshape(-1, *clips.shape[2:]))
        right = [f == name for f, name in zip(found, named)]
        forced = judge.motion(clips, among=tuple(MOTIONS))  # a weak module's first progress shows here; chance is 1 in 10
        scores[whose] = {"named motion": share(right),
                         "if it must name one of ten": share([f == name for f, name in zip(forced, named)]),
                         "still": share([f == "still" for f in found]),
                         "incoherent": share([f == "incoherent" for f in found]),
                         "flicker (warp error, % of white)": flicker(clips),
                         **{a: share(r) for a, r in text_found(shown, scenes, readable).items()}}
        if look is not None:
            looks = np.array([found == look for found in shown["look"]])
            scores[whose]["look"] = share(looks.reshape(len(clips), -1).mean(1))
        motions[whose] = counted(found, named, MOTIONS)
    clips = drawn["with the module"]
    rows = {m: {f"frame {j + 1}": clips[k, j] for j in range(0, FRAMES, 2)} for k, m in enumerate(MOTIONS) if k < count}
    return {"scores": scores, "motions": motions}, in_rows(rows, "Every other frame of the first clip for each motion")


def judge_judge(judge: Judge, count: int = 1000, seed: int = 0) -> dict:
    """The judge on real renders in all looks, of seeds that no stage trains on: attributes, captions, motion.

    Colours are not asked in looks that have none."""
    seed += 77_000_000  # far from the recipe's seeds
    scenes = [scene for _, scene in asked(count, seed, looks=tuple(LOOKS))]
    bar = tqdm(scenes, desc="rendering pictures", unit="picture")
    pixels = np.stack([moment(scene, seed + k) for k, scene in enumerate(bar)])
    scores = {a: share([f == truth(s, a) for f, s in zip(found, scenes) if a != "colour" or s.look not in COLOURLESS])
              for a, found in judge.pictures(pixels).items()}
    scores["motion's marks"] = scores.pop("motion")
    rng = np.random.default_rng(seed)
    for said, templates in (("known wordings", TEMPLATES), ("wordings held out", HELD_OUT)):
        captions = [caption(s, rng, templates) for s in scenes]
        scores[f"caption among {min(100, count)}, {said}"] = share(judge.retrieved(pixels, captions))
    return {"scores": {"real renders": scores}, **judge_eye(judge.eye, max(1, count // 25), seed)}


def judge_eye(eye: MotionJudge, each: int = 40, seed: int = 77_000_000) -> dict:
    """The motion judge on `each` new clips of every motion and of none, in all looks: with the motion's own marks (speed
    lines and such), without marks, with another motion's marks, flickering; on clips that are frozen or shuffled; on clips
    whose frames do not belong together."""
    rng, kinds, looks = np.random.default_rng(seed), KINDS[:-1], list(LOOKS)
    truths = [kind for kind in kinds for _ in range(each)]
    scenes = [random_scene(rng, motion=None if kind == "still" else kind, look=looks[k % len(looks)])
              for k, kind in enumerate(truths)]
    others = [str(rng.choice([m for m in MOTIONS if m != kind])) for kind in truths]
    scores, motions, clips = {}, {}, None
    worn = {"own marks": ["own"] * len(scenes), "no marks": [None] * len(scenes), "another's marks": others}
    for said, marks in worn.items():
        bar = tqdm(zip(scenes, marks), desc=f"rendering clips, {said}", total=len(scenes), unit="clip")
        shown = np.stack([render(with_marks(scene, mark)).uint8 for scene, mark in bar])
        found = [KINDS[k] for k in eye.which(shown)]
        right = np.array([f == t for f, t in zip(found, truths)])
        scores[f"motion, {said}"], motions[said] = share(right), counted(found, truths, kinds)
        if clips is None:
            clips, by_look = shown, {look: share(right[k::len(looks)])["share"] for k, look in enumerate(looks)}
    bar = tqdm(scenes, desc="rendering clips, flickering", unit="clip")
    trembling = np.stack([(flickering(rng, s, np.arange(FRAMES) / FRAMES) * 255 + 0.5).astype(np.uint8) for s in bar])
    found = [KINDS[k] for k in eye.which(trembling)]
    scores["motion, flickering"] = share([f == t for f, t in zip(found, truths)])
    motions["flickering"] = counted(found, truths, kinds)
    frozen = eye.which(np.repeat(clips[:, FRAMES // 2:FRAMES // 2 + 1], FRAMES, 1))
    ordered = [k for k, t in enumerate(truths) if t not in ("still", "shaking", "spinning")]  # these may look right in any order
    shuffled = eye.which(np.stack([clips[k, rng.permutation(FRAMES)] for k in ordered]))
    apart = eye.which(np.stack([(incoherent(rng) * 255 + 0.5).astype(np.uint8) for _ in range(2 * each)]))
    scores |= {"frozen clips are still": share((frozen == STILL).numpy()),
               "shuffled clips are incoherent": share((shuffled == INCOHERENT).numpy()),
               "frames drawn apart are incoherent": share((apart == INCOHERENT).numpy())}
    return {"eye": scores, "motions": motions, "motion by look": by_look}


def number(values) -> dict:
    """Mean and bootstrap interval of values that are not shares: {"mean", "low", "high", "n"}."""
    value, low, high, n = bootstrap(values)
    named = {"mean": value, "low": low, "high": high}
    return {name: None if v is None else round(v, 4) for name, v in named.items()} | {"n": n}


def flicker(clips: np.ndarray) -> dict:
    """The mean warp error of clips: what motion does not explain of the change between frames (metrics.motion_of)."""
    return number([motion_of(clip).warp_error for clip in clips])


def counted(found: list[str], named: list[str], kinds) -> dict:
    """For each motion: how often it was named and found, and what the judge took its clips for, the most frequent first."""
    out = {}
    for kind in kinds:
        taken = [f for f, name in zip(found, named) if name == kind]
        out[kind] = {"named": len(taken), "found": taken.count(kind),
                     "taken for": {f: taken.count(f) for f in sorted(set(taken), key=lambda f: (-taken.count(f), f))}}
    return out


# ---- what is shown and written

def in_rows(rows: dict[str, dict[str, np.ndarray]], alt: str) -> Picture:
    """A labelled sheet at the pictures' own size, in 256 colours to keep its file small; empty rows are left out."""
    rows = {name: pictures for name, pictures in rows.items() if pictures}
    page = sheet(rows, alt, size=1)
    return Picture(page.image.quantize(256, dither=Image.Dither.NONE), page.alt)


def table(report: dict) -> str:
    """The report as text: a line for each score, a column for each set of clips; then motion by motion."""
    def cell(s):
        if "mean" in s:
            return f"{s['mean']:5.1f} ({s['low']:.1f} to {s['high']:.1f})" if s["n"] else "-"
        return f"{100 * s['share']:5.1f} % ({100 * s['low']:.0f} to {100 * s['high']:.0f})" if s["n"] else "-"

    scores = report["scores"]
    lines = [["share that is right", *scores]]
    lines += [[name, *[cell(column[name]) for column in scores.values()]] for name in next(iter(scores.values()))]
    lines += [[name, cell(s)] for name, s in report.get("eye", {}).items()]
    if motions := report.get("motions"):
        lines += [[""], ["found of named", *motions]]
        lines += [[m, *[f"{column[m]['found']} of {column[m]['named']}" for column in motions.values()]]
                  for m in next(iter(motions.values()))]
    first = max(len(line[0]) for line in lines)
    return "\n".join("  ".join([line[0].ljust(first), *[c.ljust(20) for c in line[1:]]]).rstrip() for line in lines)


def open_animator(folder: Path, motion: bool = False, look: str | None = None, dtype: torch.dtype = torch.float32,
                  module: Path | None = None):
    """The miniature of a folder, with a look if given. motion: with the folder's motion module, or another `module` (a file
    or folder). AnimkitError for what is missing."""
    from ..animator import Animator
    looks = {path.stem: path for path in sorted((folder / "looks").glob("*.safetensors"))}
    if look is not None and look not in LOOKS:
        raise AnimkitError(f"The judge knows no look {look!r}; it knows: {', '.join(LOOKS)}.")
    if look is not None and look not in looks:
        raise AnimkitError(f"There is no look {look!r} in {folder / 'looks'}; there are: {', '.join(looks) or 'none'}.")
    if motion and module is None and not (folder / "motion_module").is_dir():
        raise AnimkitError(f"There is no motion module in {folder / 'motion_module'}: train it with `animkit miniature "
                           "motion assemble`.")
    animator = Animator(folder / "miniature", motion=(module or folder / "motion_module") if motion else False,
                        dtype=dtype)
    if look is not None:
        animator.insert(looks[look], name=look)
    return animator


def fingerprints(folder: Path) -> dict[str, str]:
    """{file: twelve digits} of all weights in a samples folder: they say which weights a result belongs to."""
    return {file.relative_to(folder).as_posix(): fingerprint(file) for file in sorted(folder.rglob("*.safetensors"))}


def fingerprint(file: Path) -> str:
    """Twelve digits of a hash of a safetensors file's weights; not of its bytes: the order of its metadata may vary."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        digest.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


TOLD = ("command", "steps", "minutes", "minutes_preparing", "processes", "device", "peak_memory_mb")  # of train.json


def about_module(module: Path) -> dict:
    """What a result says about a motion module that is not the folder's own: its file, its weights and, if a train.json is
    beside it, how it was made."""
    folder = module if module.is_dir() else module.parent
    files = [f for f in sorted(folder.glob("*.safetensors")) if module in (folder, f)]
    about = {"file": os.path.basename(os.path.abspath(module)), "weights": {f.name: fingerprint(f) for f in files}}
    if (folder / "train.json").exists():
        told = json.loads((folder / "train.json").read_text())
        if told["file"] in about["weights"]:  # and not of another file in that folder
            about["training"] = {k: told[k] for k in TOLD} | {"start": told["settings"]["start"]}
    return about


def add_arguments(parser) -> None:
    parser.add_argument("what", choices=[*COUNTS, *ZOO], help="what to judge")
    parser.add_argument("--count", type=int, help="number of prompts (default: stills 200, motion 100; adapter, looks, "
                                                  "shots 20) or pictures (judge 1000); few for a quick look")
    parser.add_argument("--look", help="motion, adapter: insert this look of looks/; looks: judge only this one")
    parser.add_argument("--module", type=Path, help="motion: judge this motion module, such as runs/mine"
                                                    ", instead of the shipped one; results are named after it")
    parser.add_argument("--folder", type=Path, help="where miniature/, judge/, motion_module/ and looks/ are "
                                                    "(default: the shipped samples)")
    parser.add_argument("--out", type=Path, help="folder for results (default: out/judge; with --folder, results/ in that)")
    parser.add_argument("--batch", type=int, help="prompts drawn at once (default: 20)")
    parser.add_argument("--seed", type=int, help="another list of prompts and other noise (default: 0)")
    parser.add_argument("--threads", type=positive, help="CPU threads")
    parser.add_argument("--precision", choices=PRECISIONS,
                        help="precision of drawing clips; bf16 takes two thirds of the time where the processor computes "
                             "in it, and changes colours by half a level of 255 (default: float32, as users draw)")
    parser.add_argument("--guided", type=float, metavar="WEIGHT", help="shots: guide towards each MotionLoRA with this "
                        "weight (guided=), instead of the paper's way: one alpha in both halves of the guidance")
    parser.add_argument("--eased", type=float, metavar="SHARE", help="looks: give the motion module this share of its alpha in "
                        "the last half of the timesteps (eased=), instead of the paper's way: all of it to the end")
    parser.add_argument("--steps", type=positive, help="adapter, looks, shots: steps of the sampler (default: the base's own)")


def _writable(folder: Path) -> Path:
    """The folder, made if absent; AnimkitError, before hours of drawing, if nothing can be written to it."""
    if not os.access(make_folder(folder), os.W_OK):
        raise AnimkitError(f"Nothing can be written to {folder}: choose another folder by --out.")
    return folder


def run(args) -> int:
    """Judge, write WHAT.json (and a sheet WHAT.webp), print the table. AnimkitError for missing or damaged weights."""
    if args.threads:
        torch.set_num_threads(args.threads)
    for option, whats in GOES_WITH.items():
        if getattr(args, option) is not None and args.what not in whats:
            raise AnimkitError(f"--{option} goes with `animkit judge {'|'.join(whats)}`, not with {args.what}.")
    for option, default in {"batch": 20, "seed": 0, "precision": "float32"}.items():  # here: above, None means not given
        if getattr(args, option) is None:
            setattr(args, option, default)
    if args.seed < 0:
        raise AnimkitError(f"The seed is 0 or more; got {args.seed}.")
    if args.module and (args.what != "motion" or args.look):
        raise AnimkitError("--module goes with `animkit judge motion` without --look.")
    if args.folder and not args.folder.is_dir():  # or results/ would be made in it
        raise AnimkitError(f"There is no folder {args.folder}: --folder is where miniature/, judge/ and others lie.")
    args.out = _writable(args.out or (Path("out", "judge") if args.folder is None else args.folder / "results"))
    if args.what in ZOO:
        from . import evaluate_zoo  # here, since it imports this module
        return evaluate_zoo.run(args)
    what, look, start = args.what, args.look, time.monotonic()
    count = COUNTS[what] if args.count is None else args.count
    if count < 1 or args.batch < 1:
        raise AnimkitError(f"--count and --batch are at least 1; got {count} and {args.batch}.")
    if look and what != "motion":
        raise AnimkitError(f"--look goes with `animkit judge motion`, not with {what}.")
    of = look or args.module and Path(os.path.abspath(args.module)).stem  # so that "." has a name too
    if args.module and of in LOOKS:
        raise AnimkitError(f"motion-{of}.json is the result of the look {of!r}: give the module {args.module} another name.")
    folder = samples.root() if args.folder is None else args.folder
    judge, picture, settings, device = Judge.from_pretrained(folder / "judge"), None, {}, "cpu"
    if what == "judge":
        report = judge_judge(judge, count, args.seed)
    else:
        animator = open_animator(folder, motion=what == "motion", look=look, dtype=PRECISIONS[args.precision],
                                 module=args.module)
        settings, device = {k: animator.defaults[k] for k in ("steps", "guidance")}, str(animator.pipe.unet.device)
        report, picture = judge_stills(animator, judge, count, args.seed, args.batch) if what == "stills" else \
            judge_motion(animator, judge, count, args.seed, args.batch, look)
    out, name = args.out, f"{what}-{of}" if of else what
    named = {"look": look, "module": args.module, "count": count, "seed": args.seed}
    said = f"animkit judge {what}" + "".join(f" --{k} {v}" for k, v in named.items() if v is not None)
    if args.precision != "float32":
        said, settings = f"{said} --precision {args.precision}", settings | {"precision": args.precision}
    parameters = {"command": said, "count": count, "seed": args.seed, "look": look, **settings}
    parameters |= {"module": about_module(args.module)} if args.module else {}
    record(out / f"{name}.json", parameters | {"weights": fingerprints(folder)}, report,
           {"all": time.monotonic() - start}, device)
    written = [out / f"{name}.json"] if picture is None else [out / f"{name}.json", picture.save(out / f"{name}.webp")]
    print(f"{table(report)}\n\n{', '.join(map(str, written))}")
    return 0
