"""`animkit judge WHAT`: what the miniature is worth, in numbers, with 95 % bootstrap intervals.

    stills   200 prompts, one picture each, no motion module: is the named thing there, in its colour, place and look?
    motion   100 prompts, ten for each motion, 16 frames: does the thing move as named? And without the motion module, from the same noise?
    judge    the judge itself, on real renders that it never saw, where every answer is known

Prompts are a fixed list that a seed makes; steps and guidance are the shipped ones. Real renders of the very same scenes, judged
by the same judge, stand beside the miniature's numbers: no model can be measured better than that.
"""
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

import animkit

from .. import samples
from ..errors import AnimkitError
from ..files import write_atomically
from ..quiet import quiet_libraries
from ..world import BASE_LOOKS, LOOKS, MOTIONS, Scene, random_scene, render
from ..world.captions import HELD_OUT, LOOK, TEMPLATES, caption

with quiet_libraries():
    from transformers import CLIPTokenizer

    from .clip import ImageText, classify, embed_images, embed_text, tokens
    from .motion_clips import FRAMES, KINDS, incoherent, with_marks
    from .motion_judge import MotionJudge
    from .stills import NAMES
    from .vae import to_signal

TEXT = ("object", "colour", "setting")


@dataclass
class Judge:
    """The two eyes that score what is drawn: an image-text model for pictures, a motion judge for clips; neither takes part in training."""
    clip: ImageText
    tokenizer: CLIPTokenizer
    eye: MotionJudge

    @classmethod
    def from_pretrained(cls, folder: Path) -> "Judge":
        """Raises AnimkitError if a part is missing or damaged."""
        clip = ImageText.from_pretrained(folder)
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder)
            if len(tokenizer) != clip.text_model.config.vocab_size:  # transformers makes an empty one where a file is missing
                raise ValueError(f"{len(tokenizer)} tokens for a model of {clip.text_model.config.vocab_size}")
        except (OSError, ValueError, TypeError) as e:
            raise AnimkitError(f"{folder} holds no tokenizer for its model ({str(e).splitlines()[0]}); the judge's is saved beside it: fetch or train both again.") from e
        return cls(clip, tokenizer, MotionJudge.load(Path(folder) / "motion.safetensors"))

    def picture(self, pixels: np.ndarray, attribute: str) -> list[str]:
        """What each picture (n h w 3, uint8) shows: an object, a colour, a setting, a look, a motion's marks."""
        found = [classify(self.clip, self.tokenizer, to_signal(torch.from_numpy(part)), attribute) for part in np.array_split(pixels, -(-len(pixels) // 500))]
        return [NAMES[attribute][k] for k in torch.cat(found)]

    def motion(self, clips: np.ndarray) -> list[str]:
        """What each clip (n 16 h w 3, uint8) shows: one of the ten motions, "still" or "incoherent"."""
        return [KINDS[k] for k in self.eye.which(clips)]


# ---- what is asked, and what is drawn

def asked(count: int, seed: int, looks=BASE_LOOKS, look: bool = True, templates=TEMPLATES) -> list[tuple[str, Scene]]:
    """Prompts with the scenes they tell of: one thing each, objects, colours, settings and looks by chance, the motions in turn."""
    rng, wording, motions = np.random.default_rng(seed), np.random.default_rng(seed + 1), list(MOTIONS)
    scenes = [random_scene(rng, motion=motions[k % len(motions)], look=tuple(looks)) for k in range(count)]
    return [(caption(scene, wording, templates, look), scene) for scene in scenes]


def draw(animator, prompts: list[str], frames: int, seed: int, batch: int = 20, said: str = "") -> np.ndarray:
    """Clips n f h w 3, uint8; clip k from noise of seed + k, in batches, under a bar that tells how long it will take."""
    drawn = []
    with tqdm(total=len(prompts), desc=said, unit="clip" if frames > 1 else "picture") as bar:
        for k in range(0, len(prompts), batch):
            clips = animator(prompts[k:k + batch], frames=frames, seed=seed + k, progress=False)
            drawn += [np.asarray(clip) for clip in clips]
            bar.update(len(clips))
    return np.stack(drawn)


def moment(scene: Scene, k: int) -> np.ndarray:
    """A real picture of a scene (h w 3, uint8), at a moment that the number k chooses."""
    return render(scene, u=[np.random.default_rng(k).random()]).uint8[0]


# ---- what is right

def share(right, rounds: int = 2000) -> dict:
    """{"share", "low", "high", "n"}: the mean of numbers in 0 to 1, one a prompt, and the 95 % interval of its bootstrap (percentiles over resampled prompts)."""
    right = np.asarray(right, float)
    if not len(right):
        return {"share": None, "low": None, "high": None, "n": 0}
    means = right[np.random.default_rng(0).integers(len(right), size=(rounds, len(right)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"share": round(float(right.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4), "n": len(right)}


def text_found(judge: Judge, clips: np.ndarray, scenes: list[Scene]) -> dict[str, np.ndarray]:
    """Attribute -> for each clip (n f h w 3) the share of its frames that show what the prompt says; "all three" at once, too."""
    n, f = clips.shape[:2]
    right = {a: np.array([found == truth(scenes[k // f], a) for k, found in enumerate(judge.picture(clips.reshape(-1, *clips.shape[2:]), a))]).reshape(n, f) for a in TEXT}
    right["all three"] = right["object"] & right["colour"] & right["setting"]
    return {a: r.mean(1) for a, r in right.items()}


def truth(scene: Scene, attribute: str) -> str:
    return {"setting": scene.setting, "look": scene.look, "object": scene.things[0].object, "colour": scene.things[0].colour, "motion": scene.things[0].motion or "still"}[attribute]


def names_its_look(prompt: str, scene: Scene) -> bool:
    return any(words and prompt.endswith(f", {words}") for words in LOOK.get(scene.look, ()))


def judge_stills(animator, judge: Judge, count: int = 200, seed: int = 0, batch: int = 20) -> tuple[dict, Image.Image]:
    """Scores of `count` pictures, and a sheet of some, a row for each look. The animator has no motion module."""
    prompts, scenes = map(list, zip(*asked(count, seed)))
    pictures = draw(animator, prompts, 1, seed, batch, "drawing")
    real = np.stack([moment(scene, k) for k, scene in enumerate(scenes)])[:, None]
    named = np.array([names_its_look(p, s) for p, s in zip(prompts, scenes)])
    scores = {}
    for whose, clips in (("miniature", pictures), ("real renders", real)):
        looks = np.array([found == s.look for found, s in zip(judge.picture(clips[:, 0], "look"), scenes)])
        scores[whose] = {**{a: share(r) for a, r in text_found(judge, clips, scenes).items()}, "look, where named": share(looks[named])}
    rows = {look: [pictures[k, 0] for k in range(count) if scenes[k].look == look][:10] for look in BASE_LOOKS}
    return {"prompts": count, "scores": scores}, sheet(rows)


def judge_motion(animator, judge: Judge, count: int = 100, seed: int = 0, batch: int = 20, look: str | None = None) -> tuple[dict, Image.Image]:
    """Scores of `count` clips with the motion module and, from the same noise, without it; and a sheet with a clip for each motion.

    look: the name of a look that is inserted in the animator; its word stands in no prompt. The animator ends without its motion module.
    """
    prompts, scenes = map(list, zip(*asked(count, seed, look=look is None)))
    real = np.stack([render(s if look is None else s.with_(look=look)).uint8 for s in scenes])
    drawn = {"with the module": draw(animator, prompts, FRAMES, seed, batch, "with the motion module")}
    animator.remove("motion")
    drawn |= {"without it": draw(animator, prompts, FRAMES, seed, batch, "without it"), "real renders": real}
    scores, motions = {}, {}
    for whose, clips in drawn.items():
        found = judge.motion(clips)
        right = np.array([f == truth(s, "motion") for f, s in zip(found, scenes)])
        scores[whose] = {"named motion": share(right), "still": share([f == "still" for f in found]), "incoherent": share([f == "incoherent" for f in found]), **{a: share(r) for a, r in text_found(judge, clips, scenes).items()}}
        if look is not None:
            looks = judge.picture(clips.reshape(-1, *clips.shape[2:]), "look")
            scores[whose]["look"] = share(np.array([f == look for f in looks]).reshape(len(clips), -1).mean(1))
        motions[whose] = {m: {"named": sum(truth(s, "motion") == m for s in scenes), "found": int(right[[truth(s, "motion") == m for s in scenes]].sum()),
                              "taken for": _counts(f for f, s in zip(found, scenes) if truth(s, "motion") == m)} for m in MOTIONS}
    rows = {m: list(drawn["with the module"][k, ::2]) for k, m in enumerate(MOTIONS) if k < count}
    return {"prompts": count, "look": look, "scores": scores, "motions": motions}, sheet(rows)


def judge_judge(judge: Judge, count: int = 1000, seed: int = 0) -> dict:
    """The judge on real renders in all twelve looks, of seeds that no stage trains on: every attribute, captions never read before, and motion."""
    seed += 77_000_000  # far from the recipe's
    known = asked(count, seed, looks=tuple(LOOKS))
    scenes = [scene for _, scene in known]
    pixels = np.stack([moment(scene, seed + k) for k, scene in enumerate(tqdm(scenes, desc="rendering pictures", unit="picture"))])
    scores = {a: share([found == truth(s, a) for found, s in zip(judge.picture(pixels, a), scenes)]) for a in NAMES}
    rng = np.random.default_rng(seed)
    for said, templates in (("caption among 100, known wordings", TEMPLATES), ("caption among 100, wordings held out", HELD_OUT)):
        scores[said] = share(retrieved(judge, pixels, [caption(s, rng, templates) for s in scenes]))
    return {"pictures": count, "scores": {"real renders": scores}, **judge_eye(judge.eye, max(1, count // 25), seed)}


@torch.no_grad()
def retrieved(judge: Judge, pixels: np.ndarray, captions: list[str], pool: int = 100) -> np.ndarray:
    """For each picture: is the caption nearest to it, among those of its pool of 100, its own (or the same words)?"""
    right = []
    for k in range(0, len(pixels), pool):
        here = captions[k:k + pool]
        nearest = (embed_images(judge.clip, to_signal(torch.from_numpy(pixels[k:k + pool]))) @ embed_text(judge.clip, tokens(judge.tokenizer, here)).T).argmax(-1)
        right += [here[int(j)] == own for j, own in zip(nearest, here)]
    return np.array(right)


def judge_eye(eye: MotionJudge, each: int = 40, seed: int = 77_000_000) -> dict:
    """The motion judge on `each` fresh clips of every motion and of none, the looks in turn: with the cartoonist's marks, without, with those of another
    motion; the same clips frozen, and shuffled; and pictures that do not belong together."""
    rng, kinds, looks = np.random.default_rng(seed), list(KINDS[:-1]), list(LOOKS)
    truths = [kind for kind in kinds for _ in range(each)]
    scenes = [random_scene(rng, motion=None if kind == "still" else kind, look=looks[k % len(looks)]) for k, kind in enumerate(truths)]
    others = [[m for m in MOTIONS if m != kind][rng.integers(len(MOTIONS) - (kind != "still"))] for kind in truths]
    shown = {said: np.stack([render(with_marks(s, cue)).uint8 for s, cue in zip(tqdm(scenes, desc=f"rendering clips, {said}", unit="clip"), cues)])
             for said, cues in (("own marks", ["own"] * len(scenes)), ("no marks", [None] * len(scenes)), ("another's marks", others))}
    found = {said: [KINDS[k] for k in eye.which(clips)] for said, clips in shown.items()}
    right = {said: np.array([f == t for f, t in zip(names, truths)]) for said, names in found.items()}
    frozen = eye.which(np.repeat(shown["own marks"][:, FRAMES // 2:FRAMES // 2 + 1], FRAMES, 1))
    chance = [k for k, t in enumerate(truths) if t not in ("still", "shaking", "spinning")]  # these may look the same in any order
    shuffled = eye.which(np.stack([shown["own marks"][k, rng.permutation(FRAMES)] for k in chance]))
    apart = eye.which(np.stack([(incoherent(rng) * 255 + 0.5).astype(np.uint8) for _ in range(2 * each)]))
    scores = {**{f"motion, {said}": share(r) for said, r in right.items()}, "frozen clips are still": share([KINDS[k] == "still" for k in frozen]),
              "shuffled clips are incoherent": share([KINDS[k] == "incoherent" for k in shuffled]), "frames drawn apart are incoherent": share([KINDS[k] == "incoherent" for k in apart])}
    motions = {said: {kind: {"named": each, "found": int(right[said][[t == kind for t in truths]].sum()), "taken for": _counts(f for f, t in zip(found[said], truths) if t == kind)} for kind in kinds} for said in found}
    by_look = {look: share(right["own marks"][k::len(looks)])["share"] for k, look in enumerate(looks)}
    return {"clips": len(truths), "eye": scores, "motions": motions, "motion by look": by_look}


def _counts(names) -> dict[str, int]:
    names = list(names)
    return {name: names.count(name) for name in sorted(set(names), key=lambda n: -names.count(n))}


# ---- what is shown and written

def sheet(rows: dict[str, list[np.ndarray]]) -> Image.Image:
    """Pictures in rows, each row under its name at the left, in 256 colours."""
    rows = {name: pictures for name, pictures in rows.items() if pictures}
    side, left = next(iter(rows.values()))[0].shape[0], 72
    page = Image.new("RGB", (left + max(map(len, rows.values())) * (side + 2), len(rows) * (side + 2)), "white")
    for y, (name, pictures) in enumerate(rows.items()):
        ImageDraw.Draw(page).text((4, y * (side + 2) + side // 2), name, "black", anchor="lm")
        for x, picture in enumerate(pictures):
            page.paste(Image.fromarray(picture), (left + x * (side + 2), y * (side + 2)))
    return page.quantize(256, dither=Image.Dither.NONE)


def table(report: dict) -> str:
    """The report's scores as text: a line for each score, a column for each of what was judged."""
    def cell(s):
        return "-" if not s or s["share"] is None else f"{100 * s['share']:5.1f} % ({100 * s['low']:.0f} to {100 * s['high']:.0f})"
    scores = report["scores"]
    lines = [["share that is right", *scores], *[[name, *[cell(column.get(name)) for column in scores.values()]] for name in next(iter(scores.values()))]]
    lines += [[name, cell(s)] for name, s in report.get("eye", {}).items()]
    if "motions" in report:
        lines += [[], ["found of named", *report["motions"]], *[[m, *[f"{column[m]['found']} of {column[m]['named']}" for column in report["motions"].values()]] for m in next(iter(report["motions"].values()))]]
    first = max(len(line[0]) for line in lines if line)
    return "\n".join("  ".join([line[0].ljust(first), *[c.ljust(20) for c in line[1:]]]).rstrip() if line else "" for line in lines)


def add_arguments(parser) -> None:
    parser.add_argument("what", choices=["stills", "motion", "judge"], help="what is judged")
    parser.add_argument("--count", type=int, help="how many prompts (stills: 200, motion: 100) or pictures (judge: 1000); small ones for a quick look")
    parser.add_argument("--look", help="motion: insert this look of looks/")
    parser.add_argument("--folder", type=Path, help="where miniature/, judge/, motion_module/ and looks/ lie (default: the shipped samples)")
    parser.add_argument("--out", type=Path, help="where results go (default: results/ in that folder)")
    parser.add_argument("--batch", type=int, default=20, help="prompts drawn at once")
    parser.add_argument("--seed", type=int, default=0, help="another list of prompts and other noise")
    parser.add_argument("--threads", type=int, help="CPU threads")


def run(args) -> int:
    """Judge, write results/WHAT.json (and a sheet WHAT.png), print the table. Raises AnimkitError when weights are missing or damaged."""
    if args.threads:
        torch.set_num_threads(args.threads)
    count = {"stills": 200, "motion": 100, "judge": 1000}[args.what] if args.count is None else args.count
    if count < 1 or args.batch < 1:
        raise AnimkitError(f"--count and --batch are at least 1; got {count} and {args.batch}.")
    if args.look and args.what != "motion":
        raise AnimkitError(f"--look goes with `animkit judge motion`, not with {args.what}.")
    folder = samples.root() if args.folder is None else args.folder
    judge, picture, start = Judge.from_pretrained(folder / "judge"), None, time.time()
    if args.what == "judge":
        report = judge_judge(judge, count, args.seed)
    elif args.what == "stills":
        animator = open_animator(folder)
        report, picture = judge_stills(animator, judge, count, args.seed, args.batch)
    else:
        animator = open_animator(folder, motion=True, look=args.look)
        report, picture = judge_motion(animator, judge, count, args.seed, args.batch, args.look)
    if args.what != "judge":
        report["settings"] = {k: animator.defaults[k] for k in ("steps", "guidance")}
    name = f"motion-{args.look}" if args.look else args.what
    report = {"command": f"animkit judge {args.what}{f' --look {args.look}' if args.look else ''} --count {count} --seed {args.seed}", "animkit": animkit.__version__, "seconds": round(time.time() - start), **report}
    out = folder / "results" if args.out is None else args.out
    written = [write_atomically(out / f"{name}.json", lambda beside: Path(beside).write_text(json.dumps(report, indent=1) + "\n"))]
    if picture is not None:
        written.append(write_atomically(out / f"{name}.png", lambda beside: picture.save(beside, "PNG", optimize=True)))
    print(f"{table(report)}\n\n{', '.join(map(str, written))}")
    return 0


def open_animator(folder: Path, motion: bool = False, look: str | None = None):
    """The miniature of a folder with its motion module or without, and with a look of its looks/. Raises AnimkitError for what is not there."""
    from ..animator import Animator
    looks = {path.stem: path for path in sorted((folder / "looks").glob("*.safetensors"))}
    if look is not None and look not in LOOKS:
        raise AnimkitError(f"The judge knows no look {look!r}; it knows: {', '.join(LOOKS)}.")
    if look is not None and look not in looks:
        raise AnimkitError(f"There is no look {look!r} in {folder / 'looks'}; there are: {', '.join(looks) or 'none'}.")
    if motion and not (folder / "motion_module").is_dir():
        raise AnimkitError(f"There is no motion module in {folder / 'motion_module'}: train it with `animkit miniature motion assemble`.")
    animator = Animator(folder / "miniature", motion=folder / "motion_module" if motion else False)
    if look is not None:
        animator.insert(looks[look], name=look)
    return animator
